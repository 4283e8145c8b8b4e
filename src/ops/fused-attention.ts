import { defineOp, type Meta, type Sample } from '../autograd/index.js';
import type { KernelTensor } from '../tensor/backend.js';
import { dtypeBytes, gradientDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Shape } from '../tensor/shape.js';
import { Tensor } from '../tensor/tensor.js';
import {
  type AttentionAttrs,
  type AttentionOptions,
  attention,
  attentionAttrs,
  encodeAttention,
  inferAttention,
} from './attention.js';
import { reshape } from './broadcast.js';
import { slice } from './shape.js';

interface FusedAttrs extends AttentionAttrs {
  readonly heads: number;
}

/** The shape of q, of k and of v in x [B, T, 3·H·D]. */
function headsOf({ shape }: Meta, heads: number): Shape {
  const [B, T, width] = shape;
  if (shape.length !== 3 || (width as number) % (3 * heads) !== 0) {
    const expected = `[B, T, 3·${heads}·D]`;
    throw failure('fusedAttention', expected, shapeText(shape));
  }
  return [B as number, T as number, heads, (width as number) / (3 * heads)];
}

/** Queries, keys and values [B, T, H, D] in a buffer that has them one after another. */
function partsOf(t: Tensor, shape: Shape): KernelTensor[] {
  const { storage, dtype } = t;
  const bytes = (t.size / 3) * dtypeBytes(dtype);
  return [0, 1, 2].map((i) => ({ storage, dtype, shape, byteOffset: t.byteOffset + i * bytes }));
}

/** q, k and v [B, T, H, D] of x [B, T, 3·H·D], each a copy. */
export function splitHeads(x: Tensor, heads: number): [Tensor, Tensor, Tensor] {
  const shape = headsOf(x, heads);
  const C = (x.shape[2] as number) / 3;
  const part = (i: number) => reshape(slice(x, 2, i * C, (i + 1) * C), shape);
  return [part(0), part(1), part(2)];
}

const TURNED = [1, 0, 2];

/** [N, 3, C] to [3, N, C], or back: `to` has its place, and shapes are as a kernel sees them. */
function turn(from: Tensor, to: Tensor, outer: number, middle: number): void {
  const view = ({ storage, byteOffset, dtype, size }: Tensor, a: number, b: number) => ({
    ...{ storage, byteOffset, dtype },
    shape: [a, b, a * b > 0 ? size / (a * b) : 0],
  });
  to.backend.run('permute', [view(from, outer, middle), view(to, middle, outer)], TURNED);
}

const plain = { causal: false, scale: 0.5, window: 0, keyLength: -1 };
const causal = { ...plain, causal: true };

function sample(
  label: string,
  [B, T, H, D]: readonly [number, number, number, number],
  attrs: AttentionAttrs,
  mask?: readonly number[],
): Sample<FusedAttrs> {
  const x = { shape: [B, T, 3 * H * D] };
  const hidden = { shape: [B, T], values: mask ?? [], dtype: 'u8' as const };
  return { label, inputs: mask ? [x, hidden] : [x], attrs: { ...attrs, heads: H } };
}

const fusedAttentionOp = defineOp<FusedAttrs>({
  name: 'fusedAttention',
  infer: ([x, mask], attrs) => {
    const { dtype } = x as Meta;
    const part = { shape: headsOf(x as Meta, attrs.heads), dtype };
    return inferAttention(mask ? [part, part, part, mask] : [part, part, part], attrs).slice(0, 1);
  },
  reads: (needs) => ({ inputs: needs.length === 2 ? [1] : [], outputs: [0] }),
  forward: ([x, mask], attrs, needs) => {
    const fused = x as Tensor;
    const { backend, dtype } = fused;
    const part = { shape: headsOf(fused, attrs.heads), dtype };
    const [B, T] = part.shape as readonly [number, number];
    const parts = Tensor.empty(backend, [3, ...part.shape], dtype);
    turn(fused, parts, B * T, 3);
    const inputs = mask ? [part, part, part, mask] : [part, part, part];
    const [output, lse] = inferAttention(inputs, attrs).map((m) =>
      Tensor.empty(backend, m.shape, m.dtype),
    ) as [Tensor, Tensor];
    const given = partsOf(parts, part.shape);
    if (mask) given.push(mask);
    backend.run('attention', [...given, output, lse], encodeAttention(attrs, inputs));
    return { output, kept: needs[0] ? [parts, lse] : [] };
  },
  // as of attention, with dq, dk and dv written side by side and put into dx in one go
  backward: ({ grad, attrs, inputs, input, output, kept }) => {
    const [x] = inputs as readonly [Meta];
    const masked = inputs.length === 2;
    const { backend } = grad;
    const shape = headsOf(x, attrs.heads);
    const dtype = gradientDType(x.dtype, grad.dtype);
    const parts = Tensor.empty(backend, [3, ...shape], dtype);
    const given = partsOf(kept(0), shape);
    if (masked) given.push(input(1));
    const encoded = encodeAttention(attrs, given);
    const tensors = [...given, output(0), kept(1), grad, ...partsOf(parts, shape)];
    backend.run('attention.grad', tensors, encoded);
    const dx = Tensor.empty(backend, x.shape, dtype);
    turn(parts, dx, 3, (shape[0] as number) * (shape[1] as number));
    return masked ? [dx, null] : [dx];
  },
  composed: ([x, mask], { heads, ...attrs }) => {
    const [q, k, v] = splitHeads(x as Tensor, heads);
    return attention(q, k, v, mask ? { ...attrs, mask } : attrs);
  },
  samples: [
    sample('odd', [2, 3, 2, 5], plain),
    sample('causal', [1, 5, 3, 4], causal),
    sample('masked', [2, 3, 1, 4], causal, [1, 1, 0, 0, 1, 1]),
    sample('window', [1, 7, 1, 3], { ...causal, window: 3 }),
    sample('several tiles', [1, 70, 2, 8], causal),
    sample('one', [1, 1, 1, 1], plain),
    sample('empty', [0, 2, 1, 2], plain),
  ],
});

/**
 * {@link attention} of queries, keys and values that lie side by side, as a fused layer answers
 * them: x is taken apart in one call, and its gradient put together in one.
 * @param x [B, T, 3·H·D]: of each position q, then k, then v
 * @param heads H
 * @returns [B, T, H, D]
 */
export function fusedAttention(
  x: Tensor,
  heads: number,
  options: Omit<AttentionOptions, 'keyLength'> = {},
): Tensor {
  const attrs = { ...attentionAttrs(options, headsOf(x, heads)[3] as number), heads };
  return fusedAttentionOp(options.mask ? [x, options.mask] : [x], attrs)[0] as Tensor;
}
