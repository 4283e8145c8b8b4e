export {
  type Activation,
  activatedLinear,
  activationOf,
  gatedLinear,
  type LayerWeights,
} from './activated.js';
export { type GeluForm, gelu, normalCdf, silu, swiglu } from './activation.js';
export { type AttentionOptions, attention } from './attention.js';
export { broadcastTo, reshape, sum, sumTo } from './broadcast.js';
export { cast } from './cast.js';
export { type ConvOptions, conv1d, conv2d } from './conv.js';
export { dropout } from './dropout.js';
export {
  abs,
  add,
  affine,
  div,
  exp,
  log,
  maximum,
  minimum,
  mul,
  neg,
  relu,
  rsqrt,
  scale,
  sigmoid,
  sqrt,
  sub,
  tanh,
} from './elementwise.js';
export { embedding } from './embedding.js';
export { fusedAttention, splitHeads } from './fused-attention.js';
export { type HeadLossOptions, headLoss } from './head-loss.js';
export { writeInto } from './inplace.js';
export { addLowRank, type LowRankOptions } from './lora.js';
export { lowRankNorms, type MergeOptions, mergeLowRank } from './low-rank-merge.js';
export { addLowRankRows, type RowFactors, type RowOptions } from './low-rank-rows.js';
export { type LinearOptions, linear, type MatmulOptions, matmul } from './matmul.js';
export { layerNorm, rmsNorm } from './norm.js';
export { argmax, max, mean } from './reduce.js';
export { rope } from './rope.js';
export { addRows, takeRows } from './rows.js';
export { concat, gather, permute, slice, transpose } from './shape.js';
export {
  type CrossEntropyOptions,
  countLabels,
  crossEntropy,
  logSoftmax,
  softmax,
} from './softmax.js';
