import { defineOp, first, type Meta, runKernel } from '../autograd/index.js';
import { activationDType, computeDType, gradientDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { abs, affine, div, exp, mul, relu, scale, sigmoid } from './elementwise.js';

const asInput = ([x]: readonly Meta[]): Meta[] => [
  { shape: (x as Meta).shape, dtype: activationDType([(x as Meta).dtype]) },
];

/** Shape and dtype of an activation's gradient. */
const gradientOf = (x: Meta, grad: Tensor): Meta => ({
  shape: x.shape,
  dtype: gradientDType(x.dtype, grad.dtype),
});

const shapes = [[3, 37], [1], [0, 2]] as const;
const labels = ['odd', 'one', 'empty'] as const;

const siluOp = defineOp<void>({
  name: 'silu',
  cheap: true,
  infer: asInput,
  reads: () => ({ inputs: [0] }),
  // y = x·σ(x): dx = dy·σ(x)·(1 + x·(1 − σ(x)))
  backward: ({ grad, inputs, input }) =>
    runKernel(grad.backend, 'silu.grad', [input(0), grad], [gradientOf(inputs[0] as Meta, grad)]),
  composed: ([x]) => mul(x as Tensor, sigmoid(x as Tensor)),
  samples: shapes.map((shape, i) => ({
    label: labels[i] as string,
    inputs: [{ shape, scale: 3 }],
    attrs: undefined,
  })),
});

/** x·σ(x) (also called swish). */
export function silu(x: Tensor): Tensor {
  return first(siluOp([x], undefined));
}

/** `none`: x·Φ(x) with the error function; `tanh`: its approximation (GPT-2's gelu_new). */
export type GeluForm = 'none' | 'tanh';

const geluOp = defineOp<{ form: GeluForm }>({
  name: 'gelu',
  cheap: true,
  infer: asInput,
  encode: ({ form }) => [form === 'tanh' ? 1 : 0],
  reads: () => ({ inputs: [0] }),
  // exact: dx = dy·(Φ(x) + x·φ(x)); tanh: the derivative of x/2·(1 + tanh(√(2/π)(x + 0.044715x³)))
  backward: ({ grad, attrs, inputs, input }) =>
    runKernel(
      grad.backend,
      'gelu.grad',
      [input(0), grad],
      [gradientOf(inputs[0] as Meta, grad)],
      [attrs.form === 'tanh' ? 1 : 0],
    ),
  samples: (['none', 'tanh'] as const).flatMap((form) =>
    shapes.map((shape, i) => ({
      label: `${form}, ${labels[i]}`,
      inputs: [{ shape, scale: 2 }],
      attrs: { form },
    })),
  ),
});

/** Gaussian error linear unit (Hendrycks and Gimpel, 2016), exact or by tanh. */
export function gelu(x: Tensor, form: GeluForm = 'none'): Tensor {
  return first(geluOp([x], { form }));
}

/** A magnitude from which on gelu(x)/x is the distribution: below it, it is that of 0. */
const LEAST = 1e-30;

/** Φ(x) = ½ + sign(x)·(Φ(|x|) − ½), and Φ of what is above 0 is gelu over it. */
function distribution(x: Tensor): Tensor {
  // |x|, but never 0.
  const size = affine(relu(affine(abs(x), 1, -LEAST)), 1, LEAST);
  const half = affine(div(gelu(size), size), 1, -0.5);
  return affine(mul(div(x, size), half), 1, 0.5);
}

const normalCdfOp = defineOp<void>({
  name: 'normalCdf',
  infer: ([x]) => [{ shape: (x as Meta).shape, dtype: computeDType([(x as Meta).dtype]) }],
  forward: ([x]) => ({ output: distribution(x as Tensor) }),
  reads: () => ({ inputs: [0] }),
  // y = Φ(x): dx = dy·φ(x) = dy·exp(−x²/2)/√(2π)
  backward: ({ grad, input }) => {
    const x = input(0);
    const density = scale(exp(scale(mul(x, x), -0.5)), 1 / Math.sqrt(2 * Math.PI));
    return [mul(grad, density)];
  },
  composed: ([x]) => distribution(x as Tensor),
  samples: [
    ...shapes.map((shape, i) => ({
      label: labels[i] as string,
      inputs: [{ shape, scale: 2 }],
      attrs: undefined,
    })),
    { label: 'far out', inputs: [{ shape: [3], values: [-9, 0.5, 9] }], attrs: undefined },
  ],
});

/** Φ(x), the standard normal distribution: ½·(1 + erf(x/√2)). */
export function normalCdf(x: Tensor): Tensor {
  return first(normalCdfOp([x], undefined));
}

const swigluOp = defineOp<void>({
  name: 'swiglu',
  cheap: true,
  infer: ([gate, up]) => {
    const g = gate as Meta;
    const u = up as Meta;
    if (!sameShape(g.shape, u.shape)) {
      throw failure(
        'swiglu',
        'two equal shapes',
        `${shapeText(g.shape)} and ${shapeText(u.shape)}`,
      );
    }
    return [{ shape: g.shape, dtype: activationDType([g.dtype, u.dtype]) }];
  },
  reads: () => ({ inputs: [0, 1] }),
  // y = silu(g)·u: dg = dy·u·silu′(g), du = dy·silu(g)
  backward: ({ grad, inputs, input }) => {
    const metas = inputs.map((m) => gradientOf(m, grad));
    return runKernel(grad.backend, 'swiglu.grad', [input(0), input(1), grad], metas);
  },
  composed: ([gate, up]) => mul(silu(gate as Tensor), up as Tensor),
  samples: shapes.map((shape, i) => ({
    label: labels[i] as string,
    inputs: [{ shape, scale: 2 }, { shape }],
    attrs: undefined,
  })),
});

/** silu(gate)·up (Shazeer, "GLU variants improve transformer", 2020). Both of one shape. */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  return first(swigluOp([gate, up], undefined));
}
