import { noGrad, scope } from '../../autograd/index.js';
import { trainingContext } from '../../nn/index.js';
import { dropout, linear, matmul, scale } from '../../ops/index.js';
import { tensor, zeros } from '../../tensor/create.js';
import { streamOf } from '../../tensor/random.js';
import type { Shape } from '../../tensor/shape.js';
import type { Tensor } from '../../tensor/tensor.js';
import { type BranchSource, TensorBranch, takeTensors, type Variant } from '../branch.js';
import { type FullLoraConfig, settingsOf } from '../config.js';
import { start } from '../init.js';
import { branchShapes, type Site } from '../site.js';

const BIAS = 'lora_B.bias';

/** LoRA (Hu et al., 2021): ΔW = s·B A, and Δbias = s·c where B has a bias c. */
export class LoraBranch extends TensorBranch {
  /** [r, in] */
  readonly a: Tensor;
  /** [out, r] */
  readonly b: Tensor;
  /** [out] or none. */
  readonly c: Tensor | null;

  /**
   * @param tensors A, B and what else the variant has, by the ends of PEFT's names
   * @param scaling alpha / r, or alpha / √r
   * @param dropout on the branch's input while training
   */
  constructor(
    site: Site,
    tensors: ReadonlyMap<string, Tensor>,
    readonly scaling: number,
    readonly dropout: number,
  ) {
    super(site, tensors);
    this.a = this.part(site.names.a);
    this.b = this.part(site.names.b);
    this.c = tensors.get(BIAS) ?? null;
  }

  /** A branch of A [r, in] and B [out, r] alone. */
  static of(site: Site, a: Tensor, b: Tensor, scaling: number, dropout = 0): LoraBranch {
    const held = new Map([
      [site.names.a, a],
      [site.names.b, b],
    ]);
    return new LoraBranch(site, held, scaling, dropout);
  }

  /** Whether the output's change is s·(x Aᵀ) Bᵀ + s·c alone, so that branches can be grouped. */
  get isProduct(): boolean {
    return true;
  }

  get rank(): number {
    return this.a.shape[0] as number;
  }

  get outputs(): readonly string[] {
    return [this.site.names.b, ...(this.c ? [BIAS] : [])];
  }

  /** The input with dropout while training; an embedding's ids have none, as in PEFT. */
  protected seen(x: Tensor): Tensor {
    const context = trainingContext();
    if (!context || this.dropout === 0 || this.site.kind === 'embedding') return x;
    const stream = streamOf(`${this.path}.lora_dropout`);
    return dropout(x, this.dropout, { seed: context.seed, stream, step: context.step });
  }

  /** s·(x Aᵀ) Bᵀ + s·c of an input as it is. */
  protected product(seen: Tensor): Tensor {
    // The scale meets the r-wide product, not the wide one.
    const h = scale(this.site.down(seen, this.a), this.scaling);
    return linear(h, this.b, this.c ? scale(this.c, this.scaling) : null);
  }

  change(x: Tensor, _y: Tensor): Tensor {
    return this.product(this.seen(x));
  }

  delta(): Tensor {
    const product = () =>
      this.site.transposed
        ? matmul(this.a, this.b, { transA: true, transB: true })
        : matmul(this.b, this.a);
    return noGrad(() => scope(() => scale(product(), this.scaling)));
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
  const { a, b } = branchShapes(site, settingsOf(config, site.path).rank);
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
  const shapes = branchShapes(site, rank);
  const options = { backend: site.weight.backend, purpose: 'trainable' } as const;
  const made = new Map([
    [site.names.a, tensor(a, shapes.a, options).keep()],
    [site.names.b, tensor(b, shapes.b, options).keep()],
  ]);
  if (config.loraBias) made.set(BIAS, zeros([site.outFeatures], options).keep());
  return made;
}

export const plain: Variant = {
  name: 'lora',
  shapes: loraShapes,
  create: (site, config, seed) => {
    const { scaling } = settingsOf(config, site.path);
    return new LoraBranch(site, startTensors(site, config, seed), scaling, config.dropout);
  },
  from: (site, config, source: BranchSource) => {
    const { scaling } = settingsOf(config, site.path);
    const held = takeTensors(site.path, loraShapes(site, config), source);
    return new LoraBranch(site, held, scaling, config.dropout);
  },
};
