import { collate, type Example } from '../../io/dataset.js';
import { LengthSampler } from '../../io/sampler.js';
import type { BatchSource } from '../../train/trainer.js';

/** Batches whose examples are alike in length, and the steps of one pass. */
export interface GroupedBatches extends BatchSource {
  readonly stepsPerEpoch: number;
}

/** Full batches for examples of very different lengths; see {@link LengthSampler}. */
export function groupedBatches(
  examples: readonly Example[],
  padId: number,
  options: { readonly batchSize: number; readonly window: number; readonly seed: number },
): GroupedBatches {
  const lengths = examples.map((e) => e.ids.length);
  const sampler = new LengthSampler(lengths, { ...options, dropLast: true });
  return {
    stepsPerEpoch: sampler.batchesPerEpoch,
    batch(step) {
      const rows = Array.from(sampler.at(step), (i) => examples[i] as Example);
      return collate(rows, padId);
    },
  };
}
