import { zeros } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { backward } from './backward.js';
import { LeafNode, OpNode } from './graph.js';
import { withGrad } from './mode.js';
import type { OpSpec } from './op.js';
import { scope } from './scope.js';

type Part = (inputs: readonly Tensor[]) => Tensor;

const spec: OpSpec<Part> = {
  name: 'checkpoint',
  infer: (inputs) => inputs,
  // The part again, recorded this time, and the walk through it.
  backward: ({ grad, attrs: part, inputs, needs, input }) => {
    const leaves = inputs.map((meta, i) => {
      const t = input(i).alias();
      if (needs[i]) t.node = new LeafNode(meta);
      return t;
    });
    backward(
      withGrad(() => scope(() => part(leaves))),
      grad,
    );
    return leaves.map((t, i) => {
      if (!needs[i]) return null;
      const { grad: found } = t;
      if (!found) return zeros(t.shape, { backend: t.backend, dtype: grad.dtype });
      found.storage.retag('activation');
      return found.alias();
    });
  },
  samples: [],
};

/**
 * `part(inputs)`, of which only the inputs are kept for backward: the part is computed again there
 * (Chen et al., "Training deep nets with sublinear memory cost", 2016). Value and gradients have
 * the same bits as without.
 * @param part gives the same result at the second call, which comes in backward; what it reads
 *   besides its inputs must live until then
 * @param inputs every tensor that the part reads, parameters excepted
 */
export function checkpoint(part: Part, inputs: readonly Tensor[]): Tensor {
  const made = scope(() => part(inputs));
  if (!(made.node instanceof OpNode) || inputs.includes(made)) return made;
  const result = made.alias();
  const node = new OpNode(
    spec as OpSpec<unknown>,
    part,
    inputs.map((t) => t.meta),
    inputs.map((t) => t.node),
    inputs.map((t) => t.node !== null),
    made.meta,
  );
  inputs.forEach((t, i) => {
    node.save('input', i, t);
  });
  result.node = node;
  // With it goes what its own graph kept.
  made.dispose();
  return result;
}
