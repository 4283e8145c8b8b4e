import { noGrad, scope, setTrainable } from '../autograd/index.js';
import { Dense, PlainDense, trainingContext } from '../nn/index.js';
import { add, cast, dropout, linear, matmul, scale } from '../ops/index.js';
import { tensor, zeros } from '../tensor/create.js';
import type { DType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { isFiniteTensor } from '../tensor/finite.js';
import { normal, streamOf, uniform } from '../tensor/random.js';
import type { Tensor } from '../tensor/tensor.js';
import type { FullLoraConfig } from './config.js';

/** The adapters of a merge: names, or the weight of each name. */
export type MergeWeights = readonly string[] | ReadonlyMap<string, number>;

/** The weight of each adapter of a merge by its name. */
export function mergeWeights(adapters: MergeWeights): ReadonlyMap<string, number> {
  return adapters instanceof Map
    ? (adapters as ReadonlyMap<string, number>)
    : new Map((adapters as readonly string[]).map((name) => [name, 1]));
}

/** One adapter's share of one layer: ΔW = scaling · B A. */
export class LoraBranch {
  trainable = false;

  /**
   * @param path of the layer in the model; addresses its random numbers
   * @param a [r, in]
   * @param b [out, r]
   * @param scaling alpha / r
   */
  constructor(
    readonly path: string,
    readonly a: Tensor,
    readonly b: Tensor,
    readonly scaling: number,
    readonly dropout: number,
  ) {}

  /** A new branch: A random, B zero, so that ΔW = 0. */
  static create(path: string, base: Dense, config: FullLoraConfig, seed: number): LoraBranch {
    const { rank, init, alpha } = config;
    const { inFeatures, outFeatures } = base;
    const address = { seed, stream: streamOf(`${path}.lora_A`) };
    const count = rank * inFeatures;
    // Kaiming uniform with slope √5, as loralib and PEFT: bound 1/√in. Gaussian, as PEFT: 1/r.
    const bound = 1 / Math.sqrt(inFeatures);
    const values =
      init === 'kaiming'
        ? Float32Array.from(uniform(address, count), (u) => (2 * u - 1) * bound)
        : Float32Array.from(normal(address, count), (z) => z / rank);
    const options = { backend: backendOf(base), purpose: 'trainable' } as const;
    return new LoraBranch(
      path,
      tensor(values, [rank, inFeatures], options).keep(),
      zeros([outFeatures, rank], options).keep(),
      alpha / rank,
      config.dropout,
    );
  }

  get rank(): number {
    return this.a.shape[0] as number;
  }

  setTrainable(trainable: boolean): void {
    setTrainable(this.a, trainable);
    setTrainable(this.b, trainable);
    this.trainable = trainable;
  }

  /** scaling · (x Aᵀ) Bᵀ, with dropout on x while training. @param x [.., in] → [.., out] */
  forward(x: Tensor): Tensor {
    const context = trainingContext();
    const seen =
      context && this.dropout > 0
        ? dropout(x, this.dropout, {
            seed: context.seed,
            stream: streamOf(`${this.path}.lora_dropout`),
            step: context.step,
          })
        : x;
    // The scale meets the r-wide product, not the wide one.
    return linear(scale(linear(seen, this.a), this.scaling), this.b);
  }

  /** scaling · B A, [out, in], or [in, out] where `transposed`; f32. */
  delta(transposed = false): Tensor {
    const product = () =>
      transposed ? matmul(this.a, this.b, { transA: true, transB: true }) : matmul(this.b, this.a);
    return noGrad(() => scope(() => scale(product(), this.scaling)));
  }

  dispose(): void {
    this.a.dispose();
    this.b.dispose();
  }
}

/** The layer that holds the weights of a dense one. */
export function baseOf(layer: Dense): PlainDense {
  const base = layer instanceof LoraLinear ? layer.base : layer;
  if (!(base instanceof PlainDense)) {
    throw failure('lora', 'a layer with one weight', base.constructor.name);
  }
  return base;
}

function backendOf(layer: Dense) {
  return baseOf(layer).weight.backend;
}

/**
 * A dense layer with LoRA branches beside its frozen weight (Hu et al., 2021):
 * y = x Wᵀ + b + Σ over active adapters of scaling·(x Aᵀ) Bᵀ.
 */
export class LoraLinear extends Dense {
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** Every adapter's branch by the adapter's name. */
  readonly branches = new Map<string, LoraBranch>();
  /** Names of the adapters that take part in the forward pass, in order. */
  active: readonly string[] = [];

  constructor(readonly base: PlainDense) {
    super();
    this.inFeatures = base.inFeatures;
    this.outFeatures = base.outFeatures;
  }

  /** x [.., in] → [.., out] */
  forward(x: Tensor): Tensor {
    if (this.active.length === 0) return this.base.forward(x);
    // A scope of its own, so that the parts of the sum do not wait for the end of the block's.
    return scope(() => {
      let y = this.base.forward(x);
      for (const name of this.active) {
        const branch = this.branches.get(name);
        if (branch) y = add(y, branch.forward(x));
      }
      return y;
    });
  }

  /**
   * A plain layer whose weight is W + Σ w·ΔW of these adapters, added in f32 and rounded once.
   * The base is not touched.
   * @param adapters names, or each name's weight w; default 1
   * @param dtype of the merged weight; default W's
   * @throws when the merged weight is not finite
   */
  merged(adapters: MergeWeights, dtype: DType = this.base.weight.dtype): PlainDense {
    const { weight, bias } = this.base;
    const merged = noGrad(() =>
      scope(() => {
        let sum = cast(weight, 'f32');
        for (const [name, share] of mergeWeights(adapters)) {
          const branch = this.branches.get(name);
          if (!branch) continue;
          // A scope of its own: at most three f32 arrays of the weight's shape live at once.
          const next = scope(() => {
            const delta = branch.delta(this.base.transposed);
            return add(sum, share === 1 ? delta : scale(delta, share));
          });
          sum.dispose();
          sum = next;
        }
        return cast(sum, dtype);
      }),
    ).keep();
    if (!isFiniteTensor(merged)) {
      merged.dispose();
      const [branch] = this.branches.values();
      throw failure(
        'merge',
        'finite weights',
        `NaN or Inf in ${branch?.path}.weight ${shapeText(weight.shape)}`,
        dtype === 'f16' ? 'Half floats end at 65504: try bf16 or f32' : undefined,
      );
    }
    merged.storage.retag('frozen');
    return this.base.withWeights(merged, bias ? bias.alias().keep() : null);
  }

  override dispose(): void {
    super.dispose();
    for (const b of this.branches.values()) b.dispose();
  }
}
