/** Whole training steps to measure: a model of a named shape with random weights, ready to train. */
import { readFileSync } from 'node:fs';
import { backward, noGrad, scope, setTrainable } from '../src/autograd/index.js';
import { denseLayers, LoraAdapters } from '../src/lora/index.js';
import type { CausalLM, TokenBatch } from '../src/models/causal-lm.js';
import { buildCausalLM } from '../src/models/load.js';
import { type ParameterSource, withTraining } from '../src/nn/index.js';
import { cast } from '../src/ops/index.js';
import { AdamW } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { ones, zeros } from '../src/tensor/create.js';
import type { ActivationDType } from '../src/tensor/dtype.js';
import { normal } from '../src/tensor/random.js';
import { Tensor } from '../src/tensor/tensor.js';

type Json = Readonly<Record<string, unknown>>;

const GPT2 = {
  model_type: 'gpt2',
  n_positions: 1024,
  activation_function: 'gelu_new',
  layer_norm_epsilon: 1e-5,
  embd_pdrop: 0,
  attn_pdrop: 0,
  resid_pdrop: 0,
};

/** Shapes by name, and the layers that LoRA goes on: those of the peer's script. */
const SHAPES: Readonly<Record<string, { config: Json; targets: readonly string[] }>> = {
  gpt2: {
    config: { ...GPT2, n_embd: 768, n_layer: 12, n_head: 12, vocab_size: 50257 },
    targets: ['c_attn'],
  },
  'smollm2-135m': {
    config: {
      model_type: 'llama',
      hidden_size: 576,
      num_hidden_layers: 30,
      num_attention_heads: 9,
      num_key_value_heads: 3,
      intermediate_size: 1536,
      vocab_size: 49152,
      max_position_embeddings: 2048,
      rms_norm_eps: 1e-5,
      rope_theta: 10000,
      hidden_act: 'silu',
      tie_word_embeddings: true,
    },
    targets: ['q_proj', 'v_proj'],
  },
  'llama-1b': {
    config: {
      model_type: 'llama',
      hidden_size: 2048,
      num_hidden_layers: 16,
      num_attention_heads: 32,
      num_key_value_heads: 8,
      head_dim: 64,
      intermediate_size: 8192,
      vocab_size: 128256,
      max_position_embeddings: 8192,
      rms_norm_eps: 1e-5,
      rope_theta: 500000,
      hidden_act: 'silu',
      tie_word_embeddings: true,
    },
    targets: ['q_proj', 'v_proj'],
  },
  tiny: {
    config: { ...GPT2, n_positions: 512, n_embd: 256, n_layer: 4, n_head: 4, vocab_size: 2048 },
    targets: ['c_attn'],
  },
};

/** Names of the shapes there are. */
export const SHAPE_NAMES: readonly string[] = Object.keys(SHAPES);

/** What is measured. */
export interface StepSettings {
  /** A shape's name, or the path of a config.json. */
  readonly model: string;
  readonly mode: 'lora' | 'full';
  readonly batch: number;
  readonly seq: number;
  readonly rank: number;
  /** Storage of the frozen weights; trained ones are f32. */
  readonly dtype: 'f32' | 'bf16';
  /** Share of the positions, the last ones of each row, that have a label. Default 1. */
  readonly labelShare?: number;
  /** Gradient checkpointing by block. Default false. */
  readonly checkpointing?: boolean;
  /** Of activations within a block. Default f32. */
  readonly activations?: ActivationDType;
}

/** A model that can take steps. */
export interface StepWork {
  readonly model: CausalLM;
  readonly optimizer: AdamW;
  readonly batch: TokenBatch;
  /** Forward, backward, AdamW; the loss. */
  step(): number;
  /** Operations of the step's multiply-adds, two each. */
  readonly flops: number;
  readonly trainable: number;
  readonly total: number;
  dispose(): void;
}

/** Values of standard deviation 0.02 that look random; the time of a step does not depend on them. */
function randomSource(
  backend: Backend,
  mode: StepSettings['mode'],
  dtype: 'f32' | 'bf16',
): ParameterSource {
  const block = Float32Array.from(normal({ seed: 1, stream: 1 }, 1 << 16), (z) => 0.02 * z);
  const purpose = mode === 'full' ? 'trainable' : 'frozen';
  return (name, shape) => {
    const options = { backend, purpose } as const;
    if (name.endsWith('.bias')) return zeros(shape, options);
    if (shape.length === 1) return ones(shape, options);
    // Block by block, so that no copy of a large weight is left to the garbage collector.
    const t = Tensor.empty(backend, shape, 'f32', purpose);
    for (let at = 0; at < t.size; at += block.length) {
      const part = block.subarray(0, t.size - at);
      const bytes = new Uint8Array(part.buffer, 0, part.byteLength);
      backend.upload(t.storage.handle, 4 * at, bytes);
    }
    if (mode === 'full' || dtype === 'f32') return t;
    const stored = noGrad(() => scope(() => cast(t, dtype)));
    t.dispose();
    stored.storage.retag('frozen');
    return stored;
  };
}

function shapeOf(model: string): { config: Json; targets: readonly string[] } {
  const named = SHAPES[model];
  if (named) return named;
  const config = JSON.parse(readFileSync(model, 'utf8')) as Json;
  return { config, targets: ['qv'] };
}

const number = (config: Json, ...keys: readonly string[]): number =>
  Number(keys.map((k) => config[k]).find((v) => v !== undefined));

/**
 * Two operations a multiply-add. Every dense weight once forward and once for the gradient of its
 * input a token, and once more where it is trained; the head at labelled positions only; attention's
 * two products over half the square, and five backward, where the scores are computed again.
 */
function countFlops(
  model: CausalLM,
  config: Json,
  settings: StepSettings,
  labels: number,
  trained: ReadonlyMap<string, Tensor>,
): number {
  const { batch, seq, mode } = settings;
  const tokens = batch * seq;
  const layers = number(config, 'num_hidden_layers', 'n_layer');
  const width = number(config, 'hidden_size', 'n_embd');
  const heads = number(config, 'num_attention_heads', 'n_head');
  const headSize = Number(config.head_dim ?? width / heads);
  let dense = 0;
  for (const { path, layer } of denseLayers(model)) {
    if (path !== 'lm_head') dense += layer.inFeatures * layer.outFeatures;
  }
  let adapters = 0;
  if (mode === 'lora') for (const t of trained.values()) adapters += t.size;
  const passes = mode === 'full' ? 3 : 2;
  const head = width * number(config, 'vocab_size');
  const products = 2 * tokens * (passes * dense + 3 * adapters) + 2 * labels * passes * head;
  const attention = (2 + 5) * layers * 2 * batch * heads * headSize * ((seq * seq) / 2);
  return products + attention;
}

/** A model of a named shape, or of a config.json, with frozen random weights. */
export function frozenModel(model: string, dtype: 'f32' | 'bf16', backend: Backend): CausalLM {
  return buildCausalLM(shapeOf(model).config, randomSource(backend, 'lora', dtype));
}

/** Builds a model and what trains it. */
export function buildStep(settings: StepSettings, backend: Backend): StepWork {
  const { batch, seq, mode, rank, dtype, labelShare = 1 } = settings;
  const { checkpointing = false, activations = 'f32' } = settings;
  const { config, targets } = shapeOf(settings.model);
  const model = buildCausalLM(config, randomSource(backend, mode, dtype));
  const base = new Map(model.namedParameters());
  let trained: ReadonlyMap<string, Tensor> = base;
  if (mode === 'lora') {
    const adapters = new LoraAdapters(model).add('bench', { rank, targetModules: targets }, 1);
    trained = adapters.tensors('bench');
  } else for (const t of base.values()) setTrainable(t, true);
  const optimizer = new AdamW([{ parameters: trained }], { lr: 1e-4 });
  const vocab = number(config, 'vocab_size');
  const inputIds = Int32Array.from({ length: batch * seq }, (_, i) => (i * 7919) % vocab);
  const first = Math.floor(seq * (1 - labelShare));
  const labels = inputIds.map((id, i) => (i % seq < first ? -100 : id));
  const tokens: TokenBatch = { inputIds, labels, batch, length: seq };
  const labelled = batch * (seq - Math.max(1, first));
  const size = (tensors: Iterable<Tensor>) => [...tensors].reduce((n, t) => n + t.size, 0);
  // What building left over is no part of a step's memory.
  backend.trim();
  return {
    ...{ model, optimizer, batch: tokens },
    step: () => {
      const loss = scope(() => {
        const context = { seed: 1, step: 0, checkpoint: checkpointing, activations };
        const result = withTraining(context, () => model.loss(tokens).loss);
        backward(result);
        return result.item();
      });
      optimizer.update();
      optimizer.zeroGrad();
      return loss;
    },
    flops: countFlops(model, config, settings, labelled, trained),
    trainable: size(trained.values()),
    total: size(base.values()) + (mode === 'lora' ? size(trained.values()) : 0),
    dispose: () => {
      optimizer.dispose();
      model.dispose();
    },
  };
}
