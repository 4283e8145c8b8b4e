export { LoraAdapters } from './adapters.js';
export type { FullLoraConfig, LoraConfig, LoraInit } from './config.js';
export { loadAdapter, readAdapterConfig, saveAdapter } from './files.js';
export { LoraBranch, LoraLinear, type MergeWeights } from './layer.js';
export { chooseTargets, denseLayers, PRESETS, type Target } from './targets.js';
