import { shapeText } from '../errors.js';
import type { Call, Floats, Kernels } from './call.js';

/** Sizes, settings and inputs of an attention, checked. q [B,T,H,D], k and v [B,S,G,D]. */
function inputs(call: Call) {
  const hasMask = call.flag(0);
  const causal = call.flag(1);
  const scale = call.attr(2);
  const window = call.integer(3, 0, 2 ** 31 - 1);
  const sq = call.shape(0);
  const sk = call.shape(1);
  if (sq.length !== 4 || sk.length !== 4) {
    throw call.error('q [B, T, H, D] and k [B, S, G, D]', `${shapeText(sq)} and ${shapeText(sk)}`);
  }
  const [B, T, H, D] = sq as [number, number, number, number];
  const [, S, G] = sk as [number, number, number, number];
  call.expectShape(1, [B, S, G, D]);
  call.expectShape(2, [B, S, G, D]);
  if (H > 0 && (G === 0 || H % G !== 0)) {
    throw call.error('heads that are a multiple of the key heads', `${H} and ${G}`);
  }
  const keyLength = call.integer(4, -1, S);
  if (hasMask) call.expectShape(3, [B, S]);
  const mask = hasMask ? call.mask(3) : null;
  const L = keyLength < 0 ? S : keyLength;
  /** Keys that query t may see, but for the mask: lo … hi − 1. */
  const range = (t: number) => {
    const own = t + L - T;
    return {
      lo: window > 0 ? Math.max(0, own - window + 1) : 0,
      hi: causal ? Math.min(L, own + 1) : L,
    };
  };
  const tensors = hasMask ? 4 : 3;
  const [q, k, v]: [Floats, Floats, Floats] = [call.floats(0), call.floats(1), call.floats(2)];
  return { B, T, H, D, S, G, q, k, v, mask, scale, range, tensors };
}

type Inputs = ReturnType<typeof inputs>;

/** Where query (b, t, h) and key or value (b, s, its group) begin. */
const queryAt = (x: Inputs, b: number, t: number, h: number) => ((b * x.T + t) * x.H + h) * x.D;
const keyAt = (x: Inputs, b: number, s: number, h: number) =>
  ((b * x.S + s) * x.G + Math.floor((h * x.G) / x.H)) * x.D;

/** Calls f(b, h, t, queryOffset, lo, hi) for every query. */
function forQueries(
  x: Inputs,
  f: (b: number, h: number, t: number, at: number, lo: number, hi: number) => void,
): void {
  for (let b = 0; b < x.B; b++) {
    for (let h = 0; h < x.H; h++) {
      for (let t = 0; t < x.T; t++) {
        const { lo, hi } = x.range(t);
        f(b, h, t, queryAt(x, b, t, h), lo, hi);
      }
    }
  }
}

function dot(a: Floats, aAt: number, b: Floats, bAt: number, count: number): number {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += (a[aAt + i] as number) * (b[bAt + i] as number);
  return sum;
}

/** y = softmax(scale · q kᵀ) v and lse = log Σ exp of the scores; 0 and −∞ where no key is seen. */
function attention(call: Call): void {
  const x = inputs(call);
  const { B, T, H, D, S, q, k, v, mask, scale } = x;
  call.counts(x.tensors + 2, 5);
  call.expectShape(x.tensors, [B, T, H, D]);
  call.expectShape(x.tensors + 1, [B, H, T]);
  const y = call.activations(x.tensors);
  const lse = call.out(x.tensors + 1);
  const scores = new Float64Array(S);
  const sums = new Float64Array(D);
  forQueries(x, (b, h, t, at, lo, hi) => {
    let largest = Number.NEGATIVE_INFINITY;
    for (let s = lo; s < hi; s++) {
      const hidden = mask !== null && mask[b * S + s] === 0;
      const score = hidden ? Number.NEGATIVE_INFINITY : scale * dot(q, at, k, keyAt(x, b, s, h), D);
      scores[s] = score;
      largest = Math.max(largest, score);
    }
    if (largest === Number.NEGATIVE_INFINITY) {
      y.fill(0, at, at + D);
      lse[(b * H + h) * T + t] = largest;
      return;
    }
    let total = 0;
    sums.fill(0);
    for (let s = lo; s < hi; s++) {
      if (mask !== null && mask[b * S + s] === 0) continue;
      const weight = Math.exp((scores[s] as number) - largest);
      const value = keyAt(x, b, s, h);
      total += weight;
      for (let d = 0; d < D; d++) sums[d] = (sums[d] as number) + weight * (v[value + d] as number);
    }
    for (let d = 0; d < D; d++) y[at + d] = (sums[d] as number) / total;
    lse[(b * H + h) * T + t] = largest + Math.log(total);
  });
}

/**
 * With p = exp(score − lse) and δ = Σ dy⊙y of a query: dv += p·dy, ds = p·(dy·v − δ),
 * dq += scale·ds·k, dk += scale·ds·q (FlashAttention; Dao et al., 2022).
 */
function attentionGrad(call: Call): void {
  const x = inputs(call);
  const { B, T, H, D, S, G, q, k, v, mask, scale } = x;
  const first = x.tensors;
  call.counts(first + 6, 5);
  for (const i of [first, first + 2, first + 3]) call.expectShape(i, [B, T, H, D]);
  call.expectShape(first + 1, [B, H, T]);
  for (const i of [first + 4, first + 5]) call.expectShape(i, [B, S, G, D]);
  const y = call.floats(first);
  const lse = call.floats(first + 1);
  const dy = call.floats(first + 2);
  const dq = new Float64Array(q.length);
  const dk = new Float64Array(k.length);
  const dv = new Float64Array(v.length);
  forQueries(x, (b, h, t, at, lo, hi) => {
    const total = lse[(b * H + h) * T + t] as number;
    if (total === Number.NEGATIVE_INFINITY) return;
    const delta = dot(dy, at, y, at, D);
    for (let s = lo; s < hi; s++) {
      if (mask !== null && mask[b * S + s] === 0) continue;
      const key = keyAt(x, b, s, h);
      const p = Math.exp(scale * dot(q, at, k, key, D) - total);
      const ds = scale * p * (dot(dy, at, v, key, D) - delta);
      for (let d = 0; d < D; d++) {
        dq[at + d] = (dq[at + d] as number) + ds * (k[key + d] as number);
        dk[key + d] = (dk[key + d] as number) + ds * (q[at + d] as number);
        dv[key + d] = (dv[key + d] as number) + p * (dy[at + d] as number);
      }
    }
  });
  call.activations(first + 3).set(dq);
  call.activations(first + 4).set(dk);
  call.activations(first + 5).set(dv);
}

export const attentionKernels: Kernels = { attention, 'attention.grad': attentionGrad };
