import { defineOp, first, type Meta } from '../autograd/index.js';
import { computeDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { broadcastShapes, numel, type Shape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { reshape, sum, sumTo } from './broadcast.js';
import { add } from './elementwise.js';

/** Whether each operand is read transposed. */
export interface MatmulOptions {
  readonly transA?: boolean;
  readonly transB?: boolean;
}

interface MatmulAttrs {
  readonly transA: boolean;
  readonly transB: boolean;
}

const matmulOp = defineOp<MatmulAttrs>({
  name: 'matmul',
  infer: ([a, b], { transA, transB }) => {
    const { shape: x, dtype: dx } = a as Meta;
    const { shape: y, dtype: dy } = b as Meta;
    if (x.length < 2 || y.length < 2) {
      throw failure('matmul', 'two or more dimensions', `${shapeText(x)} and ${shapeText(y)}`);
    }
    const [m, k] = transA ? [x.at(-1), x.at(-2)] : [x.at(-2), x.at(-1)];
    const [l, n] = transB ? [y.at(-1), y.at(-2)] : [y.at(-2), y.at(-1)];
    if (k !== l) {
      const expected = transB ? `[.., ${k}]` : `[${k}, ..]`;
      throw failure(
        'matmul',
        `[.., ${k}] to meet ${expected}`,
        `${shapeText(x)}${transA ? 'ᵀ' : ''} and ${shapeText(y)}${transB ? 'ᵀ' : ''}`,
      );
    }
    const batch = broadcastShapes('matmul', x.slice(0, -2), y.slice(0, -2));
    return [{ shape: [...batch, m as number, n as number], dtype: computeDType([dx, dy]) }];
  },
  encode: ({ transA, transB }) => [transA ? 1 : 0, transB ? 1 : 0, 1, 0],
  reads: (needs) => ({ inputs: [...(needs[1] ? [0] : []), ...(needs[0] ? [1] : [])] }),
  // y = a b: da = dy bᵀ, db = aᵀ dy; with an operand transposed, its gradient is too
  backward: ({ grad, attrs: { transA, transB }, inputs, needs, input }) => {
    const shapes = inputs.map((m) => m.shape);
    let da: Tensor | null = null;
    let db: Tensor | null = null;
    if (needs[0]) {
      da = transA
        ? matmul(input(1), grad, { transA: transB, transB: true })
        : matmul(grad, input(1), { transB: !transB });
      da = sumTo(da, shapes[0] as Shape);
    }
    if (needs[1]) {
      const bIsShared = (shapes[1] as Shape).length === 2 && !transA;
      // One product over all rows instead of a batch of products and a sum.
      const a = bIsShared ? flatRows(input(0)) : input(0);
      const dy = bIsShared ? flatRows(grad) : grad;
      db = transB
        ? matmul(dy, a, { transA: true, transB: transA })
        : matmul(a, dy, { transA: !transA });
      db = sumTo(db, shapes[1] as Shape);
    }
    return [da, db];
  },
  samples: [
    {
      label: 'odd',
      inputs: [{ shape: [3, 5] }, { shape: [5, 7] }],
      attrs: { transA: false, transB: false },
    },
    {
      label: 'aᵀ',
      inputs: [{ shape: [5, 3] }, { shape: [5, 7] }],
      attrs: { transA: true, transB: false },
    },
    {
      label: 'bᵀ',
      inputs: [{ shape: [17, 33] }, { shape: [19, 33] }],
      attrs: { transA: false, transB: true },
    },
    {
      label: 'aᵀbᵀ, batch',
      inputs: [{ shape: [2, 5, 3] }, { shape: [2, 7, 5] }],
      attrs: { transA: true, transB: true },
    },
    {
      label: 'batch broadcast',
      inputs: [{ shape: [2, 1, 3, 4] }, { shape: [3, 4, 5] }],
      attrs: { transA: false, transB: false },
    },
    {
      label: 'shared b',
      inputs: [{ shape: [2, 3, 4] }, { shape: [4, 5] }],
      attrs: { transA: false, transB: false },
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }, { shape: [1, 1] }],
      attrs: { transA: false, transB: false },
    },
    {
      label: 'empty inner',
      inputs: [{ shape: [3, 0] }, { shape: [0, 2] }],
      attrs: { transA: false, transB: false },
    },
    {
      label: 'empty rows',
      inputs: [{ shape: [0, 3] }, { shape: [3, 2] }],
      attrs: { transA: false, transB: false },
    },
  ],
});

/** x [.., C] as [N, C]. */
function flatRows(x: Tensor): Tensor {
  const width = x.shape.at(-1) as number;
  return reshape(x, [numel(x.shape.slice(0, -1)), width]);
}

/**
 * The matrix product of the last two dimensions; the ones before broadcast by NumPy's rule.
 * @param a [.., M, K], or [.., K, M] with transA
 * @param b [.., K, N], or [.., N, K] with transB
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const { transA = false, transB = false } = options;
  return first(matmulOp([a, b], { transA, transB }));
}

const linearOp = defineOp<void>({
  name: 'linear',
  infer: ([x, w, b]) => {
    const { shape, dtype } = x as Meta;
    const { shape: weight, dtype: wd } = w as Meta;
    const inner = shape.at(-1);
    if (weight.length !== 2 || shape.length < 1 || weight[1] !== inner) {
      throw failure(
        'linear',
        `x [.., ${weight[1] ?? '?'}] to meet a weight [out, in]`,
        `${shapeText(shape)} and ${shapeText(weight)}`,
      );
    }
    if (b && (b.shape.length !== 1 || b.shape[0] !== weight[0])) {
      throw failure('linear', `a bias [${weight[0]}]`, shapeText(b.shape));
    }
    return [
      { shape: [...shape.slice(0, -1), weight[0] as number], dtype: computeDType([dtype, wd]) },
    ];
  },
  reads: (needs) => ({ inputs: [...(needs[1] ? [0] : []), ...(needs[0] ? [1] : [])] }),
  // y = x wᵀ + b: dx = dy w, dw = dyᵀ x, db = Σ dy
  backward: ({ grad, inputs, needs, input }) => {
    const dx = needs[0] ? matmul(grad, input(1)) : null;
    const dw = needs[1] ? matmul(flatRows(grad), flatRows(input(0)), { transA: true }) : null;
    if (inputs.length === 2) return [dx, dw];
    const rows = grad.shape.slice(0, -1).map((_, i) => i);
    return [dx, dw, needs[2] ? sum(grad, rows) : null];
  },
  composed: ([x, w, b]) => {
    const y = matmul(x as Tensor, w as Tensor, { transB: true });
    return b ? add(y, b) : y;
  },
  samples: [
    { label: 'plain', inputs: [{ shape: [2, 3, 5] }, { shape: [7, 5] }], attrs: undefined },
    {
      label: 'bias',
      inputs: [{ shape: [3, 33] }, { shape: [17, 33] }, { shape: [17] }],
      attrs: undefined,
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }, { shape: [1, 1] }, { shape: [1] }],
      attrs: undefined,
    },
    { label: 'empty', inputs: [{ shape: [0, 4] }, { shape: [3, 4] }], attrs: undefined },
  ],
});

/**
 * y = x wᵀ (+ bias), a dense layer.
 * @param x [.., in]
 * @param w [out, in], as Hugging Face stores it
 * @param bias [out]
 */
export function linear(x: Tensor, w: Tensor, bias?: Tensor | null): Tensor {
  return first(linearOp(bias ? [x, w, bias] : [x, w], undefined));
}
