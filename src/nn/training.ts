import { ACTIVATION_DTYPES, type ActivationDType } from '../tensor/dtype.js';
import { failure } from '../tensor/errors.js';

/** What layers need to know of the step they run in. */
export interface TrainingContext {
  readonly seed: number;
  /** Counts forward passes that differ in their random numbers: step × micro-batches + micro-batch. */
  readonly step: number;
  /**
   * Models keep only the input of each block, and compute the block again in backward: less memory
   * for about a third more work, with the same bits. Default false.
   */
  readonly checkpoint?: boolean;
  /**
   * What products, norms and attention within a block hand on, and keep for backward; the sum of
   * the blocks, the last norm and the loss stay f32. Default f32.
   */
  readonly activations?: ActivationDType;
}

let current: TrainingContext | null = null;

/**
 * Runs `fn` as a training pass: dropout is on, its masks addressed by seed and step.
 * @throws when there are no such activations
 */
export function withTraining<T>(context: TrainingContext, fn: () => T): T {
  const { activations = 'f32' } = context;
  if (!ACTIVATION_DTYPES.includes(activations)) {
    throw failure('withTraining activations', ACTIVATION_DTYPES.join(' or '), `"${activations}"`);
  }
  const before = current;
  current = context;
  try {
    return fn();
  } finally {
    current = before;
  }
}

/** The dtype of activations within a block: f32 outside of training. */
export function blockDType(): ActivationDType {
  return current?.activations ?? 'f32';
}

/** The training pass we are in; null in evaluation, where dropout does nothing. */
export function trainingContext(): TrainingContext | null {
  return current;
}
