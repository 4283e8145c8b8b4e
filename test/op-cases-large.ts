import { definedOps, type Op, type SampleInput } from '../src/autograd/index.js';
import { type Case, caseOf } from './op-cases.js';

function large(
  name: string,
  label: string,
  shapes: readonly (readonly number[] | SampleInput)[],
  attrs: unknown = undefined,
): Case {
  const inputs = shapes.map((s) => ('shape' in s ? s : { shape: s }));
  return caseOf(definedOps().get(name) as Op<unknown>, { label: `large, ${label}`, inputs, attrs });
}

const ids = (shape: readonly number[], below: number): SampleInput => ({
  shape,
  values: Array.from({ length: shape.reduce((n, d) => n * d, 1) }, (_, i) => (i * 7919) % below),
  dtype: 'i32',
});

const heads = { causal: true, scale: 0.2, window: 0, keyLength: -1 };
const plain = { transA: false, transB: false };

/** Shapes large enough for several blocks and threads, none a multiple of a vector or tile. */
export const LARGE_CASES: readonly Case[] = [
  large(
    'matmul',
    'a b',
    [
      [257, 129],
      [129, 65],
    ],
    plain,
  ),
  large(
    'matmul',
    'aᵀ b',
    [
      [129, 257],
      [129, 65],
    ],
    { transA: true, transB: false },
  ),
  large(
    'matmul',
    'a bᵀ',
    [
      [257, 129],
      [65, 129],
    ],
    { transA: false, transB: true },
  ),
  large(
    'matmul',
    'aᵀ bᵀ',
    [
      [129, 257],
      [65, 129],
    ],
    { transA: true, transB: true },
  ),
  large(
    'matmul',
    'deep',
    [
      [33, 1027],
      [1027, 17],
    ],
    plain,
  ),
  large(
    'matmul',
    'rank 4',
    [
      [515, 4],
      [4, 131],
    ],
    plain,
  ),
  large(
    'matmul',
    'batch',
    [
      [7, 65, 33],
      [7, 33, 35],
    ],
    plain,
  ),
  large('linear', 'one row', [[1, 515], [259, 515], [259]], { transposed: false }),
  large(
    'linear',
    'rows',
    [
      [3, 43, 131],
      [97, 131],
    ],
    { transposed: false },
  ),
  large('linear', 'to bf16', [[67, 136], [96, 136], [96]], { transposed: false, dtype: 'bf16' }),
  large('linear', 'transposed', [[3, 43, 131], [131, 97], [97]], { transposed: true }),
  large(
    'addLowRank',
    'rank 5',
    [
      [3, 43, 97],
      [3, 43, 131],
      [5, 131],
      [97, 5],
    ],
    { scale: 2, own: true },
  ),
  large(
    'attention',
    'causal',
    [
      [2, 130, 4, 24],
      [2, 130, 2, 24],
      [2, 130, 2, 24],
    ],
    heads,
  ),
  large(
    'attention',
    'full',
    [
      [1, 67, 3, 40],
      [1, 131, 3, 40],
      [1, 131, 3, 40],
    ],
    { ...heads, causal: false },
  ),
  large(
    'attention',
    'window',
    [
      [1, 130, 2, 16],
      [1, 130, 2, 16],
      [1, 130, 2, 16],
    ],
    { ...heads, window: 37 },
  ),
  large('fusedAttention', 'causal', [[2, 130, 3 * 4 * 24]], { ...heads, heads: 4 }),
  large('sum', 'all', [[300, 701]], { axes: [0, 1] }),
  large('sum', 'rows', [[1001, 37]], { axes: [0] }),
  large('sum', 'columns', [[129, 1001]], { axes: [1] }),
  large('sum', 'middle', [[7, 301, 65]], { axes: [1] }),
  large('add', 'row', [[301, 257], [257]]),
  large('mul', 'same', [[70001], [70001]]),
  large('exp', 'long', [[70001]]),
  large('gelu', 'exact', [{ shape: [70001], scale: 3 }], { form: 'none' }),
  large('gelu', 'tanh', [{ shape: [70001], scale: 3 }], { form: 'tanh' }),
  large('swiglu', 'long', [{ shape: [131, 515], scale: 3 }, [131, 515]]),
  large('softmax', 'rows', [{ shape: [131, 1001], scale: 4 }]),
  large('logSoftmax', 'rows', [{ shape: [131, 1001], scale: 4 }]),
  large('crossEntropy', 'rows', [{ shape: [131, 1001], scale: 4 }, ids([131], 1001)], {
    ignoreIndex: 3,
    labelSmoothing: 0.1,
  }),
  large('headLoss', 'four chunks', [[131, 65], [1001, 65], ids([131], 1001)], {
    factor: 0.5,
    ignoreIndex: 3,
    chunkRows: 37,
  }),
  large('rmsNorm', 'rows', [[301, 259], [259]], { eps: 1e-6 }),
  large('rmsNorm', 'to bf16', [[67, 260], [260]], { eps: 1e-6, dtype: 'bf16' }),
  large('layerNorm', 'to bf16', [[67, 260], [260], [260]], { eps: 1e-5, dtype: 'bf16' }),
  large('layerNorm', 'rows', [[301, 259], [259], [259]], { eps: 1e-5 }),
  large('embedding', 'repeated', [[131, 65], ids([4003], 131)]),
  large('gather', 'rows', [[301, 131], ids([301, 77], 131)], { axis: 1 }),
  large('dropout', 'long', [[70001]], { p: 0.1, seed: 2 ** 40 + 1, stream: 3, step: 4 }),
  large('permute', 'heads', [[3, 67, 5, 33]], { axes: [0, 2, 1, 3] }),
  large('permute', 'matrix', [[257, 129]], { axes: [1, 0] }),
  large('max', 'rows', [[301, 259]], { axis: 1 }),
  large(
    'rope',
    'heads',
    [
      [2, 131, 5, 32],
      ids([2, 131], 400),
      { shape: [16], values: Array.from({ length: 16 }, (_, i) => 10000 ** (-i / 16)) },
    ],
    { inverse: false, factor: 1 },
  ),
];

/** The large cases of ops that answer bf16 where they are given it, or are asked for it. */
export const BF16_CASES: readonly Case[] = LARGE_CASES.filter(({ op, sample }) => {
  const { name } = op.spec;
  const follows = [
    'swiglu',
    'gelu',
    'attention',
    'fusedAttention',
    'rope',
    'dropout',
    'addLowRank',
  ].includes(name);
  return follows || (sample.attrs as { dtype?: string } | undefined)?.dtype === 'bf16';
});
