import { type Convolution, Embedding, type ParameterSource, type PlainDense } from '../nn/index.js';
import type { DType } from '../tensor/dtype.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Host, Wrapped } from './host.js';
import {
  biasChanges,
  LoraEmbedding,
  type MergeWeights,
  mergedBias,
  mergedWeight,
  mergeWeights,
  noBias,
} from './layer.js';
import { rounded } from './saved.js';
import { hasOutputLayer } from './targets.js';

type PlainLayer = PlainDense | Embedding | Convolution;
type Weights = ReadonlyMap<string, number>;

/** The weight of each adapter of a merge. @param check throws on a name that is none */
export function checkedWeights(adapters: MergeWeights, check: (name: string) => void): Weights {
  const names = adapters instanceof Map ? [...adapters.keys()] : (adapters as readonly string[]);
  for (const name of names) check(name);
  if (names.length === 0) throw failure('merge', 'at least one adapter', 'none');
  if (new Set(names).size < names.length) {
    throw failure('merge', 'each adapter once', names.join(', '));
  }
  const weights = mergeWeights(adapters);
  for (const [name, weight] of weights) {
    if (Number.isFinite(weight) && weight !== 0) continue;
    throw failure(`merge, adapter ${name}`, 'a finite weight other than 0', String(weight));
  }
  return weights;
}

/** Names of the base's parameters that merging these adapters changes; nothing is computed. */
export function changedBy(host: Host, names: readonly string[]): Set<string> {
  const out = new Set<string>();
  for (const name of names) {
    for (const branch of host.branches(name)) {
      out.add(`${branch.path}.weight`);
      if (branch.changesBias) out.add(`${branch.path}.bias`);
    }
    for (const parameter of host.saved.tensors(name).keys()) out.add(parameter);
  }
  return out;
}

/** The copy of a parameter that an adapter of a merge holds whole, if one does. */
function wholeParameter(host: Host, parameter: string, weights: Weights): Tensor | undefined {
  const holders = [...weights.keys()].filter((n) => host.saved.tensors(n).has(parameter));
  const [first] = holders;
  if (first === undefined) return undefined;
  if (holders.length > 1) {
    throw failure(
      'merge',
      `one adapter that holds ${parameter} whole (modules_to_save)`,
      holders.join(' and '),
      'Each holds its own in place of the base’s, and there is no sum of the two',
    );
  }
  if (weights.get(first) !== 1) {
    throw failure(
      `merge, adapter ${first}`,
      `weight 1, as it holds ${parameter} whole (modules_to_save)`,
      String(weights.get(first)),
      'A module in place of the base’s is taken or left; only LoRA updates have a weight',
    );
  }
  return host.saved.tensors(first).get(parameter);
}

/** The layers that adapters of a merge have branches on. @throws where a bias has no place */
function touched(host: Host, weights: Weights): Wrapped[] {
  const names = [...weights.keys()];
  host.checkTokens(names, 'merge');
  return [...host.wrapped.values()].filter(({ layer }) => {
    const [biased] = biasChanges(layer, names);
    if (biased !== undefined && !layer.site.bias) throw noBias(layer.site.path, biased);
    return names.some((n) => layer.branches.has(n));
  });
}

/** Throws where a merged weight would not have the shape that a model's constructor asks for. */
function checkSameShape({ site }: Wrapped['layer']): void {
  if (site.groups === 1) return;
  throw failure(
    'merge',
    'convolutions of one group',
    `${site.path} of ${site.groups}, whose channels LoRA joins`,
    'merge() and fuse() make it one of one group, which only the model in memory can hold',
  );
}

/** The parameters of a plain model in which adapters are merged, as `LoraAdapters` documents it. */
export function mergedSource(host: Host, weights: Weights, dtype?: DType): ParameterSource {
  const layers = new Map(touched(host, weights).map((w) => [w.layer.site.path, w.layer]));
  return (name) => {
    const base = host.base.get(name);
    if (!base) throw failure('merge', 'a parameter of the base', `"${name}"`);
    const [path, field] = [name.replace(/\.[^.]*$/, ''), name.replace(/^.*\./, '')];
    const layer = layers.get(path);
    if (layer && field === 'weight') {
      checkSameShape(layer);
      return mergedWeight(layer, weights, dtype);
    }
    const whole = wholeParameter(host, name, weights);
    if (layer && field === 'bias' && biasChanges(layer, weights.keys()).length > 0) {
      return mergedBias(layer, weights, whole ?? base, dtype ?? base.dtype);
    }
    return whole ? rounded(whole, dtype ?? base.dtype) : base.alias();
  };
}

/** A merge in place, which can be undone or kept. */
export interface Merged {
  readonly names: readonly string[];
  /** Puts the base's layers back and frees the merged ones. */
  undo(): void;
  /** Frees the adapters and the base's replaced weights: the model is plain from now on. */
  keep(): void;
}

/** An embedding of merged weights. A head tied to the table keeps the base's, as unmerged. */
class MergedEmbedding extends Embedding {
  readonly #layer: LoraEmbedding;
  readonly #rows: string[];

  constructor(layer: LoraEmbedding, weights: Weights) {
    const weight = mergedWeight(layer, weights).keep();
    weight.storage.retag('frozen');
    super(weight);
    this.#layer = layer;
    this.#rows = [...weights.keys()].filter((n) => layer.branches.get(n)?.headChange);
  }

  override unembed(hidden: Tensor, table: Tensor = this.#layer.weight): Tensor {
    // Rows trained for tokens are the tied head's too, and those the merged table has.
    if (this.#rows.length > 0) return super.unembed(hidden, this.weight);
    return super.unembed(hidden, table);
  }
}

/** Replaces every layer that the adapters touch by a plain one of merged weights. */
export function mergeIn(host: Host, weights: Weights): Merged {
  const names = [...weights.keys()];
  const replaced: { at: Wrapped; by: PlainLayer }[] = [];
  const undo = () => {
    for (const { at, by } of replaced) {
      at.target.parent.replaceChild(at.target.name, at.layer);
      by.dispose();
    }
    host.saved.unmerge();
  };
  try {
    const layers = touched(host, weights);
    // Checked by parameter: the weights of those held whole.
    for (const n of names) {
      for (const parameter of host.saved.tensors(n).keys())
        wholeParameter(host, parameter, weights);
    }
    host.saved.merge(names);
    for (const at of layers) {
      const bias = wholeParameter(host, `${at.layer.site.path}.bias`, weights) ?? null;
      const by = plainOf(at, weights, bias);
      at.target.parent.replaceChild(at.target.name, by);
      replaced.push({ at, by });
    }
  } catch (error) {
    undo();
    throw error;
  }
  return {
    names,
    undo,
    keep() {
      const gone = new Map(replaced.map(({ at, by }) => [at, by]));
      host.saved.fuse();
      const headed = hasOutputLayer(host.model);
      for (const [path, at] of host.wrapped) {
        for (const branch of at.layer.branches.values()) branch.dispose();
        const by = gone.get(at);
        // A tied head still needs the table of an embedding: it goes with the merged one.
        if (by instanceof Embedding && !headed) by.attach(at.layer.base);
        else if (by) at.layer.base.dispose();
        else at.target.parent.replaceChild(at.target.name, at.layer.base);
        host.wrapped.delete(path);
      }
    },
  };
}

/** @param bias that an adapter of the merge holds whole, not rounded yet */
function plainOf({ layer }: Wrapped, weights: Weights, bias: Tensor | null): PlainLayer {
  if (layer instanceof LoraEmbedding) return new MergedEmbedding(layer, weights);
  return layer.merged(weights, undefined, bias);
}
