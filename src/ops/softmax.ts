import { defineOp, first, type Meta, type Op, runKernel } from '../autograd/index.js';
import { computeDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { sum } from './broadcast.js';
import { affine, div, exp, log, sub } from './elementwise.js';

function overLastAxis(name: string, composed: (x: Tensor) => Tensor): Op<void> {
  return defineOp<void>({
    name,
    infer: ([x]) => {
      const { shape, dtype } = x as Meta;
      if (shape.length < 1) throw failure(name, 'one or more dimensions', shapeText(shape));
      return [{ shape, dtype: computeDType([dtype]) }];
    },
    reads: () => ({ outputs: [0] }),
    // softmax: dx = y·(dy − Σ dy·y);  log-softmax: dx = dy − eʸ·Σ dy
    backward: ({ grad, output }) =>
      runKernel(
        grad.backend,
        `${name}.grad`,
        [output(0), grad],
        [{ shape: grad.shape, dtype: computeDType([grad.dtype]) }],
      ),
    composed: ([x]) => composed(x as Tensor),
    samples: [
      { label: 'odd', inputs: [{ shape: [3, 5], scale: 3 }], attrs: undefined },
      { label: 'long', inputs: [{ shape: [2, 2, 131], scale: 5 }], attrs: undefined },
      { label: 'one', inputs: [{ shape: [4, 1] }], attrs: undefined },
      { label: 'empty', inputs: [{ shape: [0, 3] }], attrs: undefined },
    ],
  });
}

const softmaxOp = overLastAxis('softmax', (x) => {
  const e = exp(x);
  return div(e, sum(e, [-1], { keepDims: true }));
});
const logSoftmaxOp = overLastAxis('logSoftmax', (x) =>
  sub(x, log(sum(exp(x), [-1], { keepDims: true }))),
);

/** eˣ / Σ eˣ over the last axis. */
export function softmax(x: Tensor): Tensor {
  return first(softmaxOp([x], undefined));
}

/** x − log Σ eˣ over the last axis. */
export function logSoftmax(x: Tensor): Tensor {
  return first(logSoftmaxOp([x], undefined));
}

interface CrossEntropyAttrs {
  readonly ignoreIndex: number;
  readonly labelSmoothing: number;
}

const crossEntropyOp = defineOp<CrossEntropyAttrs>({
  name: 'crossEntropy',
  infer: ([logits, labels]) => {
    const l = logits as Meta;
    const y = labels as Meta;
    if (l.shape.length !== 2 || y.shape.length !== 1 || y.shape[0] !== l.shape[0]) {
      throw failure(
        'crossEntropy',
        'logits [N, V] and labels [N]',
        `${shapeText(l.shape)} and ${shapeText(y.shape)}`,
      );
    }
    if (y.dtype !== 'i32') throw failure('crossEntropy', 'i32 labels', y.dtype);
    return [{ shape: y.shape, dtype: computeDType([l.dtype]) }];
  },
  encode: ({ ignoreIndex, labelSmoothing }) => [ignoreIndex, labelSmoothing],
  reads: () => ({ inputs: [0, 1] }),
  // dlogits = dloss·(softmax − (1 − ε)·onehot − ε/V), 0 where ignored
  backward: ({ grad, attrs, inputs, input }) => [
    ...runKernel(
      grad.backend,
      'crossEntropy.grad',
      [input(0), input(1), grad],
      [{ shape: (inputs[0] as Meta).shape, dtype: computeDType([grad.dtype]) }],
      [attrs.ignoreIndex, attrs.labelSmoothing],
    ),
    null,
  ],
  samples: [
    {
      label: 'odd, one ignored',
      inputs: [
        { shape: [3, 5], scale: 2 },
        { shape: [3], values: [4, -100, 0], dtype: 'i32' },
      ],
      attrs: { ignoreIndex: -100, labelSmoothing: 0 },
    },
    {
      label: 'smoothed',
      inputs: [
        { shape: [4, 37], scale: 3 },
        { shape: [4], values: [36, 1, -1, 7], dtype: 'i32' },
      ],
      attrs: { ignoreIndex: -1, labelSmoothing: 0.1 },
    },
    {
      label: 'one class',
      inputs: [{ shape: [2, 1] }, { shape: [2], values: [0, 0], dtype: 'i32' }],
      attrs: { ignoreIndex: -100, labelSmoothing: 0 },
    },
    {
      label: 'empty',
      inputs: [{ shape: [0, 3] }, { shape: [0], values: [], dtype: 'i32' }],
      attrs: { ignoreIndex: -100, labelSmoothing: 0 },
    },
  ],
});

/** Settings of {@link crossEntropy}. */
export interface CrossEntropyOptions {
  /** Rows with this label count nothing. Default −100. */
  readonly ignoreIndex?: number;
  /** ε of label smoothing, 0 ≤ ε < 1. Default 0. */
  readonly labelSmoothing?: number;
  /** `mean` over the rows that count (0 if there are none), `sum`, or one loss a row. */
  readonly reduction?: 'mean' | 'sum' | 'none';
}

/**
 * The negative log-likelihood of labels under softmax(logits), in nats.
 * @param logits [N, V]
 * @param labels i32 [N], each in 0 … V − 1 or the ignore index
 */
export function crossEntropy(
  logits: Tensor,
  labels: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  const { ignoreIndex = -100, labelSmoothing = 0, reduction = 'mean' } = options;
  if (!(labelSmoothing >= 0 && labelSmoothing < 1)) {
    throw failure('crossEntropy', 'label smoothing of 0 ≤ ε < 1', String(labelSmoothing));
  }
  const losses = first(crossEntropyOp([logits, labels], { ignoreIndex, labelSmoothing }));
  if (reduction === 'none') return losses;
  const total = sum(losses);
  if (reduction === 'sum') return total;
  return affine(total, 1 / Math.max(1, countLabels(labels, ignoreIndex)));
}

/** How many labels are not the ignore index. Reads the labels back. */
export function countLabels(labels: Tensor, ignoreIndex = -100): number {
  let n = 0;
  for (const v of labels.toArray() as Int32Array) if (v !== ignoreIndex) n++;
  return n;
}
