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
function magnitudes(values: Float32Array): Uint32Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  return bits.map((w) => w & 0x7fffffff);
}

/** The k-th largest of whole numbers below 2³¹, by their digits. */
function kthLargest(keys: Uint32Array, k: number): number {
  let prefix = 0;
  let left = k;
  for (const shift of [20, 10, 0]) {
    const counts = new Uint32Array(2048);
    const above = shift === 20 ? 31 : shift + 10;
    for (const key of keys) {
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
  let equal = keep;
  for (const key of keys) if (key > least) equal--;
  for (let i = 0; i < values.length; i++) {
    const key = keys[i] as number;
    if (key > least || (key === least && equal-- > 0)) continue;
    values[i] = 0;
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

/** Σ wᵢ xᵢ; with an election only over those of the elected sign, divided by their number. */
function merged(
  lists: readonly Float32Array[],
  weights: readonly number[],
  election: SignRule | null,
): Float32Array {
  const out = new Float32Array((lists[0] as Float32Array).length);
  for (let e = 0; e < out.length; e++) {
    let mass = 0;
    if (election) {
      for (const x of lists)
        mass += election === 'total' ? (x[e] as number) : Math.sign(x[e] as number);
    }
    const sign = mass >= 0 ? 1 : -1;
    let sum = 0;
    let count = 0;
    for (let i = 0; i < lists.length; i++) {
      const x = (lists[i] as Float32Array)[e] as number;
      if (election && Math.sign(x) !== sign) continue;
      sum += (weights[i] as number) * x;
      count++;
    }
    out[e] = election ? sum / Math.max(1, count) : sum;
  }
  return out;
}

function norm(values: Float32Array): number {
  let sum = 0;
  for (const x of values) sum += x * x;
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
      const sum = merged(
        parts.map((p) => thinned(path, p, options)),
        parts.map((p) => p.weight),
        elects ? options.sign : null,
      );
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
