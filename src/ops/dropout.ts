import { defineOp, first, type Meta, type Op } from '../autograd/index.js';
import { activationDType } from '../tensor/dtype.js';
import { failure } from '../tensor/errors.js';
import type { RandomAddress } from '../tensor/random.js';
import type { Tensor } from '../tensor/tensor.js';

interface DropoutAttrs extends RandomAddress {
  readonly p: number;
}

const dropoutOp: Op<DropoutAttrs> = defineOp<DropoutAttrs>({
  name: 'dropout',
  infer: ([x]) => [{ shape: (x as Meta).shape, dtype: activationDType([(x as Meta).dtype]) }],
  encode: ({ p, seed, stream, step }) => [p, seed, stream, step ?? 0],
  // the mask is made again from its address: dx = dy/(1 − p) where kept
  backward: ({ grad, attrs }) => [first(dropoutOp([grad], attrs))],
  samples: [
    { label: 'odd', inputs: [{ shape: [3, 37] }], attrs: { p: 0.3, seed: 7, stream: 2, step: 5 } },
    {
      label: 'large seed',
      inputs: [{ shape: [9] }],
      attrs: { p: 0.5, seed: 2 ** 52 + 3, stream: 2 ** 32 - 1, step: 1 },
    },
    { label: 'none', inputs: [{ shape: [1] }], attrs: { p: 0, seed: 0, stream: 0 } },
    { label: 'empty', inputs: [{ shape: [0, 3] }], attrs: { p: 0.5, seed: 0, stream: 0 } },
  ],
});

/**
 * Zeroes each element with probability p and scales the others by 1/(1 − p). The mask is a
 * function of the address and of the element's place, and is not stored.
 * @param p 0 ≤ p < 1
 */
export function dropout(x: Tensor, p: number, address: RandomAddress): Tensor {
  if (!(p >= 0 && p < 1)) throw failure('dropout', 'a probability of 0 ≤ p < 1', String(p));
  return first(dropoutOp([x], { ...address, p }));
}
