import { noGrad, scope } from '../../autograd/index.js';
import { type MatrixSvd, randomizedSvd } from '../../linalg/index.js';
import { matmul } from '../../ops/index.js';
import { tensor } from '../../tensor/create.js';
import { failure, shapeText } from '../../tensor/errors.js';
import type { Tensor } from '../../tensor/tensor.js';

/** How an update's directions stand to those of the weight that it is added to. */
export interface Amplification {
  /** Directions compared. */
  readonly rank: number;
  /** ‖ΔW‖_F of those directions over ‖Uᵀ W V‖_F (Hu et al., section 7.3). */
  readonly factor: number;
  /** ‖Uᵀ W V‖_F: what W has in the directions of ΔW. */
  readonly projected: number;
  /** The same for random directions, r ‖W‖_F / √(out · in) in root mean square. */
  readonly random: number;
  /** The same for W's own first r: the most that there can be. */
  readonly own: number;
  /** ‖W‖_F */
  readonly weightNorm: number;
}

function norm(t: Tensor): number {
  let sum = 0;
  for (const x of t.toArray() as Float32Array) sum += x * x;
  return Math.sqrt(sum);
}

/**
 * The amplification factor of an update: by how much it strengthens directions that W has, but
 * does not stress. Large where W has little there.
 * @param weight W [out, in], or [in, out] with `transposed`
 * @param svd of ΔW: U [out, k], V [in, k]
 * @param rank the first directions of ΔW that count; default all of strength above 0
 */
export function amplification(
  weight: Tensor,
  svd: MatrixSvd,
  options: { readonly rank?: number; readonly transposed?: boolean } = {},
): Amplification | null {
  const { u, s, v } = svd;
  const { transposed = false } = options;
  const shape = transposed ? [v.rows, u.rows] : [u.rows, v.rows];
  if (weight.shape[0] !== shape[0] || weight.shape[1] !== shape[1] || weight.shape.length !== 2) {
    throw failure('amplification', `a weight ${shapeText(shape)}`, shapeText(weight.shape));
  }
  const positive = s.filter((x) => x > 1e-6 * (s[0] ?? 0)).length;
  const rank = Math.min(options.rank ?? positive, positive);
  if (rank === 0) return null;
  return noGrad(() =>
    scope(() => {
      const { backend } = weight;
      const rows = (m: MatrixSvd['u']) =>
        tensor(m.firstColumns(rank).toColumns32(), [rank, m.rows], { backend });
      const [left, right] = transposed ? [v, u] : [u, v];
      const projected = norm(matmul(matmul(rows(left), weight), rows(right), { transB: true }));
      const weightNorm = norm(weight);
      const own = Math.hypot(...randomizedSvd(weight, rank).s);
      const size = Math.hypot(...s.subarray(0, rank));
      return {
        ...{ rank, projected, weightNorm, own },
        factor: size / projected,
        random: (rank * weightNorm) / Math.sqrt(u.rows * v.rows),
      };
    }),
  );
}
