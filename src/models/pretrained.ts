import { HUB_SETTINGS, type LocateOptions, locate, splitOptions } from '../io/locate.js';
import type { Tokenizer } from '../io/tokenizer.js';
import {
  LoraAdapters,
  type LoraConfig,
  loadAdapter,
  type MergeWeights,
  saveAdapter,
} from '../lora/index.js';
import { Module, type ParameterSource } from '../nn/index.js';
import type { Backend } from '../tensor/backend.js';
import type { DType } from '../tensor/dtype.js';
import { failure, onlyKnown } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Ended, GenerateOptions } from './generate.js';
import { type FlatInput, type ForwardInput, type ForwardOutput, flatInput } from './inputs.js';
import { saveModel } from './save.js';
import type { TextOptions } from './text.js';

type Json = Readonly<Record<string, unknown>>;

/** Where a model was loaded from. */
export interface ModelOrigin {
  /** The directory or Hub id as it was asked for; adapters record it as their base model. */
  readonly name: string;
  readonly dir: string;
  /** Ids at which its directory says that generation ends. */
  readonly eosIds: readonly number[];
  /** Writes what belongs beside a saved adapter (the labels of a new head). */
  readonly saveBeside?: (adapterDir: string) => void;
}

/** How a model is made from parameters; see `buildModel`. */
export interface Recipe {
  /** The contents of config.json, with the labels of a new head. */
  readonly config: Json;
  /** The table that its head is tied to, and the name that the head would have; null if it is not. */
  readonly tied: { readonly table: string; readonly head: string } | null;
  build(config: Json, source: ParameterSource): PretrainedModel;
}

/** Settings of `addAdapter`. */
export interface AddAdapterOptions {
  /** The random start of A follows from it. Default 0. */
  readonly seed?: number | undefined;
}

/** Settings of `loadAdapter`. */
export interface LoadAdapterOptions extends LocateOptions {
  /** Default `default`. */
  readonly name?: string | undefined;
  /** Whether its tensors are to be trained further. Default false. */
  readonly trainable?: boolean | undefined;
}

/** Settings of `save`. */
export interface SavePretrainedOptions {
  /** Storage of the weights, rounded to once; default each one's own. */
  readonly dtype?: 'f32' | 'f16' | 'bf16' | undefined;
  /** The most bytes of tensors in one file; more makes shards. Default 5·10⁹. */
  readonly maxShardBytes?: number | undefined;
  /** Whose tokenizer and other small files go along; default where the model came from. */
  readonly tokenizerDir?: string | undefined;
}

/** Settings of `saveAdapter`. */
export interface SaveAdapterOptions {
  /** Default the active adapter. */
  readonly name?: string | undefined;
  /** Recorded as the base model's name or path; default what the model was loaded as. */
  readonly baseName?: string | undefined;
}

/** Adapters to merge: a name, names, or a weight for each name. */
export type AdaptersToMerge = string | readonly string[] | Readonly<Record<string, number>>;

/** Ids to continue. */
export type TokenPrompt = readonly number[] | Int32Array;
/** What to continue: text, or ids (of a chat, say). */
export type Prompt = string | TokenPrompt;
/** Token ids as they are made; returns how the generation ended. */
export type TokenStream = AsyncGenerator<number, Ended, undefined>;
/** Pieces of text as they are made, joined the continuation; returns how it ended. */
export type TextStream = AsyncGenerator<string, Ended, undefined>;

/** Settings that may all be left out or undefined. */
type Loose<T> = { readonly [K in keyof T]?: T[K] | undefined };

/** Settings of `generate` for token ids. */
export type IdOptions = Loose<GenerateOptions>;

/** Settings of `generate` for text. */
export type TextPromptOptions = Loose<TextOptions> & { readonly tokenizer: Tokenizer };

const NAME = 'default';

/**
 * A model that was, or could have been, loaded from a Hugging Face directory, with its LoRA
 * adapters.
 *
 * Frees its memory by `dispose()` or `using`, its adapters with it.
 */
export abstract class PretrainedModel extends Module {
  abstract readonly backend: Backend;
  abstract readonly vocabSize: number;
  /** The most tokens of a sequence. */
  abstract readonly maxPositions: number;
  /** PEFT's name of what it is for. */
  abstract readonly peftTask: 'CAUSAL_LM' | 'SEQ_CLS';
  /** Where it was loaded from; null for one that was built from numbers. */
  origin: ModelOrigin | null = null;
  /** How it is made from parameters; set by `buildModel`. */
  recipe: Recipe | null = null;

  /** Logits, and the mean loss where labels are given, of a checked input. */
  protected abstract outputs(input: FlatInput): ForwardOutput;

  /**
   * Continues a prompt token by token; an async iterator that lets other work run between tokens.
   * Ends at an end-of-sequence id, at `maxNewTokens` (default 100), when the model's positions are
   * full, or when the signal aborts.
   *
   *     for await (const id of model.generate(ids)) …
   *     for await (const text of model.generate('The whale', { tokenizer })) …
   *
   * @param prompt token ids, at least one, or text
   * @param options with a tokenizer, pieces of text come instead of ids; text as the prompt needs
   *   one
   * @throws at once when the model does not generate, a setting is out of range or misspelt, or
   *   the prompt leaves no room
   */
  abstract generate(prompt: Prompt, options: TextPromptOptions): TextStream;
  abstract generate(prompt: TokenPrompt, options?: IdOptions): TokenStream;

  /**
   * Logits, and the loss where labels are given. Dropout acts only inside `withTraining`. In a
   * training loop, call it inside `scope` so that its tensors are freed.
   *
   *     const { logits, loss } = model.forward({ inputIds: [[5, 6, 7]], labels: [[5, 6, 7]] });
   *
   * @throws naming the field that is unknown, of another shape, or out of range
   */
  forward(input: ForwardInput): ForwardOutput {
    return this.outputs(flatInput(input));
  }

  /**
   * The model's LoRA adapters: their names, which is active, their tensors. Made at the first use,
   * which freezes the model's own parameters.
   */
  get adapters(): LoraAdapters {
    return LoraAdapters.of(this) ?? new LoraAdapters(this);
  }

  /** Names of the active adapters; none where the model is its base alone. */
  get activeAdapters(): readonly string[] {
    return LoraAdapters.of(this)?.activeNames ?? [];
  }

  /**
   * Adds a new LoRA adapter, trainable and active: A random, B zero, so that the model still
   * answers as its base. The model's own parameters are frozen.
   * @throws when the name is taken, a setting is unknown or out of range, or a target matches
   *   nothing
   */
  addAdapter(name: string, config: LoraConfig, options: AddAdapterOptions = {}): this {
    onlyKnown('addAdapter', options, ['seed']);
    this.adapters.add(name, config, options.seed ?? 0);
    return this;
  }

  /**
   * Adds an adapter from a PEFT directory, or from the Hugging Face Hub by `org/name[@revision]`,
   * and makes it active.
   * @throws listing every tensor that is missing, surplus or misshapen; the model is then unchanged
   */
  async loadAdapter(dirOrId: string, options: LoadAdapterOptions = {}): Promise<this> {
    onlyKnown('loadAdapter', options, ['name', 'trainable', ...HUB_SETTINGS]);
    const { hub, rest } = splitOptions(options);
    const dir = await locate(dirOrId, 'adapter', hub);
    const { name = NAME, trainable = false } = rest;
    loadAdapter(this.adapters, name, dir);
    this.adapters.setTrainable(name, trainable);
    return this;
  }

  /**
   * Makes one adapter active, several, whose updates are then summed, or none: then the model is
   * its base, bit for bit.
   * @throws on a name that there is not, or when two hold one parameter whole
   */
  setAdapter(name: string | null | readonly string[]): this {
    if (name !== null || LoraAdapters.of(this)) this.adapters.setActive(name);
    return this;
  }

  /** Removes an adapter and frees its tensors; where it was active the model is its base again. */
  deleteAdapter(name: string): this {
    this.adapters.remove(name);
    return this;
  }

  /**
   * Writes an adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`.
   * @param dir made if it does not exist
   * @throws when no name is given and not just one adapter is active
   */
  saveAdapter(dir: string, options: SaveAdapterOptions = {}): void {
    onlyKnown('saveAdapter', options, ['name', 'baseName']);
    const active = options.name === undefined ? this.#active('saveAdapter') : [options.name];
    const [name] = active;
    if (name === undefined || active.length > 1) {
      throw failure('saveAdapter', 'the name of one adapter', active.join(', '));
    }
    saveAdapter(this.adapters, name, dir, options.baseName ?? this.origin?.name ?? null);
    this.origin?.saveBeside?.(dir);
  }

  /**
   * A plain model of the same class with adapters merged into its weights: W + scaling·B A, summed
   * in f32 and rounded once to `dtype`. This model stays as it is; the two share the storage of
   * every weight that no adapter changes, and each may be disposed before the other.
   * @param adapters default the active one
   * @param dtype of the changed weights; default each weight's own
   * @throws when there is no such adapter, or a merged weight is NaN or infinite
   */
  merge(adapters: AdaptersToMerge = this.#active('merge'), dtype?: DType): this {
    const { recipe, origin } = this;
    if (!recipe) throw failure('merge', 'a model made by buildModel or loaded', 'another');
    const weights = mergeWeights(adapters);
    const source = this.adapters.mergedSource(weights, dtype);
    const table = recipe.tied && freeTable(this.adapters, weights, recipe.tied.table);
    const config = table ? { ...recipe.config, tie_word_embeddings: false } : recipe.config;
    const merged = recipe.build(config, (name, shape) =>
      table && name === recipe.tied?.head ? table.alias() : source(name, shape),
    ) as this;
    merged.origin = origin;
    return merged;
  }

  /**
   * Writes the model, without any adapter, as a Hugging Face directory that transformers loads:
   * config.json, safetensors, and the tokenizer and other small files of where it came from.
   * @throws while an adapter is active, when a weight is NaN or infinite, and for a model that was
   *   not loaded from a directory, unless one is given for the tokenizer
   */
  save(dir: string, options: SavePretrainedOptions = {}): void {
    onlyKnown('save', options, ['dtype', 'maxShardBytes', 'tokenizerDir']);
    const { recipe, activeAdapters: active } = this;
    if (active.length > 0) {
      const wayOut = 'merge().save(dir) writes both in one, saveAdapter(dir) the adapter alone';
      throw failure('save', 'no active adapter', active.join(', '), wayOut);
    }
    const { dtype, maxShardBytes, tokenizerDir = this.origin?.dir } = options;
    if (!recipe || tokenizerDir === undefined) {
      throw failure('save', 'a model loaded from a directory, or a tokenizerDir', 'neither');
    }
    saveModel(dir, {
      tensors: this.#own(),
      config: recipe.config,
      tokenizerDir,
      keepAll: true,
      ...(dtype === undefined ? {} : { dtype }),
      ...(maxShardBytes === undefined ? {} : { maxShardBytes }),
    });
  }

  /**
   * The model's own parameters by their names in the checkpoint, and those of the active adapters
   * by PEFT's names; where several are active, with the adapter's name and `:` in front.
   */
  parameters(): Map<string, Tensor> {
    const out = new Map(this.#own());
    const active = this.activeAdapters;
    for (const name of active) {
      const prefix = active.length > 1 ? `${name}:` : '';
      for (const [key, t] of this.adapters.tensors(name)) out.set(prefix + key, t);
    }
    return out;
  }

  /**
   * The trainable ones of {@link parameters}: give them to an optimizer.
   *
   *     const optimizer = new AdamW([{ parameters: model.trainableParameters() }], { lr: 1e-3 });
   */
  trainableParameters(): Map<string, Tensor> {
    return new Map([...this.parameters()].filter(([, t]) => t.requiresGrad));
  }

  /** Numbers in {@link parameters}, and in those of them that are trainable. */
  parameterCount(): { total: number; trainable: number } {
    let total = 0;
    let trainable = 0;
    for (const t of this.parameters().values()) {
      total += t.size;
      if (t.requiresGrad) trainable += t.size;
    }
    return { total, trainable };
  }

  /** Its own parameters, without any adapter's. */
  #own(): ReadonlyMap<string, Tensor> {
    return LoraAdapters.of(this)?.baseParameters() ?? new Map(this.namedParameters());
  }

  #active(where: string): readonly string[] {
    const { activeAdapters } = this;
    if (activeAdapters.length > 0) return activeAdapters;
    const names = LoraAdapters.of(this)?.names() ?? [];
    const wayOut = names.length > 0 ? `Name one of ${names.join(', ')}` : 'Add or load one first';
    throw failure(where, 'an active adapter', 'none', wayOut);
  }
}

function mergeWeights(adapters: AdaptersToMerge): MergeWeights {
  if (typeof adapters === 'string') return [adapters];
  if (Array.isArray(adapters)) return adapters;
  return new Map(Object.entries(adapters as Record<string, number>));
}

/**
 * The base's table where a head that is tied to it must go on with it alone: a tied head sees no
 * LoRA update of the table and no copy in its place, but rows trained for tokens; as in PEFT.
 */
function freeTable(adapters: LoraAdapters, weights: MergeWeights, table: string): Tensor | null {
  const names = [...(weights instanceof Map ? weights.keys() : (weights as readonly string[]))];
  const updated = names.filter(
    (n) =>
      adapters.wholeParameters(n).has(table) ||
      adapters.targets(n).some(({ path }) => `${path}.weight` === table),
  );
  if (updated.length === 0) return null;
  const rows = names.filter((n) => Object.keys(adapters.config(n).trainableTokens).length > 0);
  if (rows.length > 0) {
    const received = `${updated.join(', ')} and rows of tokens by ${rows.join(', ')}`;
    const wayOut = 'Load the model with untied: true';
    throw failure('merge', `one kind of change to the tied ${table}`, received, wayOut);
  }
  return adapters.baseParameters().get(table) ?? null;
}
