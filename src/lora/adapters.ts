import { setTrainable } from '../autograd/index.js';
import type { Module, ParameterSource } from '../nn/index.js';
import type { DType } from '../tensor/dtype.js';
import { failure, nearest } from '../tensor/errors.js';
import type { Shape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { type FullLoraConfig, fullConfig, type LoraConfig } from './config.js';
import { Host } from './host.js';
import type { MergeWeights } from './layer.js';
import { attach, checkSaved, defaultsFor, expectedShapes, type Making } from './making.js';
import { changedBy, checkedWeights, type Merged, mergedSource, mergeIn } from './merging.js';
import { checkRows, withRows } from './mixed.js';
import { PEFT_PREFIX } from './peft.js';
import type { Site } from './site.js';
import { type Target, targetLayers } from './targets.js';
import { TokenRows } from './tokens.js';

/** The tensors that make one branch. */
export type BranchTensors = (
  path: string,
  base: { inFeatures: number; outFeatures: number },
) => {
  readonly a: Tensor;
  readonly b: Tensor;
};

/** The tensor of an adapter under PEFT's name without its prefix; the adapter owns it. */
export type AdapterSource = (key: string) => Tensor;

/** What a file said and an adapter does not need. */
export interface FileNotes {
  /** Its `modules_to_save`, where PEFT's rule takes more modules by those names than ours. */
  readonly modulesToSave?: readonly string[];
  /** The dtype of each copy of a base's table that came along, by its key. */
  readonly tables?: ReadonlyMap<string, DType>;
  /** Whether it began from the weight and was not converted: it is written so again. */
  readonly fromWeight?: boolean;
  /** Its `init_lora_weights`, where there is no way here to begin so. */
  readonly init?: unknown;
}

/** The object that holds the adapters of each model. */
const OWNERS = new WeakMap<Module, LoraAdapters>();

/**
 * The LoRA adapters of a model: several by name, of which none, one or several are active. The
 * model's own parameters are frozen and never written; with no adapter active its outputs are the
 * base's, bit for bit.
 */
export class LoraAdapters {
  readonly #configs = new Map<string, FullLoraConfig>();
  readonly #notes = new WeakMap<FullLoraConfig, FileNotes>();
  readonly #host: Host;
  #active: readonly string[] = [];
  #merged: Merged | null = null;

  /**
   * @param model a plain model; its parameters become frozen
   * @throws when it has adapters already: one object holds all of a model's
   */
  constructor(readonly model: Module) {
    this.#host = new Host(model);
    for (const p of this.#host.base.values()) setTrainable(p, false);
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

  /** The active adapter; null where none or several are. */
  get active(): string | null {
    return this.#active.length === 1 ? (this.#active[0] as string) : null;
  }

  /** Names of the active adapters. */
  get activeNames(): readonly string[] {
    return this.#active;
  }

  config(name: string): FullLoraConfig {
    return this.#configs.get(this.#known(name)) as FullLoraConfig;
  }

  /** What the file said that an adapter came from. */
  notes(name: string): FileNotes {
    return this.#notes.get(this.config(name)) ?? {};
  }

  /**
   * Adds a new adapter, trainable and active: A random by the seed and the layer's path, B zero.
   * @throws when the name is taken, a setting is out of range, or a name or pattern matches nothing
   */
  add(name: string, config: LoraConfig, seed: number): this {
    const full = fullConfig({ ...defaultsFor(this.model), ...config });
    checkSaved(this.#host, config.modulesToSave ?? []);
    this.#attach(name, full, {
      branch: (variant, site) => variant.create(site, full, seed),
      tokens: (site, ids) => TokenRows.create(site, ids),
      strict: true,
    });
    return this.setTrainable(name, true).setActive(name);
  }

  /**
   * Adds an adapter from tensors, A [r, in] and B [out, r], frozen and active. The adapter owns
   * the tensors.
   * @param saved the f32 parameters that the adapter holds whole, by name; default the base's
   * @throws on a tensor of another shape; those asked for so far are then freed
   */
  addFrom(
    name: string,
    config: LoraConfig,
    tensors: BranchTensors,
    saved?: (parameter: string) => Tensor,
  ): this {
    const full = fullConfig(config);
    this.#attach(name, full, {
      branch: (variant, site) => {
        const { a, b } = tensors(site.path, site);
        return variant.from(site, full, (end) => {
          if (end === site.names.a || end === site.names.b) return end === site.names.a ? a : b;
          for (const t of [a, b]) t.dispose();
          throw failure('lora addFrom', 'an adapter of A and B only', end, 'Use addTensors');
        });
      },
      tokens: (site, ids) => TokenRows.create(site, ids),
      ...(saved ? { saved } : {}),
      strict: false,
    });
    return this.setTrainable(name, false).setActive(name);
  }

  /**
   * Adds an adapter from all its tensors, frozen and active.
   * @param source the f32 tensors by PEFT's names without their prefix, as {@link expected} lists
   * @param notes what a file said, to be said again when it is saved
   * @throws on a tensor of another shape; those asked for so far are then freed
   */
  addTensors(name: string, config: LoraConfig, source: AdapterSource, notes?: FileNotes): this {
    const full = { ...fullConfig(config) };
    if (notes) this.#notes.set(full, notes);
    const of = (site: Site) => (end: string) => source(`${site.path}.${end}`);
    this.#attach(name, full, {
      branch: (variant, site) => variant.from(site, full, of(site)),
      tokens: (site, ids) => TokenRows.from(site, ids, of(site)),
      saved: source,
      strict: false,
    });
    return this.setTrainable(name, false).setActive(name);
  }

  /** Shapes of all tensors of an adapter of these settings, by PEFT's names without their prefix. */
  expected(config: FullLoraConfig): Map<string, Shape> {
    return expectedShapes(this.#host, config);
  }

  #attach(name: string, config: FullLoraConfig, making: Making): void {
    this.#checkPlain('add');
    this.#checkNew(name);
    attach(this.#host, name, config, making);
    this.#configs.set(name, config);
  }

  /**
   * Makes one adapter active, several at once, or none: then the model is the base. What several
   * add to a layer is summed, whatever their order.
   * @throws when two of them hold one parameter whole
   */
  setActive(active: string | null | readonly string[]): this {
    const names = active === null ? [] : typeof active === 'string' ? [active] : [...active];
    for (const name of names) this.#known(name);
    if (new Set(names).size < names.length) {
      throw failure('lora setActive', 'each adapter once', names.join(', '));
    }
    this.#checkPlain('setActive');
    this.#host.saved.check(names);
    this.#host.checkTokens(names, 'lora setActive');
    this.#active = names;
    this.#host.saved.setActive(names);
    for (const { layer } of this.#host.wrapped.values()) layer.active = names;
    return this;
  }

  /** Makes an adapter's tensors trainable or frozen, whichever is active. */
  setTrainable(name: string, trainable: boolean): this {
    this.#known(name);
    for (const branch of this.#host.branches(name)) branch.setTrainable(trainable);
    this.#host.saved.setTrainable(name, trainable);
    return this;
  }

  /** Whether an adapter is trained. */
  isTrainable(name: string): boolean {
    return [...this.tensors(name).values()].some((t) => t.requiresGrad);
  }

  /** Gives an adapter another name. @throws when that is taken */
  rename(from: string, to: string): this {
    this.#known(from);
    if (from === to) return this;
    this.#checkPlain('rename');
    this.#checkNew(to);
    const configs = [...this.#configs];
    this.#configs.clear();
    for (const [name, config] of configs) this.#configs.set(name === from ? to : name, config);
    for (const { layer } of this.#host.wrapped.values()) {
      const branch = layer.branches.get(from);
      if (branch && layer.branches.delete(from)) layer.branches.set(to, branch);
    }
    this.#host.saved.rename(from, to);
    return this.setActive(this.#active.map((name) => (name === from ? to : name)));
  }

  /**
   * Puts one adapter into the place of another, which is removed: it takes its name and is
   * trainable as that was, and active if either was. Rank, layers and settings may differ.
   * @throws when what would be active then cannot be so together; nothing has then changed
   */
  swap(name: string, by: string): this {
    this.#known(name);
    this.#known(by);
    if (name === by) throw failure('lora swap', 'two adapters', `"${name}" twice`);
    this.#checkPlain('swap');
    const trainable = this.isTrainable(name);
    const active = this.#active.filter((n) => n !== by || !this.#active.includes(name));
    const after = active.map((n) => (n === name ? by : n));
    this.#host.saved.check(after, 'lora swap');
    this.#host.checkTokens(after, 'lora swap');
    this.setActive(null).remove(name).rename(by, name).setTrainable(name, trainable);
    return this.setActive(active.map((n) => (n === by ? name : n)));
  }

  /** Removes an adapter; a layer that no adapter is left on becomes the plain base layer again. */
  remove(name: string): this {
    this.#known(name);
    this.#checkPlain('remove');
    if (this.#active.includes(name)) this.setActive(this.#active.filter((n) => n !== name));
    this.#host.saved.remove(name);
    this.#host.take(name);
    this.#configs.delete(name);
    return this;
  }

  /** Removes every adapter: the model is the plain base again. */
  dispose(): void {
    this.unmerge();
    for (const name of this.names()) this.remove(name);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** An adapter's tensors under PEFT's names, in the order of PEFT's files. */
  tensors(name: string): Map<string, Tensor> {
    return this.#host.tensors(name, this.config(name), (branch) => branch.tensors());
  }

  /** The tensors as a file holds them, with {@link writtenConfig}; some are new ones. */
  writtenTensors(name: string): Map<string, Tensor> {
    return this.#host.tensors(name, this.config(name), (branch) => branch.written());
  }

  /** Those of an adapter's tensors that are nearest to the outputs: each B. LoRA+ trains them faster. */
  outputTensors(name: string): Set<string> {
    const out = new Set<string>();
    for (const branch of this.#host.branches(this.#known(name))) {
      for (const end of branch.outputs) out.add(`${PEFT_PREFIX}${branch.path}.${end}`);
    }
    return out;
  }

  /** The layers that an adapter has A and B on, plain or wrapped. */
  targets(name: string): Target[] {
    const paths = this.#host.paths(this.#known(name));
    return targetLayers(this.model).filter((t) => paths.has(t.path));
  }

  /**
   * Runs `fn` with a mixed batch: each row of the batch has its own adapter, or none. Rows are
   * told by the first dimension of what a layer is given.
   * @param rows an adapter's name, or null for the base, for every row
   * @throws when an adapter among them holds parameters whole: those cannot differ by row
   */
  withRows<T>(rows: readonly (string | null)[], fn: () => T): T {
    this.#checkPlain('withRows');
    for (const name of new Set(rows)) if (name !== null) this.#known(name);
    checkRows(this.#host, rows);
    const before = this.#active;
    this.setActive(null);
    try {
      return withRows(this.#host, rows, fn);
    } finally {
      this.setActive(before);
    }
  }

  /**
   * Merges adapters into the model in place: touched layers become plain ones of new weights (f32
   * sum, rounded once to the base's dtype), which cost one copy of those weights while merged. The
   * base's own stay as they are, so that {@link unmerge} gives them back bit for bit.
   * @param adapters names, or the weight of each name; default the active ones
   */
  merge(adapters: MergeWeights = this.#active): this {
    this.#checkPlain('merge');
    this.#merged = mergeIn(this.#host, this.#weights(adapters));
    return this;
  }

  /** Names of the adapters that are merged into the model now. */
  get merged(): readonly string[] {
    return this.#merged?.names ?? [];
  }

  /** Takes merged adapters out again: what was active before is active again. */
  unmerge(): this {
    this.#merged?.undo();
    this.#merged = null;
    return this.setActive(this.#active);
  }

  /**
   * Merges adapters for good: the model becomes plain, without a trace of LoRA; every adapter, and
   * the weights of the base that were replaced, are freed. This object has no adapter any more.
   * @param adapters names, or the weight of each name; default those merged now, or active
   * @returns the model
   */
  fuse(adapters?: MergeWeights): Module {
    if (!this.#merged || adapters) this.unmerge().merge(adapters);
    this.#merged?.keep();
    this.#merged = null;
    this.#active = [];
    this.#configs.clear();
    return this.model;
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
    return mergedSource(this.#host, this.#weights(adapters), dtype);
  }

  /** Names of the base's parameters that merging these adapters changes; nothing is computed. */
  changedBy(names: Iterable<string>): Set<string> {
    return changedBy(
      this.#host,
      [...names].map((name) => this.#known(name)),
    );
  }

  /** The names and weights of a merge, checked. */
  #weights(adapters: MergeWeights): ReadonlyMap<string, number> {
    return checkedWeights(adapters, (name) => void this.#known(name));
  }

  /** Names of the base's parameters that an adapter holds whole. */
  wholeParameters(name: string): Set<string> {
    return new Set(this.#host.saved.tensors(this.#known(name)).keys());
  }

  /** Every parameter of the base by its checkpoint's name. */
  baseParameters(): ReadonlyMap<string, Tensor> {
    return this.#host.base;
  }

  #checkNew(name: string): void {
    if (name !== '' && !this.#configs.has(name)) return;
    throw failure('lora adapter', 'a new, non-empty name', `"${name}"`);
  }

  #checkPlain(doing: string): void {
    if (!this.#merged) return;
    const names = this.#merged.names.join(', ');
    throw failure(`lora ${doing}`, 'no adapter merged', names, 'Call unmerge() first');
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
