import { failure } from '../tensor/errors.js';
import {
  type FullLoraConfig,
  fullConfig,
  type LoraConfig,
  type LoraInit,
  sparseConfig,
} from './config.js';

/** The prefix of every tensor's name in an adapter file. */
export const PEFT_PREFIX = 'base_model.model.';

/** Our key of the base's hash, in the metadata of the weights: PEFT warns of keys in the config. */
export const BASE_HASH = 'lowrank_base';

/** Our key, in the metadata, of the settings of parts of fused layers, which PEFT spells by patterns. */
export const PARTS = 'lowrank_parts';

/** The layout version of PEFT that is written and read. */
const PEFT_VERSION = '0.21.0';

type Json = Readonly<Record<string, unknown>>;

/** Values that PEFT 0.21 writes for what no adapter of ours uses; read, any other is an error. */
const UNUSED: Json = {
  alora_invocation_tokens: null,
  arrow_config: null,
  corda_config: null,
  ensure_weight_tying: false,
  kasa_config: null,
  layer_replication: null,
  loftq_config: {},
  lora_ga_config: null,
  megatron_config: null,
  monteclora_config: null,
  target_parameters: null,
  use_bdlora: null,
  use_qalora: false,
  velora_config: null,
};

/** Keys that do not change what a saved adapter computes. */
const NEUTRAL = new Set([
  'auto_mapping',
  'base_model_name_or_path',
  // Of a start of training; what it found is in A.
  'eva_config',
  // Follows from the layers: true for Conv1D, whose weights are [in, out].
  'fan_in_fan_out',
  'inference_mode',
  'megatron_core',
  'peft_version',
  'qalora_group_size',
  'revision',
  'task_type',
  'runtime_config',
]);

/** Keys that are read. */
const USED = new Set([
  'peft_type',
  'r',
  'lora_alpha',
  'lora_dropout',
  'lora_bias',
  'target_modules',
  'exclude_modules',
  'layers_to_transform',
  'layers_pattern',
  'rank_pattern',
  'alpha_pattern',
  'init_lora_weights',
  'modules_to_save',
  'trainable_token_indices',
  'bias',
  'use_dora',
  'use_rslora',
]);

/**
 * Starts that are read: those that leave the base alone, and those whose share of the base can be
 * computed from it again. Not so a randomised PiSSA (pissa_niter_N), or starts from data.
 */
const STARTS: readonly unknown[] = [true, false, 'gaussian', 'orthogonal', 'eva', 'pissa', 'olora'];

/** Unknown keys that were told of in this process. */
const told = new Set<string>();

/** Whether a value says "not used" as PEFT writes it. */
function isUnused(value: unknown, unused: unknown): boolean {
  if (value === null || value === undefined || value === false) return true;
  if (typeof value === 'object' && Object.keys(value as object).length === 0) return true;
  return value === unused;
}

/** What the writer of a configuration knows besides the settings. */
export interface PeftExtras {
  readonly targets: readonly string[] | string;
  readonly modulesToSave: readonly string[];
  readonly baseName: string | null;
  /** Whether the weights of the layers are stored [in, out]. */
  readonly transposed: boolean;
  readonly task: string | null;
}

/** A list or text as PEFT has it: null for none. */
function orNull<T extends { readonly length: number }>(value: T): T | null {
  return value.length > 0 ? value : null;
}

/** The object that PEFT writes for an adapter, its keys in order. */
export function peftConfig(config: FullLoraConfig, extras: PeftExtras): Json {
  const { trainableTokens: tokens, layersToTransform: layers } = config;
  const all: Record<string, unknown> = {
    ...UNUSED,
    alpha_pattern: config.alphaPattern,
    auto_mapping: null,
    base_model_name_or_path: extras.baseName,
    bias: config.bias,
    eva_config: null,
    exclude_modules: orNull(config.excludeModules),
    fan_in_fan_out: extras.transposed,
    inference_mode: true,
    init_lora_weights: config.init === 'kaiming' ? true : config.init,
    layers_pattern: orNull(config.layersPattern),
    layers_to_transform: Array.isArray(layers) ? orNull(layers) : layers,
    lora_alpha: config.alpha,
    lora_bias: config.loraBias,
    lora_dropout: config.dropout,
    megatron_core: 'megatron.core',
    modules_to_save: orNull(extras.modulesToSave),
    peft_type: 'LORA',
    peft_version: PEFT_VERSION,
    qalora_group_size: 16,
    r: config.rank,
    rank_pattern: config.rankPattern,
    revision: null,
    target_modules: extras.targets,
    task_type: extras.task,
    trainable_token_indices: Array.isArray(tokens) ? orNull(tokens) : tokens,
    use_dora: config.variant === 'dora',
    use_rslora: config.scaling === 'rslora',
  };
  return Object.fromEntries(Object.entries(all).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Throws on a key that changes the arithmetic and is not supported; tells of unknown ones once. */
function checkKeys(json: Json, path: string): void {
  for (const [key, value] of Object.entries(json)) {
    if (USED.has(key) || NEUTRAL.has(key)) continue;
    if (!(key in UNUSED)) {
      if (told.has(key)) continue;
      told.add(key);
      console.error(`lowrank: ${path}: unknown key "${key}" is ignored`);
    } else if (!isUnused(value, UNUSED[key])) {
      throw failure(
        `adapter ${path}`,
        `${key} unused (it is not supported yet)`,
        JSON.stringify(value),
      );
    }
  }
}

const isText = (v: unknown) => typeof v === 'string' && v !== '';
const isNumber = (v: unknown) => typeof v === 'number';
const listOf = (test: (v: unknown) => boolean) => (v: unknown) => Array.isArray(v) && v.every(test);
const tableOf = (test: (v: unknown) => boolean) => (v: unknown) =>
  typeof v === 'object' && v !== null && !Array.isArray(v) && Object.values(v).every(test);
const either =
  (...tests: readonly ((v: unknown) => boolean)[]) =>
  (v: unknown) =>
    tests.some((test) => test(v));

/** The settings of an `adapter_config.json`. @param path of the file, for messages */
export function readPeftConfig(json: Json, path: string): LoraConfig {
  if (json.peft_type !== 'LORA') {
    throw failure(`adapter ${path}`, 'peft_type LORA', JSON.stringify(json.peft_type) ?? 'none');
  }
  checkKeys(json, path);
  const wrong = (key: string, expected: string) =>
    failure(`adapter ${path}`, `${key}: ${expected}`, JSON.stringify(json[key]) ?? 'nothing');
  const read = <T>(key: string, test: (v: unknown) => boolean, expected: string, unset?: T): T => {
    const value = json[key] ?? unset;
    if (!test(value)) throw wrong(key, expected);
    return value as T;
  };
  const texts = either(isText, listOf(isText));
  const flag = (key: string) => read(key, (v) => typeof v === 'boolean', 'true or false', false);
  const start = json.init_lora_weights ?? true;
  if (!STARTS.includes(start)) {
    throw wrong('init_lora_weights', `one of ${STARTS.join(', ')}`);
  }
  const targets = read<string[] | string>('target_modules', texts, 'names');
  const numbers = tableOf(isNumber);
  const full = fullConfig({
    rank: read('r', isNumber, 'a number'),
    alpha: read('lora_alpha', isNumber, 'a number'),
    dropout: read('lora_dropout', isNumber, 'a number', 0),
    // PEFT takes the one preset in any case.
    targetModules:
      typeof targets === 'string' && /^all-linear$/i.test(targets) ? 'all-linear' : targets,
    excludeModules: read('exclude_modules', texts, 'names', []),
    layersToTransform: read(
      'layers_to_transform',
      either(isNumber, listOf(isNumber)),
      'numbers',
      [],
    ),
    layersPattern: read(
      'layers_pattern',
      either(texts, (v) => v === ''),
      'names',
      [],
    ),
    rankPattern: read('rank_pattern', numbers, 'numbers by pattern', {}),
    alphaPattern: read('alpha_pattern', numbers, 'numbers by pattern', {}),
    init: typeof start === 'string' && start !== 'eva' ? (start as LoraInit) : 'kaiming',
    variant: flag('use_dora') ? 'dora' : 'lora',
    scaling: flag('use_rslora') ? 'rslora' : 'lora',
    loraBias: flag('lora_bias'),
    bias: read<'none'>('bias', isText, 'none, all or lora_only', 'none'),
    modulesToSave: read('modules_to_save', listOf(isText), 'names', []),
    trainableTokens: read(
      'trainable_token_indices',
      either(listOf(isNumber), tableOf(listOf(isNumber))),
      'token ids',
      [],
    ),
  });
  return sparseConfig(full);
}
