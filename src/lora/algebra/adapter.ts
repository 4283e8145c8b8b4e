import { Matrix, type MatrixSvd, type ProductSvd, svdOfProduct } from '../../linalg/index.js';
import { failure } from '../../tensor/errors.js';

/** One layer's update ΔW = scaling · B A, outside of any model. */
export interface AdapterModule {
  /** An embedding's ΔW is laid over its table transposed: [rows, dims] += (scaling · B A)ᵀ. */
  readonly kind: 'linear' | 'embedding';
  /** A [r, in], row-major; of a convolution [r, in · kernel]. */
  readonly a: Float32Array;
  /** B [out, r], row-major. */
  readonly b: Float32Array;
  readonly rank: number;
  /** Of a convolution times the sizes of its kernel. */
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly scaling: number;
  /** Of a convolution: A is stored as [r, ...convolution], B as [out, r, 1, ...]. */
  readonly convolution?: readonly number[];
}

/** A tensor that is no factor: a module saved whole, a DoRA magnitude, a bias. */
export interface ExtraTensor {
  /** The format's name of its dtype, such as F32. */
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** A whole adapter, without the model it belongs to. Values are not changed in place. */
export interface Adapter {
  /** PEFT's adapter_config.json. */
  readonly config: Readonly<Record<string, unknown>>;
  /** By the path of the layer in the model. */
  readonly modules: ReadonlyMap<string, AdapterModule>;
  /** By PEFT's name without its prefix. */
  readonly extras: ReadonlyMap<string, ExtraTensor>;
  /** The hash of the base that it was trained on, where the file tells. */
  readonly base?: string;
  /** Parts that are on of the layers whose B is zero elsewhere, where the file notes them, by path. */
  readonly parts?: ReadonlyMap<string, readonly boolean[]>;
}

/** B [out, r] in doubles, scaled so that ΔW = B A. */
export function leftFactor(m: AdapterModule, weight = 1): Matrix {
  const b = Matrix.fromRows(m.b, m.outFeatures, m.rank);
  return b.scaleColumns(new Float64Array(m.rank).fill(weight * m.scaling));
}

/** Aᵀ [in, r] in doubles. */
export function rightFactor(m: AdapterModule): Matrix {
  return Matrix.fromColumns(m.a, m.inFeatures, m.rank);
}

/** ΔW = U diag(s) Vᵀ, U [out, k], V [in, k]; ΔW itself is not formed. @param count default all */
export function decompose(m: AdapterModule, count = m.rank): ProductSvd {
  return svdOfProduct(leftFactor(m), rightFactor(m), count);
}

/** Matrices side by side. */
export function beside(matrices: readonly Matrix[]): Matrix {
  const rows = (matrices[0] as Matrix).rows;
  const cols = matrices.reduce((n, m) => n + m.cols, 0);
  const out = new Matrix(rows, cols);
  let at = 0;
  for (const m of matrices) {
    out.data.set(m.data, at);
    at += m.data.length;
  }
  return out;
}

/**
 * A module of a truncated decomposition, with √s in either factor and scaling 1.
 * @param like gives kind and sizes
 * @param rank kept; `total` columns are written, zeros beyond
 */
export function moduleOfSvd(
  like: AdapterModule,
  { u, s, v }: MatrixSvd,
  rank: number,
  total = rank,
): AdapterModule {
  const kept = Math.min(rank, s.length);
  const roots = Array.from({ length: total }, (_, j) => (j < kept ? Math.sqrt(s[j] as number) : 0));
  const wide = (x: Matrix) => {
    const out = new Matrix(x.rows, total);
    out.data.set(x.data.subarray(0, kept * x.rows));
    return out.scaleColumns(roots);
  };
  return {
    ...like,
    a: wide(v).toColumns32(),
    b: wide(u).toRows32(),
    rank: total,
    scaling: 1,
  };
}

/** The same update in a larger rank: zeros are added to A and B. */
export function padRank(m: AdapterModule, rank: number): AdapterModule {
  if (rank === m.rank) return m;
  if (rank < m.rank) throw failure('adapter', `a rank of ${m.rank} or more`, String(rank));
  const a = new Float32Array(rank * m.inFeatures);
  a.set(m.a);
  const b = new Float32Array(m.outFeatures * rank);
  for (let i = 0; i < m.outFeatures; i++) {
    b.set(m.b.subarray(i * m.rank, (i + 1) * m.rank), i * rank);
  }
  return { ...m, a, b, rank };
}

/** Modules whose ΔW have the same meaning: kind and sizes agree. */
export function sameLayer(a: AdapterModule, b: AdapterModule): boolean {
  return (
    a.kind === b.kind &&
    a.inFeatures === b.inFeatures &&
    a.outFeatures === b.outFeatures &&
    String(a.convolution) === String(b.convolution)
  );
}
