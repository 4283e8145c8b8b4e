import { setImmediate } from 'node:timers/promises';
import type { TokenBatch } from '../models/causal-lm.js';
import { type Optimizer, type ScheduleName, scheduleFactor } from '../optim/index.js';
import { ACTIVATION_DTYPES, type ActivationDType } from '../tensor/dtype.js';
import { failure, onlyKnown } from '../tensor/errors.js';
import { type AnyBatch, type Learner, Step, type StepFigures } from './step.js';
import { StepGraphs } from './step-graph.js';

export { type AnyBatch, type Learner, labelsIn } from './step.js';

/** Gives the micro-batches of a step; the same call gives the same batch, so a run can resume. */
export interface BatchSource<B extends AnyBatch = TokenBatch> {
  /** @param step counted from 0 @param micro 0 … accumulation − 1 */
  batch(step: number, micro: number): B;
}

/** Settings of a run. */
export interface TrainOptions {
  /** Optimizer steps of the whole run, from 0; a resumed run gives the same number. */
  readonly steps: number;
  /** Micro-batches whose gradients make one step. Default 1. */
  readonly accumulation?: number;
  /** Peak learning rate, for the events; the optimizer holds its own. */
  readonly lr: number;
  /** Default cosine. */
  readonly schedule?: ScheduleName;
  /** Default 0. */
  readonly warmupSteps?: number;
  /** End of the schedule as a share of the peak. Default 0. */
  readonly lrFloor?: number;
  /** Largest gradient norm; 0 for no clipping. Default 1. */
  readonly maxGradNorm?: number;
  /**
   * Keeps only the input of each block for backward and computes the block again there: less
   * memory for about a third more work, with the same bits. Default false.
   */
  readonly gradientCheckpointing?: boolean;
  /**
   * What products, norms and attention within a block hand on and keep for backward: bf16 takes half
   * the memory, and is what PyTorch's autocast has, too. The sum of the blocks, the loss and
   * everything trained stay f32. Default f32.
   */
  readonly activations?: ActivationDType;
  readonly seed: number;
  /**
   * On the cuda backend, records steps whose batches are of one shape, and replays them as one CUDA
   * graph: the same bits with hardly any work on the processor. Between its steps the model may
   * then be changed by nothing but values written in place. Elsewhere steps run as ever. Default
   * false.
   */
  readonly graphs?: boolean;
  /**
   * Makes the calls of the next step before the figures of one are read, so that a GPU never waits
   * for them: the events are the same and tell of the same steps, but while one is looked at, the
   * model may be a step further. A function says after which steps it may; after the others the
   * model is as the event says. Where a step changed nothing, as its loss or gradients were not
   * finite, the one begun after it has not either, and is begun again. Default false.
   */
  readonly ahead?: boolean | ((step: number) => boolean);
  /** Ends the run after the step under way. */
  readonly signal?: AbortSignal;
}

const SETTINGS: readonly string[] = Object.keys({
  steps: true,
  accumulation: true,
  lr: true,
  schedule: true,
  warmupSteps: true,
  lrFloor: true,
  maxGradNorm: true,
  gradientCheckpointing: true,
  activations: true,
  seed: true,
  graphs: true,
  ahead: true,
  signal: true,
} satisfies Record<keyof TrainOptions, true>);

/** What one optimizer step did. */
export interface StepEvent {
  readonly type: 'step';
  /** Steps done, this one included. */
  readonly step: number;
  /** Mean loss over the labels of the step, before it; nats a token, or a classifier's loss. */
  readonly loss: number;
  /** Labels of the step. */
  readonly tokens: number;
  /** Positions that passed through the model, padding included. */
  readonly positions: number;
  readonly lr: number;
  /** Of the gradients before clipping. */
  readonly gradNorm: number;
  readonly seconds: number;
  /** Why the weights were left as they are, where they were. */
  readonly skipped?: string;
}

/**
 * Trains a model: one event an optimizer step. A step whose batch has no label, or whose gradients
 * are not finite, changes no weight and says so. Ending the loop early, or aborting the signal,
 * leaves the model after a whole step.
 * @param model its trainable parameters are those of the optimizer
 * @throws naming a setting that is out of range, before anything is changed
 */
export async function* train<B extends AnyBatch>(
  model: Learner<B>,
  optimizer: Optimizer,
  source: BatchSource<B>,
  options: TrainOptions,
): AsyncGenerator<StepEvent> {
  onlyKnown('train', options, SETTINGS);
  const { steps, accumulation = 1, maxGradNorm = 1, warmupSteps = 0, seed } = options;
  const { schedule = 'cosine', lrFloor = 0, gradientCheckpointing: checkpoint = false } = options;
  const { activations = 'f32' } = options;
  const whole = (least: number) => (v: number) => Number.isSafeInteger(v) && v >= least;
  const check = (name: string, value: number, valid: (v: number) => boolean, expected: string) => {
    if (!valid(value)) throw failure(`train ${name}`, expected, String(value));
  };
  check('steps', steps, whole(1), 'a whole number of 1 or more');
  check('accumulation', accumulation, whole(1), 'a whole number of 1 or more');
  check('warmupSteps', warmupSteps, whole(0), 'a whole number of 0 or more');
  check('seed', seed, whole(0), 'a whole number of 0 or more');
  check('maxGradNorm', maxGradNorm, (v) => v >= 0 && v < Infinity, 'a number of 0 or more');
  check('lrFloor', lrFloor, (v) => v >= 0 && v <= 1, 'a share of 0 to 1');
  if (!ACTIVATION_DTYPES.includes(activations)) {
    throw failure('train activations', ACTIVATION_DTYPES.join(' or '), `"${activations}"`);
  }
  const graphs = options.graphs ? StepGraphs.for(model, optimizer.parameters()) : null;
  const ahead = options.ahead ?? false;
  const mayGoOn = typeof ahead === 'function' ? ahead : () => ahead;
  /** Begins a step of the run, or begins it again. */
  const begin = (at: number, batches: readonly B[], before: Open<B> | null): Open<B> => {
    const factor = scheduleFactor(at, {
      ...{ name: schedule, warmupSteps, totalSteps: steps, floor: lrFloor },
    });
    const settings = { seed, factor, maxGradNorm, checkpoint, activations, graphs };
    const started = performance.now();
    const first = optimizer.updates === 0;
    const step = Step.begin(model as Learner, optimizer, batches, settings, before?.step ?? null);
    return { at, batches, step, first, started, lr: options.lr * factor };
  };
  let open: Open<B> | null = null;
  let last = 0;
  const event = (of: Open<B>, figures: StepFigures): StepEvent => {
    const now = performance.now();
    const seconds = (now - Math.max(of.started, last)) / 1000;
    last = now;
    const positions = of.batches.reduce((n, b) => n + b.batch * b.length, 0);
    return { type: 'step', step: of.at + 1, ...figures, positions, lr: of.lr, seconds };
  };
  try {
    for (let step = optimizer.step; step < steps; step++) {
      if (options.signal?.aborted) break;
      const batches = Array.from({ length: accumulation }, (_, m) => source.batch(step, m));
      const before: Open<B> | null = open;
      let next = begin(step, batches, before);
      open = next;
      if (before) {
        open = null;
        const figures = before.step.settle(next.step);
        if (figures.skipped !== undefined) next = begin(step, batches, null);
        open = next;
        yield event(before, figures);
      }
      // The first update makes the optimizer's state; a step without labels has nothing to wait for.
      const settled = next.first || next.step.tokens === 0;
      if (settled || step + 1 === steps || !mayGoOn(step + 1)) {
        open = null;
        yield event(next, next.step.settle());
      }
      // Lets signals, timers and finalizers run.
      await setImmediate();
    }
    const rest: Open<B> | null = open;
    open = null;
    if (rest) yield event(rest, rest.step.settle());
  } finally {
    try {
      // Left early, or by an error: its counts are put right.
      (open as Open<B> | null)?.step.settle();
    } finally {
      graphs?.dispose();
    }
  }
}

/** A step that was begun and is not settled. */
interface Open<B extends AnyBatch> {
  /** Counted from 0. */
  readonly at: number;
  readonly batches: readonly B[];
  readonly step: Step;
  /** Whether it makes the optimizer's first update. */
  readonly first: boolean;
  readonly started: number;
  readonly lr: number;
}
