export {
  type Adapter,
  type AdapterModule,
  decompose,
  type ExtraTensor,
  leftFactor,
  padRank,
  rightFactor,
} from './adapter.js';
export {
  COMBINE_METHODS,
  type Combined,
  type CombineMethod,
  type CombineOptions,
  combine,
  negate,
  type RankReport,
  type SignRule,
  scaleAdapter,
  subtract,
  type Weighted,
} from './combine.js';
export { pruneByMagnitude } from './dense.js';
export { type AdapterDiff, deltaNorm, diff, type LayerDiff, type SettingDiff } from './diff.js';
export { readAdapter, writeAdapter } from './files.js';
export { LAYOUTS, type Layout, layoutOf, readAnyAdapter } from './layouts.js';
export { type EnabledParts, type LoralibOptions, readLoralib, writeLoralib } from './loralib.js';
export { readMlx, writeMlx } from './mlx.js';
export { type ResizeTarget, resize } from './resize.js';
export {
  type FactorStart,
  oloraFactors,
  oloraStart,
  orthogonalStart,
  type PissaOptions,
  pissaFactors,
  pissaStart,
  plainFromMutated,
  type StartOptions,
  type WeightStart,
} from './starts.js';
