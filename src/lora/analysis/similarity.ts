import { jacobiSvd, type Matrix } from '../../linalg/index.js';
import { failure } from '../../tensor/errors.js';
import { type AdapterModule, decompose, rightFactor } from '../algebra/index.js';

/**
 * Which directions of a layer are compared: `A` the right singular vectors of A (Hu et al.,
 * section 7.2), `right` and `left` those of ΔW, in the space of its inputs and of its outputs.
 */
export const SPACES = ['A', 'right', 'left'] as const;
export type Space = (typeof SPACES)[number];

/** Orthonormal directions [d, k] of a module, the strongest first; those of strength 0 left out. */
export function directionsOf(m: AdapterModule, space: Space = 'A'): Matrix {
  const { u, s, v } = space === 'A' ? jacobiSvd(rightFactor(m)) : decompose(m);
  // A is [r, in]: its right vectors are the left ones of Aᵀ.
  const all = space === 'right' ? v : u;
  const least = 1e-6 * (s[0] ?? 0);
  const count = s.findIndex((x) => x <= least);
  return all.firstColumns(count < 0 ? s.length : count);
}

/**
 * φ(A₁, A₂, i, j) = ‖U₁ᵢᵀ U₂ⱼ‖²_F / min(i, j) for every i and j (Hu et al., equation 4): how much
 * of the first i directions of one lies in the first j of the other, 0 … 1.
 * @param u1 [d, k₁], orthonormal columns
 * @param u2 [d, k₂], orthonormal columns
 * @returns rows by i − 1, columns by j − 1
 */
export function subspaceSimilarity(u1: Matrix, u2: Matrix): number[][] {
  if (u1.rows !== u2.rows) {
    throw failure('subspaceSimilarity', `directions in ${u1.rows} dimensions`, String(u2.rows));
  }
  const overlaps = u1.transposedTimes(u2);
  const above = new Float64Array(u2.cols);
  return Array.from({ length: u1.cols }, (_, i) => {
    let row = 0;
    return Array.from({ length: u2.cols }, (_, j) => {
      row += overlaps.at(i, j) ** 2;
      const sum = (above[j] as number) + row;
      above[j] = sum;
      return Math.min(1, sum / (Math.min(i, j) + 1));
    });
  });
}

/**
 * What φ is between random subspaces: E φ = max(i, j) / d. For the projections P and Q on them,
 * ‖UᵢᵀUⱼ‖²_F = tr(P Q), and Q of a random direction has E Q = (j/d) I, so that E tr(P Q) = i·j/d;
 * divided by min(i, j) that is max(i, j)/d.
 * @param d the dimensions that the directions lie in
 */
export function randomSimilarity(i: number, j: number, d: number): number {
  return Math.min(1, Math.max(i, j) / d);
}
