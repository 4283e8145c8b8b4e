/** What is measured beside PyTorch + PEFT, and the ratios to reach. */

/** One row: a step of ours beside one of theirs. */
export interface Case {
  readonly model: string;
  readonly mode: 'lora' | 'full';
  readonly batch: number;
  readonly seq: number;
  /** Storage of our frozen weights. */
  readonly dtype: 'f32' | 'bf16';
  readonly steps: number;
  /** Arithmetic of our products with bf16 weights. Default exact. */
  readonly compute?: 'exact' | 'bf16';
  /** Share of the positions, the last ones, that have a label; the peer's script labels all. */
  readonly labelShare?: number;
  /** Storage of theirs that is tried; the fastest counts. Default ours. */
  readonly peerDtypes?: readonly ('f32' | 'bf16')[];
  /** One core is taken by another process for as long as the steps last. */
  readonly busy?: boolean;
  /** What is compared; default the time of a step. `first` is from process start to its end. */
  readonly figure?: 'step' | 'first';
  /** The ratio to reach, and the one aimed at: how often as fast we are; of `first`, our share. */
  readonly reach?: number;
  readonly aim?: number;
  /** Our share of their peak resident memory, to reach and aimed at. */
  readonly memory?: readonly [reach: number, aim: number];
}

const STEP = {
  mode: 'lora',
  batch: 4,
  seq: 128,
  dtype: 'f32',
  steps: 4,
  reach: 2.5,
  aim: 4,
} as const;
const BF16 = { ...STEP, dtype: 'bf16', peerDtypes: ['f32', 'bf16'] } as const;
const LABELS = { ...STEP, labelShare: 0.25, reach: 3, aim: 5 } as const;

/** Every case by name. */
export const CASES: Readonly<Record<string, Case>> = {
  gpt2: { ...STEP, model: 'gpt2', memory: [0.45, 0.35] },
  smollm2: { ...STEP, model: 'smollm2-135m' },
  'gpt2-bf16': { ...BF16, model: 'gpt2' },
  'smollm2-bf16': { ...BF16, model: 'smollm2-135m' },
  'gpt2-bf16-compute': { ...BF16, model: 'gpt2', compute: 'bf16' },
  'smollm2-bf16-compute': { ...BF16, model: 'smollm2-135m', compute: 'bf16' },
  'gpt2-labels': { ...LABELS, model: 'gpt2' },
  'smollm2-labels': { ...LABELS, model: 'smollm2-135m' },
  'gpt2-short': { ...STEP, model: 'gpt2', batch: 1, seq: 64, steps: 8 },
  tiny: { ...STEP, model: 'tiny', steps: 20 },
  'tiny-busy': { ...STEP, model: 'tiny', steps: 6, busy: true, reach: 5, aim: 20 },
  'gpt2-full': { ...STEP, model: 'gpt2', mode: 'full', steps: 3 },
  'tiny-full': { ...STEP, model: 'tiny', mode: 'full', steps: 20 },
  'tiny-start': { ...STEP, model: 'tiny', steps: 1, figure: 'first', reach: 0.1, aim: 0.05 },
};

/** Our LoRA step over our full one, from two cases of one run: to reach, and aimed at. */
export const LORA_TO_FULL = { lora: 'gpt2', full: 'gpt2-full', reach: 0.6, aim: 0.45 } as const;
