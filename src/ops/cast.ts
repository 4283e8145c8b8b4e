import { defineOp, first, type Meta } from '../autograd/index.js';
import type { DType } from '../tensor/dtype.js';
import type { Tensor } from '../tensor/tensor.js';

const castOp = defineOp<{ dtype: DType }>({
  name: 'cast',
  infer: ([x], { dtype }) => [{ shape: (x as Meta).shape, dtype }],
  // rounding counts as the identity: dx = dy
  backward: ({ grad }) => [grad],
  samples: [
    { label: 'to i32', inputs: [{ shape: [3, 5], scale: 100 }], attrs: { dtype: 'i32' } },
    { label: 'to bf16', inputs: [{ shape: [33] }], attrs: { dtype: 'bf16' } },
    { label: 'to f16', inputs: [{ shape: [1, 3] }], attrs: { dtype: 'f16' } },
    { label: 'empty', inputs: [{ shape: [0] }], attrs: { dtype: 'f32' } },
  ],
});

/**
 * x in another dtype: floats round to nearest even, float to integer truncates. The gradient comes
 * back in the arithmetic's dtype.
 */
export function cast(x: Tensor, dtype: DType): Tensor {
  return first(castOp([x], { dtype }));
}
