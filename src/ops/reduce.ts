import { defineOp, first, type Meta } from '../autograd/index.js';
import { computeDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { normalAxes, normalAxis, type Shape, withoutAxes } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { allAxes, sum } from './broadcast.js';
import { scale } from './elementwise.js';

/** The mean over some axes (default all), which are removed, or kept as 1 on request. */
export function mean(
  x: Tensor,
  axes: readonly number[] = allAxes(x),
  options: { readonly keepDims?: boolean } = {},
): Tensor {
  const count = normalAxes('mean', axes, x.shape.length).reduce(
    (n, a) => n * (x.shape[a] as number),
    1,
  );
  if (count === 0) throw failure('mean', 'at least one element', shapeText(x.shape));
  return scale(sum(x, axes, options), 1 / count);
}

const maxOp = defineOp<{ axis: number }>({
  name: 'max',
  infer: ([x], { axis }) => {
    const { shape, dtype } = x as Meta;
    if (shape[axis] === 0) throw failure('max', 'at least one element', shapeText(shape));
    const out = withoutAxes(shape, [axis]);
    return [
      { shape: out, dtype: computeDType([dtype]) },
      { shape: out, dtype: 'i32' },
    ];
  },
  encode: ({ axis }) => [axis],
  // dy goes to the first largest element
  reads: () => ({ outputs: [1] }),
  backward: ({ grad, attrs, inputs, output }) => [
    maxGradOp([output(1), grad], { ...attrs, shape: (inputs[0] as Meta).shape })[0] as Tensor,
  ],
  samples: [
    { label: 'last', inputs: [{ shape: [3, 5] }], attrs: { axis: 1 } },
    { label: 'first', inputs: [{ shape: [5, 3] }], attrs: { axis: 0 } },
    { label: 'one', inputs: [{ shape: [3, 1, 2] }], attrs: { axis: 1 } },
    { label: 'empty', inputs: [{ shape: [0, 3] }], attrs: { axis: 1 } },
  ],
});

const maxGradOp = defineOp<{ axis: number; shape: Shape }>({
  name: 'max.grad',
  infer: ([, dy], { shape }) => [{ shape, dtype: computeDType([(dy as Meta).dtype]) }],
  encode: ({ axis }) => [axis],
  samples: [
    {
      label: 'last',
      inputs: [{ shape: [3], values: [1, 0, 1], dtype: 'i32' }, { shape: [3] }],
      attrs: { axis: 1, shape: [3, 2] },
    },
    {
      label: 'one',
      inputs: [{ shape: [1], values: [0], dtype: 'i32' }, { shape: [1] }],
      attrs: { axis: 0, shape: [1, 1] },
    },
    {
      label: 'empty',
      inputs: [{ shape: [0], values: [], dtype: 'i32' }, { shape: [0] }],
      attrs: { axis: 1, shape: [0, 2] },
    },
  ],
});

/** The largest element along one axis, which is removed; the gradient goes to the first largest. */
export function max(x: Tensor, axis = -1): Tensor {
  return first(maxOp([x], { axis: normalAxis('max', axis, x.shape.length) }));
}

const argmaxOp = defineOp<{ axis: number }>({
  name: 'argmax',
  infer: ([x], { axis }) => {
    const { shape } = x as Meta;
    if (shape[axis] === 0) throw failure('argmax', 'at least one element', shapeText(shape));
    return [{ shape: withoutAxes(shape, [axis]), dtype: 'i32' }];
  },
  encode: ({ axis }) => [axis],
  samples: [
    { label: 'last', inputs: [{ shape: [3, 5] }], attrs: { axis: 1 } },
    { label: 'first', inputs: [{ shape: [5, 1] }], attrs: { axis: 0 } },
    { label: 'empty', inputs: [{ shape: [0, 3] }], attrs: { axis: 1 } },
  ],
});

/** Index (i32) of the first largest element along one axis, which is removed. */
export function argmax(x: Tensor, axis = -1): Tensor {
  return first(argmaxOp([x], { axis: normalAxis('argmax', axis, x.shape.length) }));
}
