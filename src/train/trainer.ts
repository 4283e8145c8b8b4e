import { setImmediate } from 'node:timers/promises';
import { backward, scope } from '../autograd/index.js';
import { type LossResult, shiftedLabels, type TokenBatch } from '../models/causal-lm.js';
import { type SequenceBatch, SequenceClassifier } from '../models/classifier.js';
import { withTraining } from '../nn/index.js';
import { Clipping, type Optimizer, type ScheduleName, scheduleFactor } from '../optim/index.js';
import { ACTIVATION_DTYPES, type ActivationDType } from '../tensor/dtype.js';
import { failure, onlyKnown } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { StepGraphs } from './step-graph.js';

/** What models are trained on: tokens to predict, or sequences to classify. */
export type AnyBatch = TokenBatch | SequenceBatch;

/** What the loop needs of a model: its loss over a batch, summed and divided by `denominator`. */
export interface Learner<B extends AnyBatch = AnyBatch> {
  loss(batch: B, denominator?: number): LossResult;
}

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

/** Labels of a batch that count for the loss. */
export function labelsIn(model: Learner, batch: AnyBatch): number {
  if (model instanceof SequenceClassifier) return model.countLabels(batch);
  return shiftedLabels(batch as TokenBatch).rows.length;
}

/** What a step needs of the run's settings. */
interface StepOptions {
  readonly seed: number;
  /** Of the learning rate. */
  readonly factor: number;
  readonly maxGradNorm: number;
  readonly checkpoint: boolean;
  readonly activations: ActivationDType;
  readonly graphs: StepGraphs | null;
}

/** Losses and gradients of one step's micro-batches, weighted by token; nothing is waited for. */
function accumulate(
  model: Learner,
  batches: readonly AnyBatch[],
  options: Pick<StepOptions, 'seed' | 'checkpoint' | 'activations' | 'graphs'>,
  step: number,
): { losses: Tensor[]; tokens: number } {
  const { seed, checkpoint, activations, graphs } = options;
  const tokens = batches.reduce((n, b) => n + labelsIn(model, b), 0);
  if (tokens === 0) return { losses: [], tokens };
  const eager = () =>
    batches.flatMap((batch, micro) =>
      scope(() => {
        const context = { seed, step: step * batches.length + micro, checkpoint, activations };
        const result = withTraining(context, () => model.loss(batch, tokens));
        if (result.tokens === 0) return [];
        backward(result.loss);
        return [result.loss];
      }),
    );
  if (!graphs) return { losses: eager(), tokens };
  const settings = [tokens, seed, checkpoint, activations].join();
  return { losses: graphs.run(batches as TokenBatch[], step, settings, eager), tokens };
}

/** Gradients of one step, and the update where they are finite. None are left, even on an error. */
function optimizerStep(
  model: Learner,
  optimizer: Optimizer,
  batches: readonly AnyBatch[],
  options: StepOptions,
): Pick<StepEvent, 'loss' | 'tokens' | 'gradNorm' | 'skipped'> {
  const { factor, maxGradNorm } = options;
  const held: Tensor[] = [];
  try {
    const { losses, tokens } = accumulate(model, batches, options, optimizer.step);
    held.push(...losses);
    if (tokens === 0) {
      optimizer.skip();
      return { loss: 0, tokens, gradNorm: 0, skipped: 'no label in the batch' };
    }
    const { loss, gradNorm } = clippedUpdate(optimizer, losses, factor, maxGradNorm);
    if (Number.isFinite(gradNorm) && Number.isFinite(loss)) return { loss, tokens, gradNorm };
    optimizer.revoke();
    optimizer.skip();
    return { loss, tokens, gradNorm, skipped: 'the loss or a gradient is not finite' };
  } finally {
    for (const loss of held) loss.dispose();
    optimizer.zeroGrad();
  }
}

/**
 * An update that a loss or a gradient that is not finite keeps from changing anything. Both are
 * read after it, so that a device still works while its calls are made.
 */
function clippedUpdate(
  optimizer: Optimizer,
  losses: readonly Tensor[],
  factor: number,
  maxGradNorm: number,
): { loss: number; gradNorm: number } {
  using clipping = Clipping.of(optimizer.parameters(), maxGradNorm, losses);
  optimizer.update(factor, clipping?.factor ?? 1);
  try {
    const gradNorm = clipping?.norm() ?? 0;
    const loss = losses.reduce((sum, l) => sum + l.item(), 0);
    return { loss, gradNorm };
  } catch (error) {
    optimizer.revoke();
    throw error;
  }
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
  try {
    for (let step = optimizer.step; step < steps; step++) {
      if (options.signal?.aborted) return;
      const started = performance.now();
      const batches = Array.from({ length: accumulation }, (_, m) => source.batch(step, m));
      const factor = scheduleFactor(step, {
        name: schedule,
        warmupSteps,
        totalSteps: steps,
        floor: lrFloor,
      });
      const done = optimizerStep(model, optimizer, batches, {
        ...{ seed, factor, maxGradNorm, checkpoint, activations, graphs },
      });
      yield {
        type: 'step',
        step: step + 1,
        ...done,
        positions: batches.reduce((n, b) => n + b.batch * b.length, 0),
        lr: options.lr * factor,
        seconds: (performance.now() - started) / 1000,
      };
      // Lets signals, timers and finalizers run.
      await setImmediate();
    }
  } finally {
    graphs?.dispose();
  }
}
