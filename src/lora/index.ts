export { type AdapterSource, type FileNotes, LoraAdapters } from './adapters.js';
export type { Branch, Variant } from './branch.js';
export { type FullLoraConfig, fullConfig, type LoraConfig, type LoraInit } from './config.js';
export { loadAdapter, readAdapterConfig, saveAdapter } from './files.js';
export { baseFingerprint } from './fingerprint.js';
export { initNames } from './init.js';
export { LoraConv, LoraEmbedding, LoraLinear, type MergeWeights } from './layer.js';
export { type WideRank, wideRanks } from './ranks.js';
export { type Site, siteOf } from './site.js';
export {
  chooseLayers,
  chooseTargets,
  denseLayers,
  namesHead,
  PRESETS,
  type Target,
  targetLayers,
} from './targets.js';
export { noteUntied } from './ties.js';
export { TokenRows } from './tokens.js';
export { DoraBranch, FusedBranch, LoraBranch } from './variants/index.js';
