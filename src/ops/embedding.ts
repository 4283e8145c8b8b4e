import { defineOp, first, type Meta, runKernel } from '../autograd/index.js';
import { computeDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';

const embeddingOp = defineOp<void>({
  name: 'embedding',
  infer: ([table, ids]) => {
    const t = table as Meta;
    const i = ids as Meta;
    if (t.shape.length !== 2 || i.dtype !== 'i32') {
      throw failure(
        'embedding',
        'a table [V, C] and i32 ids',
        `${shapeText(t.shape)} and ${i.dtype}`,
      );
    }
    return [{ shape: [...i.shape, t.shape[1] as number], dtype: computeDType([t.dtype]) }];
  },
  reads: () => ({ inputs: [1] }),
  // dtable[id] += dy
  backward: ({ grad, inputs, input, earlier }) => {
    const into = earlier(0);
    if (into && grad.backend.kernels.has('embedding.gradAdd')) {
      grad.backend.run('embedding.gradAdd', [input(1), grad, into], []);
      return [into, null];
    }
    const made = runKernel(
      grad.backend,
      'embedding.grad',
      [input(1), grad],
      [{ shape: (inputs[0] as Meta).shape, dtype: computeDType([grad.dtype]) }],
    );
    return [...made, null];
  },
  samples: [
    {
      label: 'repeated ids',
      inputs: [{ shape: [5, 3] }, { shape: [2, 3], values: [4, 0, 4, 1, 1, 4], dtype: 'i32' }],
      attrs: undefined,
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }, { shape: [1], values: [0], dtype: 'i32' }],
      attrs: undefined,
    },
    {
      label: 'wide',
      inputs: [{ shape: [3, 37] }, { shape: [1, 2], values: [2, 0], dtype: 'i32' }],
      attrs: undefined,
    },
    {
      label: 'empty',
      inputs: [{ shape: [3, 2] }, { shape: [0], values: [], dtype: 'i32' }],
      attrs: undefined,
    },
  ],
});

/**
 * Rows of a table by id.
 * @param table [V, C]
 * @param ids i32 [..]
 * @returns [.., C]
 */
export function embedding(table: Tensor, ids: Tensor): Tensor {
  return first(embeddingOp([table, ids], undefined));
}
