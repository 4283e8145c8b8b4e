export { type Amplification, amplification } from './amplification.js';
export {
  type AnalyzeOptions,
  analyze,
  type BaseWeight,
  type LayerAnalysis,
  type Similarity,
} from './analyze.js';
export {
  directionsOf,
  randomSimilarity,
  SPACES,
  type Space,
  subspaceSimilarity,
} from './similarity.js';
export { type Spectrum, spectrumOf } from './spectrum.js';
