import type { LoraConfig } from '../../lora/index.js';

/** Settings of a demo run. */
export interface DemoOptions {
  /** The base model: a Hugging Face directory. */
  readonly modelDir: string;
  /** Where adapters, report and results are written. */
  readonly out: string;
  /** auto, cpu or reference. */
  readonly backend: string;
  readonly threads?: number;
  readonly seed: number;
  /** A few steps of everything, to see that it works; the figures then mean nothing. */
  readonly quick: boolean;
}

/** How one adapter is trained. */
export interface FitPlan {
  readonly steps: number;
  /** Sequences a step. */
  readonly batchSize: number;
  /** Peak learning rate; 5% warm-up, then half a cosine. */
  readonly lr: number;
  /** Measurements on held-out data on the way, the last one at the end. */
  readonly measures: number;
}

/** How much of everything a run does. */
export interface Scale {
  readonly name: 'full' | 'reference' | 'quick';
  readonly rank: number;
  readonly category: FitPlan & {
    /** Held-out definitions that are classified. */
    readonly test: number;
  };
  readonly style: FitPlan & {
    readonly seqLength: number;
    /** Held-out chunks of `seqLength` tokens that are measured. */
    readonly chunks: number;
  };
  /** Tokens of the samples. */
  readonly sampleTokens: number;
  /** LoRA beside full fine-tuning: steps of each, and the definitions of a step. */
  readonly cost: { readonly steps: number; readonly batchSize: number };
  /** Passes of each model whose times are compared, and held-out sequences of a pass. */
  readonly merge: { readonly passes: number; readonly batchSize: number };
  /** Switches whose times are measured. */
  readonly switches: number;
}

const FULL: Scale = {
  name: 'full',
  rank: 16,
  category: { steps: 560, batchSize: 32, lr: 2e-3, measures: 4, test: 1527 },
  style: { steps: 400, batchSize: 8, lr: 4e-3, measures: 4, seqLength: 256, chunks: 1000 },
  sampleTokens: 90,
  cost: { steps: 24, batchSize: 32 },
  merge: { passes: 12, batchSize: 8 },
  switches: 2000,
};

/** For plain TypeScript, some fifty times slower. */
const REFERENCE: Scale = {
  name: 'reference',
  rank: 8,
  category: { steps: 80, batchSize: 8, lr: 4e-3, measures: 2, test: 90 },
  style: { steps: 30, batchSize: 2, lr: 4e-3, measures: 1, seqLength: 128, chunks: 8 },
  sampleTokens: 40,
  cost: { steps: 4, batchSize: 4 },
  merge: { passes: 3, batchSize: 1 },
  switches: 500,
};

const QUICK: Scale = {
  name: 'quick',
  rank: 4,
  category: { steps: 3, batchSize: 4, lr: 1e-2, measures: 1, test: 30 },
  style: { steps: 3, batchSize: 2, lr: 1e-2, measures: 1, seqLength: 48, chunks: 4 },
  sampleTokens: 12,
  cost: { steps: 3, batchSize: 4 },
  merge: { passes: 2, batchSize: 2 },
  switches: 50,
};

/** What a run does: by default as much as takes about two minutes on two cores. */
export function chooseScale(quick: boolean, backendName: string): Scale {
  if (quick) return QUICK;
  return backendName === 'reference' ? REFERENCE : FULL;
}

/** The adapter's shape, the same for both tasks. */
export function loraConfig({ rank }: Scale): LoraConfig {
  return { rank, alpha: 2 * rank, targetModules: ['all-linear'] };
}
