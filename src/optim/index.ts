export { AdamW, type AdamWOptions, type ParameterGroup } from './adamw.js';
export { Clipping, ClippingFigures, clipFactor, gradientNorm } from './clip.js';
export { decayGroups, type LoraPlusOptions, loraPlusGroups } from './groups.js';
export { type Group, Optimizer, type OptimizerOptions } from './optimizer.js';
export {
  SCHEDULES,
  type ScheduleName,
  type ScheduleOptions,
  scheduleFactor,
} from './schedule.js';
export { SGD, type SGDOptions } from './sgd.js';
