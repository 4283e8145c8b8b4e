import { failure } from '../../tensor/errors.js';
import type { AdapterModule } from './adapter.js';

/**
 * The layers of the original loralib whose A and B are laid out otherwise than PEFT's: MergedLinear,
 * parts of a fused projection, and Conv2d.
 */

/** Values of A and B with their sizes, as loralib has them. */
export interface Factors {
  readonly a: Float32Array;
  readonly b: Float32Array;
  readonly rows: number;
  readonly outFeatures: number;
  readonly rank: number;
}

type Sides = Pick<AdapterModule, 'a' | 'b' | 'rank' | 'outFeatures'>;

/**
 * A MergedLinear's lora_A [g·r, in] and lora_B [g·size, r] of g parts as one layer's: B [parts·size,
 * g·r], in which part g meets A's rows of its own group only. The scaling stays alpha / r.
 */
export function fromParts(
  { a, b, rows, outFeatures, rank }: Factors,
  on: readonly boolean[],
): Sides {
  const size = outFeatures / (rows / rank);
  const wide = new Float32Array(size * on.length * rows);
  let group = 0;
  on.forEach((part, p) => {
    if (!part) return;
    for (let i = 0; i < size; i++) {
      const from = (group * size + i) * rank;
      wide.set(b.subarray(from, from + rank), (p * size + i) * rows + group * rank);
    }
    group++;
  });
  return { a, b: wide, rank: rows, outFeatures: size * on.length };
}

/** What of a layer's B [out, R] lies in its parts. */
interface Blocks {
  readonly size: number;
  readonly groups: number;
  /** R / groups, where R is a multiple of them. */
  readonly width: number;
  /** Whether each part that is on meets only its own width of A's rows. */
  readonly diagonal: boolean;
}

/** @throws when a part that is off is changed, or the parts are not equal */
function blocksOf(path: string, { b, rank, outFeatures }: Sides, on: readonly boolean[]): Blocks {
  const groups = on.filter(Boolean).length;
  const size = outFeatures / on.length;
  const place = `convert to loralib, ${path}`;
  if (!Number.isInteger(size) || groups === 0) {
    throw failure(place, `${on.length} equal parts, one of them on`, `${outFeatures} outputs`);
  }
  const width = rank / groups;
  let diagonal = Number.isInteger(width);
  let group = 0;
  on.forEach((part, p) => {
    for (let i = p * size * rank; i < (p + 1) * size * rank; i++) {
      if (b[i] === 0) continue;
      if (!part) {
        const wayOut = 'Name it among the parts that are on';
        throw failure(place, `part ${p + 1} without a change`, `${b[i]} in B`, wayOut);
      }
      if (Math.floor((i % rank) / width) !== group) diagonal = false;
    }
    if (part) group++;
  });
  return { size, groups, width, diagonal };
}

/**
 * A layer as a MergedLinear of these parts, exactly: lora_A [g·r, in], lora_B [g·size, r]. Where B
 * has blocks on its diagonal only, as parts trained as such have, r is R / g; else every part takes
 * the whole of A, and r is R.
 * @returns a module whose `rank` is r and `scaling` what loralib calls alpha / r; its A has g·r rows
 */
export function toParts(path: string, m: AdapterModule, on: readonly boolean[]): AdapterModule {
  const { size, groups, width, diagonal } = blocksOf(path, m, on);
  const rank = diagonal ? width : m.rank;
  const a = diagonal ? m.a : new Float32Array(groups * m.a.length);
  if (!diagonal) for (let g = 0; g < groups; g++) a.set(m.a, g * m.a.length);
  const b = new Float32Array(groups * size * rank);
  let group = 0;
  on.forEach((part, p) => {
    if (!part) return;
    for (let i = 0; i < size; i++) {
      const from = (p * size + i) * m.rank + (diagonal ? group * width : 0);
      b.set(m.b.subarray(from, from + rank), (group * size + i) * rank);
    }
    group++;
  });
  return { ...m, a, b, rank, outFeatures: groups * size };
}

/**
 * A Conv2d's lora_A [r·k, in·k] and lora_B [out·k, r·k], whose product is W's [out, in, k, k] read in
 * rows of in·k, as A [R, in·k·k] and B [out, R]. With row q of an output's k and column s of lora_A's
 * rows: ΔW[o, q-th piece] = Σ_s lora_B[o·k + q, s] lora_A[s], so R = r·k·k; where lora_B is B ⊗ I_k,
 * as {@link toConv} writes it, R = r.
 */
export function fromConv(
  { a, b, rank: width }: Factors,
  kernel: number,
): Sides & { inner: number } {
  const k = kernel;
  const piece = a.length / width;
  const out = b.length / width / k;
  const inner = piece / k;
  const r = width / k;
  const at = (o: number, q: number, s: number) => b[(o * k + q) * width + s] as number;
  let spread = true;
  for (let o = 0; spread && o < out; o++) {
    for (let q = 0; q < k; q++) {
      for (let s = 0; s < width; s++) {
        const wanted = s % k === q ? at(o, 0, s - q) : 0;
        if (at(o, q, s) !== wanted) spread = false;
      }
    }
  }
  if (spread) {
    const own = Float32Array.from({ length: out * r }, (_, i) =>
      at(Math.floor(i / r), 0, (i % r) * k),
    );
    return { a, b: own, rank: r, outFeatures: out, inner };
  }
  const rank = width * k;
  const wideA = new Float32Array(rank * piece * k);
  const wideB = new Float32Array(out * rank);
  for (let q = 0; q < k; q++) {
    for (let s = 0; s < width; s++) {
      const row = q * width + s;
      wideA.set(a.subarray(s * piece, (s + 1) * piece), row * piece * k + q * piece);
      for (let o = 0; o < out; o++) wideB[o * rank + row] = at(o, q, s);
    }
  }
  return { a: wideA, b: wideB, rank, outFeatures: out, inner };
}

/**
 * A convolution of one group in loralib's layout, exactly and of the same rank: lora_A [r·k, in·k] is
 * A's numbers as they are, lora_B [out·k, r·k] is B ⊗ I_k.
 * @throws when its kernel is not a square over two dimensions: loralib has no other
 */
export function toConv(path: string, { a, b, rank, outFeatures, convolution = [] }: AdapterModule) {
  const [inner, k, other, ...more] = convolution as [number, number, number?];
  if (k !== other || more.length > 0) {
    const received = `${path}, a kernel of ${convolution.slice(1).join(' × ')}`;
    throw failure('convert to loralib', 'square kernels over two dimensions', received);
  }
  const wide = new Float32Array(outFeatures * k * rank * k);
  for (let o = 0; o < outFeatures; o++) {
    for (let p = 0; p < rank; p++) {
      for (let q = 0; q < k; q++) {
        wide[(o * k + q) * rank * k + p * k + q] = b[o * rank + p] as number;
      }
    }
  }
  const shapes = { a: [rank * k, inner * k], b: [outFeatures * k, rank * k] };
  return { a, b: wide, kernel: k, shapes };
}
