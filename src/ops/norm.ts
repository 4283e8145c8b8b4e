import { defineOp, first, type Meta, runKernel } from '../autograd/index.js';
import { type ActivationDType, askedDType, computeDType, gradientDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { sum } from './broadcast.js';
import { add, affine, div, mul, sqrt, sub } from './elementwise.js';
import { mean } from './reduce.js';

interface NormAttrs {
  readonly eps: number;
  /** Of the result; default f32. */
  readonly dtype?: ActivationDType;
}

function inferNorm(name: string) {
  return (inputs: readonly Meta[], { dtype = 'f32' }: NormAttrs): Meta[] => {
    const { shape } = inputs[0] as Meta;
    const width = shape.at(-1);
    for (const m of inputs.slice(1)) {
      if (width === undefined || m.shape.length !== 1 || m.shape[0] !== width) {
        throw failure(name, `a weight [${width ?? '?'}]`, shapeText(m.shape));
      }
    }
    const dtypes = inputs.map((m) => m.dtype);
    return [{ shape, dtype: askedDType(dtype, dtypes) }];
  };
}

const rmsNormOp = defineOp<NormAttrs>({
  name: 'rmsNorm',
  cheap: true,
  infer: inferNorm('rmsNorm'),
  encode: ({ eps }) => [eps],
  reads: (needs) => ({ inputs: needs[0] ? [0, 1] : [0] }),
  // x̂ = x·ρ, ρ = 1/√(mean x² + ε): dx = ρ·(w·dy − x̂·mean(w·dy·x̂)), dw = Σ dy·x̂
  backward: ({ grad, attrs, inputs, needs, input }) => {
    const { backend, shape } = grad;
    const dtype = computeDType([grad.dtype]);
    const dx = { shape, dtype: gradientDType((inputs[0] as Meta).dtype, dtype) };
    const eps = [attrs.eps];
    return [
      needs[0]
        ? first(runKernel(backend, 'rmsNorm.gradInput', [input(0), input(1), grad], [dx], eps))
        : null,
      needs[1]
        ? first(
            runKernel(
              backend,
              'rmsNorm.gradWeight',
              [input(0), grad],
              [{ shape: (inputs[1] as Meta).shape, dtype }],
              eps,
            ),
          )
        : null,
    ];
  },
  composed: ([x, w], { eps }) => {
    const square = mean(mul(x as Tensor, x as Tensor), [-1], { keepDims: true });
    return mul(div(x as Tensor, sqrt(affine(square, 1, eps))), w as Tensor);
  },
  samples: [
    { label: 'odd', inputs: [{ shape: [2, 3, 37] }, { shape: [37] }], attrs: { eps: 1e-6 } },
    {
      label: 'to bf16',
      inputs: [{ shape: [2, 37] }, { shape: [37] }],
      attrs: { eps: 1e-6, dtype: 'bf16' },
    },
    { label: 'one', inputs: [{ shape: [1, 1] }, { shape: [1] }], attrs: { eps: 1e-1 } },
    { label: 'empty', inputs: [{ shape: [0, 4] }, { shape: [4] }], attrs: { eps: 1e-5 } },
  ],
});

/** Settings of the norms. */
export interface NormOptions {
  /** Of the result: bf16 is rounded once, at the end. Default f32. */
  readonly dtype?: ActivationDType;
}

/**
 * Root-mean-square norm (Zhang and Sennrich, 2019) over the last axis.
 * @param x [.., C]
 * @param weight [C]
 */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number, options: NormOptions = {}): Tensor {
  return first(rmsNormOp([x, weight], { eps, ...options }));
}

const layerNormOp = defineOp<NormAttrs>({
  name: 'layerNorm',
  cheap: true,
  infer: inferNorm('layerNorm'),
  encode: ({ eps }) => [eps],
  reads: (needs) => ({ inputs: needs[0] ? [0, 1] : needs[1] ? [0] : [] }),
  // x̂ = (x − μ)/σ: dx = (w·dy − mean(w·dy) − x̂·mean(w·dy·x̂))/σ, dw = Σ dy·x̂, db = Σ dy
  backward: ({ grad, attrs, inputs, needs, input }) => {
    const { backend, shape } = grad;
    const dtype = computeDType([grad.dtype]);
    const dx = { shape, dtype: gradientDType((inputs[0] as Meta).dtype, dtype) };
    const eps = [attrs.eps];
    const weight = { shape: (inputs[1] as Meta).shape, dtype };
    const rows = shape.slice(0, -1).map((_, i) => i);
    return [
      needs[0]
        ? first(runKernel(backend, 'layerNorm.gradInput', [input(0), input(1), grad], [dx], eps))
        : null,
      needs[1]
        ? first(runKernel(backend, 'layerNorm.gradWeight', [input(0), grad], [weight], eps))
        : null,
      needs[2] ? sum(grad, rows) : null,
    ];
  },
  composed: ([x, w, b], { eps }) => {
    const centred = sub(x as Tensor, mean(x as Tensor, [-1], { keepDims: true }));
    const variance = mean(mul(centred, centred), [-1], { keepDims: true });
    return add(mul(div(centred, sqrt(affine(variance, 1, eps))), w as Tensor), b as Tensor);
  },
  samples: [
    {
      label: 'odd',
      inputs: [{ shape: [2, 3, 37] }, { shape: [37] }, { shape: [37] }],
      attrs: { eps: 1e-5 },
    },
    {
      label: 'to bf16',
      inputs: [{ shape: [2, 37] }, { shape: [37] }, { shape: [37] }],
      attrs: { eps: 1e-5, dtype: 'bf16' },
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }, { shape: [1] }, { shape: [1] }],
      attrs: { eps: 1e-1 },
    },
    {
      label: 'empty',
      inputs: [{ shape: [0, 4] }, { shape: [4] }, { shape: [4] }],
      attrs: { eps: 1e-5 },
    },
  ],
});

/**
 * Layer norm (Ba, Kiros and Hinton, 2016) over the last axis.
 * @param x [.., C]
 * @param weight [C]
 * @param bias [C]
 */
export function layerNorm(
  x: Tensor,
  weight: Tensor,
  bias: Tensor,
  eps: number,
  options: NormOptions = {},
): Tensor {
  return first(layerNormOp([x, weight, bias], { eps, ...options }));
}
