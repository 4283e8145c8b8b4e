import { defineOp, first, type Meta } from '../autograd/index.js';
import { computeDType, type DType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { isFiniteTensor } from '../tensor/finite.js';
import { sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { sum } from './broadcast.js';
import { cast } from './cast.js';
import { add, mul, scale, sqrt } from './elementwise.js';
import type { RowFactors } from './low-rank-rows.js';
import { matmul } from './matmul.js';

interface Attrs {
  /** Whether W is stored [in, out]. */
  readonly transposed: boolean;
  readonly scales: readonly number[];
}

interface MergeAttrs extends Attrs {
  readonly dtype: DType;
}

/** Throws unless these are W and pairs of A and B for it. */
function checkInputs(op: string, inputs: readonly Meta[], { transposed, scales }: Attrs): void {
  const [w, ...factors] = inputs as readonly [Meta, ...Meta[]];
  const [out, inner] = transposed ? [w.shape[1], w.shape[0]] : w.shape;
  const pairs = scales.every((_, i) => {
    const [a, b] = [factors[2 * i] as Meta, factors[2 * i + 1] as Meta];
    const rank = a.shape[0] as number;
    return sameShape(a.shape, [rank, inner as number]) && sameShape(b.shape, [out as number, rank]);
  });
  if (w.shape.length === 2 && factors.length === 2 * scales.length && pairs) return;
  const stored = transposed ? '[in, out]' : '[out, in]';
  const expected = `W ${stored}, A [r, in] and B [out, r] of ${scales.length} adapters`;
  throw failure(op, expected, inputs.map((m) => shapeText(m.shape)).join(', '));
}

/** W + Σ s_i B_i A_i as W is stored, in the arithmetic's dtype. */
function moved(inputs: readonly Tensor[], { transposed, scales }: Attrs): Tensor {
  const [w, ...factors] = inputs as readonly [Tensor, ...Tensor[]];
  const dtype = computeDType(inputs.map((t) => t.dtype));
  return scales.reduce(
    (total, s, i) => {
      const [a, b] = [factors[2 * i] as Tensor, factors[2 * i + 1] as Tensor];
      const change = transposed ? matmul(a, b, { transA: true, transB: true }) : matmul(b, a);
      return add(total, scale(change, s));
    },
    cast(w, dtype),
  );
}

const encode = ({ transposed, scales }: Attrs) => [transposed ? 1 : 0, ...scales];

/** W [3, 5] with two adapters, and the sizes that every op is tried on. */
const SHAPES = {
  odd: [
    [33, 5],
    [2, 5],
    [33, 2],
    [3, 5],
    [33, 3],
  ],
  turned: [
    [5, 19],
    [8, 5],
    [19, 8],
  ],
  wide: [
    [3, 517],
    [17, 517],
    [3, 17],
  ],
  one: [
    [1, 1],
    [1, 1],
    [1, 1],
  ],
  empty: [
    [0, 4],
    [2, 4],
    [0, 2],
  ],
} as const;

const inputsOf = (shapes: readonly (readonly number[])[]) => shapes.map((shape) => ({ shape }));

const mergeOp = defineOp<MergeAttrs>({
  name: 'mergeLowRank',
  infer: (inputs, attrs) => {
    checkInputs('mergeLowRank', inputs, attrs);
    return [
      { shape: (inputs[0] as Meta).shape, dtype: attrs.dtype },
      { shape: [1], dtype: 'i32' },
    ];
  },
  encode,
  composed: (inputs, attrs) => cast(moved(inputs, attrs), attrs.dtype),
  samples: [
    {
      label: 'two adapters',
      inputs: inputsOf(SHAPES.odd),
      attrs: { transposed: false, scales: [0.5, -2], dtype: 'f32' },
    },
    {
      label: 'transposed',
      inputs: inputsOf(SHAPES.turned),
      attrs: { transposed: true, scales: [2], dtype: 'f32' },
    },
    {
      label: 'several tiles',
      inputs: inputsOf(SHAPES.wide),
      attrs: { transposed: false, scales: [0.125], dtype: 'f32' },
    },
    {
      label: 'one',
      inputs: inputsOf(SHAPES.one),
      attrs: { transposed: true, scales: [3], dtype: 'f32' },
    },
    {
      label: 'none',
      inputs: [{ shape: [2, 3] }],
      attrs: { transposed: false, scales: [], dtype: 'f32' },
    },
    {
      label: 'empty',
      inputs: inputsOf(SHAPES.empty),
      attrs: { transposed: false, scales: [1], dtype: 'f32' },
    },
  ],
});

/** Settings of {@link mergeLowRank}. */
export interface MergeOptions {
  /** Whether W is stored [in, out]. Default false. */
  readonly transposed?: boolean;
  /** Of the result. Default W's. */
  readonly dtype?: DType;
}

/**
 * W + Σ s_i B_i A_i, summed in f32 and rounded once, in one pass over W. A constant.
 * @param w [out, in], or [in, out] with `transposed`
 * @returns the merged weight, and whether every element of it is finite
 */
export function mergeLowRank(
  w: Tensor,
  factors: readonly RowFactors[],
  options: MergeOptions = {},
): { readonly merged: Tensor; readonly finite: boolean } {
  const { transposed = false, dtype = w.dtype } = options;
  const inputs = [w, ...factors.flatMap(({ a, b }) => [a, b])];
  const [merged, ok] = mergeOp(inputs, { transposed, dtype, scales: factors.map((f) => f.scale) });
  if (!ok) return { merged: merged as Tensor, finite: isFiniteTensor(merged as Tensor) };
  const finite = ok.toNumbers()[0] === 1;
  ok.dispose();
  return { merged: merged as Tensor, finite };
}

const normsOp = defineOp<Attrs>({
  name: 'lowRankNorms',
  infer: (inputs, attrs) => {
    checkInputs('lowRankNorms', inputs, attrs);
    const { shape } = inputs[0] as Meta;
    const dtype = computeDType(inputs.map((m) => m.dtype));
    return [{ shape: [shape[attrs.transposed ? 1 : 0] as number], dtype }];
  },
  encode,
  composed: (inputs, attrs) => {
    const w = moved(inputs, attrs);
    return sqrt(sum(mul(w, w), [attrs.transposed ? 0 : 1]));
  },
  samples: [
    {
      label: 'several tiles',
      inputs: inputsOf(SHAPES.wide),
      attrs: { transposed: false, scales: [0.5] },
    },
    {
      label: 'transposed',
      inputs: inputsOf(SHAPES.turned),
      attrs: { transposed: true, scales: [2] },
    },
    { label: 'one', inputs: inputsOf(SHAPES.one), attrs: { transposed: false, scales: [3] } },
    { label: 'empty', inputs: inputsOf(SHAPES.empty), attrs: { transposed: false, scales: [1] } },
  ],
});

/**
 * Lengths of the rows of W + s·B A [out, in]: [out], without forming the sum. A constant.
 * @param w [out, in], or [in, out] with `transposed`
 */
export function lowRankNorms(
  w: Tensor,
  { a, b, scale: s }: RowFactors,
  transposed = false,
): Tensor {
  return first(normsOp([w, a, b], { transposed, scales: [s] }));
}
