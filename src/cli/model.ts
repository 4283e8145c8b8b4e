import type { Command } from 'commander';
import type { Tokenizer } from '../io/tokenizer.js';
import type { CausalLM } from '../models/causal-lm.js';
import { BACKEND_NAMES, type CommonOptions, needs, oneOf, wholeNumber } from './output.js';

/** Options of the commands that run a model with or without an adapter. */
export interface ModelFlags extends CommonOptions {
  readonly model: string;
  readonly adapter?: string;
  readonly backend?: string;
  readonly threads?: number;
}

/** Adds the options that choose a model, an adapter and where they run. */
export function modelOptions(c: Command, adapter: 'optional' | 'required'): Command {
  needs(c, '--model <dir>', 'the model: config.json, safetensors, tokenizer.json');
  if (adapter === 'required') return needs(c, '--adapter <dir>', 'a PEFT adapter of the model');
  return c.option('--adapter <dir>', 'a PEFT adapter of the model');
}

/** Adds the options that say on what to compute. */
export function backendOptions(c: Command): Command {
  return c
    .option('--backend <name>', 'auto, cpu or reference (default: auto)', oneOf(BACKEND_NAMES))
    .option('--threads <n>', 'worker threads; results do not depend on it', wholeNumber(1));
}

/** Loads what the options name. */
export async function loadForUse(
  flags: ModelFlags,
): Promise<{ model: CausalLM; tokenizer: Tokenizer; backend: string }> {
  const [{ getBackend }, { loadCausalLM }, { loadTokenizer }, { LoraAdapters, loadAdapter }] =
    await Promise.all([
      import('../tensor/registry.js'),
      import('../models/load.js'),
      import('../io/tokenizer.js'),
      import('../lora/index.js'),
    ]);
  const backend = getBackend(flags.backend ?? 'auto');
  if (flags.threads !== undefined) backend.setThreads(flags.threads);
  const tokenizer = loadTokenizer(flags.model);
  const model = loadCausalLM(flags.model, { backend });
  if (flags.adapter !== undefined) {
    loadAdapter(new LoraAdapters(model), 'adapter', flags.adapter);
  }
  return { model, tokenizer, backend: backend.describe() };
}
