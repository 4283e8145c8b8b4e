import { addScaled, dot, Matrix } from './matrix.js';

/** Reflectors Hⱼ = I − τⱼ vⱼ vⱼᵀ that make a matrix upper triangular: Hₖ … H₁ A = R. */
export interface Reflectors {
  /** vⱼ below the diagonal of column j (its element j is 1, not stored), R on and above it. */
  readonly packed: Matrix;
  readonly tau: Float64Array;
}

/** Divides a column by its largest element where squares of it would not be doubles; that or 1. */
function rescale(data: Float64Array, at: number, count: number): number {
  let largest = 0;
  for (let i = at; i < at + count; i++) largest = Math.max(largest, Math.abs(data[i] as number));
  if (largest === 0 || (largest > 1e-120 && largest < 1e120)) return 1;
  for (let i = at; i < at + count; i++) data[i] = (data[i] as number) / largest;
  return largest;
}

/**
 * Householder's reduction in doubles, with LAPACK's signs (the diagonal of R has the sign opposite
 * to that of the element it replaces), so that factors equal those of LAPACK's geqrf.
 * @param a [m, n], overwritten
 */
export function reflect(a: Matrix): Reflectors {
  const { rows: m, cols: n, data } = a;
  const k = Math.min(m, n);
  const tau = new Float64Array(k);
  for (let j = 0; j < k; j++) {
    const at = j * m + j;
    const below = m - j - 1;
    const size = rescale(data, at, below + 1);
    const alpha = data[at] as number;
    const rest = dot(data, at + 1, data, at + 1, below);
    if (rest === 0) {
      data[at] = alpha * size;
      continue;
    }
    const beta = -(alpha < 0 || Object.is(alpha, -0) ? -1 : 1) * Math.sqrt(alpha * alpha + rest);
    const t = (beta - alpha) / beta;
    tau[j] = t;
    for (let i = 1; i <= below; i++) data[at + i] = (data[at + i] as number) / (alpha - beta);
    data[at] = 1;
    for (let c = j + 1; c < n; c++) {
      const cAt = c * m + j;
      addScaled(data, cAt, data, at, -t * dot(data, at, data, cAt, below + 1), below + 1);
    }
    data[at] = beta * size;
  }
  return { packed: a, tau };
}

/** R [k, n] of a reduction. */
export function upperOf({ packed }: Reflectors): Matrix {
  const { rows, cols } = packed;
  const k = Math.min(rows, cols);
  const r = new Matrix(k, cols);
  for (let j = 0; j < cols; j++) {
    for (let i = 0; i < Math.min(j + 1, k); i++) r.data[j * k + i] = packed.at(i, j);
  }
  return r;
}

/** Q · x for x [m, c], in place: the reflectors from the last to the first. */
export function applyQ({ packed, tau }: Reflectors, x: Matrix): Matrix {
  const { rows: m, data } = packed;
  for (let j = tau.length - 1; j >= 0; j--) {
    const t = tau[j] as number;
    if (t === 0) continue;
    const at = j * m + j;
    const count = m - j;
    const held = data[at] as number;
    data[at] = 1;
    for (let c = 0; c < x.cols; c++) {
      const xAt = c * m + j;
      addScaled(x.data, xAt, data, at, -t * dot(data, at, x.data, xAt, count), count);
    }
    data[at] = held;
  }
  return x;
}

/**
 * A = Q R in doubles, Q [m, k] with orthonormal columns, R [k, n] upper triangular, k = min(m, n).
 * Signs as LAPACK's. 2mn² operations or so for R and as many for Q.
 */
export function thinQr(a: Matrix): { q: Matrix; r: Matrix } {
  const h = reflect(new Matrix(a.rows, a.cols, a.data.slice()));
  const k = Math.min(a.rows, a.cols);
  return { q: applyQ(h, Matrix.identity(a.rows, k)), r: upperOf(h) };
}

/** R [k, n] of A = Q R, k = min(m, n). */
export function triangleOf(a: Matrix): Matrix {
  return upperOf(reflect(new Matrix(a.rows, a.cols, a.data.slice())));
}
