import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { jsonBytes, readJsonObject, writeFilesAtomic } from '../io/files.js';
import { SafetensorsFile, safetensorsParts } from '../io/safetensors.js';
import { failure, nearest, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import { type LoraAdapters, PEFT_PREFIX, peftTask } from './adapters.js';
import { type FullLoraConfig, fullConfig, type LoraConfig } from './config.js';
import { baseOf } from './layer.js';
import { chooseTargets, denseLayers, peftTargets } from './targets.js';

const CONFIG = 'adapter_config.json';
const WEIGHTS = 'adapter_model.safetensors';

/** The layout version of PEFT that is written and read. */
const PEFT_VERSION = '0.21.0';

/** Values that PEFT 0.21 writes for what this adapter does not use; read, any other is an error. */
const UNUSED: Readonly<Record<string, unknown>> = {
  alora_invocation_tokens: null,
  alpha_pattern: {},
  arrow_config: null,
  bias: 'none',
  corda_config: null,
  ensure_weight_tying: false,
  eva_config: null,
  exclude_modules: null,
  kasa_config: null,
  layer_replication: null,
  layers_pattern: null,
  layers_to_transform: null,
  loftq_config: {},
  lora_bias: false,
  lora_ga_config: null,
  megatron_config: null,
  monteclora_config: null,
  rank_pattern: {},
  target_parameters: null,
  trainable_token_indices: null,
  use_bdlora: null,
  use_dora: false,
  use_qalora: false,
  use_rslora: false,
  velora_config: null,
};

/** Keys that do not change what a saved adapter computes. */
const NEUTRAL = new Set([
  'auto_mapping',
  'base_model_name_or_path',
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

const USED = new Set([
  'peft_type',
  'r',
  'lora_alpha',
  'lora_dropout',
  'target_modules',
  'init_lora_weights',
  'modules_to_save',
]);

/** Starts that leave the base weights alone; others (pissa, olora, …) subtract from them. */
const PLAIN_STARTS: readonly unknown[] = [true, false, 'gaussian', 'orthogonal', 'eva'];

/** Whether a value says "not used" as PEFT writes it. */
function isUnused(value: unknown, unused: unknown): boolean {
  if (value === null || value === undefined || value === false) return true;
  if (typeof value === 'object' && Object.keys(value as object).length === 0) return true;
  return value === unused;
}

/** The object that PEFT writes for an adapter. */
function peftConfig(
  config: FullLoraConfig,
  targets: readonly string[],
  baseName: string | null,
  transposed: boolean,
  task: string,
): Record<string, unknown> {
  const all: Record<string, unknown> = {
    ...UNUSED,
    auto_mapping: null,
    base_model_name_or_path: baseName,
    fan_in_fan_out: transposed,
    inference_mode: true,
    init_lora_weights: config.init === 'gaussian' ? 'gaussian' : true,
    lora_alpha: config.alpha,
    lora_dropout: config.dropout,
    megatron_core: 'megatron.core',
    modules_to_save: config.modulesToSave.length > 0 ? config.modulesToSave : null,
    peft_type: 'LORA',
    peft_version: PEFT_VERSION,
    qalora_group_size: 16,
    r: config.rank,
    revision: null,
    target_modules: targets,
    task_type: task,
  };
  return Object.fromEntries(Object.entries(all).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/**
 * Writes an adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`, both or
 * neither replaced.
 * @param dir made if it does not exist
 * @param baseName recorded as the base model's name or path
 */
export function saveAdapter(
  adapters: LoraAdapters,
  name: string,
  dir: string,
  baseName: string | null = null,
): void {
  const config = adapters.config(name);
  const tensors = adapters.tensors(name);
  const targets = peftTargets(adapters.model, config.targetModules, config.modulesToSave);
  const transposed = chooseTargets(adapters.model, config.targetModules, config.modulesToSave).some(
    (t) => baseOf(t.layer).transposed,
  );
  mkdirSync(dir, { recursive: true });
  writeFilesAtomic(dir, [
    [WEIGHTS, safetensorsParts(tensors, { format: 'pt' })],
    [
      CONFIG,
      [jsonBytes(peftConfig(config, targets, baseName, transposed, peftTask(adapters.model)))],
    ],
  ]);
}

/**
 * Reads the settings of a PEFT adapter directory.
 * @throws naming a setting that changes the arithmetic and is not supported
 */
export function readAdapterConfig(dir: string): LoraConfig {
  const path = join(dir, CONFIG);
  const json = readJsonObject(path, 'adapter');
  if (json.peft_type !== 'LORA') {
    throw failure(`adapter ${path}`, 'peft_type LORA', JSON.stringify(json.peft_type) ?? 'none');
  }
  for (const [key, value] of Object.entries(json)) {
    if (USED.has(key) || NEUTRAL.has(key)) continue;
    if (!(key in UNUSED)) {
      console.error(`lowrank: ${path}: unknown key "${key}" is ignored`);
    } else if (!isUnused(value, UNUSED[key])) {
      throw failure(
        `adapter ${path}`,
        `${key} unused (it is not supported yet)`,
        JSON.stringify(value),
      );
    }
  }
  const wrong = (key: string, expected: string) =>
    failure(`adapter ${path}`, `${key}: ${expected}`, JSON.stringify(json[key]) ?? 'nothing');
  const number = (key: string, fallback?: number): number => {
    const value = json[key] ?? fallback;
    if (typeof value !== 'number') throw wrong(key, 'a number');
    return value;
  };
  const targets = json.target_modules;
  const names = typeof targets === 'string' ? [targets] : targets;
  if (!Array.isArray(names) || !names.every((n) => typeof n === 'string')) {
    throw wrong('target_modules', 'names');
  }
  const saved = json.modules_to_save ?? [];
  if (!Array.isArray(saved) || !saved.every((n) => typeof n === 'string' && n !== '')) {
    throw wrong('modules_to_save', 'names');
  }
  const start = json.init_lora_weights ?? true;
  if (!PLAIN_STARTS.includes(start)) {
    throw wrong('init_lora_weights', `one of ${PLAIN_STARTS.join(', ')}`);
  }
  return {
    rank: number('r'),
    alpha: number('lora_alpha'),
    dropout: number('lora_dropout', 0),
    targetModules: names,
    init: start === 'gaussian' ? 'gaussian' : 'kaiming',
    ...(saved.length > 0 ? { modulesToSave: saved } : {}),
  };
}

/**
 * Adds an adapter from a PEFT directory to a model, frozen and active. The file's tensors must be
 * exactly those of the layers that the settings choose.
 * @throws listing every tensor that is missing, surplus or misshapen; the model is then unchanged
 */
export function loadAdapter(adapters: LoraAdapters, name: string, dir: string): void {
  const config = fullConfig(readAdapterConfig(dir));
  const file = SafetensorsFile.open(join(dir, WEIGHTS));
  const problems: string[] = [];
  const expected = new Map<string, readonly number[]>();
  const chosen = chooseTargets(adapters.model, config.targetModules, config.modulesToSave);
  for (const { path, layer } of chosen) {
    expected.set(`${PEFT_PREFIX}${path}.lora_A.weight`, [config.rank, layer.inFeatures]);
    expected.set(`${PEFT_PREFIX}${path}.lora_B.weight`, [layer.outFeatures, config.rank]);
  }
  for (const [parameter, base] of adapters.savedParameters(config)) {
    expected.set(PEFT_PREFIX + parameter, base.shape);
  }
  for (const [key, shape] of expected) {
    const entry = file.tensors.get(key);
    if (!entry) problems.push(`missing ${key} ${shapeText(shape)}`);
    else if (!sameShape(entry.shape, shape)) {
      problems.push(`${key}: expected ${shapeText(shape)}, received ${shapeText(entry.shape)}`);
    }
  }
  for (const key of file.tensors.keys()) {
    if (expected.has(key)) continue;
    problems.push(`surplus ${key} (nearest: ${nearest(key, expected.keys(), 1).join('')})`);
  }
  if (problems.length > 0) {
    throw failure(
      `adapter ${dir}`,
      `the tensors of rank ${config.rank} on ${chosen.length} layers`,
      `${problems.length} problems:\n  ${problems.join('\n  ')}`,
    );
  }
  const options = {
    backend: backendOf(adapters),
    dtype: 'f32',
    purpose: 'activation',
  } as const;
  const read = (parameter: string) => file.load(PEFT_PREFIX + parameter, options);
  adapters.addFrom(
    name,
    config,
    (path) => ({ a: read(`${path}.lora_A.weight`), b: read(`${path}.lora_B.weight`) }),
    read,
  );
}

function backendOf(adapters: LoraAdapters) {
  const [target] = denseLayers(adapters.model);
  if (!target) throw failure('adapter', 'a model with dense layers', 'none');
  return baseOf(target.layer).weight.backend;
}
