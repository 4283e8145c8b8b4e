import { failure } from '../tensor/errors.js';
import { thinQr } from './householder.js';
import { jacobiSvd, type MatrixSvd } from './jacobi.js';
import { dot, Matrix } from './matrix.js';
import { eigenvectors, largestEigenvalues, rotateBack, tridiagonalize } from './tridiagonal.js';

/** Of the shorter side: with more triples than that, the whole decomposition costs no more. */
const SHARE = 1 / 3;
/** Sides below which the whole decomposition takes no time. */
const SMALL = 24;
/** Largest |s² − λ| / λ₁ of a triple that is accepted. */
const AGREES = 1e-10;

/** AᵀA on and below the diagonal, of a matrix whose largest element is about 1. */
function gram(a: Matrix): Matrix {
  const { rows: m, cols: n, data } = a;
  const out = new Matrix(n, n);
  for (let j = 0; j < n; j++) {
    for (let i = j; i < n; i++) out.data[j * n + i] = dot(data, i * m, data, j * m, m);
  }
  return out;
}

/** The first `count` triples of a whole decomposition. */
function firstOf({ u, s, v }: MatrixSvd, count: number): MatrixSvd {
  return { u: u.firstColumns(count), s: s.slice(0, count), v: v.firstColumns(count) };
}

/**
 * The first `count` singular triples in doubles: the largest eigenvalues of AᵀA by tridiagonal
 * reduction and bisection, their vectors by inverse iteration, and the decomposition of A within
 * their span. m·n² + 4/3·n³ operations for [m, n], m ≥ n. What is below 10⁻⁸ of the largest singular
 * value is rounding here: {@link jacobiSvd} tells such values apart, and is used where many triples
 * are asked for, or where a value of the one does not agree with that of the other.
 * @returns U [m, count], s, V [n, count]
 * @throws on NaN and Inf
 */
export function topSvd(a: Matrix, count: number): MatrixSvd {
  if (a.rows < a.cols) {
    const { u, s, v } = topSvd(a.transposed(), count);
    return { u: v, s, v: u };
  }
  if (!a.data.every(Number.isFinite)) {
    throw failure('svd', 'finite numbers', `NaN or Inf in [${a.rows}, ${a.cols}]`);
  }
  const whole = () => firstOf(jacobiSvd(a), count);
  if (a.cols <= SMALL || count > SHARE * a.cols) return whole();
  let largest = 0;
  for (const x of a.data) largest = Math.max(largest, Math.abs(x));
  if (largest === 0) return whole();
  const scaled = new Matrix(
    a.rows,
    a.cols,
    a.data.map((x) => x / largest),
  );
  const t = tridiagonalize(gram(scaled));
  const values = largestEigenvalues(t, count);
  const span = thinQr(rotateBack(t, eigenvectors(t, values))).q;
  // A = (A V) Vᵀ on the span: A V = Q R, and the small R is decomposed.
  const { q, r } = thinQr(scaled.times(span));
  const { u, s, v } = jacobiSvd(r);
  const top = values[0] as number;
  if (!s.every((x, i) => Math.abs(x * x - (values[i] as number)) <= AGREES * top)) return whole();
  return { u: q.times(u), s: s.map((x) => x * largest), v: span.times(v) };
}
