import { setTrainable } from '../autograd/index.js';
import type { ParameterSource } from '../nn/index.js';
import type { Backend } from '../tensor/backend.js';
import { ones, tensor, zeros } from '../tensor/create.js';
import { normal, streamOf } from '../tensor/random.js';
import { numel } from '../tensor/shape.js';

/**
 * New trainable parameters for training from scratch, as GPT-2 starts: matrices normal with
 * standard deviation 0.02, those that write to the residual stream (`o_proj`, `down_proj`) smaller
 * by 1/√(2·layers); norms one, biases zero. A parameter's numbers depend on its name and the seed.
 */
export function randomParameters(seed: number, layers: number, backend: Backend): ParameterSource {
  const residual = /\.(o_proj|down_proj)\.weight$/;
  return (name, shape) => {
    const options = { backend, purpose: 'trainable' } as const;
    if (name.endsWith('.bias')) return setTrainable(zeros(shape, options), true);
    if (shape.length === 1) return setTrainable(ones(shape, options), true);
    const std = residual.test(name) ? 0.02 / Math.sqrt(2 * layers) : 0.02;
    const values = normal({ seed, stream: streamOf(name) }, numel(shape));
    return setTrainable(
      tensor(
        Float32Array.from(values, (v) => v * std),
        shape,
        options,
      ),
      true,
    );
  };
}
