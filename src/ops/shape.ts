import { defineOp, first, type Meta } from '../autograd/index.js';
import { computeDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { normalAxis, type Shape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';

const permuteOp = defineOp<{ axes: readonly number[] }>({
  name: 'permute',
  infer: ([x], { axes }) => {
    const { shape, dtype } = x as Meta;
    if (axes.length !== shape.length || new Set(axes).size !== axes.length) {
      throw failure('permute', `each axis of ${shapeText(shape)} once`, `[${axes}]`);
    }
    return [
      { shape: axes.map((a) => shape[normalAxis('permute', a, shape.length)] as number), dtype },
    ];
  },
  encode: ({ axes }) => axes,
  // dx = dy with the axes put back
  backward: ({ grad, attrs }) => [
    permute(
      grad,
      attrs.axes.map((_, i) => attrs.axes.indexOf(i)),
    ),
  ],
  samples: [
    { label: 'matrix', inputs: [{ shape: [3, 5] }], attrs: { axes: [1, 0] } },
    { label: 'cycle', inputs: [{ shape: [2, 3, 5, 7] }], attrs: { axes: [2, 0, 3, 1] } },
    { label: 'one', inputs: [{ shape: [1, 4, 1] }], attrs: { axes: [2, 1, 0] } },
    { label: 'empty', inputs: [{ shape: [0, 4] }], attrs: { axes: [1, 0] } },
  ],
});

/** x with its axes in another order (a copy): y.shape[i] = x.shape[axes[i]]. */
export function permute(x: Tensor, axes: readonly number[]): Tensor {
  const rank = x.shape.length;
  return first(permuteOp([x], { axes: axes.map((a) => normalAxis('permute', a, rank)) }));
}

/** x with two axes swapped (a copy); by default the last two. */
export function transpose(x: Tensor, a = -2, b = -1): Tensor {
  const rank = x.shape.length;
  const i = normalAxis('transpose', a, rank);
  const j = normalAxis('transpose', b, rank);
  return permute(
    x,
    x.shape.map((_, k) => (k === i ? j : k === j ? i : k)),
  );
}

interface Cut {
  readonly starts: readonly number[];
  readonly sizes: readonly number[];
}

/** Throws unless a cut lies inside a shape. */
export function checkCut(where: string, shape: Shape, { starts, sizes }: Cut): void {
  const inside =
    starts.length === shape.length &&
    sizes.length === shape.length &&
    shape.every((d, i) => {
      const at = starts[i] as number;
      const n = sizes[i] as number;
      return Number.isInteger(at) && Number.isInteger(n) && at >= 0 && n >= 0 && at + n <= d;
    });
  if (!inside) {
    throw failure(where, `a part of ${shapeText(shape)}`, `${shapeText(sizes)} at [${starts}]`);
  }
}

const sliceOp = defineOp<Cut>({
  name: 'slice',
  infer: ([x], cut) => {
    const { shape, dtype } = x as Meta;
    checkCut('slice', shape, cut);
    return [{ shape: cut.sizes, dtype }];
  },
  encode: ({ starts }) => starts,
  // dy placed in zeros of x's shape
  backward: ({ grad, attrs, inputs, earlier }) => {
    const into = earlier(0);
    if (into && into.dtype === grad.dtype && grad.backend.kernels.has('slice.gradAdd')) {
      grad.backend.run('slice.gradAdd', [grad, into], attrs.starts);
      return [into];
    }
    return [sliceGradOp([grad], { ...attrs, shape: (inputs[0] as Meta).shape })[0] as Tensor];
  },
  samples: [
    { label: 'middle', inputs: [{ shape: [5, 7] }], attrs: { starts: [1, 2], sizes: [3, 4] } },
    {
      label: 'one',
      inputs: [{ shape: [3, 1, 5] }],
      attrs: { starts: [2, 0, 4], sizes: [1, 1, 1] },
    },
    { label: 'nothing', inputs: [{ shape: [3, 4] }], attrs: { starts: [3, 0], sizes: [0, 4] } },
    { label: 'empty', inputs: [{ shape: [0, 4] }], attrs: { starts: [0, 1], sizes: [0, 2] } },
  ],
});

const sliceGradOp = defineOp<Cut & { shape: Shape }>({
  name: 'slice.grad',
  infer: ([dy], cut) => {
    checkCut('slice.grad', cut.shape, cut);
    return [{ shape: cut.shape, dtype: (dy as Meta).dtype }];
  },
  encode: ({ starts }) => starts,
  samples: [
    {
      label: 'middle',
      inputs: [{ shape: [3, 4] }],
      attrs: { starts: [1, 2], sizes: [3, 4], shape: [5, 7] },
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }],
      attrs: { starts: [0, 2], sizes: [1, 1], shape: [1, 3] },
    },
    {
      label: 'nothing',
      inputs: [{ shape: [0, 4] }],
      attrs: { starts: [3, 0], sizes: [0, 4], shape: [3, 4] },
    },
  ],
});

/** The elements start … end − 1 of one axis (a copy); end defaults to the axis' size. */
export function slice(x: Tensor, axis: number, start: number, end?: number): Tensor {
  const a = normalAxis('slice', axis, x.shape.length);
  const stop = end ?? (x.shape[a] as number);
  return first(
    sliceOp([x], {
      starts: x.shape.map((_, i) => (i === a ? start : 0)),
      sizes: x.shape.map((d, i) => (i === a ? stop - start : d)),
    }),
  );
}

const concatOp = defineOp<{ axis: number }>({
  name: 'concat',
  infer: (inputs, { axis }) => {
    const { shape, dtype } = inputs[0] as Meta;
    let total = 0;
    for (const m of inputs) {
      const fits =
        m.dtype === dtype &&
        m.shape.length === shape.length &&
        m.shape.every((d, i) => i === axis || d === shape[i]);
      if (!fits) {
        throw failure(
          'concat',
          `${dtype} ${shapeText(shape)} but for axis ${axis}`,
          `${m.dtype} ${shapeText(m.shape)}`,
        );
      }
      total += m.shape[axis] as number;
    }
    return [{ shape: shape.map((d, i) => (i === axis ? total : d)), dtype }];
  },
  encode: ({ axis }) => [axis],
  // each input's gradient is its part of dy
  backward: ({ grad, attrs: { axis }, inputs, needs }) => {
    let at = 0;
    return inputs.map((m, i) => {
      const size = m.shape[axis] as number;
      at += size;
      return needs[i] ? slice(grad, axis, at - size, at) : null;
    });
  },
  samples: [
    { label: 'rows', inputs: [{ shape: [3, 5] }, { shape: [1, 5] }], attrs: { axis: 0 } },
    {
      label: 'three',
      inputs: [{ shape: [2, 3, 5] }, { shape: [2, 1, 5] }, { shape: [2, 4, 5] }],
      attrs: { axis: 1 },
    },
    { label: 'empty', inputs: [{ shape: [3, 0] }, { shape: [3, 2] }], attrs: { axis: 1 } },
  ],
});

/** Tensors joined along one axis; their other sizes and dtypes must agree. */
export function concat(tensors: readonly Tensor[], axis = 0): Tensor {
  const [head] = tensors;
  if (!head) throw failure('concat', 'at least one tensor', 'none');
  return first(concatOp(tensors, { axis: normalAxis('concat', axis, head.shape.length) }));
}

const gatherOp = defineOp<{ axis: number }>({
  name: 'gather',
  infer: ([x, index], { axis }) => {
    const from = x as Meta;
    const { shape, dtype } = index as Meta;
    const fits =
      dtype === 'i32' &&
      shape.length === from.shape.length &&
      shape.every((d, i) => i === axis || d === from.shape[i]);
    if (!fits) {
      throw failure(
        'gather',
        `i32 indices of shape ${shapeText(from.shape)} but for axis ${axis}`,
        `${dtype} ${shapeText(shape)}`,
      );
    }
    return [{ shape, dtype: from.dtype }];
  },
  encode: ({ axis }) => [axis],
  // dx[index] += dy
  reads: () => ({ inputs: [1] }),
  backward: ({ grad, attrs, inputs, input }) => [
    gatherGradOp([input(1), grad], { ...attrs, shape: (inputs[0] as Meta).shape })[0] as Tensor,
    null,
  ],
  samples: [
    {
      label: 'last axis, repeated',
      inputs: [{ shape: [3, 5] }, { shape: [3, 2], values: [4, 4, 0, 2, 1, 3], dtype: 'i32' }],
      attrs: { axis: 1 },
    },
    {
      label: 'first axis, one',
      inputs: [{ shape: [3, 2] }, { shape: [1, 2], values: [2, 0], dtype: 'i32' }],
      attrs: { axis: 0 },
    },
    {
      label: 'empty',
      inputs: [{ shape: [3, 2] }, { shape: [0, 2], values: [], dtype: 'i32' }],
      attrs: { axis: 0 },
    },
  ],
});

const gatherGradOp = defineOp<{ axis: number; shape: Shape }>({
  name: 'gather.grad',
  infer: ([, dy], { shape }) => [{ shape, dtype: computeDType([(dy as Meta).dtype]) }],
  encode: ({ axis }) => [axis],
  samples: [
    {
      label: 'repeated',
      inputs: [{ shape: [3, 2], values: [4, 4, 0, 2, 1, 3], dtype: 'i32' }, { shape: [3, 2] }],
      attrs: { axis: 1, shape: [3, 5] },
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1], values: [0], dtype: 'i32' }, { shape: [1, 1] }],
      attrs: { axis: 0, shape: [1, 1] },
    },
    {
      label: 'empty',
      inputs: [{ shape: [0, 2], values: [], dtype: 'i32' }, { shape: [0, 2] }],
      attrs: { axis: 0, shape: [3, 2] },
    },
  ],
});

/** Elements of x picked along one axis by i32 indices, as NumPy's take_along_axis. */
export function gather(x: Tensor, index: Tensor, axis = -1): Tensor {
  return first(gatherOp([x, index], { axis: normalAxis('gather', axis, x.shape.length) }));
}
