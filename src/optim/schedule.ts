import { failure } from '../tensor/errors.js';

/** Names of the learning-rate schedules. */
export const SCHEDULES = ['constant', 'linear', 'cosine'] as const;
export type ScheduleName = (typeof SCHEDULES)[number];

/** A learning-rate schedule over a run. */
export interface ScheduleOptions {
  readonly name: ScheduleName;
  /** Steps of linear warm-up from 0. */
  readonly warmupSteps: number;
  /** Steps of the whole run, warm-up included. */
  readonly totalSteps: number;
  /** Where linear and cosine end, as a share of the peak. Default 0. */
  readonly floor?: number;
}

/**
 * The share of the peak learning rate at a step: linear warm-up, then constant, linear decay, or
 * half a cosine (Loshchilov and Hutter, 2017).
 * @param step counted from 0
 */
export function scheduleFactor(step: number, options: ScheduleOptions): number {
  const { name, warmupSteps, totalSteps, floor = 0 } = options;
  if (!SCHEDULES.includes(name)) {
    throw failure('schedule', `one of ${SCHEDULES.join(', ')}`, `"${name}"`);
  }
  if (step < warmupSteps) return (step + 1) / warmupSteps;
  if (name === 'constant') return 1;
  const span = Math.max(1, totalSteps - warmupSteps);
  const done = Math.min(1, (step - warmupSteps) / span);
  const share = name === 'linear' ? 1 - done : (1 + Math.cos(Math.PI * done)) / 2;
  return floor + (1 - floor) * share;
}
