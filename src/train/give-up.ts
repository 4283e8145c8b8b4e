import type { StepEvent } from './trainer.js';

/** Steps without a finite loss, one after the other, after which a run gives up. */
const MOST_SKIPPED = 10;

/** Ends a run whose loss or gradients stay without finite values. */
export class FiniteWatch {
  #inARow = 0;
  #moved = false;

  /**
   * Looks at a step.
   * @param kept says what is left of the run; it is told whether any step has changed a weight
   * @throws at the tenth step in a row whose loss or gradients are not finite
   */
  check(event: StepEvent, kept: (moved: boolean) => string): void {
    if (event.skipped === undefined) this.#moved = true;
    // A step without labels is skipped too, and says nothing about the weights.
    const notFinite = event.skipped !== undefined && event.tokens > 0;
    this.#inARow = notFinite ? this.#inARow + 1 : 0;
    if (this.#inARow < MOST_SKIPPED) return;
    throw new Error(
      `[train step ${event.step}] expected a finite loss and gradients, received none in ` +
        `${MOST_SKIPPED} steps in a row (loss ${event.loss}). ${kept(this.#moved)}. ` +
        'Try a smaller lr, a longer warm-up, or look for NaN in the base model',
    );
  }
}
