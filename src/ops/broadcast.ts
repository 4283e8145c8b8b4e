import { defineOp, first, type Meta } from '../autograd/index.js';
import { computeDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import {
  broadcastShapes,
  normalAxes,
  numel,
  type Shape,
  sameShape,
  withoutAxes,
} from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';

// Repeating and summing are each other's gradient, so they stand together, with reshape between.

const reshapeOp = defineOp<{ shape: Shape }>({
  name: 'reshape',
  infer: ([x], { shape }) => {
    const { shape: from, dtype } = x as Meta;
    if (numel(from) !== numel(shape)) {
      throw failure(
        'reshape',
        `${numel(from)} elements as in ${shapeText(from)}`,
        shapeText(shape),
      );
    }
    return [{ shape, dtype }];
  },
  view: (x, { shape }) => x.alias(shape),
  // the same elements: dx = dy in x's shape
  backward: ({ grad, inputs }) => [reshape(grad, (inputs[0] as Meta).shape)],
  samples: [
    { label: 'odd', inputs: [{ shape: [3, 5] }], attrs: { shape: [5, 3] } },
    { label: 'to one', inputs: [{ shape: [1, 1] }], attrs: { shape: [] } },
    { label: 'empty', inputs: [{ shape: [0, 4] }], attrs: { shape: [2, 0] } },
  ],
});

/** The same elements in another shape, without a copy; one size may be −1 and is found. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  const at = shape.indexOf(-1);
  if (at < 0) return first(reshapeOp([x], { shape }));
  const known = shape.reduce((n, d, i) => (i === at ? n : n * d), 1);
  const found = known > 0 ? x.size / known : 0;
  if (!Number.isInteger(found) || shape.lastIndexOf(-1) !== at) {
    throw failure('reshape', `sizes that divide ${shapeText(x.shape)}`, shapeText(shape));
  }
  return first(reshapeOp([x], { shape: shape.map((d, i) => (i === at ? found : d)) }));
}

/** The shape with 1 in place of the reduced axes. */
function kept(shape: Shape, axes: readonly number[]): number[] {
  return shape.map((d, i) => (axes.includes(i) ? 1 : d));
}

const sumOp = defineOp<{ axes: readonly number[] }>({
  name: 'sum',
  infer: ([x], { axes }) => {
    const { shape, dtype } = x as Meta;
    return [{ shape: withoutAxes(shape, axes), dtype: computeDType([dtype]) }];
  },
  encode: ({ axes }) => axes,
  // every summed element gets dy
  backward: ({ grad, attrs: { axes }, inputs }) => {
    const { shape } = inputs[0] as Meta;
    return [broadcastTo(reshape(grad, kept(shape, axes)), shape)];
  },
  samples: [
    { label: 'all', inputs: [{ shape: [3, 5] }], attrs: { axes: [0, 1] } },
    { label: 'last', inputs: [{ shape: [4, 37] }], attrs: { axes: [1] } },
    { label: 'first', inputs: [{ shape: [37, 4] }], attrs: { axes: [0] } },
    { label: 'outer two', inputs: [{ shape: [3, 1, 5, 2] }], attrs: { axes: [0, 2] } },
    { label: 'empty', inputs: [{ shape: [0, 3] }], attrs: { axes: [0] } },
    { label: 'no axis', inputs: [{ shape: [2, 3] }], attrs: { axes: [] } },
  ],
});

/** Every axis of a tensor. */
export const allAxes = (x: Tensor) => x.shape.map((_, i) => i);

/** The sum over some axes (default all), which are removed, or kept as 1 on request. */
export function sum(
  x: Tensor,
  axes: readonly number[] = allAxes(x),
  options: { readonly keepDims?: boolean } = {},
): Tensor {
  const normal = normalAxes('sum', axes, x.shape.length);
  const y = first(sumOp([x], { axes: normal }));
  return options.keepDims ? reshape(y, kept(x.shape, normal)) : y;
}

const broadcastOp = defineOp<{ shape: Shape }>({
  name: 'broadcast',
  infer: ([x], { shape }) => {
    const { shape: from, dtype } = x as Meta;
    if (!sameShape(broadcastShapes('broadcast', from, shape), shape)) {
      throw failure('broadcast', `a shape that ${shapeText(from)} fits into`, shapeText(shape));
    }
    return [{ shape, dtype }];
  },
  // dx = dy summed over the repeats
  backward: ({ grad, inputs }) => [sumTo(grad, (inputs[0] as Meta).shape)],
  samples: [
    { label: 'rows', inputs: [{ shape: [1, 5] }], attrs: { shape: [3, 5] } },
    { label: 'new axes', inputs: [{ shape: [3, 1] }], attrs: { shape: [2, 3, 7] } },
    { label: 'to nothing', inputs: [{ shape: [1, 4] }], attrs: { shape: [0, 4] } },
    { label: 'empty', inputs: [{ shape: [0, 1] }], attrs: { shape: [2, 0, 3] } },
  ],
});

/** x repeated to a larger shape by NumPy's rule (a copy). */
export function broadcastTo(x: Tensor, shape: Shape): Tensor {
  return first(broadcastOp([x], { shape }));
}

/** A gradient summed over the axes along which an input of this shape was broadcast. */
export function sumTo(grad: Tensor, shape: Shape): Tensor {
  if (sameShape(grad.shape, shape)) return grad;
  const lead = grad.shape.length - shape.length;
  const axes = grad.shape
    .map((d, i) => (i < lead || ((shape[i - lead] as number) === 1 && d !== 1) ? i : -1))
    .filter((i) => i >= 0);
  return reshape(axes.length > 0 ? sum(grad, axes) : grad, shape);
}
