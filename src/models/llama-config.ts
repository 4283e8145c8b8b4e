import { silu } from '../ops/index.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { readActivation } from './activations.js';
import { type ConfigReader, readConfig, refuseUnhandled } from './config.js';
import { type RopeFrequencies, readRope } from './rope.js';

/** The settings of config.json that shape a model of the Llama family. */
export interface LlamaConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly keyValueHeads: number;
  readonly headSize: number;
  readonly maxPositions: number;
  readonly normEps: number;
  readonly rope: RopeFrequencies;
  readonly tiedHead: boolean;
  /** Biases of the query, key and value layers. */
  readonly queryBias: boolean;
  /** A bias of the attention's output layer. */
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
  /** Of the MLP's gate. */
  readonly activation: (x: Tensor) => Tensor;
  /** RMS norms of queries and keys over the head size (Qwen3). */
  readonly headNorms: boolean;
  /** How many keys back each layer sees, itself included; 0 for all. */
  readonly windows: readonly number[];
  /** Dropout of the attention's probabilities while training. */
  readonly attentionDropout: number;
}

/** What differs between the members of the family, as transformers defaults it. */
interface Member {
  readonly keyValueHeads: number | null;
  readonly headSize: number | null;
  /** Whether heads without a `head_dim` must share the hidden size evenly. */
  readonly evenHeads?: true;
  readonly maxPositions: number;
  readonly biases: (c: ConfigReader) => Pick<LlamaConfig, 'queryBias' | 'outputBias' | 'mlpBias'>;
  readonly headNorms: boolean;
  readonly windows: (c: ConfigReader, layers: number) => number[];
}

const NO_BIAS = { queryBias: false, outputBias: false, mlpBias: false };

/** Whether an activation is SiLU, which the gate's product has a kernel for. */
export const isSilu = (activation: LlamaConfig['activation']) => activation === silu;

/** Windows of Qwen: only if switched on, by `layer_types` or from `max_window_layers` on. */
function qwenWindows(c: ConfigReader, layers: number): number[] {
  const given = c.countOrNull('sliding_window', 4096);
  const window = c.flag('use_sliding_window', false) ? given : null;
  const from = c.number('max_window_layers', 28);
  const types =
    c.texts('layer_types') ??
    Array.from({ length: layers }, (_, i) =>
      window !== null && i >= from ? 'sliding_attention' : 'full_attention',
    );
  c.check(
    types.length === layers &&
      types.every((t) => t === 'full_attention' || (t === 'sliding_attention' && window !== null)),
    'layer_types: full_attention or, with a sliding_window in use, sliding_attention a layer',
  );
  return types.map((t) => (t === 'sliding_attention' ? (window as number) : 0));
}

/** Refuses `layer_types` that are not this one, in a model whose layers are all alike. */
function onlyLayers(c: ConfigReader, type: string): void {
  const types = c.texts('layer_types') ?? [];
  c.check(
    types.every((t) => t === type),
    `layer_types: ${type} only`,
  );
}

const MEMBERS: Readonly<Record<string, Member>> = {
  llama: {
    keyValueHeads: null,
    headSize: null,
    evenHeads: true,
    maxPositions: 2048,
    biases: (c) => {
      const attention = c.flag('attention_bias', false);
      return {
        queryBias: attention,
        outputBias: attention,
        mlpBias: c.flag('mlp_bias', false),
      };
    },
    headNorms: false,
    windows: (c, layers) => {
      onlyLayers(c, 'full_attention');
      return Array.from({ length: layers }, () => 0);
    },
  },
  mistral: {
    keyValueHeads: 8,
    headSize: null,
    maxPositions: 131072,
    biases: () => NO_BIAS,
    headNorms: false,
    windows: (c, layers) => {
      const window = c.countOrNull('sliding_window', 4096) ?? 0;
      onlyLayers(c, window > 0 ? 'sliding_attention' : 'full_attention');
      return Array.from({ length: layers }, () => window);
    },
  },
  qwen2: {
    keyValueHeads: 32,
    headSize: null,
    maxPositions: 32768,
    biases: () => ({ ...NO_BIAS, queryBias: true }),
    headNorms: false,
    windows: qwenWindows,
  },
  qwen3: {
    keyValueHeads: 32,
    headSize: 128,
    maxPositions: 32768,
    biases: (c) => {
      const attention = c.flag('attention_bias', false);
      return { ...NO_BIAS, queryBias: attention, outputBias: attention };
    },
    headNorms: true,
    windows: qwenWindows,
  },
};

/** The values of `model_type` that belong to the family. */
export const LLAMA_FAMILY = Object.keys(MEMBERS);

/**
 * Reads Hugging Face's config.json of a `model_type` of the family.
 * @throws naming a field that is missing, or that changes the arithmetic in a way not handled
 */
export function llamaConfig(json: Readonly<Record<string, unknown>>): LlamaConfig {
  const type = String(json.model_type);
  const member = Object.hasOwn(MEMBERS, type) ? MEMBERS[type] : undefined;
  if (!member) throw failure('model_type', `one of ${LLAMA_FAMILY.join(', ')}`, `"${type}"`);
  const c = readConfig(json, type);
  refuseUnhandled(c);
  const hiddenSize = c.count('hidden_size');
  const heads = c.count('num_attention_heads');
  const keyValueHeads = c.countOrNull('num_key_value_heads', member.keyValueHeads) ?? heads;
  c.check(heads % keyValueHeads === 0, 'num_attention_heads a multiple of num_key_value_heads');
  c.check(
    !member.evenHeads || json.head_dim != null || hiddenSize % heads === 0,
    'hidden_size a multiple of num_attention_heads, or head_dim',
  );
  const headSize = c.count('head_dim', member.headSize ?? Math.floor(hiddenSize / heads));
  c.check(headSize % 2 === 0, 'an even head_dim');
  const layers = c.count('num_hidden_layers');
  const maxPositions = c.count('max_position_embeddings', member.maxPositions);
  const rope = readRope(c, headSize, maxPositions);
  const config: LlamaConfig = {
    vocabSize: c.count('vocab_size'),
    hiddenSize,
    intermediateSize: c.count('intermediate_size'),
    layers,
    heads,
    keyValueHeads,
    headSize,
    maxPositions: Math.max(maxPositions, rope.reach),
    normEps: c.number('rms_norm_eps', 1e-6),
    rope,
    tiedHead: c.flag('tie_word_embeddings', false),
    ...member.biases(c),
    activation: readActivation(c, 'hidden_act', 'silu'),
    headNorms: member.headNorms,
    windows: member.windows(c, layers),
    attentionDropout: c.dropout('attention_dropout', 0),
  };
  c.end();
  return config;
}

/**
 * Our name of a tensor of a checkpoint: one saved without its head lacks the prefix `model.`. Null
 * for the buffers of RoPE, which old ones hold, and for a tied head written a second time.
 */
export function llamaTensorName(
  name: string,
  config: Readonly<Record<string, unknown>>,
): string | null {
  if (name.endsWith('rotary_emb.inv_freq')) return null;
  if (name === 'lm_head.weight' && config.tie_word_embeddings === true) return null;
  return /^(embed_tokens|layers|norm)\./.test(name) ? `model.${name}` : name;
}
