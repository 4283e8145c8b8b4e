import { trainingContext } from '../nn/index.js';
import {
  add,
  attention,
  dropout,
  fusedAttention,
  matmul,
  permute,
  reshape,
  scale as scaled,
  softmax,
  splitHeads,
  writeInto,
} from '../ops/index.js';
import { tensor } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import { streamOf } from '../tensor/random.js';
import type { Tensor } from '../tensor/tensor.js';
import type { KvCache } from './causal-lm.js';

/** Dropout as a layer of this name does it: on while training, its mask addressed by the name. */
export function layerDropout(x: Tensor, p: number, name: string): Tensor {
  const context = trainingContext();
  if (!context || p === 0) return x;
  return dropout(x, p, { seed: context.seed, stream: streamOf(name), step: context.step });
}

/** How {@link modelAttention} attends. */
export interface ModelAttentionOptions {
  readonly causal: boolean;
  /** Keys back that a query sees, itself included; 0 for all. */
  readonly window?: number;
  /** Factor of the scores; default 1/√D. */
  readonly scale?: number;
  /** u8 [B, S]; keys at 0 are hidden. */
  readonly mask: Tensor | null;
  /** Dropout of the probabilities while training. */
  readonly dropout: number;
  /** Addresses the dropout's random numbers. */
  readonly name: string;
}

/** Attention as a model's layer does it, with dropout of the probabilities while training. */
export function modelAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: ModelAttentionOptions,
  keyLength = -1,
): Tensor {
  const { causal, window = 0, scale, mask, dropout: p } = options;
  if (p > 0 && trainingContext()) {
    if (keyLength >= 0) throw failure('model', 'no cache while training with dropout', 'a cache');
    return droppedAttention(q, k, v, options);
  }
  return attention(q, k, v, {
    causal,
    window,
    keyLength,
    ...(scale === undefined ? {} : { scale }),
    ...(mask ? { mask } : {}),
  });
}

/** Hides a score from the softmax: e to it is 0. */
const HIDDEN = -1e30;

/**
 * The same with the probabilities [B, H, T, S] written out, so that some can be dropped. Queries
 * that see no key see all of them equally here; what they answer counts nowhere.
 */
function droppedAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { causal, window = 0, scale, mask, dropout: p, name }: ModelAttentionOptions,
): Tensor {
  const [B, T, H, D] = q.shape as [number, number, number, number];
  const [, S, G] = k.shape as [number, number, number, number];
  // Heads of a group side by side: [B, G, H/G·T, D] meets [B, G, S, D].
  const queries = reshape(permute(q, [0, 2, 1, 3]), [B, G, (H / G) * T, D]);
  const keys = permute(k, [0, 2, 1, 3]);
  const values = permute(v, [0, 2, 1, 3]);
  const scores = reshape(
    scaled(matmul(queries, keys, { transB: true }), scale ?? 1 / Math.sqrt(D)),
    [B, H, T, S],
  );
  const seen = mask ? (mask.toArray() as Uint8Array) : null;
  const hidden = new Float32Array(B * T * S);
  for (let b = 0; b < B; b++) {
    for (let t = 0; t < T; t++) {
      for (let s = 0; s < S; s++) {
        const back = t + S - T - s;
        const out = (causal && back < 0) || (window > 0 && back >= window);
        if (out || seen?.[b * S + s] === 0) hidden[(b * T + t) * S + s] = HIDDEN;
      }
    }
  }
  const bias = tensor(hidden, [B, 1, T, S], { backend: q.backend });
  const kept = layerDropout(softmax(add(scores, bias)), p, `${name}.dropout`);
  const y = matmul(reshape(kept, [B, G, (H / G) * T, S]), values);
  return permute(reshape(y, [B, H, T, D]), [0, 2, 1, 3]);
}

/** {@link modelAttention} over the keys and values of a cache and these, which it gets. */
export function cachedAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  cache: KvCache | null,
  layer: number,
  options: ModelAttentionOptions,
): Tensor {
  if (!cache) return modelAttention(q, k, v, options);
  const past = cache.length;
  const [keys, values] = [cache.keys[layer] as Tensor, cache.values[layer] as Tensor];
  writeInto(keys, k, [0, past, 0, 0]);
  writeInto(values, v, [0, past, 0, 0]);
  return modelAttention(q, keys, values, options, past + (k.shape[1] as number));
}

/**
 * {@link cachedAttention} of queries, keys and values that lie side by side.
 * @param x [B, T, 3·C] → [B, T, H, C/H]
 */
export function fusedHeads(
  x: Tensor,
  heads: number,
  cache: KvCache | null,
  layer: number,
  options: ModelAttentionOptions,
): Tensor {
  const { causal, window = 0, scale, mask, dropout: p } = options;
  if (!cache && !(p > 0 && trainingContext())) {
    return fusedAttention(x, heads, {
      causal,
      window,
      ...(scale === undefined ? {} : { scale }),
      ...(mask ? { mask } : {}),
    });
  }
  const [q, k, v] = splitHeads(x, heads);
  return cachedAttention(q, k, v, cache, layer, options);
}
