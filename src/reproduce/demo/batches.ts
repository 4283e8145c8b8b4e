import { collate, type Example } from '../../io/dataset.js';
import { BatchSampler } from '../../io/sampler.js';
import { shuffled, streamOf } from '../../tensor/random.js';
import type { BatchSource } from '../../train/trainer.js';

const STREAM = streamOf('demo-length-groups');

/** Batches whose examples are alike in length, and the steps of one pass. */
export interface GroupedBatches extends BatchSource {
  readonly stepsPerEpoch: number;
}

/**
 * Batches for examples of very different lengths. Shuffled windows of `window` batches are sorted
 * by length and cut, and a window's batches come in random order: about half of the padding's work
 * is saved, and a batch still follows from its step alone.
 */
export function groupedBatches(
  examples: readonly Example[],
  padId: number,
  options: { readonly batchSize: number; readonly window: number; readonly seed: number },
): GroupedBatches {
  const { batchSize, seed } = options;
  const window = Math.max(
    1,
    Math.min(options.window, Math.floor(examples.length / options.batchSize)),
  );
  const sampler = new BatchSampler(examples.length, {
    batchSize: batchSize * window,
    seed,
    dropLast: true,
  });
  return {
    stepsPerEpoch: sampler.batchesPerEpoch * window,
    batch(step) {
      const number = Math.floor(step / window);
      const rows = Array.from(sampler.at(number), (i) => examples[i] as Example);
      rows.sort((a, b) => a.ids.length - b.ids.length);
      const order = shuffled({ seed, stream: STREAM, step: number }, window);
      const from = (order[step % window] as number) * batchSize;
      return collate(rows.slice(from, from + batchSize), padId);
    },
  };
}
