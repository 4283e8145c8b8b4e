import { noGrad, scope } from '../autograd/index.js';
import { type Convolution, Dense, type Embedding, Module, PlainDense } from '../nn/index.js';
import {
  add,
  cast,
  mergeLowRank,
  type RowFactors,
  reshape,
  scale,
  slice,
  writeInto,
} from '../ops/index.js';
import type { DType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { isFiniteTensor } from '../tensor/finite.js';
import { Tensor } from '../tensor/tensor.js';
import type { Branch } from './branch.js';
import { mixedLogits, mixedSum } from './mixed.js';
import { type Site, siteOf, weightMatrix } from './site.js';

/** The adapters of a merge: names, or the weight of each name. */
export type MergeWeights = readonly string[] | ReadonlyMap<string, number>;

/** The weight of each adapter of a merge by its name. */
export function mergeWeights(adapters: MergeWeights): ReadonlyMap<string, number> {
  return adapters instanceof Map
    ? (adapters as ReadonlyMap<string, number>)
    : new Map((adapters as readonly string[]).map((name) => [name, 1]));
}

/** What stands in a model in the place of a layer that adapters have branches on. */
export interface Wrapper extends Module {
  readonly base: PlainDense | Embedding | Convolution;
  readonly site: Site;
  /** Every adapter's branch by the adapter's name. */
  readonly branches: Map<string, Branch>;
  /** Names of the adapters that take part in the forward pass, in order. */
  active: readonly string[];
  /** The adapter of each row of a mixed batch, in place of the active ones; null where none is. */
  rows: readonly (string | null)[] | null;
}

/**
 * The base's output and what the active branches add to it. Each sees the base's output, not the
 * sum so far, so that their order does not matter.
 */
function withBranches({ branches, active, rows, site }: Wrapper, x: Tensor, y: Tensor): Tensor {
  // What is added to bf16 in f32 goes on as the base's output would.
  const settled = (sum: Tensor) =>
    y.dtype === 'bf16' && sum.dtype !== y.dtype ? cast(sum, y.dtype) : sum;
  if (rows) return settled(mixedSum(site.path, branches, rows, x, y));
  let sum = y;
  for (const [i, name] of active.entries()) {
    const branch = branches.get(name);
    // The base's output stays what it is while a branch is still to see it.
    const added = branch?.addTo?.(sum, x, sum !== y || i === active.length - 1);
    const change = added ? null : branch?.change(x, y);
    sum = added ?? (change ? add(sum, change) : sum);
  }
  return settled(sum);
}

/** A bias and what these adapters add to it, added in f32 and rounded once to `dtype`. */
function summedBias(
  bias: Tensor,
  weights: ReadonlyMap<string, number>,
  branches: ReadonlyMap<string, Branch>,
  dtype: DType,
): Tensor {
  return noGrad(() =>
    scope(() => {
      let sum = cast(bias, 'f32');
      for (const [name, share] of weights) {
        const change = branches.get(name)?.biasDelta();
        if (change) sum = add(sum, share === 1 ? change : scale(change, share));
      }
      return cast(sum, dtype);
    }),
  );
}

/** Throws, and frees it, if a merged tensor is not finite. */
function checkMerged(merged: Tensor, name: string, finite = isFiniteTensor(merged)): Tensor {
  if (finite) return merged;
  const { shape, dtype } = merged;
  merged.dispose();
  throw failure(
    'merge',
    'finite weights',
    `NaN or Inf in ${name} ${shapeText(shape)}`,
    dtype === 'f16' ? 'Half floats end at 65504: try bf16 or f32' : undefined,
  );
}

/**
 * W + Σ w·ΔW of these adapters, added in f32 and rounded once. The base is not touched.
 * @param dtype of the result; default W's
 * @throws when the result is not finite
 */
export function mergedWeight(
  { site, branches }: Pick<Wrapper, 'site' | 'branches'>,
  weights: ReadonlyMap<string, number>,
  dtype: DType = site.weight.dtype,
): Tensor {
  const name = `${site.path}.weight`;
  const sum = noGrad(() =>
    scope(() => {
      const factors = factorsOf(branches, weights);
      if (!factors) return null;
      const { transposed } = site;
      const { merged, finite } = mergeLowRank(weightMatrix(site), factors, { transposed, dtype });
      return { merged: reshape(merged, site.mergedShape), finite };
    }),
  );
  if (sum) return checkMerged(sum.merged, name, sum.finite);
  return checkMerged(mergedByRows({ site, branches }, weights, dtype), name);
}

/** Numbers of a weight whose sum is formed at once, in f32: a few of them fit a core's cache. */
const BLOCK = 2 ** 16;

/** The same sum where it is no product: by rows of the stored matrix, of which a few are held in f32. */
function mergedByRows(
  { site, branches }: Pick<Wrapper, 'site' | 'branches'>,
  weights: ReadonlyMap<string, number>,
  dtype: DType,
): Tensor {
  return noGrad(() =>
    scope(() => {
      const base = weightMatrix(site);
      const [rows, columns] = base.shape as [number, number];
      const parts = [...weights].flatMap(([name, share]) => {
        const branch = branches.get(name);
        return branch ? [{ share, change: branch.deltaRows() }] : [];
      });
      const merged = Tensor.empty(base.backend, base.shape, dtype);
      const step = Math.max(1, Math.floor(BLOCK / Math.max(1, columns)));
      for (let from = 0; from < rows; from += step) {
        const to = Math.min(rows, from + step);
        scope(() => {
          let sum = cast(slice(base, 0, from, to), 'f32');
          for (const { share, change } of parts) {
            const own = change(from, to);
            sum = add(sum, share === 1 ? own : scale(own, share));
          }
          writeInto(merged, cast(sum, dtype), [from, 0]);
        });
      }
      return reshape(merged, site.mergedShape);
    }),
  );
}

/** Σ w·ΔW of these adapters as one sum of products; null where one of them is none. */
function factorsOf(
  branches: ReadonlyMap<string, Branch>,
  weights: ReadonlyMap<string, number>,
): RowFactors[] | null {
  const out: RowFactors[] = [];
  for (const [name, weight] of weights) {
    const branch = branches.get(name);
    if (!branch) continue;
    const factors = branch.factors();
    if (!factors) return null;
    out.push(...factors.map((f) => ({ ...f, scale: weight * f.scale })));
  }
  return out;
}

/** The names of those of these adapters that change the bias of a layer. */
export function biasChanges({ branches }: Wrapper, names: Iterable<string>): string[] {
  return [...names].filter((name) => branches.get(name)?.changesBias);
}

/** The bias and what these adapters add to it, in the same way. @param bias what they add to */
export function mergedBias(
  { site, branches }: Wrapper,
  weights: ReadonlyMap<string, number>,
  bias: Tensor,
  dtype: DType = bias.dtype,
): Tensor {
  const merged = summedBias(bias, weights, branches, dtype);
  return checkMerged(merged, `${site.path}.bias`);
}

/**
 * A dense layer with LoRA branches beside its frozen weight (Hu et al., 2021):
 * y = x Wᵀ + b + Σ over active adapters of scaling·(x Aᵀ) Bᵀ.
 */
export class LoraLinear extends Dense implements Wrapper {
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly branches = new Map<string, Branch>();
  active: readonly string[] = [];
  rows: readonly (string | null)[] | null = null;
  readonly site: Site;

  /** @param path of the layer in the model */
  constructor(
    readonly base: PlainDense,
    path: string,
  ) {
    super();
    this.inFeatures = base.inFeatures;
    this.outFeatures = base.outFeatures;
    this.site = siteOf(path, base);
  }

  /** The base where no adapter takes part. */
  override plain(): PlainDense | null {
    return this.active.length === 0 && !this.rows ? this.base.plain() : null;
  }

  /** x [.., in] → [.., out] */
  forward(x: Tensor): Tensor {
    if (this.active.length === 0 && !this.rows) return this.base.forward(x);
    // A scope of its own, so that the parts of the sum do not wait for the end of the block's.
    return scope(() => withBranches(this, x, this.base.forward(x)));
  }

  /**
   * A plain layer whose weight is W + Σ w·ΔW of these adapters, added in f32 and rounded once.
   * The base is not touched.
   * @param adapters names, or each name's weight w; default 1
   * @param dtype of the merged weight; default W's
   * @param whole the bias that one of them holds whole; default the base's
   * @throws when the merged weight is not finite, or a bias is to be added where there is none
   */
  merged(
    adapters: MergeWeights,
    dtype: DType = this.base.weight.dtype,
    whole: Tensor | null = null,
  ): PlainDense {
    return this.base.withWeights(...mergedParts(this, this.base, adapters, { dtype, whole }));
  }

  override dispose(): void {
    super.dispose();
    for (const b of this.branches.values()) b.dispose();
  }
}

/** The merged weight and bias of a layer that may have one, frozen and kept. */
function mergedParts(
  wrapper: Wrapper,
  { bias }: PlainDense | Convolution,
  adapters: MergeWeights,
  { dtype, whole }: { readonly dtype: DType; readonly whole: Tensor | null },
): [Tensor, Tensor | null] {
  const weights = mergeWeights(adapters);
  const [biased] = biasChanges(wrapper, weights.keys());
  if (biased !== undefined && !bias) throw noBias(wrapper.site.path, biased);
  const weight = mergedWeight(wrapper, weights, dtype).keep();
  weight.storage.retag('frozen');
  if (!bias) return [weight, null];
  const own =
    biased === undefined ? bias.alias() : mergedBias(wrapper, weights, whole ?? bias, bias.dtype);
  own.storage.retag('frozen');
  return [weight, own.keep()];
}

/** A convolution with LoRA branches, as {@link LoraLinear} is a dense layer with them. */
export class LoraConv extends Module implements Wrapper {
  readonly branches = new Map<string, Branch>();
  active: readonly string[] = [];
  rows: readonly (string | null)[] | null = null;
  readonly site: Site;

  constructor(
    readonly base: Convolution,
    path: string,
  ) {
    super();
    this.site = siteOf(path, base);
  }

  /** x [N, C, ..] → [N, out, ..] */
  forward(x: Tensor): Tensor {
    if (this.active.length === 0 && !this.rows) return this.base.forward(x);
    return scope(() => withBranches(this, x, this.base.forward(x)));
  }

  /** As {@link LoraLinear.merged}. */
  merged(
    adapters: MergeWeights,
    dtype: DType = this.base.weight.dtype,
    whole: Tensor | null = null,
  ): Convolution {
    return this.base.withWeights(...mergedParts(this, this.base, adapters, { dtype, whole }));
  }

  override dispose(): void {
    super.dispose();
    for (const b of this.branches.values()) b.dispose();
  }
}

/** The error of merging a bias of B into a layer without one. */
export function noBias(path: string, adapter: string): Error {
  return failure(
    `merge, adapter ${adapter}`,
    `a bias of ${path} for the adapter’s own (lora_bias) to be added to`,
    'a layer without',
    'Such an adapter can only be used unmerged',
  );
}

/** An embedding with LoRA branches: y = W[id] + Σ over active adapters of scaling·A[:, id]ᵀ Bᵀ. */
export class LoraEmbedding extends Module implements Wrapper {
  readonly branches = new Map<string, Branch>();
  active: readonly string[] = [];
  rows: readonly (string | null)[] | null = null;
  readonly site: Site;

  constructor(
    readonly base: Embedding,
    path: string,
  ) {
    super();
    this.site = siteOf(path, base);
  }

  /** The base's table; a head that shares it stays the base's, as in PEFT. */
  get weight(): Tensor {
    return this.base.weight;
  }

  /** @param ids i32 [..] → [.., C] */
  forward(ids: Tensor): Tensor {
    if (this.active.length === 0 && !this.rows) return this.base.forward(ids);
    return scope(() => withBranches(this, ids, this.base.forward(ids)));
  }

  /** As {@link Embedding.unembed}: a tied head sees rows trained for tokens, but no B A. */
  unembed(hidden: Tensor, table?: Tensor): Tensor {
    let y = this.base.unembed(hidden, table);
    const { rows, site, branches } = this;
    if (rows) return mixedLogits(site.path, branches, rows, hidden, y);
    for (const name of this.active) {
      const change = branches.get(name)?.headChange?.(hidden);
      if (change) y = add(y, change);
    }
    return y;
  }

  override dispose(): void {
    super.dispose();
    for (const b of this.branches.values()) b.dispose();
  }
}

/** Whether a module is a layer that adapters have branches on. */
export function isWrapper(module: unknown): module is LoraLinear | LoraEmbedding | LoraConv {
  return (
    module instanceof LoraLinear || module instanceof LoraEmbedding || module instanceof LoraConv
  );
}

/** The layer that holds the weights of a dense one. */
export function baseOf(layer: Dense): PlainDense {
  const base = layer instanceof LoraLinear ? layer.base : layer;
  if (!(base instanceof PlainDense)) {
    throw failure('lora', 'a layer with one weight', base.constructor.name);
  }
  return base;
}
