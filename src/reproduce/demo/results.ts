import type { Evaluation } from '../../train/evaluate.js';

/** A claim of the demo that is checked in every run. */
export interface Check {
  readonly name: string;
  readonly ok: boolean;
  readonly detail: string;
}

/** How the training of one adapter went. */
export interface FitResults {
  readonly steps: number;
  readonly batchSize: number;
  readonly lr: number;
  readonly rank: number;
  readonly alpha: number;
  readonly targetModules: readonly string[];
  readonly seconds: number;
  /** Tokens that passed through the model, padding not counted. */
  readonly tokens: number;
  readonly trainableParameters: number;
  /** Of every step before its update, nats a token. */
  readonly losses: readonly number[];
  /** The held-out measure of the task after so many steps; the first is the base's. */
  readonly measured: readonly { readonly step: number; readonly value: number }[];
  readonly folder: string;
  /** Of adapter_model.safetensors. */
  readonly bytes: number;
  readonly sha256: string;
}

/** Answers of a model to the held-out definitions. */
export interface Accuracy {
  readonly correct: number;
  readonly total: number;
  readonly accuracy: number;
}

export interface ClassRow {
  readonly label: string;
  readonly total: number;
  /** Correct answers of the base and of the adapter. */
  readonly base: number;
  readonly adapter: number;
  /** What the adapter answered most often where it was wrong; null where it never was. */
  readonly mistakenFor: string | null;
}

export interface CategoryExample {
  readonly definition: string;
  readonly truth: string;
  readonly base: string;
  readonly adapter: string;
}

export interface CategoryResults {
  readonly fit: FitResults;
  readonly classes: number;
  readonly trainExamples: number;
  readonly base: Accuracy;
  readonly adapter: Accuracy;
  /** What always answering the largest held-out class would reach. */
  readonly majority: Accuracy & { readonly label: string };
  readonly perClass: readonly ClassRow[];
  readonly examples: readonly CategoryExample[];
}

export interface StyleResults {
  readonly fit: FitResults;
  readonly trainTokens: number;
  readonly heldOutChunks: number;
  readonly base: Evaluation;
  readonly adapter: Evaluation;
  readonly sample: {
    readonly prompt: string;
    readonly seed: number;
    readonly temperature: number;
    readonly topP: number;
    readonly base: string;
    readonly adapter: string;
  };
}

/** Every measure with one adapter, or with none. */
export interface PriceRow {
  /** Null for the base alone. */
  readonly adapter: string | null;
  readonly accuracy: Accuracy;
  readonly style: Evaluation;
  readonly definitions: Evaluation;
}

/** What one way of training the base costs. Bytes. */
export interface MethodCost {
  readonly method: 'lora' | 'full';
  readonly trainableParameters: number;
  readonly frozenBytes: number;
  readonly trainableBytes: number;
  readonly gradientBytes: number;
  /** Of these, what belongs to tensors that are not trained. */
  readonly frozenGradientBytes: number;
  readonly optimizerBytes: number;
  readonly frozenOptimizerBytes: number;
  readonly peakActivationBytes: number;
  readonly peakTotalBytes: number;
  /** The weights to hand on, really written. */
  readonly weightsFileBytes: number;
  /** Weights and optimizer to go on training from, really written. */
  readonly stateFileBytes: number;
  readonly steps: number;
  /** Positions of the first step's batch, whose memory is given. */
  readonly positions: number;
  readonly medianStepSeconds: number;
  readonly firstLoss: number;
  readonly lastLoss: number;
}

export interface CostResults {
  /** Definitions a step. */
  readonly batchSize: number;
  readonly lora: MethodCost;
  readonly full: MethodCost;
}

/** A merged plain model beside the adapter's. */
export interface MergeRow {
  readonly dtype: string;
  readonly maxDifference: number;
  readonly maxLogit: number;
  /** Share of positions with the same likeliest next token. */
  readonly sameChoice: number;
  readonly adapterLoss: number;
  readonly mergedLoss: number;
}

export interface MergeResults {
  readonly sequences: number;
  readonly positions: number;
  readonly rows: readonly MergeRow[];
  /** Positions a second of a forward pass, medians. */
  readonly speed: { readonly base: number; readonly adapter: number; readonly merged: number };
}

export interface SwitchResults {
  /** Adapters in the order they were made active; null for none. */
  readonly order: readonly (string | null)[];
  readonly sha256: Readonly<Record<string, string>>;
  readonly identical: boolean;
  readonly switches: number;
  readonly medianMicroseconds: number;
}

/** The whole of results.json. */
export interface DemoResults {
  readonly version: 1;
  /** False for a run of a few steps. */
  readonly meaningful: boolean;
  readonly scale: string;
  readonly seed: number;
  readonly started: string;
  readonly seconds: number;
  readonly machine: { readonly backend: string; readonly processor: string; readonly node: string };
  readonly base: {
    readonly folder: string;
    readonly parameters: number;
    readonly bytes: number;
    readonly dtype: string;
    readonly mapped: boolean;
    readonly sha256: string;
  };
  readonly category: CategoryResults;
  readonly style: StyleResults;
  readonly price: readonly PriceRow[];
  readonly cost: CostResults;
  readonly merge: MergeResults;
  readonly switching: SwitchResults;
  readonly checks: readonly Check[];
}
