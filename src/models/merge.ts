import { rmSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { type Checkpoint, openCheckpoint } from '../io/checkpoint.js';
import { LoraAdapters, loadAdapter } from '../lora/index.js';
import type { Backend } from '../tensor/backend.js';
import { failure, onlyKnown } from '../tensor/errors.js';
import { adapterHead, type ClassifierHead, headConfig, newModules } from './head.js';
import { openModel, tiedTable } from './load.js';
import { type LazyTensor, type SaveProgress, saveModel } from './save.js';

type Json = Readonly<Record<string, unknown>>;

const HEAD = 'lm_head.weight';

/** An adapter of a merge. */
export interface AdapterToMerge {
  /** A PEFT adapter of the model. */
  readonly dir: string;
  /** Its share of the sum; default 1. */
  readonly weight?: number;
}

/** Settings of {@link mergeAdapters}. */
export interface MergeOptions {
  readonly modelDir: string;
  /** At least one; a directory alone has weight 1. */
  readonly adapters: readonly (string | AdapterToMerge)[];
  /** Where the merged model is written; made if it does not exist. */
  readonly out: string;
  /** Storage of the weights; default each one's own in the base. */
  readonly dtype?: 'f32' | 'f16' | 'bf16';
  /** The most bytes of tensors in one file; more makes shards. Default 5·10⁹. */
  readonly maxShardBytes?: number;
  readonly backend?: Backend | string;
  /** Called before each tensor is made. */
  readonly onTensor?: (progress: SaveProgress) => void;
}

const SETTINGS: readonly string[] = Object.keys({
  modelDir: true,
  adapters: true,
  out: true,
  dtype: true,
  maxShardBytes: true,
  backend: true,
  onTensor: true,
} satisfies Record<keyof MergeOptions, true>);

/** What was written. */
export interface Merged {
  readonly tensors: number;
  readonly parameters: number;
  /** Tensors that the adapters changed. */
  readonly changed: number;
  /** Bytes of the tensors. */
  readonly bytes: number;
  /** Names of the files that hold the weights, and of their index. */
  readonly weights: readonly string[];
  /** Whether the base's tied head now has a tensor of its own. */
  readonly untied: boolean;
  /** Files and folders of the base, not weights, that were not copied. */
  readonly leftOut: readonly string[];
}

/** The weight of each adapter by its directory. */
function weightsOf(adapters: MergeOptions['adapters']): Map<string, number> {
  const weights = new Map<string, number>();
  const seen = new Set<string>();
  for (const given of adapters) {
    const { dir, weight = 1 } = typeof given === 'string' ? { dir: given } : given;
    if (seen.has(resolve(dir))) {
      throw failure('merge', 'each adapter once', `${dir} twice`, 'Give it once, with a weight');
    }
    seen.add(resolve(dir));
    weights.set(dir, weight);
  }
  return weights;
}

/** The head that one of the adapters brings along, if one does. */
function headOf(base: Checkpoint, dirs: Iterable<string>): ClassifierHead | undefined {
  for (const dir of dirs) {
    const head = adapterHead(dir, base);
    if (head) return head;
  }
  return undefined;
}

/** Modules that the base has no numbers for must come from an adapter. */
function checkHeld(base: Checkpoint, names: Iterable<string>, changed: ReadonlySet<string>): void {
  const modules = newModules(base);
  for (const name of names) {
    const held = modules.find((m) => `.${name}`.includes(`.${m}.`));
    if (held === undefined || changed.has(name)) continue;
    throw failure(
      'merge',
      `an adapter that holds ${held} whole (modules_to_save), as the base has none`,
      `no ${name}`,
    );
  }
}

/** The base with the adapters beside its weights, and what a merge of them changes. */
function openAll(options: MergeOptions) {
  const { modelDir, backend } = options;
  const base = openCheckpoint(modelDir);
  const weights = weightsOf(options.adapters);
  const head = headOf(base, weights.keys());
  const model = openModel(modelDir, {
    // A tied head and its table are two tensors here, so that either may change alone.
    untied: true,
    ...(head ? { head } : {}),
    ...(backend === undefined ? {} : { backend }),
  });
  try {
    const adapters = new LoraAdapters(model);
    for (const dir of weights.keys()) loadAdapter(adapters, dir, dir);
    const changed = adapters.changedBy(weights.keys());
    const names = adapters.baseParameters().keys();
    if (head?.seed !== undefined) checkHeld(base, names, changed);
    const config: Json = head ? headConfig(base.config, head) : base.config;
    return { model, adapters, changed, config, source: adapters.mergedSource(weights, 'f32') };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/**
 * Writes W + Σ weight·ΔW for every layer that the adapters change (ΔW = scaling·B A for plain
 * LoRA), and all other weights as they are, as a plain Hugging Face directory that knows nothing of
 * LoRA, with the base's tokenizer and other small files.
 *
 * Sums are f32 and rounded once. One tensor is made at a time, when its bytes are written; on a
 * backend that maps files the base is never copied. Where an adapter changes a tied head or the
 * table it is tied to, both are written and `tie_word_embeddings` is set to false.
 * @throws when an adapter does not fit the model, two hold the same module whole, or a weight is
 *   NaN or infinite; nothing is left behind then, and old files stay
 */
export function mergeAdapters(options: MergeOptions): Merged {
  onlyKnown('merge', options, SETTINGS);
  const { modelDir, out, dtype, maxShardBytes, onTensor } = options;
  if (options.adapters.length === 0) throw failure('merge', 'at least one adapter', 'none');
  const { model, adapters, changed, config, source } = openAll(options);
  const isNew = statSync(out, { throwIfNoEntry: false }) === undefined;
  try {
    const parameters = new Map(adapters.baseParameters());
    const table = parameters.has(HEAD) ? tiedTable(config) : null;
    const untied = table !== null && (changed.has(HEAD) || changed.has(table));
    if (table !== null && !untied) parameters.delete(HEAD);
    const tensors: LazyTensor[] = Array.from(parameters, ([name, { shape, dtype: own }]) => {
      return { name, shape, dtype: own, make: () => source(name, shape) };
    });
    const saved = saveModel(out, {
      tensors,
      config: untied ? { ...config, tie_word_embeddings: false } : config,
      tokenizerDir: modelDir,
      keepAll: true,
      ...(dtype === undefined ? {} : { dtype }),
      ...(maxShardBytes === undefined ? {} : { maxShardBytes }),
      ...(onTensor === undefined ? {} : { onTensor }),
    });
    return {
      tensors: tensors.length,
      parameters: [...parameters.values()].reduce((n, t) => n + t.size, 0),
      changed: [...parameters.keys()].filter((name) => changed.has(name)).length,
      untied,
      ...saved,
    };
  } catch (error) {
    if (isNew) rmSync(out, { recursive: true, force: true });
    throw error;
  } finally {
    model.dispose();
  }
}
