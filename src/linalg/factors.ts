import { applyQ, reflect, upperOf } from './householder.js';
import { jacobiSvd, type MatrixSvd } from './jacobi.js';
import { Matrix } from './matrix.js';

/**
 * The singular value decomposition of B A without forming it: QR of B and of Aᵀ, then that of
 * the small product of their triangles. In doubles; exact to rounding and of cost
 * (out + in)·r² + r³.
 * @param b [out, r]
 * @param at Aᵀ, [in, r]
 * @returns U [out, k], s [k], V [in, k] with k = min(out, in, r)
 */
export function svdOfProduct(b: Matrix, at: Matrix): MatrixSvd {
  const left = reflect(new Matrix(b.rows, b.cols, b.data.slice()));
  const right = reflect(new Matrix(at.rows, at.cols, at.data.slice()));
  const core = upperOf(left).times(upperOf(right).transposed());
  const { u, s, v } = jacobiSvd(core);
  return { u: applyQ(left, padded(u, b.rows)), s, v: applyQ(right, padded(v, at.rows)) };
}

/** x with rows of zeros below, to `rows` of them. */
function padded(x: Matrix, rows: number): Matrix {
  const out = new Matrix(rows, x.cols);
  for (let j = 0; j < x.cols; j++) {
    out.data.set(x.data.subarray(j * x.rows, (j + 1) * x.rows), j * rows);
  }
  return out;
}
