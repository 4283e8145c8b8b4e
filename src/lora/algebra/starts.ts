import { noGrad, scope } from '../../autograd/index.js';
import { Matrix, randomizedSvd, thinQr, truncatedSvd } from '../../linalg/index.js';
import { cast, matmul, scale, slice, sub, transpose } from '../../ops/index.js';
import { tensor } from '../../tensor/create.js';
import { failure, nearest, shapeText } from '../../tensor/errors.js';
import { normal } from '../../tensor/random.js';
import type { Tensor } from '../../tensor/tensor.js';
import { type Adapter, type AdapterModule, sameLayer } from './adapter.js';
import { madeFrom } from './config.js';

/** A start that takes its A and B out of the weight: W = residual + scaling · B A. */
export interface WeightStart {
  /** [r, in], f32. */
  readonly a: Tensor;
  /** [out, r], f32. */
  readonly b: Tensor;
  /** W − scaling · B A, summed in f32 and rounded once: shape and dtype of the weight. */
  readonly residual: Tensor;
}

/** What {@link pissaStart} and {@link oloraStart} are told about the layer. */
export interface StartOptions {
  readonly rank: number;
  /** alpha / r, above 0; the factors are made for it. */
  readonly scaling: number;
  /** The weight is stored [in, out], as GPT-2's Conv1D has it. Default false. */
  readonly transposed?: boolean;
}

/** Settings of {@link pissaStart}. */
export interface PissaOptions extends StartOptions {
  /**
   * Power iterations of a randomised decomposition (PEFT's `pissa_niter_N`), fast and inexact;
   * default none: every triple is computed to f32's accuracy.
   */
  readonly iterations?: number;
  /** Of the randomised start; default 0. */
  readonly seed?: number;
}

function checkStart(where: string, weight: Tensor, { rank, scaling }: StartOptions): void {
  const most = Math.min(...weight.shape);
  if (weight.shape.length !== 2 || !weight.isFloat) {
    throw failure(where, 'a weight of two dimensions', shapeText(weight.shape));
  }
  if (!Number.isSafeInteger(rank) || rank < 1 || rank > most) {
    throw failure(`${where} rank`, `1 to ${most} for ${shapeText(weight.shape)}`, String(rank));
  }
  if (!(scaling > 0 && Number.isFinite(scaling))) {
    throw failure(`${where} scaling`, 'a number above 0', String(scaling));
  }
}

/** The factors with W − scaling · B A in W's own layout and dtype. */
function withResidual(
  weight: Tensor,
  { transposed, scaling }: StartOptions,
  make: () => { a: Tensor; b: Tensor },
): WeightStart {
  return noGrad(() =>
    scope(() => {
      const { a, b } = make();
      const product = transposed ? matmul(a, b, { transA: true, transB: true }) : matmul(b, a);
      const rest = sub(cast(weight, 'f32'), scale(product, scaling));
      return { a, b, residual: cast(rest, weight.dtype) };
    }),
  );
}

/** The factors of {@link pissaStart} alone: A [r, in] and B [out, r]. */
export function pissaFactors(weight: Tensor, options: PissaOptions): { a: Tensor; b: Tensor } {
  checkStart('pissa', weight, options);
  const { rank, scaling, transposed = false, iterations, seed = 0 } = options;
  if (iterations !== undefined && !(Number.isSafeInteger(iterations) && iterations >= 0)) {
    throw failure('pissa iterations', 'a whole number of 0 or more', String(iterations));
  }
  return noGrad(() =>
    scope(() => {
      const { u, s, vt } =
        iterations === undefined
          ? truncatedSvd(weight, rank, { seed })
          : randomizedSvd(weight, rank, { iterations, seed });
      const roots = tensor(
        Float32Array.from({ length: rank * rank }, (_, i) =>
          i % (rank + 1) === 0 ? Math.sqrt((s[i / (rank + 1)] as number) / scaling) : 0,
        ),
        [rank, rank],
        { backend: weight.backend },
      );
      const left = matmul(u, roots);
      const right = matmul(roots, vt);
      // Of a transposed weight U spans the inputs.
      return transposed ? { a: transpose(left), b: transpose(right) } : { a: right, b: left };
    }),
  );
}

/**
 * PiSSA (Meng et al., 2024): A and B hold the first r singular triples of W, the base what is
 * left. With W = U diag(s) Vᵀ: B = U √(s/scaling), A = √(s/scaling) Vᵀ.
 * @param weight W [out, in], or [in, out] with `transposed`
 */
export function pissaStart(weight: Tensor, options: PissaOptions): WeightStart {
  return withResidual(weight, options, () => pissaFactors(weight, options));
}

/** The factors of {@link oloraStart} alone: A [r, in] and B [out, r]. */
export function oloraFactors(weight: Tensor, options: StartOptions): { a: Tensor; b: Tensor } {
  checkStart('olora', weight, options);
  const { rank, transposed = false } = options;
  return noGrad(() =>
    scope(() => {
      const { backend } = weight;
      const w = cast(weight, 'f32');
      // The first r reflections of W see its first r columns only; R's rows are then Qᵀ W.
      const head = transposed ? transpose(slice(w, 0, 0, rank)) : slice(w, 1, 0, rank);
      const out = head.shape[0] as number;
      const { q } = thinQr(Matrix.fromRows(head.toArray() as Float32Array, out, rank));
      const b = tensor(q.toRows32(), [out, rank], { backend });
      return { a: matmul(b, w, { transA: true, transB: transposed }), b };
    }),
  );
}

/**
 * OLoRA (Büyükakyüz, 2024): with W = Q R, B is the first r columns of Q and A the first r rows of
 * R; the base is W − scaling · B A. Signs as LAPACK's, so that the factors are PEFT's.
 * @param weight W [out, in], or [in, out] with `transposed`
 */
export function oloraStart(weight: Tensor, options: StartOptions): WeightStart {
  return withResidual(weight, options, () => oloraFactors(weight, options));
}

/** Factors of a start that leaves the base alone; row-major. */
export interface FactorStart {
  /** A [r, in]. */
  readonly a: Float32Array;
  /** B [out, r]. */
  readonly b: Float32Array;
}

/**
 * Orthogonal start (PEFT's `orthogonal`): rows of A and columns of B from the odd and the even
 * rows of one random rotation, so that B A = 0 though neither is zero.
 * @param rank even
 * @param address.stream a number for the layer
 */
export function orthogonalStart(
  rank: number,
  inFeatures: number,
  outFeatures: number,
  address: { readonly seed: number; readonly stream: number },
): FactorStart {
  if (!Number.isSafeInteger(rank) || rank < 2 || rank % 2 !== 0) {
    throw failure('orthogonal rank', 'an even number of 2 or more', String(rank));
  }
  const random = (step: number, rows: number, cols: number) =>
    new Matrix(rows, cols, normal({ ...address, step }, rows * cols));
  const { q } = thinQr(random(0, rank, rank));
  // Columns of Qᵀ are rows of Q: the even ones for A, the odd ones for B.
  const qt = q.transposed();
  const half = (parity: number) => {
    const out = new Matrix(rank, rank / 2);
    for (let j = 0; j < rank / 2; j++) {
      const from = (2 * j + parity) * rank;
      out.data.set(qt.data.subarray(from, from + rank), j * rank);
    }
    return out;
  };
  const tenth = (m: Matrix) => m.scaleColumns(new Float64Array(m.cols).fill(0.1));
  const a = tenth(half(0).times(random(1, rank / 2, inFeatures)));
  const bt = tenth(half(1).times(random(2, rank / 2, outFeatures)));
  return { a: a.toRows32(), b: bt.toColumns32() };
}

/**
 * A plain LoRA adapter of twice the rank for the unchanged base, from one that was trained beside
 * a residual (PiSSA, OLoRA): ΔW = scaling · (B A − B₀ A₀), exactly.
 * @param trained the adapter after training
 * @param initial the same adapter as it was before
 * @throws naming a layer that the two do not share, or settings that differ
 */
export function plainFromMutated(trained: Adapter, initial: Adapter): Adapter {
  const modules = new Map<string, AdapterModule>();
  for (const [path, m] of trained.modules) {
    const start = initial.modules.get(path);
    if (!start || trained.modules.size !== initial.modules.size) {
      const near = nearest(path, initial.modules.keys(), 1).join('');
      throw failure('convert --initial', `the layers of the trained adapter, ${path}`, near);
    }
    if (!sameLayer(m, start) || m.rank !== start.rank || m.scaling !== start.scaling) {
      throw failure(
        `convert --initial, ${path}`,
        `rank ${m.rank} and scaling ${m.scaling} of the trained adapter`,
        `rank ${start.rank} and scaling ${start.scaling}`,
      );
    }
    modules.set(path, stacked(m, start));
  }
  return madeFrom([trained], modules);
}

/** [B, −B₀] [A; A₀] */
function stacked(m: AdapterModule, start: AdapterModule): AdapterModule {
  const rank = 2 * m.rank;
  const a = new Float32Array(2 * m.a.length);
  a.set(m.a);
  a.set(start.a, m.a.length);
  const b = new Float32Array(2 * m.b.length);
  for (let i = 0; i < m.outFeatures; i++) {
    for (let j = 0; j < m.rank; j++) {
      b[i * rank + j] = m.b[i * m.rank + j] as number;
      b[i * rank + m.rank + j] = -(start.b[i * m.rank + j] as number);
    }
  }
  return { ...m, a, b, rank };
}
