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

/** The token-weighted loss over batches; computes no gradient and changes nothing. */
export function evaluate(model: CausalLM, batches: Iterable<TokenBatch>): Evaluation {
  let sum = 0;
  let tokens = 0;
  noGrad(() => {
    for (const batch of batches) {
      scope(() => {
        const result = model.loss(batch, 1);
        sum += result.loss.item();
        tokens += result.tokens;
      });
    }
  });
  const loss = sum / tokens;
  return { loss, perplexity: Math.exp(loss), tokens };
}
