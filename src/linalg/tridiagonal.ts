import { dot, Matrix } from './matrix.js';

/** A symmetric matrix as Q T Qᵀ with T tridiagonal: Householder's reduction. */
export interface Tridiagonal {
  /** [n] */
  readonly diagonal: Float64Array;
  /** [n − 1], below the diagonal. */
  readonly below: Float64Array;
  /** vⱼ of the reflectors, in rows j + 1 … of column j; its first element is 1. */
  readonly packed: Matrix;
  readonly tau: Float64Array;
}

/** p += A v and what is below the diagonal of A transposed, for rows and columns from `from` on. */
function symmetricTimes(a: Matrix, v: Float64Array, p: Float64Array, from: number): void {
  const { rows: n, data } = a;
  for (let c = from; c < n; c++) {
    const vc = v[c] as number;
    let sum = (data[c * n + c] as number) * vc;
    for (let i = c + 1; i < n; i++) {
      const x = data[c * n + i] as number;
      p[i] = (p[i] as number) + x * vc;
      sum += x * (v[i] as number);
    }
    p[c] = (p[c] as number) + sum;
  }
}

/** A −= v wᵀ + w vᵀ on and below the diagonal, from row `from` on. */
function symmetricUpdate(a: Matrix, v: Float64Array, w: Float64Array, from: number): void {
  const { rows: n, data } = a;
  for (let c = from; c < n; c++) {
    const vc = v[c] as number;
    const wc = w[c] as number;
    for (let i = c; i < n; i++) {
      data[c * n + i] = (data[c * n + i] as number) - (v[i] as number) * wc - (w[i] as number) * vc;
    }
  }
}

/** @param a [n, n], symmetric; what is on and below its diagonal is read, and overwritten */
export function tridiagonalize(a: Matrix): Tridiagonal {
  const { rows: n, data } = a;
  const tau = new Float64Array(n);
  const diagonal = new Float64Array(n);
  const below = new Float64Array(Math.max(0, n - 1));
  const v = new Float64Array(n);
  const p = new Float64Array(n);
  for (let j = 0; j < n - 1; j++) {
    const at = j * n + j + 1;
    const count = n - j - 1;
    diagonal[j] = data[at - 1] as number;
    const alpha = data[at] as number;
    const rest = dot(data, at + 1, data, at + 1, count - 1);
    if (rest === 0) {
      below[j] = alpha;
      continue;
    }
    const beta = -(alpha < 0 ? -1 : 1) * Math.sqrt(alpha * alpha + rest);
    const t = (beta - alpha) / beta;
    for (let i = 1; i < count; i++) data[at + i] = (data[at + i] as number) / (alpha - beta);
    data[at] = 1;
    v.set(data.subarray(at, at + count), j + 1);
    p.fill(0, j + 1);
    symmetricTimes(a, v, p, j + 1);
    // w = τ A v − (τ²/2)(vᵀ A v) v
    const half = (t * t * dot(p, j + 1, v, j + 1, count)) / 2;
    for (let i = j + 1; i < n; i++) p[i] = t * (p[i] as number) - half * (v[i] as number);
    symmetricUpdate(a, v, p, j + 1);
    below[j] = beta;
    tau[j] = t;
  }
  if (n > 0) diagonal[n - 1] = data[n * n - 1] as number;
  return { diagonal, below, packed: a, tau };
}

/** How many eigenvalues of T are at least x: by the signs of Sturm's sequence. */
function countAbove({ diagonal, below }: Tridiagonal, x: number, tiny: number): number {
  let count = 0;
  let q = 1;
  for (let i = 0; i < diagonal.length; i++) {
    const e = i === 0 ? 0 : (below[i - 1] as number);
    q = (diagonal[i] as number) - x - (e * e) / q;
    if (Math.abs(q) < tiny) q = q < 0 ? -tiny : tiny;
    if (q > 0) count++;
  }
  return count;
}

/** A bound of the magnitudes of T's eigenvalues (Gershgorin). */
function boundOf({ diagonal, below }: Tridiagonal): number {
  let bound = 0;
  diagonal.forEach((d, i) => {
    const beside = Math.abs(below[i - 1] ?? 0) + Math.abs(below[i] ?? 0);
    bound = Math.max(bound, Math.abs(d) + beside);
  });
  return bound;
}

/** The largest eigenvalues of T by bisection, descending, to rounding of the largest. */
export function largestEigenvalues(t: Tridiagonal, count: number): Float64Array {
  const bound = boundOf(t);
  const tiny = Math.max(bound * 2 ** -104, Number.MIN_VALUE * 2 ** 60);
  const out = new Float64Array(count);
  let top = bound;
  for (let k = 0; k < count; k++) {
    let [low, high] = [-bound, top];
    while (high - low > bound * 2 ** -52) {
      const middle = (low + high) / 2;
      if (middle <= low || middle >= high) break;
      if (countAbove(t, middle, tiny) > k) low = middle;
      else high = middle;
    }
    out[k] = (low + high) / 2;
    // The next one is no larger.
    top = high;
  }
  return out;
}

/** T − λ as the factors of Gaussian elimination with row swaps, to be solved with. */
class Shifted {
  readonly #u0: Float64Array;
  readonly #u1: Float64Array;
  readonly #u2: Float64Array;
  readonly #factor: Float64Array;
  readonly #swapped: Uint8Array;

  constructor({ diagonal, below }: Tridiagonal, lambda: number, tiny: number) {
    const n = diagonal.length;
    this.#u0 = diagonal.map((d) => d - lambda);
    this.#u1 = new Float64Array(n);
    this.#u1.set(below);
    this.#u2 = new Float64Array(n);
    this.#factor = new Float64Array(n);
    this.#swapped = new Uint8Array(n);
    const [u0, u1, u2] = [this.#u0, this.#u1, this.#u2];
    for (let i = 0; i < n - 1; i++) {
      const e = below[i] as number;
      if (Math.abs(e) > Math.abs(u0[i] as number)) {
        this.#swapped[i] = 1;
        const [a, b] = [u0[i] as number, u1[i] as number];
        [u0[i], u1[i], u2[i]] = [e, u0[i + 1] as number, u1[i + 1] as number];
        const f = a / e;
        this.#factor[i] = f;
        u0[i + 1] = b - f * (u1[i] as number);
        u1[i + 1] = -f * (u2[i] as number);
      } else {
        if (Math.abs(u0[i] as number) < tiny) u0[i] = tiny;
        const f = e / (u0[i] as number);
        this.#factor[i] = f;
        u0[i + 1] = (u0[i + 1] as number) - f * (u1[i] as number);
      }
    }
    if (n > 0 && Math.abs(u0[n - 1] as number) < tiny) u0[n - 1] = tiny;
  }

  /** x := (T − λ)⁻¹ x */
  solve(x: Float64Array): void {
    const n = x.length;
    for (let i = 0; i < n - 1; i++) {
      if (this.#swapped[i]) [x[i], x[i + 1]] = [x[i + 1] as number, x[i] as number];
      x[i + 1] = (x[i + 1] as number) - (this.#factor[i] as number) * (x[i] as number);
    }
    for (let i = n - 1; i >= 0; i--) {
      const more =
        (this.#u1[i] as number) * (x[i + 1] ?? 0) + (this.#u2[i] as number) * (x[i + 2] ?? 0);
      x[i] = ((x[i] as number) - more) / (this.#u0[i] as number);
    }
  }
}

function normalize(x: Float64Array): void {
  let largest = 0;
  for (const v of x) largest = Math.max(largest, Math.abs(v));
  if (largest === 0) return;
  for (let i = 0; i < x.length; i++) x[i] = (x[i] as number) / largest;
  const length = Math.sqrt(dot(x, 0, x, 0, x.length));
  for (let i = 0; i < x.length; i++) x[i] = (x[i] as number) / length;
}

/** Steps of inverse iteration; two are enough where the start is not orthogonal to the vector. */
const STEPS = 3;

/**
 * Eigenvectors of T by inverse iteration, those of eigenvalues that are close made orthogonal
 * (LAPACK's stein).
 * @param values eigenvalues, descending
 * @returns [n, count]
 */
export function eigenvectors(t: Tridiagonal, values: Float64Array): Matrix {
  const n = t.diagonal.length;
  const bound = boundOf(t);
  const out = new Matrix(n, values.length);
  const tiny = Math.max(bound * 2 ** -53, Number.MIN_VALUE * 2 ** 60);
  let seed = 1;
  for (let k = 0; k < values.length; k++) {
    const x = out.data.subarray(k * n, (k + 1) * n);
    // Any fixed start that is not orthogonal to the vector: a small linear congruence.
    for (let i = 0; i < n; i++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      x[i] = seed / 2 ** 31 - 1;
    }
    const close: number[] = [];
    for (let j = k - 1; j >= 0; j--) {
      if ((values[j] as number) - (values[k] as number) > 1e-3 * bound) break;
      close.push(j);
    }
    const shifted = new Shifted(t, values[k] as number, tiny);
    for (let step = 0; step < STEPS; step++) {
      normalize(x);
      shifted.solve(x);
      normalize(x);
      for (const j of close) {
        const overlap = dot(out.data, j * n, x, 0, n);
        for (let i = 0; i < n; i++) {
          x[i] = (x[i] as number) - overlap * (out.data[j * n + i] as number);
        }
      }
    }
    normalize(x);
  }
  return out;
}

/** Q x for the reduction's Q, in place. @param x [n, c] */
export function rotateBack({ packed, tau }: Tridiagonal, x: Matrix): Matrix {
  const { rows: n, data } = packed;
  for (let j = n - 2; j >= 0; j--) {
    const t = tau[j] as number;
    if (t === 0) continue;
    const at = j * n + j + 1;
    for (let c = 0; c < x.cols; c++) {
      const xAt = c * n + j + 1;
      const factor = t * dot(data, at, x.data, xAt, n - j - 1);
      for (let i = 0; i < n - j - 1; i++) {
        x.data[xAt + i] = (x.data[xAt + i] as number) - factor * (data[at + i] as number);
      }
    }
  }
  return x;
}
