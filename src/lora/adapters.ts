import { noGrad, scope, setTrainable } from '../autograd/index.js';
import type { Dense, Module, ParameterSource } from '../nn/index.js';
import { cast } from '../ops/index.js';
import type { DType } from '../tensor/dtype.js';
import { failure, nearest, shapeText } from '../tensor/errors.js';
import { type Shape, sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { type FullLoraConfig, fullConfig, type LoraConfig } from './config.js';
import { baseOf, LoraBranch, LoraLinear, type MergeWeights, mergeWeights } from './layer.js';
import { SavedModules } from './saved.js';
import { chooseTargets, type Target } from './targets.js';

/** PEFT's prefix of every tensor's name in an adapter file. */
export const PEFT_PREFIX = 'base_model.model.';

/** The tensors that make one branch. */
export type BranchTensors = (
  path: string,
  base: { inFeatures: number; outFeatures: number },
) => {
  readonly a: Tensor;
  readonly b: Tensor;
};

/** Throws unless a branch's A is [r, in] and its B [out, r]. */
function checkShapes(branch: LoraBranch, rank: number, layer: Dense): void {
  const { path, a, b } = branch;
  const wanted = [
    [rank, layer.inFeatures],
    [layer.outFeatures, rank],
  ] as const;
  if (sameShape(a.shape, wanted[0]) && sameShape(b.shape, wanted[1])) return;
  const text = (shapes: readonly Shape[]) => shapes.map(shapeText).join(' and ');
  throw failure(`lora adapter, ${path}`, text(wanted), text([a.shape, b.shape]));
}

/** What a model is for, in PEFT's words. */
export function peftTask(model: Module): string {
  return (model as { peftTask?: string }).peftTask ?? 'CAUSAL_LM';
}

/** PEFT trains the head of a classifier along, by either of two names. */
function defaultsFor(model: Module): Partial<LoraConfig> {
  return peftTask(model) === 'SEQ_CLS' ? { modulesToSave: ['classifier', 'score'] } : {};
}

/** The object that holds the adapters of each model. */
const OWNERS = new WeakMap<Module, LoraAdapters>();

/**
 * The LoRA adapters of a model: several by name, at most one active. The model's own parameters
 * are frozen and never written; with no adapter active its outputs are the base's, bit for bit.
 */
export class LoraAdapters {
  readonly #configs = new Map<string, FullLoraConfig>();
  readonly #wrapped = new Map<string, { target: Target; layer: LoraLinear }>();
  readonly #base: ReadonlyMap<string, Tensor>;
  readonly #saved: SavedModules;
  #active: string | null = null;

  /**
   * @param model a plain model; its parameters become frozen
   * @throws when it has adapters already: one object holds all of a model's
   */
  constructor(readonly model: Module) {
    for (const { path, module } of model.namedModules()) {
      if (module instanceof LoraLinear) {
        throw failure('lora', 'a plain model', `one with adapters on ${path}`);
      }
    }
    this.#base = new Map(model.namedParameters());
    this.#saved = new SavedModules(model);
    for (const p of this.#base.values()) setTrainable(p, false);
    OWNERS.set(model, this);
  }

  /** The object that holds a model's adapters, if one was made. */
  static of(model: Module): LoraAdapters | undefined {
    return OWNERS.get(model);
  }

  /** Names of the adapters there are. */
  names(): string[] {
    return [...this.#configs.keys()];
  }

  /** The active adapter, or null. */
  get active(): string | null {
    return this.#active;
  }

  config(name: string): FullLoraConfig {
    return this.#configs.get(this.#known(name)) as FullLoraConfig;
  }

  /**
   * Adds a new adapter, trainable and active: A random by the seed and the layer's path, B zero.
   * @throws when the name is taken, a setting is out of range, or a target matches nothing
   */
  add(name: string, config: LoraConfig, seed: number): this {
    const full = fullConfig({ ...defaultsFor(this.model), ...config });
    this.#checkSaved(config.modulesToSave ?? []);
    this.#attach(name, full, (path, target) => LoraBranch.create(path, target.layer, full, seed));
    return this.setTrainable(name, true).setActive(name);
  }

  /**
   * Adds an adapter from tensors, A [r, in] and B [out, r], frozen and active. The adapter owns
   * the tensors.
   * @param saved the f32 parameters of the modules saved whole, by name; default the base's
   * @throws on a tensor of another shape; those asked for so far are then freed
   */
  addFrom(
    name: string,
    config: LoraConfig,
    tensors: BranchTensors,
    saved?: (parameter: string) => Tensor,
  ): this {
    const full = fullConfig(config);
    const branchOf = (path: string, target: Target) => {
      const { a, b } = tensors(path, target.layer);
      const scaling = full.alpha / full.rank;
      const branch = new LoraBranch(path, a.keep(), b.keep(), scaling, full.dropout);
      try {
        checkShapes(branch, full.rank, target.layer);
      } catch (error) {
        branch.dispose();
        throw error;
      }
      return branch;
    };
    this.#attach(name, full, branchOf, saved);
    return this.setTrainable(name, false).setActive(name);
  }

  #attach(
    name: string,
    config: FullLoraConfig,
    make: (path: string, target: Target) => LoraBranch,
    saved?: (parameter: string) => Tensor,
  ): void {
    if (name === '' || this.#configs.has(name)) {
      throw failure('lora adapter', 'a new, non-empty name', `"${name}"`);
    }
    const targets = chooseTargets(this.model, config.targetModules, config.modulesToSave);
    const made: [Target, LoraBranch][] = [];
    try {
      for (const t of targets) made.push([t, make(t.path, t)]);
      this.#saved.add(name, config.modulesToSave, saved);
    } catch (error) {
      for (const [, branch] of made) branch.dispose();
      throw error;
    }
    for (const [target, branch] of made) {
      let held = this.#wrapped.get(target.path);
      if (!held) {
        const layer = new LoraLinear(baseOf(target.layer));
        target.parent.replaceChild(target.name, layer);
        held = { target, layer };
        this.#wrapped.set(target.path, held);
      }
      held.layer.branches.set(name, branch);
    }
    this.#configs.set(name, config);
  }

  /** Makes one adapter active, or none: then the model is the base. */
  setActive(name: string | null): this {
    if (name !== null) this.#known(name);
    this.#active = name;
    this.#saved.setActive(name);
    for (const { layer } of this.#wrapped.values()) layer.active = name === null ? [] : [name];
    return this;
  }

  /** Makes an adapter's A and B trainable or frozen, whichever is active. */
  setTrainable(name: string, trainable: boolean): this {
    this.#known(name);
    for (const branch of this.#branches(name)) branch.setTrainable(trainable);
    this.#saved.setTrainable(name, trainable);
    return this;
  }

  /** Removes an adapter; a layer that no adapter is left on becomes the plain base layer again. */
  remove(name: string): this {
    this.#known(name);
    if (this.#active === name) this.setActive(null);
    this.#saved.remove(name);
    for (const [path, { target, layer }] of this.#wrapped) {
      layer.branches.get(name)?.dispose();
      layer.branches.delete(name);
      if (layer.branches.size > 0) continue;
      target.parent.replaceChild(target.name, layer.base);
      this.#wrapped.delete(path);
    }
    this.#configs.delete(name);
    return this;
  }

  /** Removes every adapter: the model is the plain base again. */
  dispose(): void {
    for (const name of this.names()) this.remove(name);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** An adapter's tensors under PEFT's names, in the order of PEFT's files. */
  tensors(name: string): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    for (const branch of this.#branches(this.#known(name))) {
      out.set(`${PEFT_PREFIX}${branch.path}.lora_A.weight`, branch.a);
      out.set(`${PEFT_PREFIX}${branch.path}.lora_B.weight`, branch.b);
    }
    for (const [parameter, t] of this.#saved.tensors(name)) out.set(PEFT_PREFIX + parameter, t);
    return new Map([...out].sort(([x], [y]) => (x < y ? -1 : 1)));
  }

  /**
   * The parameters of a plain model in which these adapters are merged: pass it to the model's
   * constructor. Touched weights are new tensors (f32 sum, rounded once); all others share the
   * base's storage.
   * @param adapters names, or the weight of each name: W + Σ weight·ΔW
   * @param dtype of the touched weights; default each weight's own in the base
   * @throws on an unknown name or a weight that is 0 or not finite; when asked for a parameter
   *   that a merge cannot give: one that an adapter of a weight other than 1, or two adapters,
   *   hold whole
   */
  mergedSource(adapters: MergeWeights, dtype?: DType): ParameterSource {
    const weights = this.#mergeWeights(adapters);
    return (parameterName) => {
      const path = parameterName.replace(/\.weight$/, '');
      const held = parameterName.endsWith('.weight') ? this.#wrapped.get(path) : undefined;
      if (held && [...weights.keys()].some((n) => held.layer.branches.has(n))) {
        const merged = held.layer.merged(weights, dtype);
        merged.bias?.dispose();
        return merged.weight;
      }
      const base = this.#base.get(parameterName);
      if (!base) throw failure('merge', 'a parameter of the base', `"${parameterName}"`);
      const whole = this.#mergedWhole(parameterName, weights);
      if (whole) return noGrad(() => scope(() => cast(whole, dtype ?? base.dtype)));
      return base.alias();
    };
  }

  /** Names of the base's parameters that merging these adapters changes; nothing is computed. */
  changedBy(names: Iterable<string>): Set<string> {
    const out = new Set<string>();
    for (const name of names) {
      this.#known(name);
      for (const branch of this.#branches(name)) out.add(`${branch.path}.weight`);
      for (const parameter of this.#saved.tensors(name).keys()) out.add(parameter);
    }
    return out;
  }

  /** The names and weights of a merge, checked. */
  #mergeWeights(adapters: MergeWeights): ReadonlyMap<string, number> {
    const weights = mergeWeights(adapters);
    for (const name of weights.keys()) this.#known(name);
    if (weights.size === 0) throw failure('merge', 'at least one adapter', 'none');
    if (Array.isArray(adapters) && weights.size < adapters.length) {
      throw failure('merge', 'each adapter once', adapters.join(', '));
    }
    for (const [name, weight] of weights) {
      if (Number.isFinite(weight) && weight !== 0) continue;
      throw failure(`merge, adapter ${name}`, 'a finite weight other than 0', String(weight));
    }
    return weights;
  }

  /** The copy of a parameter that an adapter of a merge holds whole, if one does. */
  #mergedWhole(parameter: string, weights: ReadonlyMap<string, number>): Tensor | undefined {
    const holders = [...weights.keys()].filter((n) => this.#saved.tensors(n).has(parameter));
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
    return this.#saved.tensors(first).get(parameter);
  }

  /** The parameters that an adapter of this configuration holds whole: the base's, by name. */
  savedParameters(config: FullLoraConfig): Map<string, Tensor> {
    return this.#saved.parameters(config.modulesToSave);
  }

  /** Names that a user asks for must be modules; PEFT's own defaults need not. */
  #checkSaved(asked: readonly string[]): void {
    for (const name of asked) {
      if (this.#saved.parameters([name]).size > 0) continue;
      const paths = [...this.model.namedModules()].map((m) => m.path).filter((p) => p !== '');
      const near = nearest(name, paths, 3).join(', ');
      throw failure(
        'lora modulesToSave',
        'names of modules of the model',
        `"${name}"`,
        `Nearest: ${near}`,
      );
    }
  }

  /** Every parameter of the base by its checkpoint's name. */
  baseParameters(): ReadonlyMap<string, Tensor> {
    return this.#base;
  }

  *#branches(name: string): Generator<LoraBranch> {
    for (const { layer } of this.#wrapped.values()) {
      const branch = layer.branches.get(name);
      if (branch) yield branch;
    }
  }

  #known(name: string): string {
    if (this.#configs.has(name)) return name;
    const near = nearest(name, this.#configs.keys(), 3);
    throw failure(
      'lora adapter',
      'the name of an adapter of the model',
      `"${name}"`,
      near.length > 0 ? `There are: ${near.join(', ')}` : 'There is none yet',
    );
  }
}
