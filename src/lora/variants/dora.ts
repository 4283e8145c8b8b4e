import { noGrad, scope } from '../../autograd/index.js';
import { add, affine, cast, div, lowRankNorms, mul, reshape, slice, sub } from '../../ops/index.js';
import { failure } from '../../tensor/errors.js';
import type { Shape } from '../../tensor/shape.js';
import type { Tensor } from '../../tensor/tensor.js';
import { takeTensors, type Variant } from '../branch.js';
import { type FullLoraConfig, settingsOf } from '../config.js';
import { type Site, weightMatrix } from '../site.js';
import { LoraBranch, loraShapes, productOf, startTensors } from './plain.js';

const MAGNITUDE = 'lora_magnitude_vector';

/** Lengths of the rows of W + s·B A: [out], a constant. */
function rowLengths(
  site: Site,
  sides: { readonly a: Tensor; readonly b: Tensor },
  scaling: number,
): Tensor {
  const product = productOf(site, sides, scaling);
  return noGrad(() => scope(() => lowRankNorms(weightMatrix(site), product, site.transposed)));
}

/**
 * DoRA (Liu et al., 2024): rows of W' = m ⊙ (W + s·B A) / ‖W + s·B A‖, each with a trained length
 * m. The norm counts as a constant in the gradient (the paper's section 4.3; PEFT's too):
 *   y = (m/n) ⊙ (x Wᵀ + s·(x Aᵀ) Bᵀ) + bias,  dm = Σ dy ⊙ (x Wᵀ + s·(x Aᵀ) Bᵀ) / n
 */
export class DoraBranch extends LoraBranch {
  /** m [out] */
  get magnitude(): Tensor {
    return this.part(MAGNITUDE);
  }

  override get readsOutput(): boolean {
    return true;
  }

  override grouped(): null {
    return null;
  }

  /** m/n [out] with n = ‖W + s·B A‖ of each row. */
  #factor(): Tensor {
    const lengths = rowLengths(this.site, this, this.scaling);
    return div(reshape(this.magnitude, [-1]), lengths);
  }

  /** The rows of W are stretched, too. */
  override factors(): null {
    return null;
  }

  override change(x: Tensor, y: Tensor): Tensor {
    return scope(() => {
      const { site } = this;
      const { bias } = site;
      const seen = this.seen(x);
      // With dropout the base's part of the branch sees it too, as in PEFT.
      const base = seen !== x ? site.plain(seen) : bias ? sub(y, site.onOutput(bias)) : y;
      const factor = site.onOutput(this.#factor());
      return add(mul(base, affine(factor, 1, -1)), mul(this.product(seen), factor));
    });
  }

  /** W' − W = (m/n − 1) ⊙ W + (m/n) ⊙ s·B A, in the order that loses least: m/n ⊙ (W + s·B A) − W. */
  override deltaRows(): (from: number, to: number) => Tensor {
    const { site } = this;
    const weight = weightMatrix(site);
    const products = super.deltaRows();
    const factor = this.#factor();
    const wide = site.transposed ? reshape(factor, [1, -1]) : null;
    return (from, to) => {
      const rows = cast(slice(weight, 0, from, to), 'f32');
      const own = wide ?? reshape(slice(factor, 0, from, to), [-1, 1]);
      return sub(mul(add(rows, products(from, to)), own), rows);
    };
  }
}

/** PEFT's lengths of a grouped convolution are those of another matrix than the layer's. */
function checkGroups({ path, groups }: Site): void {
  if (groups === 1) return;
  throw failure('lora variant dora', 'a convolution of one group', `${path} of ${groups}`);
}

function doraShapes(site: Site, config: FullLoraConfig): Map<string, Shape> {
  if (config.loraBias) throw failure('lora loraBias', 'the variant lora', 'dora');
  checkGroups(site);
  return loraShapes(site, config).set(MAGNITUDE, site.magnitudeShape);
}

export const dora: Variant = {
  name: 'dora',
  shapes: doraShapes,
  create: (site, config, seed) => {
    checkGroups(site);
    const { scaling } = settingsOf(config, site.path);
    const held = startTensors(site, config, seed);
    // m begins as the length that the rows have, so that m/n is 1.
    const begun = new LoraBranch(site, held, scaling, 0);
    const lengths = scope(() => reshape(rowLengths(site, begun, scaling), site.magnitudeShape));
    lengths.storage.retag('trainable');
    held.set(MAGNITUDE, lengths.keep());
    return new DoraBranch(site, held, scaling, config.dropout);
  },
  from: (site, config, source) => {
    const { scaling } = settingsOf(config, site.path);
    const held = takeTensors(site.path, doraShapes(site, config), source);
    return new DoraBranch(site, held, scaling, config.dropout);
  },
};
