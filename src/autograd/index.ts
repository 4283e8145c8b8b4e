export type { Meta } from '../tensor/tensor.js';
export { backward } from './backward.js';
export { checkpoint } from './checkpoint.js';
export { gradEnabled, noGrad } from './mode.js';
export {
  type BackwardContext,
  clearGradient,
  definedOps,
  defineOp,
  detach,
  type Forward,
  first,
  type Op,
  type OpSpec,
  type Reads,
  runKernel,
  type Sample,
  type SampleInput,
  setGradient,
  setTrainable,
} from './op.js';
export { eachTensor, scope } from './scope.js';
