import { noGrad, scope } from '../autograd/index.js';
import { concat, matmul, slice, sub, transpose } from '../ops/index.js';
import { tensor } from '../tensor/create.js';
import { failure, shapeText } from '../tensor/errors.js';
import { normal } from '../tensor/random.js';
import type { Tensor } from '../tensor/tensor.js';
import { jacobiSvd } from './jacobi.js';
import { Matrix } from './matrix.js';
import { checkMatrix, qrOfTransposed } from './qr.js';
import { topSvd } from './top.js';

/** A ≈ U diag(s) Vᵀ. */
export interface Svd {
  /** [m, k], orthonormal columns. */
  readonly u: Tensor;
  /** Descending. */
  readonly s: Float64Array;
  /** Vᵀ [k, n], orthonormal rows. */
  readonly vt: Tensor;
}

/** The same with Uᵀ [k, m], as it is computed. */
interface RowSvd {
  readonly ut: Tensor;
  readonly s: Float64Array;
  readonly vt: Tensor;
}

/** Settings of {@link randomizedSvd}. */
export interface RandomizedOptions {
  /** Power iterations: each squares the share of what lies beyond the rank. Default 4. */
  readonly iterations?: number;
  /** Directions beyond the rank that are carried along. Default 10. */
  readonly oversample?: number;
  /** Of the random start. Default 0. */
  readonly seed?: number;
}

/** Settings of {@link truncatedSvd}. */
export interface TruncatedOptions {
  /** Largest residual ‖Aᵀu − s v‖ / s₁ of a triple that is accepted. Default 10⁻⁵. */
  readonly tolerance?: number;
  /** Of the random start. Default 0. */
  readonly seed?: number;
}

/** Smaller sides up to which the decomposition is computed whole, in doubles. */
const DENSE = 256;
/** Columns added to a block of the Krylov space beyond the rank. */
const EXTRA = 8;
const MAX_RESTARTS = 60;
/** Share of a row below which what projections leave of it is rounding. */
const ROUNDING = 1e-5;
/** Stream of the random start's numbers. */
const STREAM = 0x737664;

function checkRank(where: string, a: Tensor, rank: number): void {
  checkMatrix(where, a);
  const most = Math.min(...a.shape);
  if (!Number.isSafeInteger(rank) || rank < 1 || rank > most) {
    throw failure(where, `a rank of 1 to ${most} for ${shapeText(a.shape)}`, String(rank));
  }
}

/** Orthonormal rows that span the rows of xᵀ's columns: Qᵀ of the QR of X. @param xt [l, m] */
const orthonormal = (xt: Tensor) => qrOfTransposed(xt).qt;

function randomRows(a: Tensor, rows: number, seed: number): Tensor {
  const n = a.shape[1] as number;
  const values = normal({ seed, stream: STREAM }, rows * n);
  return tensor(Float32Array.from(values), [rows, n], { backend: a.backend });
}

/** The decomposition of Qᵀ A back in A's space. @param qt [l, m], orthonormal rows */
function within(qt: Tensor, projected: Tensor, rank: number): RowSvd {
  // (Qᵀ A)ᵀ = P R, so Qᵀ A = Rᵀ Pᵀ, and the small Rᵀ [l, l] is decomposed in doubles.
  const { qt: pt, rt } = qrOfTransposed(projected);
  const [rows, cols] = rt.shape as [number, number];
  const { u, s, v } = topSvd(Matrix.fromRows(rt.toArray() as Float32Array, rows, cols), rank);
  const small = (x: Matrix) => tensor(x.toColumns32(), [rank, x.rows], { backend: qt.backend });
  return { ut: matmul(small(u), qt), s, vt: matmul(small(v), pt) };
}

const columns = ({ ut, s, vt }: RowSvd): Svd => ({ u: transpose(ut), s, vt });

/**
 * The first `rank` singular triples of A by a random projection and power iterations (Halko,
 * Martinsson, Tropp, 2011). Fast; accurate where the singular values fall beyond the rank, and
 * there only: see {@link truncatedSvd} for triples that are checked.
 * @param a [m, n], floats
 */
export function randomizedSvd(a: Tensor, rank: number, options: RandomizedOptions = {}): Svd {
  checkRank('randomizedSvd', a, rank);
  const { iterations = 4, oversample = 10, seed = 0 } = options;
  const width = Math.min(rank + oversample, ...a.shape);
  return noGrad(() =>
    scope(() => {
      let qt = scope(() => orthonormal(matmul(randomRows(a, width, seed), a, { transB: true })));
      for (let i = 0; i < iterations; i++) {
        const before = qt;
        qt = scope(() => {
          const zt = orthonormal(matmul(before, a));
          return orthonormal(matmul(zt, a, { transB: true }));
        });
        before.dispose();
      }
      return columns(within(qt, matmul(qt, a), rank));
    }),
  );
}

/**
 * The thin decomposition in doubles (Householder QR, one-sided Jacobi), rounded to f32 at the end.
 * About 40·m·n² operations in plain TypeScript, m ≥ n: for moderate sizes.
 * @param a [m, n], floats
 * @throws on NaN and Inf
 */
export function svd(a: Tensor): Svd {
  checkMatrix('svd', a);
  const [m, n] = a.shape as [number, number];
  const { u, s, v } = jacobiSvd(Matrix.fromRows(a.toArray() as Float32Array, m, n));
  const options = { backend: a.backend };
  return {
    u: tensor(u.toRows32(), [m, s.length], options),
    s,
    vt: tensor(v.toColumns32(), [s.length, n], options),
  };
}

/**
 * Orthonormal rows for what is new in the rows of x beside a basis; null where nothing is. A row
 * whose new part is not above its floor is rounding, and dropped.
 */
function newDirections(basis: Tensor, x: Tensor, floors: ArrayLike<number>): Tensor | null {
  const rest = (y: Tensor) => sub(y, matmul(matmul(y, basis, { transB: true }), basis));
  const { qt, rt } = qrOfTransposed(rest(x));
  const [rows, n] = qt.shape as [number, number];
  const k = rt.shape[1] as number;
  const triangle = rt.toArray() as Float32Array;
  const all = qt.toArray() as Float32Array;
  const kept: number[] = [];
  for (let j = 0; j < rows; j++) {
    if (Math.abs(triangle[j * k + j] as number) > (floors[j] as number)) kept.push(j);
  }
  if (kept.length === 0) return null;
  const values = new Float32Array(kept.length * n);
  kept.forEach((from, to) => {
    values.set(all.subarray(from * n, (from + 1) * n), to * n);
  });
  // Once more, as what the first pass left of the basis was magnified with the rest.
  return orthonormal(rest(tensor(values, [kept.length, n], { backend: x.backend })));
}

/** The length of every row. */
function rowLengths(r: Tensor): Float64Array {
  const [rows, n] = r.shape as [number, number];
  const values = r.toArray() as Float32Array;
  return Float64Array.from({ length: rows }, (_, i) => {
    let sum = 0;
    for (let k = i * n; k < (i + 1) * n; k++) sum += (values[k] as number) ** 2;
    return Math.sqrt(sum);
  });
}

/**
 * The first `rank` singular triples of A, each checked: a block Krylov space of AᵀA, restarted
 * from its best triples and their residuals until ‖Aᵀu − s v‖ ≤ tolerance · s₁ for every one.
 * A matrix with a short side of 256 or less, or of less than 8 ranks, is decomposed in
 * doubles instead.
 * @param a [m, n], floats
 * @throws on NaN and Inf, and when the residuals do not fall below the tolerance
 */
export function truncatedSvd(a: Tensor, rank: number, options: TruncatedOptions = {}): Svd {
  checkRank('truncatedSvd', a, rank);
  const { tolerance = 1e-5, seed = 0 } = options;
  const short = Math.min(...a.shape);
  const block = rank + EXTRA;
  return noGrad(() =>
    scope(() => {
      if (short <= DENSE || 8 * block > short) {
        const [m, n] = a.shape as [number, number];
        const { u, s, v } = topSvd(Matrix.fromRows(a.toArray() as Float32Array, m, n), rank);
        const options = { backend: a.backend };
        return {
          u: tensor(u.toRows32(), [m, rank], options),
          s,
          vt: tensor(v.toColumns32(), [rank, n], options),
        };
      }
      return columns(krylov(a, rank, block, { tolerance, seed }));
    }),
  );
}

/** Directions of the Krylov space before it is restarted. */
const spaceOf = (block: number, short: number) =>
  Math.min(short, Math.max(4 * block, Math.min(12 * block, 512)));

function krylov(a: Tensor, rank: number, block: number, options: Required<TruncatedOptions>) {
  const limit = spaceOf(block, Math.min(...a.shape));
  let best: RowSvd | undefined;
  let start = scope(() => orthonormal(randomRows(a, block, options.seed)));
  let worst = Number.POSITIVE_INFINITY;
  for (let restart = 0; restart < MAX_RESTARTS; restart++) {
    const kept = best;
    const next = scope(() => {
      // Rows of `basis` span the right space; those of `image` are their products with A.
      let basis = kept ? concat([kept.vt, start], 0) : start;
      let last: Tensor | null = start;
      while (last && (basis.shape[0] as number) + (last.shape[0] as number) <= limit) {
        const there = matmul(matmul(last, a, { transB: true }), a);
        const floors = rowLengths(there).map((length) => ROUNDING * length);
        last = newDirections(basis, there, floors);
        if (last) basis = concat([basis, last], 0);
      }
      const image = matmul(basis, a, { transB: true });
      // The image's decomposition has A's right vectors on its left, within the basis.
      const { ut: vt, s, vt: ut } = within(basis, image, Math.min(block, basis.shape[0] as number));
      const r = sub(matmul(ut, a), scaleRows(vt, s));
      const sizes = rowLengths(r);
      const largest = s[0] as number;
      const worst = Math.max(...sizes.subarray(0, rank)) / (largest || 1);
      if (worst <= options.tolerance) return { ut, s, vt, worst, start: null };
      return { ut, s, vt, worst, start: newDirections(vt, r, sizes.fill(1e-6 * largest)) };
    });
    for (const t of [start, kept?.ut, kept?.vt]) t?.dispose();
    const { ut, s, vt } = next;
    // Without anything new to look at, the triples are as good as f32 has them.
    if (!next.start) {
      return { ut: slice(ut, 0, 0, rank), s: s.slice(0, rank), vt: slice(vt, 0, 0, rank) };
    }
    worst = next.worst;
    best = { ut, s, vt };
    start = next.start;
  }
  throw failure(
    'truncatedSvd',
    `residuals of at most ${options.tolerance}`,
    `${worst.toExponential(1)} after ${MAX_RESTARTS} restarts`,
    'Give a larger tolerance',
  );
}

/** x with row i multiplied by s[i]. */
function scaleRows(x: Tensor, s: Float64Array): Tensor {
  const [rows, n] = x.shape as [number, number];
  const values = (x.toArray() as Float32Array).slice();
  for (let i = 0; i < rows; i++) {
    for (let k = i * n; k < (i + 1) * n; k++) {
      values[k] = (values[k] as number) * (s[i] as number);
    }
  }
  return tensor(values, [rows, n], { backend: x.backend });
}
