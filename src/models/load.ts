import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { noGrad, scope, setTrainable } from '../autograd/index.js';
import { type Checkpoint, openCheckpoint, saveCheckpoint } from '../io/checkpoint.js';
import type { ParameterSource } from '../nn/index.js';
import { cast } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import type { DType } from '../tensor/dtype.js';
import { failure, nearest } from '../tensor/errors.js';
import { getBackend } from '../tensor/registry.js';
import type { Tensor } from '../tensor/tensor.js';
import type { CausalLM } from './causal-lm.js';
import { LlamaForCausalLM, llamaConfig } from './llama.js';

type Json = Readonly<Record<string, unknown>>;

/** How each `model_type` of config.json is built. */
const ARCHITECTURES: Readonly<Record<string, (config: Json, source: ParameterSource) => CausalLM>> =
  {
    llama: (config, source) => new LlamaForCausalLM(llamaConfig(config), source),
  };

/**
 * Builds a model of the architecture that a config.json names, from any source of parameters.
 * @throws as the configuration and the source do; the parameters got so far are then freed
 */
export function buildModel(config: Json, source: ParameterSource): CausalLM {
  const type = String(config.model_type);
  const build = ARCHITECTURES[type];
  if (!build) {
    throw failure(
      'model_type',
      `one of ${Object.keys(ARCHITECTURES).join(', ')}`,
      `"${type}"`,
      `Nearest: ${nearest(type, Object.keys(ARCHITECTURES), 1).join('')}`,
    );
  }
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

/** How {@link loadModel} loads. */
export interface LoadModelOptions {
  /** A backend or its name; default auto: cpu where the addon is built, else reference. */
  readonly backend?: Backend | string;
  /** Storage of the weights; default the file's own. */
  readonly dtype?: DType;
  /** Makes every parameter trainable (and f32), for full fine-tuning. Default false. */
  readonly trainable?: boolean;
}

/**
 * Loads a Hugging Face model directory. Frozen weights keep their dtype and stay in the mapped
 * file where the backend can map it.
 * @throws when a tensor is missing or none of the model's, or the configuration is not supported
 */
export function loadModel(dir: string, options: LoadModelOptions = {}): CausalLM {
  const checkpoint = openCheckpoint(dir);
  const backend =
    typeof options.backend === 'object' ? options.backend : getBackend(options.backend ?? 'auto');
  const source = checkpointSource(checkpoint, backend, options);
  const left = new Set(checkpoint.tensors.keys());
  const model = buildModel(checkpoint.config, (name, shape) => {
    left.delete(name);
    return source(name, shape);
  });
  const homeless = [...left].filter((name) => !isDerived(name, checkpoint.config));
  if (homeless.length === 0) return model;
  model.dispose();
  const some = homeless.slice(0, 5).join(', ');
  throw failure(
    `model ${dir}`,
    `only tensors of a ${checkpoint.config.model_type} model`,
    `${homeless.length} others: ${some}${homeless.length > 5 ? ', …' : ''}`,
  );
}

/** Tensors that some checkpoints hold although they follow from others or from the settings. */
function isDerived(name: string, config: Json): boolean {
  if (name.endsWith('.rotary_emb.inv_freq')) return true;
  return name === 'lm_head.weight' && config.tie_word_embeddings === true;
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

/** Files of a model directory that go along when it is written again. */
const COMPANIONS = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
];

/** How {@link saveModel} writes. */
export interface SaveModelOptions {
  /** Tensors by the checkpoint's names. */
  readonly tensors: ReadonlyMap<string, Tensor>;
  /** The contents of config.json; its `dtype` is set to the storage. */
  readonly config: Json;
  /** A directory whose tokenizer files go along. */
  readonly tokenizerDir: string;
  /** Storage of the weights, rounded to once; default that of the first tensor. */
  readonly dtype?: 'f32' | 'f16' | 'bf16';
}

const TORCH_NAMES = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' } as const;

/** Writes a model as a Hugging Face directory that transformers loads. Makes the directory. */
export function saveModel(dir: string, options: SaveModelOptions): void {
  const { tensors, tokenizerDir } = options;
  const dtype = options.dtype ?? ([...tensors.values()][0]?.dtype as 'f32');
  const extraFiles = COMPANIONS.filter((f) => existsSync(join(tokenizerDir, f))).map(
    (f) => [f, readFileSync(join(tokenizerDir, f))] as const,
  );
  const entries = [...tensors].map(([name, t]) => ({
    name,
    dtype,
    shape: t.shape,
    bytes: () => noGrad(() => scope(() => cast(t, dtype).bytes())),
  }));
  mkdirSync(dir, { recursive: true });
  const config = { ...options.config, dtype: TORCH_NAMES[dtype] };
  saveCheckpoint(dir, { config, tensors: entries, extraFiles });
}
