import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { readJsonObject } from '../io/files.js';
import { failure } from '../tensor/errors.js';
import type { TextOptions } from './text.js';

type Json = Readonly<Record<string, unknown>>;

/** Settings of transformers that change what is generated, and their values that do not. */
const UNSUPPORTED: Readonly<Record<string, readonly unknown[]>> = {
  min_p: [],
  top_h: [],
  typical_p: [1],
  epsilon_cutoff: [0],
  eta_cutoff: [0],
  min_length: [0],
  min_new_tokens: [0],
  bad_words_ids: [],
  forced_bos_token_id: [],
  forced_eos_token_id: [],
  suppress_tokens: [],
  begin_suppress_tokens: [],
  sequence_bias: [],
  guidance_scale: [1],
  exponential_decay_length_penalty: [],
  renormalize_logits: [false],
  watermarking_config: [],
  num_beam_groups: [1],
  diversity_penalty: [0],
  penalty_alpha: [0],
  dola_layers: [],
  constraints: [],
  force_words_ids: [],
};

/** What transformers takes for sampling where the file says nothing. */
const SAMPLING = { temperature: 1, top_k: 50, top_p: 1 };

const NAMES = {
  repetition_penalty: 'repetitionPenalty',
  no_repeat_ngram_size: 'noRepeatNgramSize',
  num_beams: 'numBeams',
  length_penalty: 'lengthPenalty',
  early_stopping: 'earlyStopping',
  max_new_tokens: 'maxNewTokens',
} as const;

/** What a model directory says about how to generate. */
export type GenerationDefaults = Partial<
  Pick<
    TextOptions,
    | 'temperature'
    | 'topK'
    | 'topP'
    | 'repetitionPenalty'
    | 'noRepeatNgramSize'
    | 'numBeams'
    | 'lengthPenalty'
    | 'earlyStopping'
    | 'maxNewTokens'
    | 'stop'
  >
>;

/**
 * The settings that a model directory's generation_config.json recommends and that transformers
 * would take by itself: sampling (only with `do_sample`), penalties, beams, stop strings. They are
 * not taken unless asked for, so that a run is greedy and the same everywhere by default; the ids
 * at which to stop are another matter: the tokenizer has them. `max_length` is left out.
 * @returns none where there is no such file
 * @throws naming a setting that changes what is generated and is not supported
 */
export function generationDefaults(dir: string): GenerationDefaults {
  const path = join(dir, 'generation_config.json');
  if (!existsSync(path)) return {};
  const json: Json = readJsonObject(path, 'generation config');
  const has = (key: string) => json[key] !== undefined && json[key] !== null;
  for (const [key, idle] of Object.entries(UNSUPPORTED)) {
    if (!has(key) || idle.includes(json[key])) continue;
    const received = `${key} ${JSON.stringify(json[key])}`;
    throw failure(`generation config ${path}`, 'settings that are supported', received);
  }
  const out: Record<string, unknown> = {};
  for (const [key, name] of Object.entries(NAMES)) if (has(key)) out[name] = json[key];
  if (json.do_sample === true) {
    const { temperature, top_k, top_p } = { ...SAMPLING, ...given(json) };
    Object.assign(out, { temperature, topK: top_k, topP: top_p });
  }
  const beams = typeof out.numBeams === 'number' && out.numBeams > 1;
  if (!beams) for (const name of ['numBeams', 'lengthPenalty', 'earlyStopping']) delete out[name];
  const stop = json.stop_strings;
  if (has('stop_strings')) out.stop = typeof stop === 'string' ? [stop] : stop;
  return out as GenerationDefaults;
}

/** Without what is null. */
function given(json: Json): Json {
  return Object.fromEntries(Object.entries(json).filter(([, v]) => v !== null));
}

/**
 * Settings over a model's defaults: what is given counts, and a default that would do nothing
 * beside it is dropped.
 */
export function withDefaults(defaults: GenerationDefaults, options: TextOptions): TextOptions {
  const set = Object.fromEntries(Object.entries(options).filter(([, v]) => v !== undefined));
  const kept: Record<string, unknown> = { ...defaults };
  const drop = (...names: string[]) => {
    for (const name of names) delete kept[name];
  };
  if (set.temperature === 0 || (set.numBeams as number) > 1) drop('temperature', 'topK', 'topP');
  if (set.numBeams === 1 || (set.temperature as number) > 0) {
    drop('numBeams', 'lengthPenalty', 'earlyStopping');
  }
  return { ...kept, ...set };
}
