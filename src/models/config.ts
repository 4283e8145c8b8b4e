import { failure } from '../tensor/errors.js';

type Json = Readonly<Record<string, unknown>>;

/** Checked access to the fields of a config.json. Every method throws naming the field. */
export interface ConfigReader {
  /** A whole number of 1 or more. */
  count(field: string, fallback?: number): number;
  number(field: string, fallback?: number): number;
  /** A number, or undefined where there is none or null. */
  optionalNumber(field: string): number | undefined;
  text(field: string, fallback?: string): string;
  /** A text, or undefined where there is none or null. */
  optionalText(field: string): string | undefined;
  /** How many fields a nested object has, or undefined where there is none. */
  size(field: string): number | undefined;
  /** A list of texts, or undefined where there is none or null. */
  texts(field: string): readonly string[] | undefined;
  /** A whole number of 1 or more; null where the field is null, `fallback` where there is none. */
  countOrNull(field: string, fallback: number | null): number | null;
  /** A probability of dropout, 0 ≤ p < 1. */
  dropout(field: string, fallback: number): number;
  flag(field: string, fallback?: boolean): boolean;
  /** Throws unless the field has one of these values. */
  only(field: string, values: readonly unknown[]): void;
  /** A nested object, or undefined where there is none. */
  object(field: string): ConfigReader | undefined;
  /** A reader of no fields at all. */
  empty(): ConfigReader;
  /** Whether the field holds an object or a list without anything in it. */
  isEmpty(field: string): boolean;
  check(holds: boolean, expected: string): void;
  /**
   * Ends the reading: a field that was neither read nor is known to change nothing (here or in
   * {@link NEUTRAL_FIELDS}) is told of once, on stderr.
   */
  end(neutral?: readonly string[]): void;
}

/** Fields that any config.json may have and that change nothing of what a model computes. */
export const NEUTRAL_FIELDS: ReadonlySet<string> = new Set([
  // What made it, and how it is kept and run.
  'model_type',
  'architectures',
  'transformers_version',
  'transformers.js_config',
  'unsloth_fixed',
  'unsloth_version',
  '_name_or_path',
  'name_or_path',
  '_commit_hash',
  '_attn_implementation',
  'attn_implementation',
  'experts_implementation',
  '_attn_implementation_autoset',
  'dtype',
  'torch_dtype',
  'torchscript',
  'use_bfloat16',
  'use_cache',
  'gradient_checkpointing',
  'chunk_size_feed_forward',
  'output_attentions',
  'output_hidden_states',
  'output_past',
  'return_dict',
  'tie_last_hidden_states',
  'pretraining_tp',
  'initializer_range',
  'model_max_length',
  'is_llama_config',
  // Tokens, and the head's labels, which only a classifier reads.
  'bos_token_id',
  'eos_token_id',
  'pad_token_id',
  'sep_token_id',
  'unk_token_id',
  'decoder_start_token_id',
  'tokenizer_class',
  'prefix',
  'num_labels',
  'id2label',
  'label2id',
  'problem_type',
  'finetuning_task',
  'task_specific_params',
  // How to generate, which older configurations hold beside the model.
  'assistant_confidence_threshold',
  'assistant_lookbehind',
  'bad_words_ids',
  'begin_suppress_tokens',
  'diversity_penalty',
  'do_sample',
  'early_stopping',
  'encoder_no_repeat_ngram_size',
  'encoder_repetition_penalty',
  'epsilon_cutoff',
  'eta_cutoff',
  'exponential_decay_length_penalty',
  'forced_bos_token_id',
  'forced_eos_token_id',
  'length_penalty',
  'max_length',
  'max_new_tokens',
  'min_length',
  'no_repeat_ngram_size',
  'num_assistant_tokens',
  'num_assistant_tokens_schedule',
  'num_beam_groups',
  'num_beams',
  'num_return_sequences',
  'output_scores',
  'remove_invalid_values',
  'repetition_penalty',
  'return_dict_in_generate',
  'suppress_tokens',
  'target_lookbehind',
  'temperature',
  'top_k',
  'top_p',
  'typical_p',
]);

/**
 * Fields that change what a model computes, whatever its type, in ways that are not handled, with
 * the values that change nothing.
 */
const REFUSED_FIELDS: Readonly<Record<string, readonly unknown[]>> = {
  add_cross_attention: [false],
  cross_attention_hidden_size: [],
  is_decoder: [false],
  is_encoder_decoder: [false],
  per_layer_config: [],
  pruned_heads: [],
  quantization_config: [],
  rope_interleaved: [false],
  tie_encoder_decoder: [false],
  use_mrope: [false],
};

/** Throws on a field that changes the arithmetic of any model in a way that is not handled. */
export function refuseUnhandled(c: ConfigReader): void {
  for (const [field, values] of Object.entries(REFUSED_FIELDS)) {
    if (c.isEmpty(field)) continue;
    c.only(field, [...values, null, undefined]);
  }
}

/** Fields told of already, with where they stand. */
const told = new Set<string>();

/** Reads the fields of a configuration. @param where its name in errors */
export function readConfig(json: Json, where: string): ConfigReader {
  const seen = new Set<string>();
  const get = (field: string): unknown => {
    seen.add(field);
    return json[field];
  };
  const fail = (field: string, expected: string, value = json[field]) =>
    failure(`config of ${where}`, `${field}: ${expected}`, JSON.stringify(value) ?? 'nothing');
  const read = <T>(
    field: string,
    fallback: T | undefined,
    valid: (v: unknown) => boolean,
    expected: string,
  ): T => {
    const value = get(field) ?? fallback;
    if (!valid(value)) throw fail(field, expected, value);
    return value as T;
  };
  /** The same, undefined where there is none or null. */
  const optional = <T>(field: string, valid: (v: unknown) => boolean, expected: string) =>
    get(field) === null || get(field) === undefined
      ? undefined
      : read<T>(field, undefined, valid, expected);
  const isNumber = (v: unknown) => typeof v === 'number' && Number.isFinite(v);
  const isCount = (v: unknown) => Number.isSafeInteger(v) && (v as number) > 0;
  const isText = (v: unknown) => typeof v === 'string';
  const isObject = (v: unknown) => typeof v === 'object' && v !== null;
  const isProbability = (v: unknown) => isNumber(v) && (v as number) >= 0 && (v as number) < 1;
  const isTexts = (v: unknown) => Array.isArray(v) && v.every(isText);
  const count = 'a whole number of 1 or more';
  return {
    optionalNumber: (field) => optional<number>(field, isNumber, 'a number'),
    text: (field, fallback) => read(field, fallback, isText, 'a text'),
    optionalText: (field) => optional<string>(field, isText, 'a text'),
    size: (field) => {
      const value = optional<object>(field, isObject, 'an object');
      return value && Object.keys(value).length;
    },
    texts: (field) => optional<readonly string[]>(field, isTexts, 'a list of texts'),
    countOrNull: (field, fallback) => {
      if (get(field) === null) return null;
      if (get(field) === undefined) return fallback;
      return read<number>(field, undefined, isCount, `${count}, or null`);
    },
    dropout: (field, fallback) =>
      read(field, fallback, isProbability, 'a probability of 0 ≤ p < 1'),
    empty: () => readConfig({}, where),
    isEmpty: (field) => isObject(get(field)) && Object.keys(json[field] as object).length === 0,
    count: (field, fallback) => read(field, fallback, isCount, count),
    number: (field, fallback) => read(field, fallback, isNumber, 'a number'),
    flag: (field, fallback) =>
      read(field, fallback, (v) => typeof v === 'boolean', 'true or false'),
    only: (field, values) => {
      if (values.includes(get(field))) return;
      const allowed = values.filter((v) => v !== undefined && v !== null).join(', ');
      throw fail(
        field,
        allowed ? `one of ${allowed} (no other is supported)` : 'none (not supported)',
      );
    },
    object: (field) => {
      const value = optional<Json>(field, isObject, 'an object');
      return value && readConfig(value, `${where}.${field}`);
    },
    check: (holds, expected) => {
      if (!holds) throw failure(`config of ${where}`, expected, 'another');
    },
    end: (neutral = []) => {
      for (const field of Object.keys(json)) {
        if (seen.has(field) || NEUTRAL_FIELDS.has(field) || neutral.includes(field)) continue;
        const name = `${where}, ${field}`;
        if (told.has(name)) continue;
        told.add(name);
        console.error(`lowrank: config of ${where}: unknown field "${field}" is ignored`);
      }
    },
  };
}
