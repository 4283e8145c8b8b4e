import { defineOp, type Meta, type Sample } from '../autograd/index.js';
import { computeDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import { Tensor } from '../tensor/tensor.js';
import { add, scale } from './elementwise.js';
import { flatRows, linear, product } from './matmul.js';

interface LowRankAttrs {
  readonly scale: number;
  /** Whether y's memory may become the result's. */
  readonly own: boolean;
}

function sample(
  label: string,
  rows: readonly number[],
  [inner, rank, out]: readonly [number, number, number],
  attrs: LowRankAttrs,
): Sample<LowRankAttrs> {
  const shapes = [
    [...rows, out],
    [...rows, inner],
    [rank, inner],
    [out, rank],
  ];
  return { label, inputs: shapes.map((shape) => ({ shape })), attrs };
}

const addLowRankOp = defineOp<LowRankAttrs>({
  name: 'addLowRank',
  infer: (inputs) => {
    const [y, x, a, b] = inputs as readonly [Meta, Meta, Meta, Meta];
    const [rank, inner] = a.shape;
    const [out, r] = b.shape;
    const rows = y.shape.slice(0, -1);
    const fits =
      [a, b].every((m) => m.shape.length === 2) &&
      r === rank &&
      y.shape.at(-1) === out &&
      x.shape.at(-1) === inner &&
      sameShape(rows, x.shape.slice(0, -1));
    if (!fits) {
      throw failure(
        'addLowRank',
        'y [.., out], x [.., in], A [r, in] and B [out, r]',
        inputs.map((m) => shapeText(m.shape)).join(', '),
      );
    }
    return [{ shape: y.shape, dtype: computeDType(inputs.map((m) => m.dtype)) }];
  },
  reads: (needs) => ({
    inputs: [
      ...(needs[2] ? [1] : []),
      ...(needs[1] ? [2] : []),
      ...(needs[1] || needs[2] ? [3] : []),
    ],
  }),
  forward: (inputs, attrs, needs) => {
    const [y, x, a, b] = inputs as readonly [Tensor, Tensor, Tensor, Tensor];
    const dtype = computeDType(inputs.map((t) => t.dtype));
    const { backend } = y;
    const h = Tensor.empty(backend, [...x.shape.slice(0, -1), a.shape[0] as number], dtype);
    backend.run('linear', [x, a, h], []);
    let output: Tensor;
    if (attrs.own && y.storage.refs === 1 && y.dtype === dtype) {
      output = y.alias();
      y.storage.version++;
    } else {
      output = Tensor.empty(backend, y.shape, dtype);
      backend.run('cast', [y, output], []);
    }
    backend.run('matmul', [flatRows(h), b, flatRows(output)], [0, 1, attrs.scale, 1]);
    return { output, kept: needs[3] ? [h] : [] };
  },
  // y + s·(x Aᵀ) Bᵀ with h = x Aᵀ, dh = s·dy B: dx = dh A, dA = dhᵀ x, dB = s·dyᵀ h
  backward: ({ grad, attrs, needs, input, kept, earlier }) => {
    const dy = flatRows(grad);
    const both = { transA: true };
    const dh = needs[1] || needs[2] ? product(dy, input(3), { alpha: attrs.scale }) : null;
    const rows = grad.shape.slice(0, -1);
    let dx: Tensor | null = null;
    if (needs[1] && dh) {
      const into = earlier(1);
      const made = product(dh, input(2), {}, into && flatRows(into));
      const inner = made.shape[1] as number;
      dx = into ?? made.alias([...rows, inner]);
    }
    const dA = needs[2] && dh ? product(dh, flatRows(input(1)), both, earlier(2)) : null;
    const dB = needs[3]
      ? product(dy, flatRows(kept(0)), { ...both, alpha: attrs.scale }, earlier(3))
      : null;
    return [needs[0] ? grad : null, dx, dA, dB];
  },
  composed: (inputs, attrs) => {
    const [y, x, a, b] = inputs as readonly [Tensor, Tensor, Tensor, Tensor];
    return add(y, linear(scale(linear(x, a), attrs.scale), b));
  },
  samples: [
    sample('odd', [2, 3], [5, 2, 7], { scale: 1.5, own: false }),
    sample('in place', [3], [33, 4, 17], { scale: -0.5, own: true }),
    sample('one', [1], [1, 1, 1], { scale: 2, own: false }),
    sample('empty', [0], [3, 2, 5], { scale: 1, own: true }),
  ],
});

/** Settings of {@link addLowRank}. */
export interface LowRankOptions {
  /** s. Default 1. */
  readonly scale?: number;
  /**
   * Hands y over: its memory becomes the result's where nothing else holds it, and y must not be
   * read again. Default false.
   */
  readonly own?: boolean;
}

/**
 * y + s·(x Aᵀ) Bᵀ: what a LoRA branch makes of its layer's output, in two products.
 * @param y [.., out]
 * @param x [.., in]
 * @param a [r, in]
 * @param b [out, r]
 */
export function addLowRank(
  y: Tensor,
  x: Tensor,
  a: Tensor,
  b: Tensor,
  options: LowRankOptions = {},
): Tensor {
  const attrs = { scale: options.scale ?? 1, own: options.own ?? false };
  return addLowRankOp([y, x, a, b], attrs)[0] as Tensor;
}
