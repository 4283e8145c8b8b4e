import { setTrainable } from '../autograd/index.js';
import { type Checkpoint, openCheckpoint } from '../io/checkpoint.js';
import { HUB_SETTINGS, type LocateOptions, locate, splitOptions } from '../io/locate.js';
import { specialIds } from '../io/special-ids.js';
import { noteUntied } from '../lora/index.js';
import type { ParameterSource } from '../nn/index.js';
import type { Backend } from '../tensor/backend.js';
import { DTYPES, type DType, isFloat } from '../tensor/dtype.js';
import { failure, nearest, onlyKnown } from '../tensor/errors.js';
import { getBackend } from '../tensor/registry.js';
import type { Shape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { BertForSequenceClassification, RobertaForSequenceClassification } from './bert.js';
import { bertConfig, bertTensorName } from './bert-config.js';
import { CausalLM } from './causal-lm.js';
import type { SequenceClassifier } from './classifier.js';
import { readConfig } from './config.js';
import {
  Gpt2ForSequenceClassification,
  Gpt2LMHeadModel,
  gpt2Config,
  gpt2TensorName,
} from './gpt2.js';
import {
  type ClassifierHead,
  headConfig,
  inHead,
  newModules,
  newParameters,
  saveHead,
} from './head.js';
import { LlamaForCausalLM, LlamaForSequenceClassification } from './llama.js';
import { LLAMA_FAMILY, llamaConfig, llamaTensorName } from './llama-config.js';
import type { ModelOrigin } from './pretrained.js';
import { readScore, scoresSequences } from './score.js';

type Json = Readonly<Record<string, unknown>>;

/** The weight of the layer that answers the vocabulary, in every architecture here. */
const HEAD = 'lm_head.weight';

/** Whatever a config.json may name. */
export type Model = CausalLM | SequenceClassifier;

/** One kind of model: how it is built, and how its checkpoints are read. */
export interface Architecture {
  build(config: Json, source: ParameterSource): Model;
  /** The model's name of a tensor of a checkpoint; null for one that is known and not needed. */
  tensorName?(name: string, config: Json): string | null;
  /** The table that a tied head is, where there may be one. */
  readonly table?: string;
}

const LLAMA: Architecture = {
  build: (json, source) => {
    const c = readConfig(json, String(json.model_type));
    const config = llamaConfig(json);
    return scoresSequences(c)
      ? new LlamaForSequenceClassification(config, readScore(c), source)
      : new LlamaForCausalLM(config, source);
  },
  tensorName: llamaTensorName,
  table: 'model.embed_tokens.weight',
};

const GPT2: Architecture = {
  build: (json, source) => {
    const c = readConfig(json, 'gpt2');
    const config = gpt2Config(json);
    return scoresSequences(c)
      ? new Gpt2ForSequenceClassification(config, readScore(c), source)
      : new Gpt2LMHeadModel(config, source);
  },
  tensorName: gpt2TensorName,
  table: 'transformer.wte.weight',
};

const BERT: Architecture = {
  build: (config, source) => new BertForSequenceClassification(bertConfig(config), source),
  tensorName: bertTensorName,
};

const ROBERTA: Architecture = {
  build: (config, source) => new RobertaForSequenceClassification(bertConfig(config), source),
  tensorName: bertTensorName,
};

/** Every architecture by its `model_type` in config.json. */
const ARCHITECTURES: ReadonlyMap<string, Architecture> = new Map([
  ...LLAMA_FAMILY.map((type) => [type, LLAMA] as const),
  ['gpt2', GPT2],
  ['bert', BERT],
  ['roberta', ROBERTA],
]);

/** The values of `model_type` there are. */
export function modelTypes(): string[] {
  return [...ARCHITECTURES.keys()];
}

function architectureOf(config: Json): Architecture {
  const type = String(config.model_type);
  const found = ARCHITECTURES.get(type);
  if (found) return found;
  throw failure(
    'model_type',
    `one of ${modelTypes().join(', ')}`,
    `"${type}"`,
    `Nearest: ${nearest(type, modelTypes(), 1).join('')}`,
  );
}

/** The table of embeddings that a config.json ties the head to; null where the head is free. */
export function tiedTable(config: Json): string | null {
  const { table, tensorName } = architectureOf(config);
  return table !== undefined && tensorName?.(HEAD, config) === null ? table : null;
}

/**
 * Builds a model of the architecture that a config.json names, from any source of parameters.
 * @throws as the configuration and the source do; the parameters got so far are then freed
 */
export function buildModel(config: Json, source: ParameterSource): Model {
  const { build } = architectureOf(config);
  const made: Tensor[] = [];
  try {
    const model = build(config, (name, shape) => {
      const t = source(name, shape);
      made.push(t);
      return t;
    });
    const table = tiedTable(config);
    model.recipe = { config, tied: table ? { table, head: HEAD } : null, build: buildModel };
    return model;
  } catch (error) {
    for (const t of made) t.dispose();
    throw error;
  }
}

/** {@link buildModel} for a model that predicts the next token. @throws for any other */
export function buildCausalLM(config: Json, source: ParameterSource): CausalLM {
  return only('causal-lm', buildModel(config, source), String(config.model_type)) as CausalLM;
}

/** The model, if it is for this task; else it is freed. */
function only(task: keyof TaskModels, model: Model, name: string): Model {
  const kinds = {
    'causal-lm': 'one that predicts the next token',
    classification: 'a classifier of sequences',
  };
  const own = model instanceof CausalLM ? 'causal-lm' : 'classification';
  if (own === task) return model;
  model.dispose();
  if (!(task in kinds)) throw failure('task', Object.keys(kinds).join(' or '), `"${task}"`);
  throw failure('model', kinds[task], `${kinds[own]} (${name})`);
}

/** The kinds of models there are, by what they are for. */
export interface TaskModels {
  /** Predicts the next token. */
  'causal-lm': CausalLM;
  /** Answers scores for a whole sequence. */
  classification: SequenceClassifier;
}

/** How {@link openModel} loads. */
export interface LoadModelOptions<T extends keyof TaskModels = keyof TaskModels> {
  /** What the model must be for; it also narrows the type. Default: whatever config.json names. */
  readonly task?: T | undefined;
  /** A backend or its name; default auto: cpu where the addon is built, else reference. */
  readonly backend?: Backend | string | undefined;
  /** Storage of the weights; default the file's own, f32 for a file's doubles. */
  readonly dtype?: DType | undefined;
  /** Makes every parameter trainable (and f32), for full fine-tuning. Default false. */
  readonly trainable?: boolean | undefined;
  /** For a classifier: what it answers, where that is not what config.json says; a new head. */
  readonly head?: ClassifierHead | undefined;
  /**
   * Gives a head that is tied to the table of embeddings a tensor of its own, of the same numbers,
   * so that an adapter may change either alone. Default false.
   */
  readonly untied?: boolean | undefined;
}

const SETTINGS: readonly string[] = Object.keys({
  task: true,
  backend: true,
  dtype: true,
  trainable: true,
  head: true,
  untied: true,
} satisfies Record<keyof LoadModelOptions, true>);

/** How {@link loadModel} loads. */
export interface LoadByIdOptions<T extends keyof TaskModels = keyof TaskModels>
  extends LoadModelOptions<T>,
    LocateOptions {}

/**
 * Loads a model from a Hugging Face directory (`config.json`, safetensors) or from the Hugging Face
 * Hub by `org/name[@revision]`. Frozen weights keep their dtype and stay in the mapped file where
 * the backend can map it; nothing is computed.
 *
 *     const model = await loadModel('assets/base', { task: 'causal-lm' });
 *
 * @throws when there is no such model, an option is unknown, a tensor is missing or none of the
 *   model's, the configuration is not supported, or the model is for another task
 */
export async function loadModel<T extends keyof TaskModels = keyof TaskModels>(
  dirOrId: string,
  options: LoadByIdOptions<T> = {},
): Promise<TaskModels[T]> {
  onlyKnown('loadModel', options, [...SETTINGS, ...HUB_SETTINGS]);
  const { hub, rest } = splitOptions(options);
  const model = openModel<T>(await locate(dirOrId, 'model', hub), rest);
  if (model.origin) model.origin = { ...model.origin, name: dirOrId };
  return model;
}

/**
 * Loads a Hugging Face model directory as {@link loadModel} does, but at once.
 * @throws as {@link loadModel}
 */
export function openModel<T extends keyof TaskModels = keyof TaskModels>(
  dir: string,
  options: LoadModelOptions<T> = {},
): TaskModels[T] {
  onlyKnown('openModel', options, SETTINGS);
  checkDType(options);
  const model = open(dir, options);
  if (options.task === undefined) return model as TaskModels[T];
  return only(options.task, model, dir) as TaskModels[T];
}

function checkDType({ dtype, trainable }: LoadModelOptions): void {
  if (dtype === undefined) return;
  const floats = DTYPES.filter(isFloat);
  if (!floats.includes(dtype)) {
    const near = `Nearest: ${nearest(dtype, floats, 1).join('')}`;
    throw failure('loadModel dtype', `one of ${floats.join(', ')}`, `"${dtype}"`, near);
  }
  if (!trainable || dtype === 'f32') return;
  throw failure('loadModel dtype', 'f32 for trainable parameters', dtype);
}

function open(dir: string, options: LoadModelOptions): Model {
  const checkpoint = openCheckpoint(dir);
  const { head } = options;
  const told = head ? headConfig(checkpoint.config, head) : checkpoint.config;
  const { tensorName, table } = architectureOf(told);
  const backend =
    typeof options.backend === 'object' ? options.backend : getBackend(options.backend ?? 'auto');
  // The checkpoint's name of each tensor by the model's.
  const stored = new Map<string, string>();
  for (const name of checkpoint.tensors.keys()) {
    const own = tensorName ? tensorName(name, told) : name;
    if (own !== null && !(head?.seed !== undefined && inHead(own))) stored.set(own, name);
  }
  const tied = table !== undefined && !stored.has(HEAD) ? stored.get(table) : undefined;
  checkTied(checkpoint, tied);
  const untie = options.untied === true && tied !== undefined;
  const config = untie ? { ...told, tie_word_embeddings: false } : told;
  const source = checkpointSource(checkpoint, backend, options);
  const fresh = freshSource(checkpoint, backend, config, options);
  const left = new Map(stored);
  const model = buildModel(config, (name, shape) => {
    left.delete(name);
    const from = untie && name === HEAD ? tied : stored.get(name);
    return fresh(name, shape) ?? source(from ?? name, shape);
  });
  if (left.size === 0) {
    if (untie && table !== undefined) noteUntied(model, { head: HEAD, table });
    model.origin = originOf(dir, head);
    return model;
  }
  model.dispose();
  const some = [...left.values()].slice(0, 5).join(', ');
  throw failure(
    `model ${dir}`,
    `only tensors of a ${config.model_type} model`,
    `${left.size} others: ${some}${left.size > 5 ? ', …' : ''}`,
  );
}

function originOf(dir: string, head: ClassifierHead | undefined): ModelOrigin {
  const eosIds = specialIds(dir, 'eos');
  const beside = head ? { saveBeside: (to: string) => saveHead(to, head) } : {};
  return { name: dir, dir, eosIds, ...beside };
}

/** A head that config.json ties to the table, if it is written as well, must be the same. */
function checkTied(checkpoint: Checkpoint, table: string | undefined): void {
  if (table === undefined || !checkpoint.has(HEAD)) return;
  if (Buffer.compare(checkpoint.bytes(HEAD), checkpoint.bytes(table)) === 0) return;
  throw failure(
    `model ${checkpoint.dir}`,
    `${HEAD} equal to ${table}, as tie_word_embeddings says`,
    'another',
    'Set tie_word_embeddings to false in config.json for a head of its own',
  );
}

/** New numbers for the modules that a new head leaves without any; undefined for all others. */
function freshSource(
  checkpoint: Checkpoint,
  backend: Backend,
  config: Json,
  { head, dtype, trainable = false }: LoadModelOptions,
): (name: string, shape: Shape) => Tensor | undefined {
  if (head?.seed === undefined) return () => undefined;
  const settings = { backend, trainable, ...(dtype ? { dtype } : {}) };
  const make = newParameters(config, head.seed, settings);
  const modules = newModules(checkpoint);
  return (name, shape) =>
    modules.some((m) => `.${name}`.includes(`.${m}.`)) ? make(name, shape) : undefined;
}

function checkpointSource(
  checkpoint: Checkpoint,
  backend: Backend,
  { dtype, trainable = false }: LoadModelOptions,
): ParameterSource {
  return (name) => {
    if (!trainable) {
      // No backend trains or generates in doubles: those of a file are rounded to f32 once.
      const double = checkpoint.tensors.get(name)?.dtype === 'F64';
      const wanted = dtype ?? (double ? 'f32' : undefined);
      return checkpoint.loadTensor(name, { backend, ...(wanted ? { dtype: wanted } : {}) });
    }
    const t = checkpoint.loadTensor(name, { backend, dtype: 'f32', purpose: 'trainable' });
    return setTrainable(t, true);
  };
}
