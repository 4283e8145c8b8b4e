import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import type { HubKind } from '../io/hub.js';
import type { Tokenizer } from '../io/tokenizer.js';
import type { ClassifierHead } from '../models/head.js';
import type { TaskModels } from '../models/load.js';
import { COMPUTES, type Compute } from '../tensor/backend.js';
import { failure } from '../tensor/errors.js';
import {
  BACKEND_HELP,
  backendName,
  type CommonOptions,
  needs,
  oneOf,
  threadCount,
} from './output.js';

/** Options of the commands that run a model with or without an adapter. */
export interface ModelFlags extends CommonOptions {
  readonly model: string;
  readonly adapter?: string;
  readonly backend?: string;
  readonly threads?: number;
  readonly dtype?: BaseDType;
  readonly compute?: Compute;
  readonly tf32?: boolean;
  readonly batchInvariant?: boolean;
}

const ADAPTER = 'a PEFT adapter of the model: a directory, or org/name[@revision]';

/** Adds the options that choose a model, an adapter and where they run. */
export function modelOptions(c: Command, adapter: 'optional' | 'required'): Command {
  needs(c, '--model <dir>', 'the model: a directory, or org/name[@revision] of the Hub');
  if (adapter === 'required') return needs(c, '--adapter <dir>', ADAPTER);
  return c.option('--adapter <dir>', ADAPTER);
}

/** Adds the options that say on what to compute. */
export function backendOptions(c: Command): Command {
  return c
    .option('--backend <name>', BACKEND_HELP, backendName)
    .option('--threads <n>', 'worker threads; results do not depend on it', threadCount);
}

const BASE_DTYPES = ['f32', 'f16', 'bf16'] as const;
type BaseDType = (typeof BASE_DTYPES)[number];

/** Adds the options of the base's storage and of the arithmetic of its products. */
export function precisionOptions(c: Command): Command {
  c.option(
    '--dtype <name>',
    'storage of the base’s weights: f32, f16 or bf16 (default: that of their file)',
    oneOf(BASE_DTYPES),
  );
  c.option(
    '--compute <how>',
    'products with weights stored in bf16: exact, or bf16, which rounds activations to bf16, too, ' +
      'for up to twice the speed (default: exact)',
    oneOf(COMPUTES),
  );
  c.option('--tf32', 'cuda: products of f32 may round their factors to TF32 (10 bits)');
  return c.option(
    '--batch-invariant',
    'cuda: the same bits for a sequence whatever is computed with it, at a fraction of the speed; ' +
      'other backends always are',
  );
}

/** What a model and an adapter may be given as. */
interface Named {
  readonly model: string;
  readonly adapter?: string;
}

/** {@link Named} with directories in place of names. */
export type Resolved<F extends Named> = F & {
  /** The model as it was given (`org/name` or a path), to be recorded in what is written. */
  readonly modelName: string;
};

/**
 * The directory of a model or adapter given as a path or as `org/name[@revision]`: cached, or else
 * downloaded, which is shown on standard error.
 * @throws where there is neither
 */
export async function resolveDir(name: string, kind: HubKind): Promise<string> {
  if (existsSync(name)) {
    if (kind === 'model') checkNoAdapter(name);
    return name;
  }
  const { resolveModel } = await import('../io/hub.js');
  const { downloadView } = await import('./download-view.js');
  const view = await downloadView();
  try {
    return await resolveModel(name, { kind, onEvent: view.show });
  } finally {
    view.end();
  }
}

/** Throws where a directory given as the model holds an adapter only. */
function checkNoAdapter(dir: string): void {
  const has = (name: string) => existsSync(join(dir, name));
  if (!has('adapter_config.json') || has('config.json')) return;
  throw failure(
    'model',
    'a model directory',
    `the adapter ${dir}`,
    'Give it as --adapter, and the model it was trained on as --model',
  );
}

/** The same options with `model` and `adapter` as directories; see {@link resolveDir}. */
export async function resolveFlags<F extends Named>(flags: F): Promise<Resolved<F>> {
  const model = await resolveDir(flags.model, 'model');
  const modelName = flags.model;
  if (flags.adapter === undefined) return { ...flags, model, modelName };
  return { ...flags, model, modelName, adapter: await resolveDir(flags.adapter, 'adapter') };
}

/**
 * Loads what the options name: a model for this task with its adapter, if any. The caller disposes
 * of the model.
 * @param head what a classifier answers, where that is not what its config.json says
 */
export async function loadForUse<T extends keyof TaskModels>(
  { model: dir, adapter, threads, dtype, compute = 'exact', ...flags }: Resolved<ModelFlags>,
  task: T,
  head?: ClassifierHead,
): Promise<{ model: TaskModels[T]; tokenizer: Tokenizer; backend: string }> {
  const [
    { getBackend },
    { openModel },
    { setCompute, setProducts },
    { openTokenizer },
    { LoraAdapters, loadAdapter },
  ] = await Promise.all([
    import('../tensor/registry.js'),
    import('../models/load.js'),
    import('../models/compute.js'),
    import('../io/tokenizer.js'),
    import('../lora/index.js'),
  ]);
  const backend = getBackend(flags.backend ?? 'auto');
  if (threads !== undefined) backend.setThreads(threads);
  setProducts(backend, flags);
  const tokenizer = openTokenizer(dir);
  // An adapter may change a head apart from the table that it is tied to.
  const model = openModel<T>(dir, { task, backend, head, dtype, untied: adapter !== undefined });
  try {
    if (adapter !== undefined) loadAdapter(new LoraAdapters(model), 'adapter', adapter);
    setCompute(model, compute);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return { model, tokenizer, backend: backend.describe() };
}
