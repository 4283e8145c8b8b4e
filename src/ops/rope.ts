import { defineOp, first, type Meta, type Op } from '../autograd/index.js';
import { activationDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';

interface RopeAttrs {
  readonly inverse: boolean;
  readonly factor: number;
}

const ropeOp: Op<RopeAttrs> = defineOp<RopeAttrs>({
  name: 'rope',
  infer: ([x, positions, invFreq]) => {
    const { shape, dtype } = x as Meta;
    const p = positions as Meta;
    const f = invFreq as Meta;
    const half = f.shape[0] ?? 0;
    if (
      shape.length !== 4 ||
      p.dtype !== 'i32' ||
      !sameShape(p.shape, shape.slice(0, 2)) ||
      f.shape.length !== 1 ||
      2 * half > (shape[3] as number)
    ) {
      throw failure(
        'rope',
        'x [B, T, H, D], i32 positions [B, T], frequencies [≤ D/2]',
        [shape, p.shape, f.shape].map(shapeText).join(', '),
      );
    }
    return [{ shape, dtype: activationDType([dtype]) }];
  },
  encode: ({ inverse, factor }) => [inverse ? 1 : 0, factor],
  reads: () => ({ inputs: [1, 2] }),
  // a rotation's transpose is its inverse: dx = dy turned back, times the same factor
  backward: ({ grad, attrs, input }) => [
    first(ropeOp([grad, input(1), input(2)], { ...attrs, inverse: !attrs.inverse })),
    null,
    null,
  ],
  samples: [
    {
      label: 'two heads',
      inputs: [
        { shape: [2, 3, 2, 4] },
        { shape: [2, 3], values: [0, 1, 2, 5, 6, 40], dtype: 'i32' },
        { shape: [2], values: [1, 0.01] },
      ],
      attrs: { inverse: false, factor: 1 },
    },
    {
      label: 'part of D, inverse, factor',
      inputs: [
        { shape: [1, 2, 3, 7] },
        { shape: [1, 2], values: [3, 9], dtype: 'i32' },
        { shape: [2], values: [0.5, 0.25] },
      ],
      attrs: { inverse: true, factor: 1.25 },
    },
    {
      label: 'empty',
      inputs: [
        { shape: [1, 0, 1, 2] },
        { shape: [1, 0], values: [], dtype: 'i32' },
        { shape: [1], values: [1] },
      ],
      attrs: { inverse: false, factor: 1 },
    },
  ],
});

/**
 * Rotary position embedding (Su et al., 2021) in Hugging Face's rotate-half order: channel i turns
 * with channel i + D′/2.
 * @param x [B, T, H, D]
 * @param positions i32 [B, T]
 * @param invFreq [D′/2] angles per position, in radians; a constant
 * @param factor scales cosine and sine (YaRN's attention factor)
 */
export function rope(x: Tensor, positions: Tensor, invFreq: Tensor, factor = 1): Tensor {
  return first(ropeOp([x, positions, invFreq], { inverse: false, factor }));
}
