import {
  type BackwardContext,
  defineOp,
  type Forward,
  first,
  gradEnabled,
  type Meta,
  type Reads,
} from '../autograd/index.js';
import type { KernelTensor } from '../tensor/backend.js';
import { tensor } from '../tensor/create.js';
import { computeDType, type DType, gradientDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { numel, type Shape, sameShape } from '../tensor/shape.js';
import { Tensor } from '../tensor/tensor.js';
import { add, mul, scale } from './elementwise.js';
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

/** Branches of adapters on the rows of a batch. */
export interface Branches {
  readonly scales: readonly number[];
  /** The adapter of each row of the batch; −1 for none. */
  readonly groups: readonly number[];
  /** Whether y's memory may become the result's. */
  readonly own: boolean;
  /** Whether all rows are one of the kernel's batch: they have one adapter. */
  readonly whole?: boolean;
}

/** A tensor [.., C] as the kernels see its rows: [1, N, C] where they are one of the batch. */
function seen(t: Tensor, { whole }: Branches): KernelTensor {
  if (!whole) return t;
  const { storage, dtype, byteOffset, shape } = t;
  const width = shape.at(-1) as number;
  return { storage, dtype, byteOffset, shape: [1, numel(shape.slice(0, -1)), width] };
}

/** A and B of each adapter among an op's inputs y, x, A₁, B₁, …: their places. */
function places({ scales }: Branches): { a: number; b: number }[] {
  return scales.map((_, i) => ({ a: 2 + 2 * i, b: 3 + 2 * i }));
}

/** The dtype of the sum: y's own where that is bf16. */
export function sumDType(inputs: readonly Meta[]): DType {
  const [y] = inputs as readonly [Meta];
  return y.dtype === 'bf16' ? y.dtype : computeDType(inputs.map((m) => m.dtype));
}

/**
 * y + h B_gᵀ with h = s_g·x A_gᵀ for the adapter g of each row; h is kept where a dB will be asked
 * for. Inputs y, x, then A and B of each adapter.
 */
export function branchesForward(
  inputs: readonly Tensor[],
  attrs: Branches,
  needs: readonly boolean[],
): Forward {
  const [y, x] = inputs as readonly [Tensor, Tensor];
  const dtype = sumDType(inputs);
  const { backend } = y;
  const owned = attrs.own && y.storage.refs === 1 && y.dtype === dtype;
  const output = owned ? y.alias() : Tensor.empty(backend, y.shape, dtype);
  if (owned) y.storage.version++;
  const kept: Tensor[] = [];
  if (places(attrs).some(({ b }) => needs[b])) {
    const arithmetic = computeDType(inputs.map((t) => t.dtype));
    const ranks = places(attrs).map(({ a }) => (inputs[a] as Tensor).shape[0] as number);
    kept.push(Tensor.empty(backend, [...x.shape.slice(0, -1), Math.max(...ranks)], arithmetic));
  }
  const rows = [y, x].map((t) => seen(t, attrs));
  const made = [output, ...kept].map((t) => seen(t, attrs));
  const encoded = [...attrs.scales, ...attrs.groups];
  backend.run('addLowRankRows', [...rows, ...inputs.slice(2), ...made], encoded);
  return { output, kept };
}

/** What {@link branchesBackward} reads. */
export function branchesReads(needs: readonly boolean[], attrs: Branches): Reads {
  const factors = places(attrs);
  const inputs = factors.some(({ a }) => needs[a]) ? [1] : [];
  for (const { a, b } of factors) {
    if (needs[1]) inputs.push(a);
    if (needs[1] || needs[a]) inputs.push(b);
  }
  return { inputs };
}

/**
 * With dh = s_g·dy B_g: dx = dh A_g, dA_g = dhᵀ x, dB_g = dyᵀ h, in one call; each added in place
 * to an earlier gradient where there is one.
 */
export function branchesBackward(
  { grad, inputs, needs, input, kept, earlier }: BackwardContext<unknown>,
  attrs: Branches,
): (Tensor | null)[] {
  const { backend } = grad;
  const factors = places(attrs);
  const modes = new Map<number, number>();
  const gradients = inputs.map((meta, i) => {
    if (i === 0 || !needs[i]) return null;
    const into = earlier(i);
    const dtype = i === 1 ? gradientDType(meta.dtype, grad.dtype) : computeDType([grad.dtype]);
    // A sum in f32 takes what is added to it, too.
    const added = into?.dtype === dtype || (i === 1 && into?.dtype === 'f32');
    modes.set(i, added ? 2 : 1);
    return added ? into : Tensor.empty(backend, meta.shape, dtype);
  });
  const mode = (i: number) => modes.get(i) ?? 0;
  const given = [seen(grad, attrs)];
  if (factors.some(({ a }) => needs[a])) given.push(seen(input(1), attrs));
  if (factors.some(({ b }) => needs[b])) given.push(seen(kept(0), attrs));
  for (const { a, b } of factors) {
    if (needs[1]) given.push(input(a));
    if (needs[1] || needs[a]) given.push(input(b));
  }
  const made = gradients.flatMap((t, i) => (t ? [i === 1 ? seen(t, attrs) : t] : []));
  if (made.length > 0) {
    backend.run(
      'addLowRankRows.grad',
      [...given, ...made],
      [
        factors.length,
        ...attrs.scales,
        mode(1),
        ...factors.flatMap(({ a, b }) => [mode(a), mode(b)]),
        ...attrs.groups,
      ],
    );
  }
  return gradients.map((t, i) => (i === 0 && needs[0] ? grad : t));
}

/** Whether shapes are y [.., out], x [.., in], then A [r, in] and B [out, r] of each adapter. */
export function branchesFit(shapes: readonly Shape[], adapters: number): boolean {
  const [y, x] = shapes as readonly [Shape, Shape];
  const pairs = Array.from({ length: adapters }, (_, i) => {
    const [a, b] = [shapes[2 + 2 * i], shapes[3 + 2 * i]];
    const rank = a?.[0] as number;
    return (
      sameShape(a ?? [], [rank, x.at(-1) as number]) &&
      sameShape(b ?? [], [y.at(-1) as number, rank])
    );
  });
  return (
    shapes.length === 2 + 2 * adapters &&
    x.length >= 1 &&
    sameShape(x.slice(0, -1), y.slice(0, -1)) &&
    pairs.every((fits) => fits)
  );
}

/**
 * All adapters as one of rank R = Σ r, of which each row keeps its own columns:
 * y + ((x A₁…ₙᵀ) ⊙ S) B₁…ₙᵀ with S [rows, R] the row's scale on its own columns, else 0.
 */
function composed(inputs: readonly Tensor[], { scales, groups }: Branches): Tensor {
  const [y, x, ...factors] = inputs as [Tensor, Tensor, ...Tensor[]];
  if (factors.length === 0) return scale(y, 1);
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

const addLowRankRowsOp = defineOp<Branches>({
  name: 'addLowRankRows',
  infer: (inputs, { scales, groups }) => {
    const shapes = inputs.map((m) => m.shape);
    const [, x] = shapes as [Shape, Shape];
    if (x.length >= 2 && x[0] === groups.length && branchesFit(shapes, scales.length)) {
      return [{ shape: shapes[0] as Shape, dtype: sumDType(inputs) }];
    }
    throw failure(
      'addLowRankRows',
      `y [B, .., out], x [B, .., in], A [r, in] and B [out, r] of ${scales.length} adapters, for B = ${groups.length}`,
      shapes.map(shapeText).join(', '),
    );
  },
  reads: branchesReads,
  forward: branchesForward,
  // For the adapter g of each row, dh = s_g·dy B_g: dx = dh A_g, dA_g = dhᵀ x, dB_g = dyᵀ (s_g·x A_gᵀ)
  backward: (ctx) => branchesBackward(ctx, ctx.attrs),
  composed,
  samples: [
    {
      label: 'three adapters',
      inputs: [
        { shape: [4, 3, 5] },
        { shape: [4, 3, 33] },
        ...[2, 1, 17].flatMap((r) => [{ shape: [r, 33] }, { shape: [5, r] }]),
      ],
      attrs: { scales: [0.5, 2, -1], groups: [2, -1, 0, 2], own: false },
    },
    {
      label: 'neighbours',
      inputs: [
        { shape: [5, 37] },
        { shape: [5, 19] },
        ...[3, 4].flatMap((r) => [{ shape: [r, 19] }, { shape: [37, r] }]),
      ],
      attrs: { scales: [1, 1], groups: [1, 1, 1, 0, 0], own: true },
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }, { shape: [1, 1] }, { shape: [1, 1] }, { shape: [1, 1] }],
      attrs: { scales: [3], groups: [0], own: false },
    },
    {
      label: 'none',
      inputs: [{ shape: [2, 3] }, { shape: [2, 4] }, { shape: [2, 4] }, { shape: [3, 2] }],
      attrs: { scales: [2], groups: [-1, -1], own: true },
    },
    {
      label: 'empty',
      inputs: [{ shape: [0, 3] }, { shape: [0, 4] }, { shape: [2, 4] }, { shape: [3, 2] }],
      attrs: { scales: [1], groups: [], own: false },
    },
  ],
});

/** Settings of {@link addLowRankRows}. */
export interface RowOptions {
  /**
   * Hands y over: its memory becomes the result's where nothing else holds it, and y must not be
   * read again. Default false.
   */
  readonly own?: boolean;
}

/**
 * y + s_g (x A_gᵀ) B_gᵀ, every row of the batch with its own adapter g: one grouped product of rank
 * r, not a loop over parts of the batch; its gradients are one, too. A row answers the same bits
 * in any company, up to rank 32 those of {@link addLowRank} for its adapter alone.
 * @param y [B, .., out]; the sum is bf16 where it is
 * @param x [B, .., in]
 * @param factors of each adapter
 * @param groups the adapter of each of the B rows by its place, −1 for none
 */
export function addLowRankRows(
  y: Tensor,
  x: Tensor,
  factors: readonly RowFactors[],
  groups: readonly number[],
  options: RowOptions = {},
): Tensor {
  const inputs = [y, x, ...factors.flatMap(({ a, b }) => [a, b])];
  const attrs = { scales: factors.map((f) => f.scale), groups, own: options.own ?? false };
  const recorded = gradEnabled() && inputs.some((t) => t.requiresGrad);
  if (!y.backend.kernels.has(recorded ? 'addLowRankRows.grad' : 'addLowRankRows')) {
    addLowRankRowsOp.spec.infer(inputs, attrs);
    return composed(inputs, attrs);
  }
  return first(addLowRankRowsOp(inputs, attrs));
}
