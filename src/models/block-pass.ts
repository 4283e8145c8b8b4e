import { checkpoint } from '../autograd/index.js';
import { trainingContext, withTraining } from '../nn/index.js';
import { Tensor } from '../tensor/tensor.js';

/**
 * One block of a model. In a training pass with checkpoints only x is kept of it, and the block is
 * computed again in backward.
 * @param x the block's input
 * @param pass what the blocks of a pass share; tensors in it are constants
 */
export function blockPass<P extends object>(
  x: Tensor,
  pass: P,
  forward: (x: Tensor, pass: P) => Tensor,
): Tensor {
  const context = trainingContext();
  if (!context?.checkpoint) return forward(x, pass);
  const shared = Object.entries(pass).filter(([, v]) => v instanceof Tensor);
  const names = shared.map(([name]) => name);
  const part = ([own, ...constants]: readonly Tensor[]) => {
    const held = Object.fromEntries(names.map((name, i) => [name, constants[i]]));
    return withTraining(context, () => forward(own as Tensor, { ...pass, ...held }));
  };
  return checkpoint(part, [x, ...shared.map(([, v]) => v as Tensor)]);
}
