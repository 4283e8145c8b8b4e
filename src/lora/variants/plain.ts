import { noGrad, scope } from '../../autograd/index.js';
import { trainingContext } from '../../nn/index.js';
import {
  add,
  addLowRank,
  concat,
  dropout,
  matmul,
  type RowFactors,
  reshape,
  scale,
  slice,
  sub,
} from '../../ops/index.js';
import { tensor, zeros } from '../../tensor/create.js';
import { streamOf } from '../../tensor/random.js';
import type { Shape } from '../../tensor/shape.js';
import type { Tensor } from '../../tensor/tensor.js';
import { type BranchSource, TensorBranch, takeTensors, type Variant } from '../branch.js';
import { type FullLoraConfig, settingsOf } from '../config.js';
import { start, takesFromWeight } from '../init.js';
import type { Site } from '../site.js';

const BIAS = 'lora_B.bias';

/** s·B A of a layer, A [r, in] and B [out, r] as matrices. */
export function productOf(
  site: Site,
  { a, b }: { readonly a: Tensor; readonly b: Tensor },
  scaling: number,
): RowFactors {
  return { a: reshape(a, [-1, site.inFeatures]), b: site.matrixB(b), scale: scaling };
}

/** LoRA (Hu et al., 2021): ΔW = s·B A, and Δbias = s·c where B has a bias c. */
export class LoraBranch extends TensorBranch {
  /** [r, in] */
  readonly a: Tensor;
  /** [out, r] */
  readonly b: Tensor;
  /** [out] or none. */
  readonly c: Tensor | null;
  /** A and B of a start that was taken out of the weight: what they add is subtracted. */
  readonly taken: { readonly a: Tensor; readonly b: Tensor } | null;

  /**
   * @param tensors A, B and what else the variant has, by the ends of PEFT's names
   * @param scaling alpha / r, or alpha / √r
   * @param dropout on the branch's input while training
   * @param taken A and B of a start from the weight, frozen; the branch owns them
   */
  constructor(
    site: Site,
    tensors: ReadonlyMap<string, Tensor>,
    readonly scaling: number,
    readonly dropout: number,
    taken: { readonly a: Tensor; readonly b: Tensor } | null = null,
  ) {
    super(site, tensors);
    this.a = this.part(site.names.a);
    this.b = this.part(site.names.b);
    this.c = tensors.get(BIAS) ?? null;
    this.taken = taken;
    for (const t of taken ? [taken.a, taken.b] : []) t.storage.retag('frozen');
  }

  /** A branch of A [r, in] and B [out, r] alone. */
  static of(site: Site, a: Tensor, b: Tensor, scaling: number, dropout = 0): LoraBranch {
    const held = new Map([
      [site.names.a, a],
      [site.names.b, b],
    ]);
    return new LoraBranch(site, held, scaling, dropout);
  }

  /**
   * The factors of s·(x Aᵀ) Bᵀ where the output's change is that (and s·c) alone, so that it can be
   * added in one product, with those of other adapters on other rows; null where it is not.
   */
  grouped(): RowFactors | null {
    const { a, b, scaling, taken, site } = this;
    return taken || site.kind !== 'dense' ? null : { a, b, scale: scaling };
  }

  get rank(): number {
    return this.a.shape[0] as number;
  }

  get outputs(): readonly string[] {
    return [this.site.names.b, ...(this.c ? [BIAS] : [])];
  }

  /** The input with dropout while training; an embedding's ids have none, as in PEFT. */
  seen(x: Tensor): Tensor {
    const context = trainingContext();
    if (!context || this.dropout === 0 || this.site.kind === 'embedding') return x;
    const stream = streamOf(`${this.path}.lora_dropout`);
    return dropout(x, this.dropout, { seed: context.seed, stream, step: context.step });
  }

  /** s·(x Aᵀ) Bᵀ + s·c of an input as it is. */
  protected product(seen: Tensor): Tensor {
    // The scale meets the r-wide product, not the wide one.
    const h = scale(this.site.down(seen, this.a), this.scaling);
    return this.site.up(h, this.b, this.c ? scale(this.c, this.scaling) : null);
  }

  change(x: Tensor, _y: Tensor): Tensor {
    const { taken } = this;
    const seen = this.seen(x);
    if (!taken) return this.product(seen);
    return scope(() => {
      const h = scale(this.site.down(seen, taken.a), this.scaling);
      const start = this.site.up(h, taken.b, null);
      return sub(this.product(seen), start);
    });
  }

  addTo(sum: Tensor, x: Tensor, own: boolean): Tensor | null {
    const product = this.c ? null : this.grouped();
    if (!product) return null;
    return addLowRank(sum, this.seen(x), product.a, product.b, { scale: product.scale, own });
  }

  /** ΔW as Σ s·B A. */
  protected products(): readonly RowFactors[] {
    const { site, scaling, taken } = this;
    const own = productOf(site, this, scaling);
    return taken ? [own, productOf(site, taken, -scaling)] : [own];
  }

  override factors(): readonly RowFactors[] | null {
    return this.products();
  }

  deltaRows(): (from: number, to: number) => Tensor {
    const { transposed } = this.site;
    const products = this.products();
    return (from, to) => {
      const parts = products.map(({ a, b, scale: s }) => {
        const block = transposed
          ? matmul(slice(a, 1, from, to), b, { transA: true, transB: true })
          : matmul(slice(b, 0, from, to), a);
        return scale(block, s);
      });
      return parts.reduce((sum, part) => add(sum, part));
    };
  }

  override written(): ReadonlyMap<string, Tensor> {
    const { taken, site } = this;
    if (!taken) return this.tensors();
    return noGrad(() =>
      scope(() => {
        const a = concat([this.a, taken.a], 0);
        const b = concat([this.b, scale(taken.b, -1)], 1);
        return new Map([...this.tensors(), [site.names.a, a], [site.names.b, b]]);
      }),
    );
  }

  override dispose(): void {
    super.dispose();
    for (const t of this.taken ? [this.taken.a, this.taken.b] : []) t.dispose();
  }

  override get changesBias(): boolean {
    return this.c !== null;
  }

  override biasDelta(): Tensor | null {
    const { c } = this;
    return c ? noGrad(() => scale(c, this.scaling)) : null;
  }
}

/** Shapes of A, B and the bias of B. */
export function loraShapes(site: Site, config: FullLoraConfig): Map<string, Shape> {
  const { a, b } = site.shapes(settingsOf(config, site.path).rank);
  const shapes = new Map<string, Shape>([
    [site.names.a, a],
    [site.names.b, b],
  ]);
  if (config.loraBias) shapes.set(BIAS, [site.outFeatures]);
  return shapes;
}

/** A and B as the configuration's init begins them, and a bias of zeros. */
export function startTensors(
  site: Site,
  config: FullLoraConfig,
  seed: number,
): Map<string, Tensor> {
  const { rank, scaling } = settingsOf(config, site.path);
  const { a, b } = start(config.init, { site, rank, scaling, seed });
  const shapes = site.shapes(rank);
  const options = { backend: site.weight.backend, purpose: 'trainable' } as const;
  const own = (t: Float32Array | Tensor, shape: Shape) =>
    (t instanceof Float32Array ? tensor(t, shape, options) : t).keep();
  const made = new Map([
    [site.names.a, own(a, shapes.a)],
    [site.names.b, own(b, shapes.b)],
  ]);
  if (config.loraBias) made.set(BIAS, zeros([site.outFeatures], options).keep());
  return made;
}

/** A and B of the start again, for a branch that began from the weight. */
function takenStart(site: Site, config: FullLoraConfig, seed: number) {
  if (!takesFromWeight(config.init)) return null;
  const made = startTensors(site, { ...config, loraBias: false }, seed);
  return { a: made.get(site.names.a) as Tensor, b: made.get(site.names.b) as Tensor };
}

function copies(t: { readonly a: Tensor; readonly b: Tensor }, site: Site): Map<string, Tensor> {
  const copy = (x: Tensor) =>
    tensor(x.toArray() as Float32Array, x.shape, { backend: x.backend, purpose: 'trainable' });
  return new Map([
    [site.names.a, copy(t.a).keep()],
    [site.names.b, copy(t.b).keep()],
  ]);
}

export const plain: Variant = {
  name: 'lora',
  shapes: loraShapes,
  create: (site, config, seed) => {
    const { scaling } = settingsOf(config, site.path);
    const taken = takenStart(site, config, seed);
    const held = taken ? copies(taken, site) : startTensors(site, config, seed);
    return new LoraBranch(site, held, scaling, config.dropout, taken);
  },
  from: (site, config, source: BranchSource) => {
    const { scaling } = settingsOf(config, site.path);
    const held = takeTensors(site.path, loraShapes(site, config), source);
    return new LoraBranch(site, held, scaling, config.dropout, takenStart(site, config, 0));
  },
};
