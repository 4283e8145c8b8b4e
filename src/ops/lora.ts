import {
  type BackwardContext,
  defineOp,
  type Forward,
  type Meta,
  type Sample,
} from '../autograd/index.js';
import { computeDType, gradientDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { Tensor } from '../tensor/tensor.js';
import { add, scale } from './elementwise.js';
import {
  branchesBackward,
  branchesFit,
  branchesForward,
  branchesReads,
  sumDType,
} from './low-rank-rows.js';
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

/** One adapter on every row, as the kernels of mixed batches have it. */
const alone = ({ scale: s, own }: LowRankAttrs) => ({ scales: [s], groups: [0], own, whole: true });

/** The largest rank for which the branch's own kernels take less time than products, which pack. */
const NARROW = 32;

/** Whether the kernels that compute a branch and its gradients whole are there, and worth it. */
const isWhole = ({ backend }: Tensor, a: Meta) =>
  (a.shape[0] as number) <= NARROW && backend.kernels.has('addLowRankRows.grad');

/** y + s·(x Aᵀ) Bᵀ by two products. */
function productsForward(
  inputs: readonly Tensor[],
  attrs: LowRankAttrs,
  needs: readonly boolean[],
): Forward {
  const [y, x, a, b] = inputs as readonly [Tensor, Tensor, Tensor, Tensor];
  const arithmetic = computeDType(inputs.map((t) => t.dtype));
  const dtype = sumDType(inputs);
  const { backend } = y;
  const h = Tensor.empty(backend, [...x.shape.slice(0, -1), a.shape[0] as number], arithmetic);
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
}

/** With h = x Aᵀ and dh = s·dy B: dx = dh A, dA = dhᵀ x, dB = s·dyᵀ h, by four products. */
function productsBackward({
  grad,
  attrs,
  inputs,
  needs,
  input,
  kept,
  earlier,
}: BackwardContext<LowRankAttrs>): (Tensor | null)[] {
  const dy = flatRows(grad);
  const both = { transA: true };
  const dh = needs[1] || needs[2] ? product(dy, input(3), { alpha: attrs.scale }) : null;
  const rows = grad.shape.slice(0, -1);
  let dx: Tensor | null = null;
  if (needs[1] && dh) {
    const into = earlier(1);
    const dtype = gradientDType((inputs[1] as Meta).dtype, grad.dtype);
    const made = product(dh, input(2), {}, into && flatRows(into), dtype);
    const inner = made.shape[1] as number;
    dx = into ?? made.alias([...rows, inner]);
  }
  const dA = needs[2] && dh ? product(dh, flatRows(input(1)), both, earlier(2)) : null;
  const dB = needs[3]
    ? product(dy, flatRows(kept(0)), { ...both, alpha: attrs.scale }, earlier(3))
    : null;
  return [needs[0] ? grad : null, dx, dA, dB];
}

const addLowRankOp = defineOp<LowRankAttrs>({
  name: 'addLowRank',
  infer: (inputs) => {
    const shapes = inputs.map((m) => m.shape);
    if (branchesFit(shapes, 1)) {
      return [{ shape: (inputs[0] as Meta).shape, dtype: sumDType(inputs) }];
    }
    const expected = 'y [.., out], x [.., in], A [r, in] and B [out, r]';
    throw failure('addLowRank', expected, shapes.map(shapeText).join(', '));
  },
  reads: (needs, attrs) => branchesReads(needs, alone(attrs)),
  forward: (inputs, attrs, needs) =>
    isWhole(inputs[0] as Tensor, inputs[2] as Tensor)
      ? branchesForward(inputs, alone(attrs), needs)
      : productsForward(inputs, attrs, needs),
  // y + h Bᵀ with h = s·x Aᵀ, dh = s·dy B: dx = dh A, dA = dhᵀ x, dB = dyᵀ h
  backward: (ctx) =>
    isWhole(ctx.grad, ctx.inputs[2] as Meta)
      ? branchesBackward(ctx, alone(ctx.attrs))
      : productsBackward(ctx),
  composed: (inputs, attrs) => {
    const [y, x, a, b] = inputs as readonly [Tensor, Tensor, Tensor, Tensor];
    return add(y, linear(scale(linear(x, a), attrs.scale), b));
  },
  samples: [
    sample('odd', [2, 3], [5, 2, 7], { scale: 1.5, own: false }),
    sample('in place', [3], [33, 4, 17], { scale: -0.5, own: true }),
    sample('one', [1], [1, 1, 1], { scale: 2, own: false }),
    sample('a rank for products', [2, 3], [9, 40, 7], { scale: 0.5, own: true }),
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
 * y + s·(x Aᵀ) Bᵀ: what a LoRA branch makes of its layer's output.
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
