import { failure } from '../tensor/errors.js';
import { applyQ, reflect, upperOf } from './householder.js';
import { dot, Matrix } from './matrix.js';

/** A = U diag(s) Vᵀ with U [m, k], V [n, k], k = min(m, n), s descending. */
export interface MatrixSvd {
  readonly u: Matrix;
  readonly s: Float64Array;
  readonly v: Matrix;
}

const EPSILON = 2 ** -52;
/** A column this much shorter than the longest is nothing but rounding. */
const NOTHING = 2 ** -100;
/** Six to ten are usual; a matrix that needs more holds NaN or Inf. */
const MAX_SWEEPS = 60;

/**
 * The thin singular value decomposition in doubles, by Householder QR and one-sided Jacobi
 * rotations of the triangle (Hestenes; de Rijk's pivoting), whose small singular values are as
 * accurate as the matrix allows. Deterministic. About 30 n³ operations for [n, n]: a tenth of a
 * second at 128, some seconds at 512.
 * @throws on NaN and Inf
 */
export function jacobiSvd(a: Matrix): MatrixSvd {
  if (!a.data.every(Number.isFinite)) {
    throw failure('svd', 'finite numbers', `NaN or Inf in [${a.rows}, ${a.cols}]`);
  }
  if (a.rows < a.cols) {
    const { u, s, v } = jacobiSvd(a.transposed());
    return { u: v, s, v: u };
  }
  const h = reflect(new Matrix(a.rows, a.cols, a.data.slice()));
  // Rotations on Rᵀ converge faster than on R: Rᵀ = P diag(s) Gᵀ, so A = Q G diag(s) Pᵀ.
  const { u: p, s, v: g } = rotate(upperOf(h).transposed());
  const u = new Matrix(a.rows, a.cols);
  for (let j = 0; j < g.cols; j++) {
    u.data.set(g.data.subarray(j * g.rows, (j + 1) * g.rows), j * a.rows);
  }
  return { u: applyQ(h, u), s, v: p };
}

/** One-sided Jacobi on a square matrix, overwritten: its columns are turned until orthogonal. */
function rotate(a: Matrix): MatrixSvd {
  const n = a.cols;
  const { rows: m, data: g } = a;
  const v = Matrix.identity(n);
  const squares = new Float64Array(n);
  const tolerance = EPSILON * Math.sqrt(m);
  for (let sweep = 0; ; sweep++) {
    if (sweep === MAX_SWEEPS) throw failure('svd', 'rotations that converge', `${sweep} sweeps`);
    for (let j = 0; j < n; j++) squares[j] = dot(g, j * m, g, j * m, m);
    const nothing = NOTHING ** 2 * squares.reduce((a, b) => Math.max(a, b), 0);
    let turned = false;
    for (let p = 0; p < n - 1; p++) {
      bringLargest(a, v, squares, p);
      for (let q = p + 1; q < n; q++) {
        const product = dot(g, p * m, g, q * m, m);
        const np = squares[p] as number;
        const nq = squares[q] as number;
        if (np <= nothing || nq <= nothing) continue;
        if (Math.abs(product) <= tolerance * Math.sqrt(np) * Math.sqrt(nq)) continue;
        turned = true;
        // tan of the angle that makes the two columns orthogonal, the smaller root.
        const zeta = (nq - np) / (2 * product);
        const t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
        const c = 1 / Math.sqrt(1 + t * t);
        turn(g, p * m, q * m, m, c, c * t);
        turn(v.data, p * n, q * n, n, c, c * t);
        squares[p] = Math.max(0, np - t * product);
        squares[q] = nq + t * product;
      }
    }
    if (!turned) break;
  }
  return finish(a, v);
}

/** Swaps column p with the longest of those from p on. */
function bringLargest(a: Matrix, v: Matrix, squares: Float64Array, p: number): void {
  let best = p;
  for (let q = p + 1; q < a.cols; q++) {
    if ((squares[q] as number) > (squares[best] as number)) best = q;
  }
  if (best === p) return;
  for (const x of [a, v]) swapColumns(x, p, best);
  const held = squares[p] as number;
  squares[p] = squares[best] as number;
  squares[best] = held;
}

function swapColumns(x: Matrix, p: number, q: number): void {
  const { rows, data } = x;
  const held = data.slice(p * rows, (p + 1) * rows);
  data.copyWithin(p * rows, q * rows, (q + 1) * rows);
  data.set(held, q * rows);
}

/** (x, y) → (c x − s y, s x + c y) for columns at `xAt` and `yAt`. */
function turn(
  d: Float64Array,
  xAt: number,
  yAt: number,
  count: number,
  c: number,
  s: number,
): void {
  for (let i = 0; i < count; i++) {
    const x = d[xAt + i] as number;
    const y = d[yAt + i] as number;
    d[xAt + i] = c * x - s * y;
    d[yAt + i] = s * x + c * y;
  }
}

/** Lengths and directions of the turned columns, longest first; u is completed where s is 0. */
function finish(a: Matrix, v: Matrix): MatrixSvd {
  const { rows: m, cols: n, data } = a;
  const lengths = Float64Array.from({ length: n }, (_, j) =>
    Math.sqrt(dot(data, j * m, data, j * m, m)),
  );
  const order = Array.from(lengths.keys()).sort(
    (p, q) => (lengths[q] as number) - (lengths[p] as number) || p - q,
  );
  const least = NOTHING * (lengths[order[0] as number] ?? 0);
  for (let j = 0; j < n; j++) if ((lengths[j] as number) <= least) lengths[j] = 0;
  const s = Float64Array.from(order, (j) => lengths[j] as number);
  const u = new Matrix(m, n);
  const right = new Matrix(n, n);
  order.forEach((from, to) => {
    right.data.set(v.data.subarray(from * n, (from + 1) * n), to * n);
    const length = lengths[from] as number;
    if (length === 0) return;
    for (let i = 0; i < m; i++) u.data[to * m + i] = (data[from * m + i] as number) / length;
  });
  for (let j = 0; j < n; j++) if (s[j] === 0) complete(u, j);
  return { u, s, v: right };
}

/** Sets column j to a unit vector orthogonal to the columns before it. */
function complete(u: Matrix, j: number): void {
  const { rows: m, data } = u;
  // The unit vector that the columns so far span least.
  let best = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < m; i++) {
    let square = 0;
    for (let c = 0; c < j; c++) square += u.at(i, c) ** 2;
    if (square < least) [best, least] = [i, square];
  }
  const at = j * m;
  data[at + best] = 1;
  for (let pass = 0; pass < 2; pass++) {
    for (let c = 0; c < j; c++) {
      const overlap = dot(data, c * m, data, at, m);
      for (let i = 0; i < m; i++) {
        data[at + i] = (data[at + i] as number) - overlap * (data[c * m + i] as number);
      }
    }
    const length = Math.sqrt(dot(data, at, data, at, m));
    for (let i = 0; i < m; i++) data[at + i] = (data[at + i] as number) / length;
  }
}
