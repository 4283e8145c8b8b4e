import { gelu, mul, relu, scale, sigmoid, silu, tanh } from '../ops/index.js';
import type { Tensor } from '../tensor/tensor.js';
import type { ConfigReader } from './config.js';

const tanhGelu = (x: Tensor) => gelu(x, 'tanh');

/** The activations that a config.json may name, by transformers' names. */
const ACTIVATIONS: Readonly<Record<string, (x: Tensor) => Tensor>> = {
  gelu: (x) => gelu(x),
  gelu_python: (x) => gelu(x),
  gelu_new: tanhGelu,
  gelu_fast: tanhGelu,
  gelu_pytorch_tanh: tanhGelu,
  gelu_python_tanh: tanhGelu,
  quick_gelu: (x) => mul(x, sigmoid(scale(x, 1.702))),
  relu,
  sigmoid,
  silu,
  swish: silu,
  tanh,
};

/** The activation that a field names. @throws naming the field when there is none of that name */
export function readActivation(
  c: ConfigReader,
  field: string,
  fallback: string,
): (x: Tensor) => Tensor {
  const name = c.text(field, fallback);
  if (!Object.hasOwn(ACTIVATIONS, name)) c.only(field, Object.keys(ACTIVATIONS));
  return ACTIVATIONS[name] as (x: Tensor) => Tensor;
}
