import type { LoraConfig, WideRank } from '../lora/index.js';
import type { ProblemType } from '../models/classifier.js';
import type { ScheduleName } from '../optim/index.js';
import type { Backend, Compute, MemoryBooks, Purpose } from '../tensor/backend.js';
import type { ActivationDType, DType } from '../tensor/dtype.js';
import type { ClassifierEvaluation } from './classify.js';
import type { Evaluation } from './evaluate.js';
import type { StepEvent } from './trainer.js';

/** LoRA's settings in a fine-tuning run; without names, the targets are `all-linear`. */
export type LoraSettings = Partial<LoraConfig>;

/** Settings of {@link finetune}. */
export interface FinetuneOptions {
  /** A Hugging Face model directory with its tokenizer. It is not changed. */
  readonly modelDir: string;
  /** What the adapter records as its base: a name of the Hub, say. Default `modelDir`. */
  readonly modelName?: string;
  /**
   * JSON Lines with `text`, or with `prompt` and `completion`; for a classifier with `text` (and
   * `text_pair`), or the fields of one of GLUE's tasks, and `label`.
   */
  readonly dataFile: string;
  /** JSON Lines on which the loss is measured before, between and after. */
  readonly evalFile?: string;
  /** Where the adapter, or with `full` the model, is written. */
  readonly out: string;
  /**
   * Makes a classifier with a new head of so many labels, those of the data. Default: the model's
   * own labels; a model without a head gets one for the labels of the data.
   */
  readonly numLabels?: number;
  /** What a classifier's labels are. Default: as config.json says, else as the data looks. */
  readonly problemType?: ProblemType;
  /** Default: rank 8, alpha 16, all-linear, no dropout. */
  readonly lora?: LoraSettings;
  /**
   * LoRA+ (Hayou et al., 2024): how many times faster than A each B learns; the paper advises 16.
   * Default 1: as fast.
   */
  readonly loraPlus?: number;
  /** Trains every parameter instead of an adapter. */
  readonly full?: boolean;
  /** Peak learning rate. Default 2e-4, with `full` 2e-5. */
  readonly lr?: number;
  /** Optimizer steps; or give `epochs`. */
  readonly steps?: number;
  /** Passes over the data. Default 1. */
  readonly epochs?: number;
  /** Sequences of a micro-batch. Default 8. */
  readonly batchSize?: number;
  /** Micro-batches whose gradients make one step. Default 1. */
  readonly accumulation?: number;
  /** The most tokens of a sequence. Default 512, or the model's positions where they are fewer. */
  readonly seqLength?: number;
  /** Default cosine. */
  readonly schedule?: ScheduleName;
  /** Steps of linear warm-up. Default 3% of the steps. */
  readonly warmupSteps?: number;
  /** Default 0. */
  readonly weightDecay?: number;
  /** Largest gradient norm; 0 for no clipping. Default 1. */
  readonly maxGradNorm?: number;
  /**
   * Keeps only the input of each block for backward and computes the block again there: less
   * memory for about a third more work, with the same bits. Default false.
   */
  readonly gradientCheckpointing?: boolean;
  /** Of the adapter's start, the order of the data and dropout. Default 0. */
  readonly seed?: number;
  /** A backend or its name. Default auto: cpu where the addon is built, else reference. */
  readonly backend?: Backend | string;
  /** Worker threads; results do not depend on it. Default: the backend's. */
  readonly threads?: number;
  /**
   * Storage of the base's frozen weights: f32, f16 or bf16. Not with `full`, which trains them in
   * f32. Default: that of their file.
   */
  readonly dtype?: DType;
  /**
   * Arithmetic of products with base weights stored in bf16: `bf16` rounds activations, too. It is
   * an error where it would do nothing. Default: the backend's, which is `exact` at first.
   */
  readonly compute?: Compute;
  /**
   * What products, norms and attention within a block hand on and keep for backward: bf16 takes half
   * the memory, and is what PyTorch's autocast has, too. The sum of the blocks, the loss and
   * everything trained stay f32. Default f32.
   */
  readonly activations?: ActivationDType;
  /** As of `setProducts`: on `cuda`, products of f32 may round to TF32. Default false. */
  readonly tf32?: boolean;
  /**
   * As of `setProducts`: on `cuda`, a sequence's bits do not depend on what it is batched with, at a
   * fraction of the speed. Default false.
   */
  readonly batchInvariant?: boolean;
  /** Steps between evaluations; 0 for before and after only. Default 0. */
  readonly evalEvery?: number;
  /** Steps between saves; 0 for the end only. Default 200. */
  readonly saveEvery?: number;
  /**
   * Writes the weights that had the lowest loss at an evaluation instead of the last ones; a copy of
   * them is held meanwhile. Needs `evalFile` and `evalEvery`. Default false.
   */
  readonly keepBest?: boolean;
  /**
   * Goes on from the state in `out` where a run of these settings was stopped; where there is no
   * run, that is an error.
   */
  readonly resume?: boolean;
  /** Lets `out` hold something else: its state and record are removed, files of ours replaced. */
  readonly overwrite?: boolean;
  /** Ends the run after the step under way, saved. */
  readonly signal?: AbortSignal;
}

/** What is going to be done. */
export interface StartEvent {
  readonly type: 'start';
  readonly method: 'lora' | 'full';
  readonly task: 'causal-lm' | 'classification';
  /** Of a classifier: the names of its labels, what they are, and whether its head is new. */
  readonly labels?: readonly string[];
  readonly problemType?: ProblemType;
  readonly newHead?: boolean;
  readonly modelDir: string;
  readonly dataFile: string;
  readonly out: string;
  readonly backend: string;
  /** Sequences of an epoch; plain texts are packed into full ones. */
  readonly examples: number;
  readonly tokens: number;
  /** Labels that count for the loss. */
  readonly targets: number;
  /** Examples longer than `seqLength`, and the tokens they lost. */
  readonly truncatedExamples: number;
  readonly truncatedTokens: number;
  readonly trainableParameters: number;
  /** Base and adapter together. */
  readonly totalParameters: number;
  /** Of an adapter: layers whose rank is above their smaller side, which reaches no more. */
  readonly wideRanks?: readonly WideRank[];
  readonly steps: number;
  /** Steps done by the run that this one goes on with. */
  readonly resumedFrom: number;
  readonly seqLength: number;
  readonly batchSize: number;
  readonly accumulation: number;
  readonly lr: number;
  /** Bytes held now. */
  readonly memory: Readonly<Record<Purpose, number>>;
}

/** A training step, and how the run goes. */
export interface StepProgress extends StepEvent {
  /** Of the whole run. */
  readonly steps: number;
  /** Tokens that passed through the model a second, without padding, over the last steps. */
  readonly tokensPerSecond: number;
  readonly secondsLeft: number;
}

/** What is measured on an evaluation file: by what the model is for. */
export type AnyEvaluation = Evaluation | ClassifierEvaluation;

/** The measures on the evaluation file after `step` steps; at 0 those of the base model. */
export type EvaluationEvent = AnyEvaluation & {
  readonly type: 'eval';
  readonly step: number;
};

export interface SavedEvent {
  readonly type: 'saved';
  readonly step: number;
  readonly path: string;
  /** Of the adapter's (or the model's weights') files. */
  readonly bytes: number;
}

/** How a run ended. */
export interface DoneEvent {
  readonly type: 'done';
  readonly step: number;
  readonly steps: number;
  /** Whether it was stopped by its signal before the last step. */
  readonly stopped: boolean;
  /** Whether `resume` found a run that had done all its steps: nothing was changed. */
  readonly alreadyDone?: boolean;
  readonly seconds: number;
  /** Means over the first and the last steps of this call: 20, or half of them where fewer. */
  readonly trainLoss?: { readonly first: number; readonly last: number };
  /** Of the base model, where there is an evaluation file (not when a full run is resumed). */
  readonly before?: AnyEvaluation;
  /** Of what was saved: with `keepBest` of the best weights. */
  readonly after?: AnyEvaluation;
  /** With `keepBest`: the step whose weights were saved, and their loss on the evaluation file. */
  readonly best?: { readonly step: number; readonly loss: number };
  /** Live and peak bytes by purpose of the backend since the run began. */
  readonly memory: MemoryBooks;
  /** Of the adapter's (or the model's weights') files. */
  readonly bytes?: number;
}

export type FinetuneEvent = StartEvent | StepProgress | EvaluationEvent | SavedEvent | DoneEvent;
