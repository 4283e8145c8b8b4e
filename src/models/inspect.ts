import { statSync } from 'node:fs';
import { type Checkpoint, openCheckpoint } from '../io/checkpoint.js';
import { SafetensorsFile, type TensorEntry } from '../io/safetensors.js';
import { failure } from '../tensor/errors.js';
import { type AdapterInspection, inspectAdapter, isAdapterDir } from './inspect-adapter.js';
import { describeConfig, type Json, type ModelShape } from './inspect-config.js';
import { type Contents, contentsOf, elementsOf } from './inspect-contents.js';

export type { AdapterInspection } from './inspect-adapter.js';
export type { ModelShape } from './inspect-config.js';
export type { Contents, DTypeShare, TensorLine } from './inspect-contents.js';

/** A model directory. */
export interface ModelInspection extends Contents, ModelShape {
  readonly kind: 'model';
  /** Elements of the weights: neither buffers nor a head stored beside the table it is tied to. */
  readonly parameters: number;
  readonly supported: boolean;
  /** Why it is not supported. */
  readonly reason?: string;
  /** Whether the head over the vocabulary is the embedding's table; null where there is none. */
  readonly tiedHead: boolean | null;
}

/** A safetensors file. */
export interface FileInspection extends Contents {
  readonly kind: 'safetensors';
  readonly elements: number;
  readonly metadata: Readonly<Record<string, string>>;
}

export type Inspection = ModelInspection | AdapterInspection | FileInspection;

/** How {@link inspect} answers. */
export interface InspectOptions {
  /** Whether every tensor is listed. Default false. */
  readonly list?: boolean;
}

/**
 * What a model directory, an adapter directory or a safetensors file holds, from the headers alone.
 * Models and adapters that cannot be run here are told so, not refused.
 * @throws naming the file when one is missing or malformed
 */
export async function inspect(path: string, options: InspectOptions = {}): Promise<Inspection> {
  const list = options.list ?? false;
  if (statSync(path, { throwIfNoEntry: false })?.isFile()) return inspectFile(path, list);
  if (isAdapterDir(path)) return inspectAdapter(path, list);
  return inspectModel(openCheckpoint(path), list);
}

function inspectFile(path: string, list: boolean): FileInspection {
  if (path.endsWith('.json')) {
    const rule = 'a directory or a safetensors file';
    throw failure('inspect', rule, path, 'Give the directory that it lies in');
  }
  const file = SafetensorsFile.open(path);
  const contents = contentsOf(path, [file], list);
  const elements = contents.dtypes.reduce((n, d) => n + d.elements, 0);
  const metadata = Object.fromEntries(file.metadata);
  return { kind: 'safetensors', ...contents, elements, metadata };
}

/** Buffers that older checkpoints store: masks, positions and frequencies, no weights. */
const BUFFER = /(\.attn\.(masked_)?bias|\.rotary_emb\.inv_freq|\.position_ids)$/;

const HEAD = 'lm_head.weight';

async function inspectModel(checkpoint: Checkpoint, list: boolean): Promise<ModelInspection> {
  const { config, dir, files, tensors } = checkpoint;
  const tied = tiedHead(config, tensors);
  let parameters = 0;
  for (const [name, { shape }] of tensors) {
    if (BUFFER.test(name) || (tied && name === HEAD)) continue;
    parameters += elementsOf(shape);
  }
  const reason = await whyNot(config);
  return {
    kind: 'model',
    ...contentsOf(dir, files, list),
    ...describeConfig(config),
    ...{ parameters, tiedHead: tied, supported: reason === undefined },
    ...(reason === undefined ? {} : { reason }),
  };
}

/** Whether a head is tied: as the config says, else as there is one of its own or not. */
function tiedHead(config: Json, tensors: ReadonlyMap<string, TensorEntry>): boolean | null {
  const names = Array.isArray(config.architectures) ? config.architectures.map(String) : [];
  const own = tensors.has(HEAD);
  const predicts = names.some((n) => /(ForCausalLM|LMHeadModel|ConditionalGeneration)$/.test(n));
  if (!own && names.length > 0 && !predicts) return null;
  return typeof config.tie_word_embeddings === 'boolean' ? config.tie_word_embeddings : !own;
}

/** Thrown in place of the first parameter: the configuration has been accepted then. */
class Accepted extends Error {}

/** Why a configuration cannot be run here; undefined for one that can. */
async function whyNot(config: Json): Promise<string | undefined> {
  const { buildModel } = await import('./load.js');
  try {
    buildModel(config, () => {
      throw new Accepted();
    });
    return undefined;
  } catch (error) {
    return error instanceof Accepted ? undefined : (error as Error).message;
  }
}
