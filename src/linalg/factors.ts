import { applyQ, reflect, upperOf } from './householder.js';
import { jacobiSvd, type MatrixSvd } from './jacobi.js';
import { Matrix } from './matrix.js';
import { topSvd } from './top.js';

/** The first triples of a product, and what the others come to. */
export interface ProductSvd extends MatrixSvd {
  /** Σ s² of the values that were not asked for. */
  readonly rest: number;
}

/**
 * The singular value decomposition of B A without forming it: QR of B and of Aᵀ, then that of
 * the small product of their triangles. In doubles; exact to rounding and of cost
 * (out + in)·r² + r³. With a count the first triples alone, which takes less where they are few; see
 * {@link topSvd} for how exact those are.
 * @param b [out, r]
 * @param at Aᵀ, [in, r]
 * @param count of the triples; default and at most min(out, in, r)
 * @returns U [out, k], s [k], V [in, k]
 */
export function svdOfProduct(b: Matrix, at: Matrix, count = b.cols): ProductSvd {
  const left = reflect(new Matrix(b.rows, b.cols, b.data.slice()));
  const right = reflect(new Matrix(at.rows, at.cols, at.data.slice()));
  const core = upperOf(left).times(upperOf(right).transposed());
  const most = Math.min(core.rows, core.cols);
  const { u, s, v } = count < most ? topSvd(core, count) : jacobiSvd(core);
  const kept = s.reduce((sum, x) => sum + x * x, 0);
  const rest = count < most ? Math.max(0, core.norm() ** 2 - kept) : 0;
  return { u: applyQ(left, padded(u, b.rows)), s, v: applyQ(right, padded(v, at.rows)), rest };
}

/** x with rows of zeros below, to `rows` of them. */
function padded(x: Matrix, rows: number): Matrix {
  const out = new Matrix(rows, x.cols);
  for (let j = 0; j < x.cols; j++) {
    out.data.set(x.data.subarray(j * x.rows, (j + 1) * x.rows), j * rows);
  }
  return out;
}
