export { Conv1d, Conv2d, Convolution } from './conv.js';
export {
  activatedLayer,
  Conv1D,
  Dense,
  Embedding,
  gatedLayers,
  LayerNorm,
  Linear,
  layerDType,
  type ParameterSource,
  PlainDense,
  parameter,
  RMSNorm,
} from './layers.js';
export { Module } from './module.js';
export { blockDType, type TrainingContext, trainingContext, withTraining } from './training.js';
