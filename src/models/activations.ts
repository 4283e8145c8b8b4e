import { scope } from '../autograd/index.js';
import { activatedLayer, type Dense } from '../nn/index.js';
import {
  type Activation,
  abs,
  add,
  affine,
  exp,
  gelu,
  log,
  mul,
  neg,
  normalCdf,
  relu,
  scale,
  sigmoid,
  silu,
  sub,
  tanh,
} from '../ops/index.js';
import type { Tensor } from '../tensor/tensor.js';
import type { ConfigReader } from './config.js';

const exactGelu = (x: Tensor) => gelu(x);
const tanhGelu = (x: Tensor) => gelu(x, 'tanh');

/** min(x, top) for x ≥ 0: what is above the top is taken off again. */
const capped = (x: Tensor, top: number) => sub(x, relu(affine(x, 1, -top)));

const relu6 = (x: Tensor) => capped(relu(x), 6);

/** log(1 + eˣ), whose exponent never overflows in this form. */
const softplus = (x: Tensor) => add(relu(x), log(affine(exp(neg(abs(x))), 1, 1)));

/** MEGA's (Ma et al., 2022), as transformers has them: six digits of √½ and of 1/√(4π). */
const LAPLACE = { mean: 707107 / 1e6, deviation: 282095 / 1e6 } as const;

/** The activations that a config.json may name, by transformers' names. */
const ACTIVATIONS: Readonly<Record<string, (x: Tensor) => Tensor>> = {
  gelu: exactGelu,
  // GELU is never below −0.17, so that only the upper bound of ±10 is felt.
  gelu_10: (x) => capped(gelu(x), 10),
  gelu_accurate: tanhGelu,
  gelu_python: exactGelu,
  gelu_new: tanhGelu,
  gelu_fast: tanhGelu,
  gelu_pytorch_tanh: tanhGelu,
  gelu_python_tanh: tanhGelu,
  hardswish: (x) => mul(x, scale(relu6(affine(x, 1, 3)), 1 / 6)),
  laplace: (x) => normalCdf(affine(x, 1 / LAPLACE.deviation, -LAPLACE.mean / LAPLACE.deviation)),
  leaky_relu: (x) => sub(relu(x), scale(relu(neg(x)), 0.01)),
  linear: (x) => x,
  mish: (x) => mul(x, tanh(softplus(x))),
  quick_gelu: (x) => mul(x, sigmoid(scale(x, 1.702))),
  relu,
  relu2: (x) => {
    const y = relu(x);
    return mul(y, y);
  },
  relu6,
  sigmoid,
  silu,
  swish: silu,
  tanh,
};

/** Those that a dense layer applies itself. */
const OF_LAYERS: ReadonlyMap<(x: Tensor) => Tensor, Activation> = new Map([
  [relu, 'relu'],
  [silu, 'silu'],
  [exactGelu, 'gelu'],
  [tanhGelu, 'geluTanh'],
] as const);

/**
 * f of what a layer answers, in one call where the layer is plain and knows f.
 * @param x [.., in] → [.., out]
 */
export function activated(layer: Dense, x: Tensor, f: (x: Tensor) => Tensor): Tensor {
  const own = OF_LAYERS.get(f);
  return own ? activatedLayer(layer, x, own) : scope(() => f(layer.forward(x)));
}

/** The names that {@link readActivation} knows. */
export const ACTIVATION_NAMES: readonly string[] = Object.keys(ACTIVATIONS);

/** The activation that a field names. @throws naming the field when there is none of that name */
export function readActivation(
  c: ConfigReader,
  field: string,
  fallback: string,
): (x: Tensor) => Tensor {
  const name = c.text(field, fallback);
  if (!Object.hasOwn(ACTIVATIONS, name)) c.only(field, ACTIVATION_NAMES);
  return ACTIVATIONS[name] as (x: Tensor) => Tensor;
}
