import { backward, scope } from '../autograd/index.js';
import { type LossResult, shiftedLabels, type TokenBatch } from '../models/causal-lm.js';
import { type SequenceBatch, SequenceClassifier } from '../models/classifier.js';
import { withTraining } from '../nn/index.js';
import { Clipping, type ClippingFigures, type Optimizer } from '../optim/index.js';
import { Deferred } from '../tensor/deferred.js';
import type { ActivationDType } from '../tensor/dtype.js';
import type { Tensor } from '../tensor/tensor.js';
import type { StepGraphs } from './step-graph.js';

/** What models are trained on: tokens to predict, or sequences to classify. */
export type AnyBatch = TokenBatch | SequenceBatch;

/** What the loop needs of a model: its loss over a batch, summed and divided by `denominator`. */
export interface Learner<B extends AnyBatch = AnyBatch> {
  loss(batch: B, denominator?: number): LossResult;
}

/** Labels of a batch that count for the loss. */
export function labelsIn(model: Learner, batch: AnyBatch): number {
  if (model instanceof SequenceClassifier) return model.countLabels(batch);
  return shiftedLabels(batch as TokenBatch).rows.length;
}

/** What a step needs of the run's settings. */
export interface StepOptions {
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

/** What a step came to. */
export interface StepFigures {
  readonly loss: number;
  readonly tokens: number;
  readonly gradNorm: number;
  readonly skipped?: string;
}

/**
 * One optimizer step whose calls are made: gradients, and an update that a loss or a gradient that
 * is not finite keeps from changing anything. Its figures are on their way, so that a device still
 * works while the calls after it are made.
 */
export class Step {
  #losses: Deferred[] = [];
  #clipping: Clipping | null = null;
  #found: ClippingFigures | null = null;

  private constructor(
    private readonly optimizer: Optimizer,
    /** Labels that count for its loss. */
    readonly tokens: number,
  ) {}

  /**
   * Makes the calls of the optimizer's next step. No gradients are left, even on an error.
   * @param before a step that is not settled: where it changes nothing, neither does this one
   */
  static begin(
    model: Learner,
    optimizer: Optimizer,
    batches: readonly AnyBatch[],
    options: StepOptions,
    before: Step | null = null,
  ): Step {
    const held: Tensor[] = [];
    try {
      const { losses, tokens } = accumulate(model, batches, options, optimizer.step);
      held.push(...losses);
      const step = new Step(optimizer, tokens);
      if (tokens === 0) optimizer.skip();
      else step.#update(losses, options, before);
      return step;
    } finally {
      for (const loss of held) loss.dispose();
      optimizer.zeroGrad();
    }
  }

  #update(losses: readonly Tensor[], options: StepOptions, before: Step | null): void {
    const { optimizer } = this;
    const chained = before ? before.#clipping : null;
    const finite = chained ? [...losses, chained.factor] : losses;
    this.#clipping = Clipping.of(optimizer.parameters(), options.maxGradNorm, finite);
    let updated = false;
    try {
      optimizer.update(options.factor, this.#clipping?.factor ?? 1);
      updated = true;
      this.#found = this.#clipping?.later() ?? null;
      for (const loss of losses) this.#losses.push(new Deferred(loss));
    } catch (error) {
      if (updated) optimizer.revoke();
      this.dispose();
      throw error;
    }
  }

  /**
   * Waits for the figures. Where the step changed nothing, its counts and those of `after`, which
   * was begun since, are put right, and `after` is to be begun again.
   */
  settle(after: Step | null = null): StepFigures {
    const { optimizer, tokens } = this;
    if (tokens === 0) return { loss: 0, tokens, gradNorm: 0, skipped: 'no label in the batch' };
    try {
      const gradNorm = this.#found?.norm() ?? 0;
      const loss = this.#losses.reduce((sum, l) => sum + (l.values()[0] as number), 0);
      if (!Number.isNaN(this.#found?.factor() ?? 1)) return { loss, tokens, gradNorm };
      // Finite all the same: a fault that only the device saw, which a read throws.
      if (Number.isFinite(gradNorm) && Number.isFinite(loss)) this.#clipping?.norm();
      if (after) after.#undo();
      optimizer.revoke();
      optimizer.skip();
      return { loss, tokens, gradNorm, skipped: 'the loss or a gradient is not finite' };
    } catch (error) {
      if (after) after.#undo();
      optimizer.revoke();
      throw error;
    } finally {
      this.dispose();
    }
  }

  #undo(): void {
    if (this.tokens === 0) this.optimizer.step--;
    else this.optimizer.revoke();
    this.dispose();
  }

  dispose(): void {
    this.#found?.dispose();
    for (const loss of this.#losses) loss.dispose();
    this.#clipping?.dispose();
    this.#found = null;
    this.#losses = [];
    this.#clipping = null;
  }
}
