import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTrainable } from '../autograd/index.js';
import type { Checkpoint } from '../io/checkpoint.js';
import { readJsonObject, writeJsonAtomic } from '../io/files.js';
import { SafetensorsFile } from '../io/safetensors.js';
import type { ParameterSource } from '../nn/index.js';
import type { Backend } from '../tensor/backend.js';
import { tensor, zeros } from '../tensor/create.js';
import type { DType } from '../tensor/dtype.js';
import { failure } from '../tensor/errors.js';
import { normal, streamOf } from '../tensor/random.js';
import { numel } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { PROBLEM_TYPES, type ProblemType } from './classifier.js';

type Json = Readonly<Record<string, unknown>>;

/** What a classifier answers, where it is not what its config.json says. */
export interface ClassifierHead {
  /** Names of the labels, in the order of the scores. */
  readonly labels: readonly string[];
  /** Null or left out: by the kind of the labels, as transformers has it. */
  readonly problemType?: ProblemType | null;
  /** The id of padding, where config.json has none: the head of a causal model asks for it. */
  readonly padId?: number;
  /**
   * Makes a new head, whose numbers follow from this seed, in place of the checkpoint's (which may
   * have none). Left out: the checkpoint's own.
   */
  readonly seed?: number;
}

/** Names that transformers gives to labels without any. */
export function plainLabels(count: number): string[] {
  return Array.from({ length: count }, (_, i) => `LABEL_${i}`);
}

/** Names of the labels by id, of a config.json's `id2label`. @throws when an id is left out */
export function labelsOf(config: Json): string[] {
  const names = (config.id2label ?? {}) as Record<string, unknown>;
  const count = Object.keys(names).length;
  if (count === 0) return plainLabels(Number(config.num_labels ?? 2));
  return Array.from({ length: count }, (_, i) => {
    const name = Object.hasOwn(names, String(i)) ? names[String(i)] : undefined;
    if (typeof name === 'string') return name;
    throw failure('config id2label', `a name for each of 0…${count - 1}`, JSON.stringify(names));
  });
}

/** The fields of a config.json that say what a classifier answers. */
function labelFields({ labels, problemType, padId }: ClassifierHead): Json {
  return {
    num_labels: labels.length,
    id2label: Object.fromEntries(labels.map((name, i) => [String(i), name])),
    label2id: Object.fromEntries(labels.map((name, i) => [name, i])),
    ...(problemType ? { problem_type: problemType } : {}),
    ...(padId === undefined ? {} : { pad_token_id: padId }),
  };
}

/** The first part of `…ForSequenceClassification` by `model_type`, as transformers names them. */
const FAMILIES: Readonly<Record<string, string>> = {
  bert: 'Bert',
  roberta: 'Roberta',
  gpt2: 'GPT2',
  llama: 'Llama',
  mistral: 'Mistral',
  qwen2: 'Qwen2',
  qwen3: 'Qwen3',
};

const SUFFIX = 'ForSequenceClassification';

/** Types that are encoders: here they do nothing but classify. */
const ENCODERS: readonly unknown[] = ['bert', 'roberta'];

/** Whether a config.json is of a classifier, or of an encoder that becomes one with a head. */
export function isClassifier({ model_type, architectures }: Json): boolean {
  if (ENCODERS.includes(model_type)) return true;
  return Array.isArray(architectures) && architectures.some((a) => String(a).endsWith(SUFFIX));
}

/** The config.json of a classifier with this head. */
export function headConfig(config: Json, head: ClassifierHead): Json {
  const { labels, problemType } = head;
  const type = String(config.model_type);
  if (!Object.hasOwn(FAMILIES, type)) {
    throw failure('head', `a model of type ${Object.keys(FAMILIES).join(', ')}`, `"${type}"`);
  }
  if (labels.length === 0 || new Set(labels).size < labels.length) {
    throw failure('head labels', 'names of one label or more, each once', labels.join(', '));
  }
  const { problem_type: old, ...rest } = config;
  return {
    ...rest,
    architectures: [`${FAMILIES[type]}${SUFFIX}`],
    ...(problemType === undefined && typeof old === 'string' ? { problem_type: old } : {}),
    ...labelFields(head),
  };
}

/** Whether a parameter or tensor is one of the head. */
export function inHead(name: string): boolean {
  return /^(classifier|score)\./.test(name);
}

/** Whether a checkpoint is of a classifier of sequences, with its head. */
export function hasHead({ config, tensors }: Pick<Checkpoint, 'config' | 'tensors'>): boolean {
  const { architectures } = config;
  // A classifier of tokens has tensors of the same names.
  const other =
    Array.isArray(architectures) && !architectures.some((a) => String(a).endsWith(SUFFIX));
  return !other && isClassifier(config) && [...tensors.keys()].some(inHead);
}

/** The module that is the head of a classifier of this model type. */
export function headModule(config: Json): string {
  return ENCODERS.includes(config.model_type) ? 'classifier' : 'score';
}

/**
 * Modules that a new head leaves without trained numbers: the head, and BERT's pooler where the
 * checkpoint has none. An adapter must train and hold them whole.
 */
export function newModules({ config, tensors }: Pick<Checkpoint, 'config' | 'tensors'>): string[] {
  if (!ENCODERS.includes(config.model_type)) return [headModule(config)];
  const pooled = [...tensors.keys()].some((name) => name.includes('pooler.dense.'));
  return config.model_type === 'bert' && !pooled ? ['classifier', 'pooler'] : ['classifier'];
}

/** Where and how new parameters are made. */
export interface NewParameterOptions {
  readonly backend: Backend;
  readonly dtype?: DType;
  readonly trainable?: boolean;
}

/**
 * New parameters as transformers makes a head: weights normal with the config's
 * `initializer_range`, biases zero. A parameter's numbers depend on its name and the seed.
 */
export function newParameters(
  config: Json,
  seed: number,
  { backend, dtype = 'f32', trainable = false }: NewParameterOptions,
): ParameterSource {
  const std = Number(config.initializer_range ?? 0.02);
  return (name, shape) => {
    const options = { backend, dtype, purpose: trainable ? 'trainable' : 'frozen' } as const;
    let made: Tensor;
    if (name.endsWith('.bias')) made = zeros(shape, options);
    else {
      const values = normal({ seed, stream: streamOf(name) }, numel(shape));
      made = tensor(
        values.map((z) => std * z),
        shape,
        options,
      );
    }
    return trainable ? setTrainable(made, true) : made;
  };
}

/** Beside an adapter: what its head answers, in the words of a config.json. */
const LABELS = 'labels.json';

/**
 * Writes what a new head answers beside the adapter that holds it, as fields of a config.json
 * (`num_labels`, `id2label`, `label2id`, `problem_type`). PEFT does not read the file; its fields
 * are what transformers' `from_pretrained` needs for the base model.
 */
export function saveHead(dir: string, head: ClassifierHead): void {
  mkdirSync(dir, { recursive: true });
  writeJsonAtomic(join(dir, LABELS), labelFields(head));
}

/** Rows of the head's last layer in an adapter's file; undefined where it holds none. */
function labelRows(dir: string): number | undefined {
  const path = join(dir, 'adapter_model.safetensors');
  if (!existsSync(path)) return undefined;
  const { tensors } = SafetensorsFile.open(path);
  for (const [name, { shape }] of tensors) {
    if (/\.(classifier(\.out_proj)?|score)\.weight$/.test(name)) return shape[0];
  }
  return undefined;
}

/** The head that a file `labels.json` describes. */
function readHead(path: string): ClassifierHead {
  const json = readJsonObject(path, 'adapter labels');
  const problem = json.problem_type ?? null;
  if (problem !== null && !PROBLEM_TYPES.includes(problem as ProblemType)) {
    const expected = `problem_type one of ${PROBLEM_TYPES.join(', ')}`;
    throw failure(`adapter ${path}`, expected, JSON.stringify(problem));
  }
  const padId = json.pad_token_id;
  return {
    labels: labelsOf(json),
    problemType: problem as ProblemType | null,
    ...(typeof padId === 'number' ? { padId } : {}),
  };
}

/**
 * The head that an adapter brings along for a base model, from the `labels.json` beside it or, for
 * adapters made elsewhere, from the shape of its head; undefined where the base's own stays.
 * Give it to `openModel` as `head` before the adapter is loaded.
 */
export function adapterHead(adapterDir: string, base: Checkpoint): ClassifierHead | undefined {
  const path = join(adapterDir, LABELS);
  const own = hasHead(base) ? labelsOf(base.config) : undefined;
  const written = existsSync(path) ? readHead(path) : undefined;
  const rows = labelRows(adapterDir);
  const labels = written?.labels ?? (rows === undefined ? undefined : plainLabels(rows));
  if (!labels) return undefined;
  const fits = own?.length === labels.length;
  if (!written && fits) return undefined;
  const head = written ?? { labels, problemType: null };
  // The adapter holds the head whole: what the base is given only fills its place.
  return fits ? head : { ...head, seed: 0 };
}
