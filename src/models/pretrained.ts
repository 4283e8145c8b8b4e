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
import type { GenerateOptions } from './generate.js';
import { type FlatInput, type ForwardInput, type ForwardOutput, flatInput } from './inputs.js';
import { saveModel } from './save.js';
import type { TextOptions } from './text.js';

/** Where a model was loaded from. */
export interface ModelOrigin {
  /** The directory or Hub id as it was asked for; adapters record it as their base model. */
  readonly name: string;
  readonly dir: string;
  /** The contents of config.json, with the labels of a new head. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Ids at which its directory says that generation ends. */
  readonly eosIds: readonly number[];
  /** Writes what belongs beside a saved adapter (the labels of a new head). */
  readonly saveBeside?: (adapterDir: string) => void;
}

/** Settings of `addAdapter`. */
export interface AddAdapterOptions {
  /** The random start of A follows from it. Default 0. */
  readonly seed?: number;
}

/** Settings of `loadAdapter`. */
export interface LoadAdapterOptions extends LocateOptions {
  /** Default `default`. */
  readonly name?: string;
  /** Whether its tensors are to be trained further. Default false. */
  readonly trainable?: boolean;
}

/** Settings of `saveAdapter`. */
export interface SaveAdapterOptions {
  /** Default the active adapter. */
  readonly name?: string;
  /** Recorded as the base model's name or path; default what the model was loaded as. */
  readonly baseName?: string;
}

/** Adapters to merge: a name, names, or a weight for each name. */
export type AdaptersToMerge = string | readonly string[] | Readonly<Record<string, number>>;

/** Settings of `generate` for token ids. */
export type IdOptions = Partial<GenerateOptions>;

/** Settings of `generate` for text. */
export interface TextPromptOptions extends TextOptions {
  readonly tokenizer: Tokenizer;
}

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
  /** Makes a model of the same class and settings from other parameters; set by `buildModel`. */
  rebuild: ((source: ParameterSource) => PretrainedModel) | null = null;

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
   * @param prompt token ids, at least one; or text, given a tokenizer: then pieces of text come
   * @throws at once when the model does not generate, a setting is out of range or misspelt, or
   *   the prompt leaves no room
   */
  abstract generate(prompt: readonly number[] | Int32Array, options?: IdOptions): TokenStream;
  abstract generate(prompt: string, options: TextPromptOptions): TextStream;

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

  /** The active adapter's name; null where the model is the base alone. */
  get activeAdapter(): string | null {
    return LoraAdapters.of(this)?.active ?? null;
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

  /** Makes one adapter active, or none: then the model is its base, bit for bit. */
  setAdapter(name: string | null): this {
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
   * @throws when no name is given and no adapter is active
   */
  saveAdapter(dir: string, options: SaveAdapterOptions = {}): void {
    onlyKnown('saveAdapter', options, ['name', 'baseName']);
    const name = options.name ?? this.#active('saveAdapter');
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
    if (!this.rebuild) throw failure('merge', 'a model made by buildModel or loaded', 'another');
    const source = this.adapters.mergedSource(mergeWeights(adapters), dtype);
    const merged = this.rebuild(source) as this;
    merged.origin = this.origin;
    return merged;
  }

  /**
   * Writes the model, without any adapter, as a Hugging Face directory that transformers loads:
   * config.json, model.safetensors, and the tokenizer's files of the directory it came from.
   * @param dtype storage of the weights; default that of its first
   * @throws while an adapter is active, and for a model that was not loaded from a directory
   */
  save(dir: string, dtype?: 'f32' | 'f16' | 'bf16'): void {
    const { origin, activeAdapter: active } = this;
    if (active !== null) {
      const wayOut = 'merge().save(dir) writes both in one, saveAdapter(dir) the adapter alone';
      throw failure('save', 'no active adapter', `"${active}"`, wayOut);
    }
    if (!origin) throw failure('save', 'a model loaded from a directory', 'one built in memory');
    saveModel(dir, {
      tensors: this.#own(),
      config: origin.config,
      tokenizerDir: origin.dir,
      ...(dtype ? { dtype } : {}),
    });
  }

  /**
   * Every parameter that takes part in `forward`: the model's own by their names in the checkpoint,
   * and those of the active adapter by PEFT's names.
   */
  parameters(): Map<string, Tensor> {
    const adapters = LoraAdapters.of(this);
    const active = adapters?.active ?? null;
    const own = active === null ? [] : (adapters as LoraAdapters).tensors(active);
    return new Map([...this.#own(), ...own]);
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

  #active(where: string): string {
    const { activeAdapter } = this;
    if (activeAdapter !== null) return activeAdapter;
    const names = LoraAdapters.of(this)?.names() ?? [];
    const wayOut = names.length > 0 ? `Name one of ${names.join(', ')}` : 'Add or load one first';
    throw failure(where, 'an active adapter', 'none', wayOut);
  }
}

/** Token ids as they are made. */
export type TokenStream = AsyncGenerator<number, void, undefined>;
/** Pieces of text as they are made; joined they are the continuation. */
export type TextStream = AsyncGenerator<string, void, undefined>;

function mergeWeights(adapters: AdaptersToMerge): MergeWeights {
  if (typeof adapters === 'string') return [adapters];
  if (Array.isArray(adapters)) return adapters;
  return new Map(Object.entries(adapters as Record<string, number>));
}
