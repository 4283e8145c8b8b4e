export { AdamW, type AdamWOptions, type ParameterGroup } from './adamw.js';
export { clipFactor, gradientNorm } from './clip.js';
export { decayGroups } from './groups.js';
export {
  SCHEDULES,
  type ScheduleName,
  type ScheduleOptions,
  scheduleFactor,
} from './schedule.js';
