import { setTrainable } from '../autograd/index.js';
import { type Checkpoint, openCheckpoint } from '../io/checkpoint.js';
import type { ParameterSource } from '../nn/index.js';
import type { Backend } from '../tensor/backend.js';
import type { DType } from '../tensor/dtype.js';
import { failure, nearest } from '../tensor/errors.js';
import { getBackend } from '../tensor/registry.js';
import type { Shape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import {
  BertForSequenceClassification,
  bertConfig,
  bertTensorName,
  RobertaForSequenceClassification,
} from './bert.js';
import { CausalLM } from './causal-lm.js';
import type { SequenceClassifier } from './classifier.js';
import { readConfig } from './config.js';
import {
  Gpt2ForSequenceClassification,
  Gpt2LMHeadModel,
  gpt2Config,
  gpt2TensorName,
} from './gpt2.js';
import { type ClassifierHead, headConfig, inHead, newModules, newParameters } from './head.js';
import { LlamaForCausalLM, LlamaForSequenceClassification } from './llama.js';
import { LLAMA_FAMILY, llamaConfig, llamaTensorName } from './llama-config.js';
import { readScore, scoresSequences } from './score.js';

type Json = Readonly<Record<string, unknown>>;

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

/**
 * Builds a model of the architecture that a config.json names, from any source of parameters.
 * @throws as the configuration and the source do; the parameters got so far are then freed
 */
export function buildModel(config: Json, source: ParameterSource): Model {
  const { build } = architectureOf(config);
  const made: Tensor[] = [];
  try {
    return build(config, (name, shape) => {
      const t = source(name, shape);
      made.push(t);
      return t;
    });
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
    classification: 'one that classifies sequences',
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
  readonly task?: T;
  /** A backend or its name; default auto: cpu where the addon is built, else reference. */
  readonly backend?: Backend | string;
  /** Storage of the weights; default the file's own. */
  readonly dtype?: DType;
  /** Makes every parameter trainable (and f32), for full fine-tuning. Default false. */
  readonly trainable?: boolean;
  /** For a classifier: what it answers, where that is not what config.json says; a new head. */
  readonly head?: ClassifierHead;
}

/**
 * Loads a Hugging Face model directory. Frozen weights keep their dtype and stay in the mapped
 * file where the backend can map it.
 * @throws when a tensor is missing or none of the model's, the configuration is not supported, or
 *   the model is for another task
 */
export function openModel<T extends keyof TaskModels = keyof TaskModels>(
  dir: string,
  options: LoadModelOptions<T> = {},
): TaskModels[T] {
  const model = open(dir, options);
  if (options.task === undefined) return model as TaskModels[T];
  return only(options.task, model, dir) as TaskModels[T];
}

function open(dir: string, options: LoadModelOptions): Model {
  const checkpoint = openCheckpoint(dir);
  const { head } = options;
  const config = head ? headConfig(checkpoint.config, head) : checkpoint.config;
  const { tensorName, table } = architectureOf(config);
  const backend =
    typeof options.backend === 'object' ? options.backend : getBackend(options.backend ?? 'auto');
  // The checkpoint's name of each tensor by the model's.
  const stored = new Map<string, string>();
  for (const name of checkpoint.tensors.keys()) {
    const own = tensorName ? tensorName(name, config) : name;
    if (own !== null && !(head?.seed !== undefined && inHead(own))) stored.set(own, name);
  }
  if (table && !stored.has('lm_head.weight')) checkTied(checkpoint, stored.get(table));
  const source = checkpointSource(checkpoint, backend, options);
  const fresh = freshSource(checkpoint, backend, config, options);
  const left = new Map(stored);
  const model = buildModel(config, (name, shape) => {
    left.delete(name);
    return fresh(name, shape) ?? source(stored.get(name) ?? name, shape);
  });
  if (left.size === 0) return model;
  model.dispose();
  const some = [...left.values()].slice(0, 5).join(', ');
  throw failure(
    `model ${dir}`,
    `only tensors of a ${config.model_type} model`,
    `${left.size} others: ${some}${left.size > 5 ? ', …' : ''}`,
  );
}

/** A head that config.json ties to the table, if it is written as well, must be the same. */
function checkTied(checkpoint: Checkpoint, table: string | undefined): void {
  const head = 'lm_head.weight';
  if (table === undefined || !checkpoint.has(head)) return;
  if (Buffer.compare(checkpoint.bytes(head), checkpoint.bytes(table)) === 0) return;
  throw failure(
    `model ${checkpoint.dir}`,
    `${head} equal to ${table}, as tie_word_embeddings says`,
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
      return checkpoint.loadTensor(name, { backend, ...(dtype ? { dtype } : {}) });
    }
    const t = checkpoint.loadTensor(name, { backend, dtype: 'f32', purpose: 'trainable' });
    return setTrainable(t, true);
  };
}
