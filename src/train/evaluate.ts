import { noGrad, scope } from '../autograd/index.js';
import type { CausalLM, TokenBatch } from '../models/causal-lm.js';

/** The loss of a model over a data set. */
export interface Evaluation {
  /** Mean over all labels; nats a token. NaN when there is no label. */
  readonly loss: number;
  /** e to the loss. */
  readonly perplexity: number;
  readonly tokens: number;
}

/** Measures batch by batch: every `next()` computes one. Computes no gradient, changes nothing. */
export function* evaluationSteps(
  model: CausalLM,
  batches: Iterable<TokenBatch>,
): Generator<void, Evaluation> {
  let sum = 0;
  let tokens = 0;
  for (const batch of batches) {
    noGrad(() =>
      scope(() => {
        const result = model.loss(batch, 1);
        sum += result.loss.item();
        tokens += result.tokens;
      }),
    );
    yield;
  }
  const loss = sum / tokens;
  return { loss, perplexity: Math.exp(loss), tokens };
}

/** Runs steps to their end, for their result. */
export function finished<T>(steps: Generator<void, T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/** The token-weighted loss over batches; computes no gradient and changes nothing. */
export function evaluate(model: CausalLM, batches: Iterable<TokenBatch>): Evaluation {
  return finished(evaluationSteps(model, batches));
}
