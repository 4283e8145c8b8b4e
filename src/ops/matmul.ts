import { defineOp, first, type Meta } from '../autograd/index.js';
import {
  type ActivationDType,
  askedDType,
  computeDType,
  type DType,
  gradientDType,
} from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { broadcastShapes, numel, type Shape, sameShape } from '../tensor/shape.js';
import { Tensor } from '../tensor/tensor.js';
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

/**
 * alpha·op(a) op(b) outside the graph, as gradients need it; added to `into` in place where that
 * is given, which must have the product's shape.
 * @param dtype of a new product, f32 or bf16; default the arithmetic's
 */
export function product(
  a: Tensor,
  b: Tensor,
  { transA = false, transB = false, alpha = 1 }: MatmulOptions & { readonly alpha?: number },
  into: Tensor | null = null,
  dtype: DType = computeDType([a.dtype, b.dtype]),
): Tensor {
  const attrs = [transA ? 1 : 0, transB ? 1 : 0, alpha, into ? 1 : 0];
  const y = into ?? emptyProduct(a, b, { transA, transB }, dtype);
  y.backend.run('matmul', [a, b, y], attrs);
  return y;
}

function emptyProduct(a: Tensor, b: Tensor, attrs: MatmulAttrs, dtype: DType): Tensor {
  const [meta] = inferProduct([a, b], attrs);
  return Tensor.empty(a.backend, meta.shape, dtype);
}

function inferProduct([a, b]: readonly Meta[], { transA, transB }: MatmulAttrs): [Meta] {
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
}

const matmulOp = defineOp<MatmulAttrs>({
  name: 'matmul',
  infer: inferProduct,
  encode: ({ transA, transB }) => [transA ? 1 : 0, transB ? 1 : 0, 1, 0],
  reads: (needs) => ({ inputs: [...(needs[1] ? [0] : []), ...(needs[0] ? [1] : [])] }),
  // y = a b: da = dy bᵀ, db = aᵀ dy; with an operand transposed, its gradient is too
  backward: ({ grad, attrs: { transA, transB }, inputs, needs, input, earlier }) => {
    const [shapeA, shapeB] = inputs.map((m) => m.shape) as [Shape, Shape];
    const batch = grad.shape.slice(0, -2);
    // An earlier gradient can take the product itself, not one that is yet to be summed.
    const free = (i: number, shape: Shape) =>
      sameShape(shape.slice(0, -2), batch) ? earlier(i) : null;
    let da: Tensor | null = null;
    let db: Tensor | null = null;
    if (needs[0]) {
      const into = free(0, shapeA);
      da = transA
        ? product(input(1), grad, { transA: transB, transB: true }, into)
        : product(grad, input(1), { transB: !transB }, into);
      da = sumTo(da, shapeA);
    }
    if (needs[1]) {
      const bIsShared = shapeB.length === 2 && !transA;
      // One product over all rows instead of a batch of products and a sum.
      const a = bIsShared ? flatRows(input(0)) : input(0);
      const dy = bIsShared ? flatRows(grad) : grad;
      const into = bIsShared ? earlier(1) : free(1, shapeB);
      db = transB
        ? product(dy, a, { transA: true, transB: transA }, into)
        : product(a, dy, { transA: !transA }, into);
      db = sumTo(db, shapeB);
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
export function flatRows(x: Tensor): Tensor {
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

interface LinearAttrs {
  /** Whether the weight is stored [in, out]. */
  readonly transposed: boolean;
  /** Of the result; default f32. */
  readonly dtype?: ActivationDType;
}

const linearOp = defineOp<LinearAttrs>({
  name: 'linear',
  infer: ([x, w, b], { transposed, dtype: asked = 'f32' }) => {
    const { shape, dtype } = x as Meta;
    const { shape: weight, dtype: wd } = w as Meta;
    const inner = shape.at(-1);
    const [out, own] = transposed ? [weight[1], weight[0]] : [weight[0], weight[1]];
    if (weight.length !== 2 || shape.length < 1 || own !== inner) {
      throw failure(
        'linear',
        `x [.., ${own ?? '?'}] to meet a weight ${transposed ? '[in, out]' : '[out, in]'}`,
        `${shapeText(shape)} and ${shapeText(weight)}`,
      );
    }
    if (b && (b.shape.length !== 1 || b.shape[0] !== out)) {
      throw failure('linear', `a bias [${out}]`, shapeText(b.shape));
    }
    const made = askedDType(asked, [dtype, wd]);
    return [{ shape: [...shape.slice(0, -1), out as number], dtype: made }];
  },
  reads: (needs) => ({ inputs: [...(needs[1] ? [0] : []), ...(needs[0] ? [1] : [])] }),
  forward: ([x, w, b], { transposed, dtype: asked = 'f32' }) => {
    const rows = x as Tensor;
    const weight = w as Tensor;
    const { backend, shape } = rows;
    const dtype = askedDType(asked, [rows.dtype, weight.dtype]);
    const out = weight.shape[transposed ? 1 : 0] as number;
    const y = Tensor.empty(backend, [...shape.slice(0, -1), out], dtype);
    backend.run('linear', b ? [rows, weight, b, y] : [rows, weight, y], [transposed ? 1 : 0]);
    return { output: y };
  },
  // y = x wᵀ + b: dx = dy w, dw = dyᵀ x, db = Σ dy; transposed: dx = dy wᵀ, dw = xᵀ dy
  backward: ({ grad, attrs: { transposed }, inputs, needs, input, earlier }) => {
    const dy = flatRows(grad);
    let dx: Tensor | null = null;
    if (needs[0]) {
      const into = earlier(0);
      const { shape, dtype } = inputs[0] as Meta;
      const made = product(
        dy,
        input(1),
        { transB: transposed },
        into && flatRows(into),
        gradientDType(dtype, grad.dtype),
      );
      dx = into ?? made.alias(shape);
    }
    const dw = needs[1] ? weightGradient(dy, flatRows(input(0)), transposed, earlier(1)) : null;
    if (inputs.length === 2) return [dx, dw];
    return [dx, dw, needs[2] ? sum(dy, [0]) : null];
  },
  composed: ([x, w, b], { transposed }) => {
    const y = matmul(x as Tensor, w as Tensor, { transB: !transposed });
    return b ? add(y, b) : y;
  },
  samples: [
    {
      label: 'plain',
      inputs: [{ shape: [2, 3, 5] }, { shape: [7, 5] }],
      attrs: { transposed: false },
    },
    {
      label: 'bias',
      inputs: [{ shape: [3, 33] }, { shape: [17, 33] }, { shape: [17] }],
      attrs: { transposed: false },
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }, { shape: [1, 1] }, { shape: [1] }],
      attrs: { transposed: false },
    },
    {
      label: 'empty',
      inputs: [{ shape: [0, 4] }, { shape: [3, 4] }],
      attrs: { transposed: false },
    },
    {
      label: 'transposed',
      inputs: [{ shape: [2, 3, 5] }, { shape: [5, 7] }],
      attrs: { transposed: true },
    },
    {
      label: 'transposed, bias',
      inputs: [{ shape: [3, 33] }, { shape: [33, 17] }, { shape: [17] }],
      attrs: { transposed: true },
    },
    {
      label: 'to bf16',
      inputs: [{ shape: [9, 33] }, { shape: [17, 33] }, { shape: [17] }],
      attrs: { transposed: false, dtype: 'bf16' },
    },
    {
      label: 'transposed, nothing in',
      inputs: [{ shape: [3, 0] }, { shape: [0, 5] }, { shape: [5] }],
      attrs: { transposed: true },
    },
  ],
});

function weightGradient(
  dy: Tensor,
  x: Tensor,
  transposed: boolean,
  earlier: Tensor | null,
): Tensor {
  const [a, b] = transposed ? [x, dy] : [dy, x];
  return product(a, b, { transA: true }, earlier);
}

/** How {@link linear} reads its weight. */
export interface LinearOptions {
  /** The weight is stored [in, out], as GPT-2's are. Default false. */
  readonly transposed?: boolean;
  /** Of the result: bf16 is rounded once, at the end. Default f32. */
  readonly dtype?: ActivationDType;
}

/**
 * y = x wᵀ (+ bias), a dense layer.
 * @param x [.., in]
 * @param w [out, in], as Hugging Face stores it, or [in, out] where `transposed`
 * @param bias [out]
 */
export function linear(
  x: Tensor,
  w: Tensor,
  bias?: Tensor | null,
  options: LinearOptions = {},
): Tensor {
  const { transposed = false, dtype = 'f32' } = options;
  const attrs = { transposed, dtype };
  return first(linearOp(bias ? [x, w, bias] : [x, w], attrs));
}
