import {
  type Change,
  checkSetting,
  type Group,
  type Moment,
  Optimizer,
  type OptimizerOptions,
} from './optimizer.js';

/** Settings of one group of parameters. */
export interface SGDOptions extends OptimizerOptions {
  /** Share of the last step's direction that is kept. Default 0. */
  readonly momentum?: number;
  /** Added to the gradient as weightDecay · p. Default 0. */
  readonly weightDecay?: number;
}

/**
 * Stochastic gradient descent with momentum, by PyTorch's rule without dampening or Nesterov:
 * m = momentum · m + g (m = g at first), p −= lr · m. Its state `m` is f32.
 */
export class SGD extends Optimizer<SGDOptions> {
  /** @throws when a setting is unknown or out of range, or a parameter is frozen or named twice */
  constructor(groups: readonly Group<SGDOptions>[], options: SGDOptions) {
    super('SGD', groups, { momentum: 0, weightDecay: 0 }, options, ['m']);
  }

  protected checkSettings({ momentum }: Required<SGDOptions>): void {
    checkSetting('SGD momentum', momentum, 1);
  }

  protected apply(
    changes: readonly Change[],
    { momentum, weightDecay }: Required<SGDOptions>,
    { lr, gradScale, factor }: Moment,
  ): void {
    for (const { p, grad, state, first } of changes) {
      const attrs = [lr, momentum, weightDecay, gradScale, first ? 1 : 0];
      p.backend.run('sgd', [...(factor ? [factor] : []), grad, p, ...state], attrs);
    }
  }
}
