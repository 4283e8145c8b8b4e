import { type Matrix, triangleOf } from '../../linalg/index.js';
import { type Adapter, type AdapterModule, beside, leftFactor, rightFactor } from './adapter.js';

/** How two adapters' updates of one layer differ. A side that has no such layer counts as zero. */
export interface LayerDiff {
  readonly path: string;
  /** Ranks; null on the side that lacks the layer. */
  readonly ranks: readonly [number | null, number | null];
  /** ‖ΔW‖_F on both sides. */
  readonly norms: readonly [number, number];
  /** ‖ΔW₁ − ΔW₂‖_F over the larger of the norms: 0 the same, 2 opposite; null for other shapes. */
  readonly difference: number | null;
  /** ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖); null where one is zero or of another shape. */
  readonly cosine: number | null;
}

/** A setting that two adapters have differently. */
export interface SettingDiff {
  readonly setting: string;
  readonly values: readonly [unknown, unknown];
}

/** What {@link diff} finds. */
export interface AdapterDiff {
  readonly layers: readonly LayerDiff[];
  readonly settings: readonly SettingDiff[];
  /** Tensors beside A and B that differ or that one side lacks. */
  readonly extras: readonly string[];
}

/** Settings that say nothing about what an adapter is. */
const NEUTRAL = new Set(['inference_mode', 'peft_version', 'auto_mapping', 'runtime_config']);

/** ‖B A‖_F from the triangles of the factors, so that what cancels cancels exactly. */
function productNorm(b: Matrix, at: Matrix): number {
  return triangleOf(b).times(triangleOf(at).transposed()).norm();
}

/** ‖ΔW‖_F, without forming it. */
export function deltaNorm(m: AdapterModule): number {
  return productNorm(leftFactor(m), rightFactor(m));
}

function innerProduct(x: AdapterModule, y: AdapterModule): number {
  // tr(A₁ᵀ B₁ᵀ B₂ A₂) = Σ (B₁ᵀ B₂) ∘ (A₁ A₂ᵀ)
  const left = leftFactor(x).transposedTimes(leftFactor(y));
  const right = rightFactor(x).transposedTimes(rightFactor(y));
  return left.data.reduce((sum, v, i) => sum + v * (right.data[i] as number), 0);
}

function layerDiff(
  path: string,
  x: AdapterModule | undefined,
  y: AdapterModule | undefined,
): LayerDiff {
  const norms = [x ? deltaNorm(x) : 0, y ? deltaNorm(y) : 0] as const;
  const ranks = [x?.rank ?? null, y?.rank ?? null] as const;
  const rest = { path, ranks, norms };
  if (!x || !y) {
    const same = norms[0] === norms[1];
    return { ...rest, difference: same ? 0 : 1, cosine: null };
  }
  const sizes = (m: AdapterModule) => `${m.outFeatures} ${m.inFeatures}`;
  if (sizes(x) !== sizes(y)) return { ...rest, difference: null, cosine: null };
  const minus = productNorm(
    beside([leftFactor(x), leftFactor(y, -1)]),
    beside([rightFactor(x), rightFactor(y)]),
  );
  const largest = Math.max(...norms);
  return {
    ...rest,
    difference: largest === 0 ? 0 : minus / largest,
    cosine: norms[0] * norms[1] === 0 ? null : innerProduct(x, y) / (norms[0] * norms[1]),
  };
}

/** A value as text in which the order of a list of names does not count. */
function canonical(value: unknown): string {
  if (Array.isArray(value) && value.every((v) => typeof v === 'string')) {
    return JSON.stringify([...value].sort());
  }
  return JSON.stringify(value ?? null);
}

/** What differs between two adapters: updates by layer, settings, and tensors saved whole. */
export function diff(a: Adapter, b: Adapter): AdapterDiff {
  const paths = [...new Set([...a.modules.keys(), ...b.modules.keys()])];
  const keys = [...new Set([...Object.keys(a.config), ...Object.keys(b.config)])].sort();
  const names = [...new Set([...a.extras.keys(), ...b.extras.keys()])];
  return {
    layers: paths.map((p) => layerDiff(p, a.modules.get(p), b.modules.get(p))),
    settings: keys
      .filter((k) => !NEUTRAL.has(k) && canonical(a.config[k]) !== canonical(b.config[k]))
      .map((k) => ({ setting: k, values: [a.config[k] ?? null, b.config[k] ?? null] })),
    extras: names.filter((n) => {
      const [x, y] = [a.extras.get(n), b.extras.get(n)];
      if (!x || !y || x.dtype !== y.dtype || String(x.shape) !== String(y.shape)) return true;
      return !Buffer.from(x.bytes.buffer, x.bytes.byteOffset, x.bytes.length).equals(y.bytes);
    }),
  };
}
