import { scope } from '../autograd/index.js';
import {
  type Dense,
  Embedding,
  Linear,
  Module,
  type ParameterSource,
  parameter,
  RMSNorm,
} from '../nn/index.js';
import { add, linear, reshape, rope, swiglu } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import { tensor } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { cachedAttention } from './attention.js';
import { type BodyInput, CausalLM, KvCache } from './causal-lm.js';
import { type ConfigReader, readConfig } from './config.js';
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
  readonly maxPositions: number;
  readonly biases: (c: ConfigReader) => Pick<LlamaConfig, 'queryBias' | 'outputBias' | 'mlpBias'>;
  readonly headNorms: boolean;
  readonly windows: (c: ConfigReader, layers: number) => number[];
}

const NO_BIAS = { queryBias: false, outputBias: false, mlpBias: false };

/** Windows of Qwen: only if switched on, by `layer_types` or from `max_window_layers` on. */
function qwenWindows(c: ConfigReader, layers: number): number[] {
  const window = c.flag('use_sliding_window', false) ? c.countOrNull('sliding_window', 4096) : null;
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

const MEMBERS: Readonly<Record<string, Member>> = {
  llama: {
    keyValueHeads: null,
    headSize: null,
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
      c.check(c.texts('layer_types') === undefined, 'no layer_types');
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
      c.check(c.texts('layer_types') === undefined, 'no layer_types');
      const window = c.countOrNull('sliding_window', 4096) ?? 0;
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
  c.only('hidden_act', ['silu', 'swish', undefined]);
  c.only('quantization_config', [null, undefined]);
  const hiddenSize = c.count('hidden_size');
  const heads = c.count('num_attention_heads');
  const keyValueHeads = c.countOrNull('num_key_value_heads', member.keyValueHeads) ?? heads;
  c.check(heads % keyValueHeads === 0, 'num_attention_heads a multiple of num_key_value_heads');
  const headSize = c.count('head_dim', member.headSize ?? hiddenSize / heads);
  c.check(headSize % 2 === 0, 'an even head_dim');
  const layers = c.count('num_hidden_layers');
  const maxPositions = c.count('max_position_embeddings', member.maxPositions);
  const rope = readRope(c, headSize, maxPositions);
  return {
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
    headNorms: member.headNorms,
    windows: member.windows(c, layers),
    attentionDropout: c.dropout('attention_dropout', 0),
  };
}

/** What every layer of a forward pass shares. */
interface Pass extends BodyInput {
  /** [D/2], radians a position. */
  readonly invFreq: Tensor;
}

class Attention extends Module {
  q_proj: Dense;
  k_proj: Dense;
  v_proj: Dense;
  o_proj: Dense;
  readonly q_norm: RMSNorm | null;
  readonly k_norm: RMSNorm | null;

  constructor(
    source: ParameterSource,
    private readonly name: string,
    readonly layer: number,
    private readonly config: LlamaConfig,
  ) {
    super();
    const { hiddenSize: C, heads: H, keyValueHeads: G, headSize: D, queryBias } = config;
    this.q_proj = Linear.from(source, `${name}.q_proj`, H * D, C, queryBias);
    this.k_proj = Linear.from(source, `${name}.k_proj`, G * D, C, queryBias);
    this.v_proj = Linear.from(source, `${name}.v_proj`, G * D, C, queryBias);
    this.o_proj = Linear.from(source, `${name}.o_proj`, C, H * D, config.outputBias);
    const norm = (n: string) =>
      config.headNorms
        ? new RMSNorm(parameter(source, `${name}.${n}.weight`, [D]), config.normEps)
        : null;
    this.q_norm = norm('q_norm');
    this.k_norm = norm('k_norm');
  }

  /** x [B, T, C] → [B, T, C] */
  forward(x: Tensor, { positions, invFreq, mask, cache }: Pass): Tensor {
    const [B, T] = x.shape as [number, number, number];
    const { heads: H, keyValueHeads: G, headSize: D, rope: turn } = this.config;
    const heads = (y: Tensor, n: number, norm: RMSNorm | null) => {
      const split = reshape(y, [B, T, n, D]);
      return rope(norm ? norm.forward(split) : split, positions, invFreq, turn.factor);
    };
    const q = heads(this.q_proj.forward(x), H, this.q_norm);
    const k = heads(this.k_proj.forward(x), G, this.k_norm);
    const v = reshape(this.v_proj.forward(x), [B, T, G, D]);
    const y = cachedAttention(q, k, v, cache, this.layer, {
      causal: true,
      window: this.config.windows[this.layer] ?? 0,
      mask,
      dropout: this.config.attentionDropout,
      name: this.name,
    });
    return this.o_proj.forward(reshape(y, [B, T, H * D]));
  }
}

class Mlp extends Module {
  gate_proj: Dense;
  up_proj: Dense;
  down_proj: Dense;

  constructor(source: ParameterSource, name: string, config: LlamaConfig) {
    super();
    const { hiddenSize: C, intermediateSize: F, mlpBias } = config;
    this.gate_proj = Linear.from(source, `${name}.gate_proj`, F, C, mlpBias);
    this.up_proj = Linear.from(source, `${name}.up_proj`, F, C, mlpBias);
    this.down_proj = Linear.from(source, `${name}.down_proj`, C, F, mlpBias);
  }

  /** x [B, T, C] → [B, T, C] */
  forward(x: Tensor): Tensor {
    return this.down_proj.forward(swiglu(this.gate_proj.forward(x), this.up_proj.forward(x)));
  }
}

class Layer extends Module {
  readonly input_layernorm: RMSNorm;
  readonly self_attn: Attention;
  readonly post_attention_layernorm: RMSNorm;
  readonly mlp: Mlp;

  constructor(source: ParameterSource, name: string, index: number, config: LlamaConfig) {
    super();
    const norm = (n: string) =>
      new RMSNorm(parameter(source, `${name}.${n}.weight`, [config.hiddenSize]), config.normEps);
    this.input_layernorm = norm('input_layernorm');
    this.self_attn = new Attention(source, `${name}.self_attn`, index, config);
    this.post_attention_layernorm = norm('post_attention_layernorm');
    this.mlp = new Mlp(source, `${name}.mlp`, config);
  }

  forward(x: Tensor, pass: Pass): Tensor {
    return scope(() => {
      const h = add(x, this.self_attn.forward(this.input_layernorm.forward(x), pass));
      return add(h, this.mlp.forward(this.post_attention_layernorm.forward(h)));
    });
  }
}

class Body extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: Layer[];
  readonly norm: RMSNorm;

  constructor(source: ParameterSource, config: LlamaConfig) {
    super();
    const { vocabSize, hiddenSize } = config;
    this.embed_tokens = new Embedding(
      parameter(source, 'model.embed_tokens.weight', [vocabSize, hiddenSize]),
    );
    this.layers = Array.from(
      { length: config.layers },
      (_, i) => new Layer(source, `model.layers.${i}`, i, config),
    );
    this.norm = new RMSNorm(parameter(source, 'model.norm.weight', [hiddenSize]), config.normEps);
  }

  forward(pass: Pass): Tensor {
    let x = this.embed_tokens.forward(pass.ids);
    for (const layer of this.layers) x = layer.forward(x, pass);
    return this.norm.forward(x);
  }
}

/** Llama (Touvron et al., 2023) and its kin, parameters named as Hugging Face names them. */
export class LlamaForCausalLM extends CausalLM {
  readonly model: Body;
  /** Null where the head is the embedding's table. */
  lm_head: Dense | null;
  /** [D/2], radians a position, of sequences up to `rope.fixedUpTo`. */
  readonly #invFreq: Tensor;

  constructor(
    readonly config: LlamaConfig,
    source: ParameterSource,
  ) {
    super();
    this.model = new Body(source, config);
    this.lm_head = config.tiedHead
      ? null
      : Linear.from(source, 'lm_head', config.vocabSize, config.hiddenSize);
    this.#invFreq = this.#frequencies(1).keep();
  }

  #frequencies(length: number): Tensor {
    const values = this.config.rope.frequencies(length);
    const { backend } = this;
    return tensor(values, [values.length], { backend, purpose: 'frozen' });
  }

  get backend(): Backend {
    return this.model.embed_tokens.weight.backend;
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get maxPositions(): number {
    return this.config.maxPositions;
  }

  override get cacheablePositions(): number {
    return Math.min(this.maxPositions, this.config.rope.fixedUpTo);
  }

  protected body(input: BodyInput): Tensor {
    const long = input.longest > this.config.rope.fixedUpTo;
    const invFreq = long ? this.#frequencies(input.longest) : this.#invFreq;
    return this.model.forward({ ...input, invFreq });
  }

  protected head(hidden: Tensor): Tensor {
    return this.lm_head
      ? this.lm_head.forward(hidden)
      : linear(hidden, this.model.embed_tokens.weight);
  }

  makeCache(batch: number, positions: number): KvCache {
    const { layers, keyValueHeads, headSize } = this.config;
    return new KvCache(this.backend, layers, [batch, positions, keyValueHeads, headSize]);
  }

  override dispose(): void {
    super.dispose();
    this.#invFreq.dispose();
  }
}
