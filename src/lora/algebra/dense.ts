import { noGrad, scope } from '../../autograd/index.js';
import { Matrix, truncatedSvd } from '../../linalg/index.js';
import { dropout, matmul, scale, sub } from '../../ops/index.js';
import type { Backend } from '../../tensor/backend.js';
import { tensor } from '../../tensor/create.js';
import { streamOf } from '../../tensor/random.js';
import type { Tensor } from '../../tensor/tensor.js';
import { type AdapterModule, moduleOfSvd } from './adapter.js';
import type { CombineMethod, Part, RankReport, SignRule } from './combine.js';

/** What the methods that form ΔW need to know. */
interface DenseOptions {
  readonly method: CombineMethod;
  readonly density: number;
  readonly sign: SignRule;
  readonly seed: number;
  readonly backend: Backend;
}

/** ΔW = scaling · B A, [out, in]. */
function deltaOf(m: AdapterModule, backend: Backend): Tensor {
  const a = tensor(m.a, [m.rank, m.inFeatures], { backend });
  const b = tensor(m.b, [m.outFeatures, m.rank], { backend });
  return scale(matmul(b, a), m.scaling);
}

/** The bits of |x|, whose order is that of the magnitudes. */
function magnitudes(values: Float32Array): Int32Array {
  const keys = new Int32Array(values.buffer, values.byteOffset, values.length).slice();
  for (let i = 0; i < keys.length; i++) keys[i] = (keys[i] as number) & 0x7fffffff;
  return keys;
}

/** The k-th largest of whole numbers below 2³¹, by their digits. */
function kthLargest(keys: Int32Array, k: number): number {
  let prefix = 0;
  let left = k;
  for (const shift of [20, 10, 0]) {
    const counts = new Uint32Array(2048);
    const above = shift === 20 ? 31 : shift + 10;
    for (let i = 0; i < keys.length; i++) {
      const key = keys[i] as number;
      if (above === 31 || key >>> above === prefix) {
        const digit = (key >>> shift) & (shift === 20 ? 2047 : 1023);
        counts[digit] = (counts[digit] as number) + 1;
      }
    }
    let digit = counts.length - 1;
    while ((counts[digit] as number) < left) left -= counts[digit--] as number;
    prefix = shift === 20 ? digit : prefix * 1024 + digit;
  }
  return prefix;
}

/**
 * Zeroes all but the ⌊density · n⌋ largest magnitudes, in place; of equal ones the first are kept.
 */
export function pruneByMagnitude(values: Float32Array, density: number): void {
  const keep = Math.floor(density * values.length);
  if (keep >= values.length) return;
  if (keep === 0) {
    values.fill(0);
    return;
  }
  const keys = magnitudes(values);
  const least = kthLargest(keys, keep);
  const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
  let surplus = -keep;
  for (let i = 0; i < keys.length; i++) {
    // Ones where the key is no smaller than the least one kept: no branch, which would be a coin's.
    const mask = (least - 1 - (keys[i] as number)) >> 31;
    bits[i] = (bits[i] as number) & mask;
    surplus -= mask;
  }
  for (let i = keys.length - 1; surplus > 0; i--) {
    if (keys[i] !== least) continue;
    bits[i] = 0;
    surplus--;
  }
}

/** One adapter's ΔW, thinned out as the method says; row-major. */
function thinned(path: string, { module, index }: Part, options: DenseOptions): Float32Array {
  const { method, density, seed, backend } = options;
  return scope(() => {
    const delta = deltaOf(module, backend);
    if (method === 'ties' || method === 'prune') {
      const values = delta.toArray() as Float32Array;
      pruneByMagnitude(values, density);
      return values;
    }
    // Dropout is what DARE does: zero with 1 − density, the others divided by density.
    const stream = streamOf(`${path}.dare`);
    const address = { seed, stream, step: index };
    return dropout(delta, 1 - density, address).toArray() as Float32Array;
  });
}

/** Σ wᵢ xᵢ */
function weighted(lists: readonly Float32Array[], weights: readonly number[]): Float32Array {
  const sum = new Float64Array((lists[0] as Float32Array).length);
  lists.forEach((x, i) => {
    const weight = weights[i] as number;
    for (let e = 0; e < sum.length; e++) sum[e] = (sum[e] as number) + weight * (x[e] as number);
  });
  return Float32Array.from(sum);
}

/** Σ wᵢ xᵢ over those of the sign that is elected for each element, divided by their number. */
function elected(
  lists: readonly Float32Array[],
  weights: readonly number[],
  rule: SignRule,
): Float32Array {
  const out = new Float32Array((lists[0] as Float32Array).length);
  for (let e = 0; e < out.length; e++) {
    let mass = 0;
    for (let i = 0; i < lists.length; i++) {
      const x = (lists[i] as Float32Array)[e] as number;
      mass += rule === 'total' ? x : Math.sign(x);
    }
    const sign = mass >= 0 ? 1 : -1;
    let sum = 0;
    let count = 0;
    for (let i = 0; i < lists.length; i++) {
      const x = (lists[i] as Float32Array)[e] as number;
      if (x * sign <= 0) continue;
      sum += (weights[i] as number) * x;
      count++;
    }
    out[e] = sum / Math.max(1, count);
  }
  return out;
}

function norm(values: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += (values[i] as number) ** 2;
  return Math.sqrt(sum);
}

const matrix = (t: Tensor) =>
  Matrix.fromRows(t.toArray() as Float32Array, t.shape[0] as number, t.shape[1] as number);

/**
 * One layer by a method that works on the elements of ΔW, which is formed for this layer only,
 * and cut to a rank.
 * @param parts at least one
 */
export function mergeDense(
  path: string,
  parts: readonly Part[],
  rank: number,
  options: DenseOptions,
): { module: AdapterModule; report: RankReport } {
  const first = (parts[0] as Part).module;
  const shape = [first.outFeatures, first.inFeatures] as const;
  const elects = options.method === 'ties' || options.method === 'dare-ties';
  return noGrad(() =>
    scope(() => {
      const lists = parts.map((p) => thinned(path, p, options));
      const weights = parts.map((p) => p.weight);
      const sum = elects ? elected(lists, weights, options.sign) : weighted(lists, weights);
      const whole = tensor(sum, shape, { backend: options.backend });
      const kept = Math.min(rank, ...shape);
      const { u, s, vt } = truncatedSvd(whole, kept);
      const svd = { u: matrix(u), s, v: matrix(vt).transposed() };
      const module = moduleOfSvd(first, svd, kept, rank);
      const rest = norm(sub(whole, deltaOf(module, options.backend)).toArray() as Float32Array);
      const size = norm(sum);
      const error = size === 0 ? 0 : rest / size;
      const report = { path, from: Math.min(...shape), to: rank, error, energy: 1 - error * error };
      return { module, report };
    }),
  );
}
