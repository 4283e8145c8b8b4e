import { defineOp, first, type Meta, runKernel, type Sample } from '../autograd/index.js';
import { activationDType, computeDType, gradientDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';

export interface AttentionAttrs {
  readonly causal: boolean;
  readonly scale: number;
  readonly window: number;
  readonly keyLength: number;
}

/** The attributes of both kernels, after q, k, v and the mask where there is one. */
export function encodeAttention(
  { causal, scale, window, keyLength }: AttentionAttrs,
  inputs: readonly Meta[],
): number[] {
  return [inputs.length === 4 ? 1 : 0, causal ? 1 : 0, scale, window, keyLength];
}

/** Shapes and dtypes of the output and of the log-sum-exp. */
export function inferAttention(inputs: readonly Meta[], { keyLength }: AttentionAttrs): Meta[] {
  const [q, k, v, mask] = inputs as [Meta, Meta, Meta, Meta?];
  const [B, T, H, D] = q.shape;
  const [b, S, G, d] = k.shape;
  const fits =
    q.shape.length === 4 &&
    k.shape.length === 4 &&
    b === B &&
    d === D &&
    sameShape(v.shape, k.shape) &&
    (H as number) % (G as number) === 0;
  if (!fits) {
    throw failure(
      'attention',
      'q [B, T, H, D], k and v [B, S, G, D] with H a multiple of G',
      [q, k, v].map((m) => shapeText(m.shape)).join(', '),
    );
  }
  if (mask && (mask.dtype !== 'u8' || !sameShape(mask.shape, [B as number, S as number]))) {
    throw failure(
      'attention',
      `a u8 mask ${shapeText([B as number, S as number])}`,
      `${mask.dtype} ${shapeText(mask.shape)}`,
    );
  }
  if (keyLength > (S as number)) {
    throw failure('attention', `a key length of at most ${S}`, String(keyLength));
  }
  const all = [q.dtype, k.dtype, v.dtype];
  const dtype = computeDType(all);
  return [
    { shape: q.shape, dtype: activationDType(all) },
    { shape: [B as number, H as number, T as number], dtype },
  ];
}

const plain = { causal: false, scale: 0.5, window: 0, keyLength: -1 };
const causal = { ...plain, causal: true };

function sample(
  label: string,
  q: readonly number[],
  k: readonly number[],
  attrs: AttentionAttrs,
  mask?: readonly number[],
): Sample<AttentionAttrs> {
  const inputs = [{ shape: q }, { shape: k }, { shape: k }];
  const hidden = { shape: k.slice(0, 2), values: mask ?? [], dtype: 'u8' as const };
  return { label, inputs: mask ? [...inputs, hidden] : inputs, attrs };
}

const attentionOp = defineOp<AttentionAttrs>({
  name: 'attention',
  infer: inferAttention,
  encode: encodeAttention,
  reads: (needs) => ({ inputs: needs.map((_, i) => i), outputs: [0, 1] }),
  // P = softmax(s·q kᵀ), δ = Σ dy·y: dv = Pᵀ dy, dS = P·(dy vᵀ − δ), dq = s·dS k, dk = s·dSᵀ q
  backward: ({ grad, attrs, inputs, input, output }) => {
    const mask = inputs.length === 4 ? [input(3)] : [];
    const grads = runKernel(
      grad.backend,
      'attention.grad',
      [input(0), input(1), input(2), ...mask, output(0), output(1), grad],
      inputs
        .slice(0, 3)
        .map((m) => ({ shape: m.shape, dtype: gradientDType(m.dtype, grad.dtype) })),
      encodeAttention(attrs, inputs),
    );
    return inputs.length === 4 ? [...grads, null] : grads;
  },
  samples: [
    sample('full, odd', [2, 3, 1, 5], [2, 4, 1, 5], plain),
    sample('causal', [1, 5, 2, 4], [1, 5, 2, 4], causal),
    sample('causal, more keys', [1, 2, 2, 4], [1, 5, 2, 4], causal),
    sample('grouped', [1, 3, 4, 2], [1, 3, 2, 2], causal),
    sample('masked', [2, 3, 2, 4], [2, 3, 1, 4], causal, [1, 1, 0, 0, 1, 1]),
    sample('window', [1, 7, 1, 4], [1, 7, 1, 4], { ...causal, window: 3 }),
    sample('key length', [1, 2, 1, 4], [1, 6, 1, 4], { ...causal, keyLength: 4 }),
    sample('several tiles', [1, 70, 2, 8], [1, 70, 1, 8], causal),
    sample('one', [1, 1, 1, 1], [1, 1, 1, 1], plain),
    sample('no keys', [1, 2, 1, 2], [1, 0, 1, 2], plain),
    sample('empty', [0, 2, 1, 2], [0, 2, 1, 2], plain),
  ],
});

/** Settings of {@link attention}. */
export interface AttentionOptions {
  /** Query t sees keys up to t (aligned at the end when there are more keys). */
  readonly causal?: boolean;
  /** Factor of the scores; default 1/√D. */
  readonly scale?: number;
  /** A query sees only this many keys back, itself included; default all. */
  readonly window?: number;
  /** u8 [B, S]; keys at 0 are hidden. */
  readonly mask?: Tensor;
  /** How many keys of a longer buffer count; default all. */
  readonly keyLength?: number;
}

/** The settings with their defaults. @param D head size */
export function attentionAttrs(options: AttentionOptions, D: number): AttentionAttrs {
  return {
    causal: options.causal ?? false,
    scale: options.scale ?? 1 / Math.sqrt(D),
    window: options.window ?? 0,
    keyLength: options.keyLength ?? -1,
  };
}

/**
 * Scaled dot-product attention; heads of q share the heads of k and v in groups. No [T, S] matrix
 * is kept. A query that sees no key answers 0.
 * @param q [B, T, H, D]
 * @param k [B, S, G, D], H a multiple of G
 * @param v [B, S, G, D]
 * @returns [B, T, H, D]
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  const attrs = attentionAttrs(options, q.shape[3] ?? 1);
  return first(attentionOp(options.mask ? [q, k, v, options.mask] : [q, k, v], attrs));
}
