import { failure } from '../../tensor/errors.js';
import type { Tensor } from '../../tensor/tensor.js';
import { type Adapter, type AdapterModule, decompose } from '../algebra/index.js';
import { type Amplification, amplification } from './amplification.js';
import { directionsOf, randomSimilarity, type Space, subspaceSimilarity } from './similarity.js';
import { type Spectrum, spectrumOf } from './spectrum.js';

/** One layer's weight in the base. */
export interface BaseWeight {
  readonly weight: Tensor;
  /** Stored [in, out]. */
  readonly transposed: boolean;
}

/** What an analysis may look at beside the adapter. */
export interface AnalyzeOptions {
  /** A second adapter to compare directions with. */
  readonly other?: Adapter;
  /** The base's weight of a layer, for amplification factors; null for a layer it has not. */
  readonly base?: (path: string) => BaseWeight | null;
  /** Default A. */
  readonly space?: Space;
}

/** φ between the directions of two adapters in one layer. */
export interface Similarity {
  /** Rows by i − 1 of the first, columns by j − 1 of the second. */
  readonly phi: readonly (readonly number[])[];
  /** Dimensions the directions lie in. */
  readonly dimensions: number;
  /** φ at the largest i and j, and what random directions would have there. */
  readonly whole: number;
  readonly random: number;
}

/** What is found about one layer. */
export interface LayerAnalysis {
  readonly path: string;
  readonly rank: number;
  readonly shape: readonly [number, number];
  readonly spectrum: Spectrum;
  readonly similarity: Similarity | null;
  readonly amplification: Amplification | null;
}

function similarityOf(x: AdapterModule, y: AdapterModule, space: Space): Similarity | null {
  const [u1, u2] = [directionsOf(x, space), directionsOf(y, space)];
  if (u1.cols === 0 || u2.cols === 0) return null;
  const phi = subspaceSimilarity(u1, u2);
  return {
    phi,
    dimensions: u1.rows,
    whole: phi.at(-1)?.at(-1) as number,
    random: randomSimilarity(u1.cols, u2.cols, u1.rows),
  };
}

/**
 * The singular values of every layer's ΔW and what follows from them; with a second adapter the
 * similarity of their directions; with the base the amplification factors.
 * @throws when the second adapter shares no layer, or a base weight has another shape
 */
export function analyze(adapter: Adapter, options: AnalyzeOptions = {}): LayerAnalysis[] {
  const { other, base, space = 'A' } = options;
  const shared = other && [...adapter.modules.keys()].some((p) => other.modules.has(p));
  if (other && !shared) {
    const [path] = other.modules.keys();
    throw failure('analyze', 'a second adapter of the same layers', `one of ${path} and others`);
  }
  return [...adapter.modules].map(([path, module]) => {
    const svd = decompose(module);
    const twin = other?.modules.get(path);
    const own = base?.(path);
    return {
      path,
      rank: module.rank,
      shape: [module.outFeatures, module.inFeatures],
      spectrum: spectrumOf(svd.s),
      similarity: twin ? similarityOf(module, twin, space) : null,
      amplification: own ? amplification(own.weight, svd, { transposed: own.transposed }) : null,
    };
  });
}
