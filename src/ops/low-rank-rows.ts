import { defineOp, first, gradEnabled, type Meta } from '../autograd/index.js';
import { tensor } from '../tensor/create.js';
import { computeDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { add, mul } from './elementwise.js';
import { linear } from './matmul.js';
import { concat } from './shape.js';

/** One adapter's share of a mixed batch. */
export interface RowFactors {
  /** [r, in], f32 */
  readonly a: Tensor;
  /** [out, r], f32 */
  readonly b: Tensor;
  readonly scale: number;
}

interface Attrs {
  readonly scales: readonly number[];
  /** The adapter of each row of the batch; −1 for none. */
  readonly groups: readonly number[];
}

/**
 * All adapters as one of rank R = Σ r, of which each row keeps its own columns:
 * y + ((x A₁…ₙᵀ) ⊙ S) B₁…ₙᵀ with S [rows, R] the row's scale on its own columns, else 0.
 */
function composed(inputs: readonly Tensor[], { scales, groups }: Attrs): Tensor {
  const [y, x, ...factors] = inputs as [Tensor, Tensor, ...Tensor[]];
  if (factors.length === 0) return y.alias();
  const a = factors.filter((_, i) => i % 2 === 0);
  const b = factors.filter((_, i) => i % 2 === 1);
  const ranks = a.map((t) => t.shape[0] as number);
  const total = ranks.reduce((n, r) => n + r, 0);
  const kept = new Float32Array(groups.length * total);
  groups.forEach((group, row) => {
    if (group < 0) return;
    const at = row * total + ranks.slice(0, group).reduce((n, r) => n + r, 0);
    kept.fill(scales[group] as number, at, at + (ranks[group] as number));
  });
  const between = x.shape.slice(1, -1).map(() => 1);
  const mask = tensor(kept, [groups.length, ...between, total], { backend: x.backend });
  const side = (all: readonly Tensor[], axis: number) =>
    all.length === 1 ? (all[0] as Tensor) : concat(all, axis);
  return add(y, linear(mul(linear(x, side(a, 0)), mask), side(b, 1)));
}

const addLowRankRowsOp = defineOp<Attrs>({
  name: 'addLowRankRows',
  infer: (inputs, { scales, groups }) => {
    const [y, x] = inputs as readonly [Meta, Meta];
    const rows = x.shape.slice(0, -1);
    const pairs = scales.every((_, i) => {
      const [a, b] = [inputs[2 + 2 * i] as Meta, inputs[3 + 2 * i] as Meta];
      const rank = a.shape[0] as number;
      return (
        sameShape(a.shape, [rank, x.shape.at(-1) as number]) &&
        sameShape(b.shape, [y.shape.at(-1) as number, rank])
      );
    });
    const fits =
      inputs.length === 2 + 2 * scales.length &&
      x.shape.length >= 2 &&
      sameShape(rows, y.shape.slice(0, -1)) &&
      groups.length === rows[0];
    if (fits && pairs) return [{ shape: y.shape, dtype: computeDType(inputs.map((m) => m.dtype)) }];
    throw failure(
      'addLowRankRows',
      `y [B, .., out], x [B, .., in], A [r, in] and B [out, r] of ${scales.length} adapters, for B = ${groups.length}`,
      inputs.map((m) => shapeText(m.shape)).join(', '),
    );
  },
  encode: ({ scales, groups }) => [...scales, ...groups],
  composed,
  samples: [
    {
      label: 'three adapters',
      inputs: [
        { shape: [4, 3, 5] },
        { shape: [4, 3, 33] },
        ...[2, 1, 17].flatMap((r) => [{ shape: [r, 33] }, { shape: [5, r] }]),
      ],
      attrs: { scales: [0.5, 2, -1], groups: [2, -1, 0, 2] },
    },
    {
      label: 'neighbours',
      inputs: [
        { shape: [5, 37] },
        { shape: [5, 19] },
        ...[3, 4].flatMap((r) => [{ shape: [r, 19] }, { shape: [37, r] }]),
      ],
      attrs: { scales: [1, 1], groups: [1, 1, 1, 0, 0] },
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }, { shape: [1, 1] }, { shape: [1, 1] }, { shape: [1, 1] }],
      attrs: { scales: [3], groups: [0] },
    },
    {
      label: 'none',
      inputs: [{ shape: [2, 3] }, { shape: [2, 4] }],
      attrs: { scales: [], groups: [-1, -1] },
    },
    {
      label: 'empty',
      inputs: [{ shape: [0, 3] }, { shape: [0, 4] }, { shape: [2, 4] }, { shape: [3, 2] }],
      attrs: { scales: [1], groups: [] },
    },
  ],
});

/**
 * y + s_g (x A_gᵀ) B_gᵀ, every row of the batch with its own adapter g: one grouped product of rank
 * r, not a loop over parts of the batch. A gradient, where one is needed, goes the composed way.
 * @param y [B, .., out], f32
 * @param x [B, .., in]
 * @param factors of each adapter
 * @param groups the adapter of each of the B rows by its place, −1 for none
 */
export function addLowRankRows(
  y: Tensor,
  x: Tensor,
  factors: readonly RowFactors[],
  groups: readonly number[],
): Tensor {
  const inputs = [y, x, ...factors.flatMap(({ a, b }) => [a, b])];
  const attrs = { scales: factors.map((f) => f.scale), groups };
  if (gradEnabled() && inputs.some((t) => t.requiresGrad)) {
    addLowRankRowsOp.spec.infer(inputs, attrs);
    return composed(inputs, attrs);
  }
  return first(addLowRankRowsOp(inputs, attrs));
}
