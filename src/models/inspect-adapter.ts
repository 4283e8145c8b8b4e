import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { INDEX, insideFile, PICKLE, WEIGHTS } from '../io/checkpoint.js';
import { readJsonObject } from '../io/files.js';
import { SafetensorsFile } from '../io/safetensors.js';
import { failure } from '../tensor/errors.js';
import { type Contents, contentsOf, elementsOf } from './inspect-contents.js';

const CONFIG = 'adapter_config.json';
const TENSORS = 'adapter_model.safetensors';

/** An adapter directory in PEFT's layout. */
export interface AdapterInspection extends Contents {
  readonly kind: 'adapter';
  /** `LORA`, or another method of PEFT's. */
  readonly peftType: string;
  readonly taskType: string | null;
  readonly supported: boolean;
  /** Why it is not supported. */
  readonly reason?: string;
  /** Where the base model was found when the adapter was made. */
  readonly baseModel: string | null;
  readonly rank: number | null;
  /** Ranks of the layers, by size: more than one where a pattern gives some layers another. */
  readonly ranks: readonly number[];
  readonly alpha: number | null;
  /** alpha / rank, or alpha / √rank with rsLoRA. */
  readonly scaling: number | null;
  readonly dropout: number | null;
  /** `target_modules` of the settings: names, or a pattern. */
  readonly targetModules: readonly string[] | string;
  /** Adapted layers by the last part of their names, and how many of each. */
  readonly layers: Readonly<Record<string, number>>;
  readonly modulesToSave: readonly string[];
  /** Elements of all tensors. */
  readonly parameters: number;
  /** Settings beyond plain LoRA, as they stand. */
  readonly variants: Readonly<Record<string, unknown>>;
}

/** Whether a directory is an adapter: it has adapter settings, and no weights of a model. */
export function isAdapterDir(dir: string): boolean {
  const has = (name: string) => existsSync(join(dir, name));
  return has(CONFIG) && !has(WEIGHTS) && !has(INDEX);
}

/** Settings that are shown by themselves, or say nothing of the arithmetic. */
const PLAIN = new Set([
  'alpha',
  'auto_mapping',
  'base_model_name_or_path',
  'fan_in_fan_out',
  'inference_mode',
  'lora_alpha',
  'lora_dropout',
  'megatron_core',
  'modules_to_save',
  'peft_type',
  'peft_version',
  'qalora_group_size',
  'r',
  'revision',
  'runtime_config',
  'target_modules',
  'task_type',
]);

/** Whether a setting says that something is not used, as PEFT writes it. */
function isUnused(key: string, value: unknown): boolean {
  if (PLAIN.has(key) || key.startsWith('lowrank')) return true;
  if (value === null || value === false || value === 'none') return true;
  if (key === 'init_lora_weights') return value === true;
  return typeof value === 'object' && Object.keys(value as object).length === 0;
}

function texts(value: unknown): string[] {
  return Array.isArray(value) ? value.map(String) : [];
}

/** An adapter from its settings and the header of its tensors. */
export async function inspectAdapter(dir: string, list: boolean): Promise<AdapterInspection> {
  const json = readJsonObject(insideFile(dir, CONFIG, 'adapter'), 'adapter');
  const file = SafetensorsFile.open(tensorsFile(dir));
  const contents = contentsOf(dir, [file], list);
  const number = (key: string) => (typeof json[key] === 'number' ? json[key] : null);
  const text = (key: string) => (typeof json[key] === 'string' ? json[key] : null);
  const rank = number('r');
  const alpha = number('lora_alpha');
  const divisor = rank && (json.use_rslora === true ? Math.sqrt(rank) : rank);
  const { target_modules: targets } = json;
  const reason = await whyNot(dir);
  return {
    kind: 'adapter',
    ...contents,
    peftType: text('peft_type') ?? '?',
    taskType: text('task_type'),
    supported: reason === undefined,
    ...(reason === undefined ? {} : { reason }),
    baseModel: text('base_model_name_or_path'),
    ...{ rank, alpha },
    ...adaptedLayers(file),
    scaling: alpha !== null && divisor ? alpha / divisor : null,
    dropout: number('lora_dropout'),
    targetModules: typeof targets === 'string' ? targets : texts(targets),
    modulesToSave: texts(json.modules_to_save),
    parameters: contents.dtypes.reduce((n, d) => n + d.elements, 0),
    variants: Object.fromEntries(Object.entries(json).filter(([k, v]) => !isUnused(k, v))),
  };
}

function tensorsFile(dir: string): string {
  if (!existsSync(join(dir, TENSORS))) {
    const pickle = readdirSync(dir).find((n) => PICKLE.test(n));
    if (pickle) {
      const way =
        'Pickle files can run code when read: convert it in Python with PEFT, by loading the ' +
        'adapter and saving it again, which writes safetensors';
      throw failure(`adapter ${dir}`, TENSORS, `the pickle file ${pickle}`, way);
    }
  }
  return insideFile(dir, TENSORS, 'adapter');
}

/** The layers with an A and a B, from the tensors' names. */
function adaptedLayers(file: SafetensorsFile): Pick<AdapterInspection, 'ranks' | 'layers'> {
  const ranks = new Set<number>();
  const layers: Record<string, number> = Object.create(null);
  for (const [name, { shape }] of file.tensors) {
    const found = /(?:^|\.)([^.]+)\.lora_(?:embedding_)?A(?:\.weight)?$/.exec(name);
    if (!found || elementsOf(shape) === 0) continue;
    ranks.add(shape[0] as number);
    const last = found[1] as string;
    layers[last] = (layers[last] ?? 0) + 1;
  }
  return { ranks: [...ranks].sort((a, b) => a - b), layers: { ...layers } };
}

/** Why an adapter's settings cannot be used here; undefined where they can. */
async function whyNot(dir: string): Promise<string | undefined> {
  const { readAdapterConfig } = await import('../lora/index.js');
  try {
    readAdapterConfig(dir);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}
