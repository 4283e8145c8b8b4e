/** Whole training runs of tiny models, for tests. */
import { LoraAdapters, type LoraConfig } from '../../src/lora/index.js';
import type { CausalLM } from '../../src/models/causal-lm.js';
import { AdamW } from '../../src/optim/index.js';
import type { Backend } from '../../src/tensor/backend.js';
import {
  type BatchSource,
  type StepEvent,
  type TrainOptions,
  train,
} from '../../src/train/trainer.js';
import { TINY, type TinySettings, tinyBatch, tinyModel } from './tiny.js';

/** A model with one adapter `a` and its optimizer. */
export class TinyRun {
  readonly model: CausalLM;
  readonly adapters: LoraAdapters;
  readonly optimizer: AdamW;

  constructor(
    backend: Backend,
    readonly settings: TinySettings = TINY,
    config: LoraConfig = { targetModules: ['all-linear'], rank: 3, dropout: 0.2 },
    lr = 0.02,
  ) {
    this.model = tinyModel(settings, backend);
    this.adapters = new LoraAdapters(this.model).add('a', config, settings.seed);
    this.optimizer = new AdamW([{ parameters: this.adapters.tensors('a') }], { lr });
  }

  /** The batches of step and micro-batch, of different lengths. */
  get source(): BatchSource {
    const { seed, vocab } = this.settings;
    return {
      batch: (step, micro) =>
        tinyBatch(seed + 100 * step + micro, [3 + (step % 3), 6, 2 + micro], vocab),
    };
  }

  /** Trains until `steps` are done. */
  async train(steps: number, options: Partial<TrainOptions> = {}, source = this.source) {
    const events: StepEvent[] = [];
    const settings = { steps, lr: 0.02, seed: 11, schedule: 'constant', ...options } as const;
    for await (const e of train(this.model, this.optimizer, source, settings)) events.push(e);
    return events;
  }

  /** The adapter's and the optimizer's bytes. */
  bits(): Map<string, Buffer> {
    const all = [...this.adapters.tensors('a'), ...this.optimizer.state()];
    return new Map(all.map(([name, t]) => [name, Buffer.from(t.bytes())]));
  }

  [Symbol.dispose](): void {
    this.optimizer.dispose();
    this.adapters.dispose();
    this.model.dispose();
  }
}
