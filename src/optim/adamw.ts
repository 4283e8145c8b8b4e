import {
  type Change,
  checkSetting,
  type Group,
  type Moment,
  Optimizer,
  type OptimizerOptions,
} from './optimizer.js';

/** Parameters of one kernel call: its tensors must fit the array that calls travel through. */
const TOGETHER = 64;

/** Settings of one group of parameters. */
export interface AdamWOptions extends OptimizerOptions {
  /** Default 0.9 and 0.999. */
  readonly betas?: readonly [number, number];
  /** Default 1e-8. */
  readonly eps?: number;
  /** Decoupled weight decay. Default 0.01, as PyTorch's. */
  readonly weightDecay?: number;
}

/** Parameters by name, with their own settings where they differ. */
export type ParameterGroup = Group<AdamWOptions>;

/**
 * AdamW (Loshchilov and Hutter, 2019) with PyTorch's defaults and arithmetic. Its moments `m` and
 * `v` are f32, eight bytes a trainable parameter. The bias correction counts the optimizer's
 * updates, also for a parameter that had no gradient in some of them.
 */
export class AdamW extends Optimizer<AdamWOptions> {
  /** @throws when a setting is unknown or out of range, or a parameter is frozen or named twice */
  constructor(groups: readonly ParameterGroup[], options: AdamWOptions) {
    const defaults = { betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01 } as const;
    super('AdamW', groups, defaults, options, ['m', 'v']);
  }

  protected checkSettings({ betas, eps }: Required<AdamWOptions>): void {
    for (const beta of betas) checkSetting('AdamW betas', beta, 1);
    checkSetting('AdamW eps', eps);
  }

  protected apply(
    changes: readonly Change[],
    { betas, eps, weightDecay }: Required<AdamWOptions>,
    { lr, gradScale, factor }: Moment,
  ): void {
    const attrs = [lr, betas[0], betas[1], eps, weightDecay, this.updates, gradScale];
    for (const backend of new Set(changes.map(({ p }) => p.backend))) {
      const own = changes.filter(({ p }) => p.backend === backend);
      for (let i = 0; i < own.length; i += TOGETHER) {
        const some = own.slice(i, i + TOGETHER);
        const tensors = some.flatMap(({ p, grad, state }) => [grad, p, ...state]);
        backend.run('adamwEach', factor ? [factor, ...tensors] : tensors, attrs);
      }
    }
  }
}
