import { type BackwardContext, defineOp, first, type Meta, runKernel } from '../autograd/index.js';
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

/** How an op of dense layers reads its weights. */
export interface LinearAttrs {
  /** Whether weights are stored [in, out]. */
  readonly transposed: boolean;
  /** Of the result and what it is made of; default f32. */
  readonly dtype?: ActivationDType;
}

/** What x wᵀ (+ b) is. @throws where a weight or a bias does not fit */
export function inferLayer(
  name: string,
  { x, w, b }: { x: Meta; w: Meta; b: Meta | undefined },
  { transposed, dtype: asked = 'f32' }: LinearAttrs,
): Meta {
  const [out, inner] = transposed ? [w.shape[1], w.shape[0]] : [w.shape[0], w.shape[1]];
  if (w.shape.length !== 2 || x.shape.length < 1 || x.shape.at(-1) !== inner) {
    throw failure(
      name,
      `x [.., ${inner ?? '?'}] to meet a weight ${transposed ? '[in, out]' : '[out, in]'}`,
      `${shapeText(x.shape)} and ${shapeText(w.shape)}`,
    );
  }
  if (b && (b.shape.length !== 1 || b.shape[0] !== out)) {
    throw failure(name, `a bias [${out}]`, shapeText(b.shape));
  }
  const shape = [...x.shape.slice(0, -1), out as number];
  return { shape, dtype: askedDType(asked, [x.dtype, w.dtype]) };
}

/** The places of one layer's weight and bias among an op's inputs; x is the first. */
interface Places {
  readonly w: number;
  readonly b: number;
}

/**
 * The gradients of a layer y = x wᵀ + b from dy: dx = dy w, dw = dyᵀ x, db = Σ dy; transposed:
 * dx = dy wᵀ, dw = xᵀ dy.
 * @param dy [N, out]
 * @param into what dx is added to in place
 */
export function layerGradients(
  { attrs: { transposed }, needs, input, inputs, earlier }: BackwardContext<LinearAttrs>,
  dy: Tensor,
  { w, b }: Places,
  into: Tensor | null,
) {
  let dx: Tensor | null = null;
  if (needs[0]) {
    const { shape, dtype } = inputs[0] as Meta;
    const added = into && flatRows(into);
    const own = gradientDType(dtype, dy.dtype);
    const made = product(dy, input(w), { transB: transposed }, added, own);
    dx = into ?? made.alias(shape);
  }
  let dw: Tensor | null = null;
  if (needs[w]) {
    const x = flatRows(input(0));
    const [left, right] = transposed ? [x, dy] : [dy, x];
    dw = product(left, right, { transA: true }, earlier(w));
  }
  return { dx, dw, db: needs[b] ? sum(dy, [0]) : null };
}

const linearOp = defineOp<LinearAttrs>({
  name: 'linear',
  infer: ([x, w, b], attrs) => [inferLayer('linear', { x: x as Meta, w: w as Meta, b }, attrs)],
  forward: (inputs, { transposed }, _, outputs) => {
    const { backend } = inputs[0] as Tensor;
    return { output: first(runKernel(backend, 'linear', inputs, outputs, [transposed ? 1 : 0])) };
  },
  reads: (needs) => ({ inputs: [...(needs[1] ? [0] : []), ...(needs[0] ? [1] : [])] }),
  backward: (ctx) => {
    const { dx, dw, db } = layerGradients(ctx, flatRows(ctx.grad), { w: 1, b: 2 }, ctx.earlier(0));
    return [dx, dw, db];
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
