import {
  type BackwardContext,
  defineOp,
  type Forward,
  first,
  type Meta,
  runKernel,
} from '../autograd/index.js';
import { askedDType, gradientDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import { Tensor } from '../tensor/tensor.js';
import { gelu, silu, swiglu } from './activation.js';
import { mul, positive, relu } from './elementwise.js';
import {
  flatRows,
  inferLayer,
  type LinearAttrs,
  type LinearOptions,
  layerGradients,
  linear,
} from './matmul.js';

interface Rule {
  /** The attribute of `activatedLinear`. */
  readonly code: number;
  /** The activation by itself: a kernel, its attributes, and the op. */
  readonly kernel: string;
  readonly attrs: readonly number[];
  readonly alone: (x: Tensor) => Tensor;
}

const RULES = {
  relu: { code: 0, kernel: 'relu', attrs: [], alone: relu },
  silu: { code: 1, kernel: 'silu', attrs: [], alone: silu },
  gelu: { code: 2, kernel: 'gelu', attrs: [0], alone: (x) => gelu(x) },
  geluTanh: { code: 3, kernel: 'gelu', attrs: [1], alone: (x) => gelu(x, 'tanh') },
} as const satisfies Readonly<Record<string, Rule>>;

/** An activation that {@link activatedLinear} applies; `geluTanh` is GELU's tanh form. */
export type Activation = keyof typeof RULES;

const ruleOf = (name: Activation): Rule => RULES[name];

/** The activation by itself, of a tensor of any shape. */
export function activationOf(name: Activation): (x: Tensor) => Tensor {
  return ruleOf(name).alone;
}

/** Runs a kernel into y and, where the gradient will read them, `keep` tensors of its shape. */
function runKept(
  kernel: string,
  inputs: readonly Tensor[],
  meta: Meta,
  keep: number,
  attrs: readonly number[],
): Forward {
  const { backend } = inputs[0] as Tensor;
  const metas = Array.from({ length: 1 + keep }, () => meta);
  const [y, ...kept] = runKernel(backend, kernel, inputs, metas, [...attrs, keep > 0 ? 1 : 0]);
  return { output: y as Tensor, kept };
}

/**
 * A gradient's memory for the last result of the same size, if nobody else holds it: it is read
 * for the last time there.
 */
function reused({ grad }: BackwardContext<unknown>, { shape, dtype }: Meta): Tensor {
  const made = gradientDType(dtype, grad.dtype);
  const free = grad.storage.refs === 1 && grad.dtype === made;
  return free ? grad.alias(shape) : Tensor.empty(grad.backend, shape, made);
}

/** dy·f′(x) of what f was taken of. */
function activationGradient(ctx: BackwardContext<ActivatedAttrs>, x: Tensor): Tensor {
  const { kernel, attrs } = ruleOf(ctx.attrs.activation);
  const { grad } = ctx;
  if (kernel === 'relu') return mul(grad, positive(x));
  const dx = reused(ctx, x);
  grad.backend.run(`${kernel}.grad`, [x, grad, dx], attrs);
  return dx;
}

interface ActivatedAttrs extends LinearAttrs {
  readonly activation: Activation;
}

const activatedLinearOp = defineOp<ActivatedAttrs>({
  name: 'activatedLinear',
  infer: ([x, w, b], attrs) => [
    inferLayer('activatedLinear', { x: x as Meta, w: w as Meta, b }, attrs),
  ],
  forward: (inputs, attrs, needs, [y]) => {
    const code = [attrs.transposed ? 1 : 0, ruleOf(attrs.activation).code];
    return runKept('activatedLinear', inputs, y as Meta, needs.includes(true) ? 1 : 0, code);
  },
  again: ([x], { activation }) => {
    const { kernel, attrs } = ruleOf(activation);
    return runKernel((x as Tensor).backend, kernel, [x as Tensor], [x as Tensor], attrs);
  },
  reads: (needs) => ({ inputs: [...(needs[1] ? [0] : []), ...(needs[0] ? [1] : [])] }),
  // y = f(h), h = x wᵀ + b: dh = dy·f′(h), and from there as of a layer
  backward: (ctx) => {
    const dh = flatRows(activationGradient(ctx, ctx.kept(0)));
    const { dx, dw, db } = layerGradients(ctx, dh, { w: 1, b: 2 }, ctx.earlier(0));
    return [dx, dw, db];
  },
  composed: ([x, w, b], { transposed, activation }) =>
    ruleOf(activation).alone(linear(x as Tensor, w as Tensor, b, { transposed })),
  samples: (Object.keys(RULES) as Activation[]).flatMap((activation) => [
    {
      label: `${activation}`,
      inputs: [{ shape: [2, 3, 5] }, { shape: [7, 5] }],
      attrs: { transposed: false, activation },
    },
    {
      label: `${activation}, transposed, bias`,
      inputs: [{ shape: [3, 33] }, { shape: [33, 17], scale: 0.3 }, { shape: [17] }],
      attrs: { transposed: true, activation },
    },
    {
      label: `${activation}, one`,
      inputs: [{ shape: [1, 1] }, { shape: [1, 1] }, { shape: [1] }],
      attrs: { transposed: false, activation },
    },
    {
      label: `${activation}, empty`,
      inputs: [{ shape: [0, 4] }, { shape: [3, 4] }],
      attrs: { transposed: false, activation },
    },
    {
      label: `${activation}, nothing in`,
      inputs: [{ shape: [3, 0] }, { shape: [0, 5] }, { shape: [5] }],
      attrs: { transposed: true, activation },
    },
  ]),
});

/**
 * y = f(x wᵀ (+ bias)), a dense layer and its activation in one call. For a gradient, what f is
 * taken of is kept, and y is computed again where it is needed.
 * @param x [.., in]
 * @param w [out, in], or [in, out] where `transposed`
 * @param bias [out]
 */
export function activatedLinear(
  x: Tensor,
  w: Tensor,
  bias: Tensor | null,
  activation: Activation,
  options: LinearOptions = {},
): Tensor {
  const { transposed = false, dtype = 'f32' } = options;
  const attrs = { transposed, dtype, activation };
  return first(activatedLinearOp(bias ? [x, w, bias] : [x, w], attrs));
}

function inferGated([x, gate, up, gateBias, upBias]: readonly Meta[], attrs: LinearAttrs): Meta {
  const [g, u] = [gate as Meta, up as Meta];
  if (!sameShape(g.shape, u.shape)) {
    const received = `${shapeText(g.shape)} and ${shapeText(u.shape)}`;
    throw failure('gatedLinear', 'two weights of one shape', received);
  }
  const { shape } = inferLayer('gatedLinear', { x: x as Meta, w: g, b: gateBias }, attrs);
  inferLayer('gatedLinear', { x: x as Meta, w: u, b: upBias }, attrs);
  return { shape, dtype: askedDType(attrs.dtype ?? 'f32', [(x as Meta).dtype, g.dtype, u.dtype]) };
}

const gatedLinearOp = defineOp<LinearAttrs>({
  name: 'gatedLinear',
  infer: (inputs, attrs) => [inferGated(inputs, attrs)],
  forward: (inputs, { transposed }, needs, [y]) => {
    const keep = needs.includes(true) ? 2 : 0;
    return runKept('gatedLinear', inputs, y as Meta, keep, [transposed ? 1 : 0]);
  },
  again: ([gate, up]) =>
    runKernel((gate as Tensor).backend, 'swiglu', [gate as Tensor, up as Tensor], [gate as Tensor]),
  reads: (needs) => ({
    inputs: [...(needs[1] || needs[2] ? [0] : []), ...(needs[0] ? [1, 2] : [])],
  }),
  // y = silu(g)·u, g = x wgᵀ + bg, u = x wuᵀ + bu: dg = dy·u·silu′(g), du = dy·silu(g), and from
  // there as of two layers, whose dx are added
  backward: (ctx) => {
    const { grad, kept, earlier } = ctx;
    const [gate, up] = [kept(0), kept(1)];
    const made = gradientDType(gate.dtype, grad.dtype);
    const dgate = Tensor.empty(grad.backend, gate.shape, made);
    const dup = reused(ctx, up);
    grad.backend.run('swiglu.grad', [gate, up, grad, dgate, dup], []);
    const ofUp = layerGradients(ctx, flatRows(dup), { w: 2, b: 4 }, earlier(0));
    const ofGate = layerGradients(ctx, flatRows(dgate), { w: 1, b: 3 }, ofUp.dx);
    return [ofGate.dx, ofGate.dw, ofUp.dw, ofGate.db, ofUp.db];
  },
  composed: ([x, gate, up, gateBias, upBias], { transposed }) => {
    const layer = (w: Tensor | undefined, b: Tensor | undefined) =>
      linear(x as Tensor, w as Tensor, b, { transposed });
    return swiglu(layer(gate, gateBias), layer(up, upBias));
  },
  samples: [
    {
      label: 'plain',
      inputs: [{ shape: [2, 3, 5] }, { shape: [7, 5] }, { shape: [7, 5] }],
      attrs: { transposed: false },
    },
    {
      label: 'biases',
      inputs: [
        { shape: [3, 33] },
        { shape: [17, 33], scale: 0.3 },
        { shape: [17, 33], scale: 0.3 },
        { shape: [17] },
        { shape: [17] },
      ],
      attrs: { transposed: false },
    },
    {
      label: 'transposed',
      inputs: [{ shape: [3, 5] }, { shape: [5, 7] }, { shape: [5, 7] }],
      attrs: { transposed: true },
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }, { shape: [1, 1] }, { shape: [1, 1] }],
      attrs: { transposed: false },
    },
    {
      label: 'empty',
      inputs: [{ shape: [0, 4] }, { shape: [3, 4] }, { shape: [3, 4] }],
      attrs: { transposed: false },
    },
    {
      label: 'nothing in',
      inputs: [
        { shape: [3, 0] },
        { shape: [5, 0] },
        { shape: [5, 0] },
        { shape: [5] },
        { shape: [5] },
      ],
      attrs: { transposed: false },
    },
  ],
});

/** A layer's weight and bias. */
export interface LayerWeights {
  /** [out, in], or [in, out] where `transposed`. */
  readonly weight: Tensor;
  /** [out] */
  readonly bias: Tensor | null;
}

/**
 * y = silu(x wgᵀ (+ bg))·(x wuᵀ (+ bu)): the two layers of SwiGLU and what is made of them in one
 * call (Shazeer, "GLU variants improve transformer", 2020). For a gradient, both products are kept,
 * and y is computed again where it is needed.
 * @param x [.., in]
 * @throws unless both layers have one shape, and biases both or neither
 */
export function gatedLinear(
  x: Tensor,
  gate: LayerWeights,
  up: LayerWeights,
  options: LinearOptions = {},
): Tensor {
  const { transposed = false, dtype = 'f32' } = options;
  const weights = [x, gate.weight, up.weight];
  if (!gate.bias !== !up.bias) {
    const received = `${gate.bias ? 'one' : 'none'} and ${up.bias ? 'one' : 'none'}`;
    throw failure('gatedLinear', 'a bias of both layers or of neither', received);
  }
  const biases = gate.bias && up.bias ? [gate.bias, up.bias] : [];
  return first(gatedLinearOp([...weights, ...biases], { transposed, dtype }));
}
