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
import { add, attention, linear, reshape, rope, swiglu, writeInto } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import { tensor } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { type BodyInput, CausalLM, KvCache } from './causal-lm.js';
import { readConfig } from './config.js';

/** The settings of config.json that shape a Llama model. */
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
  readonly ropeTheta: number;
  readonly tiedHead: boolean;
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
}

/**
 * Reads Hugging Face's config.json of `model_type` llama.
 * @throws naming a field that is missing, or that changes the arithmetic in a way not handled
 */
export function llamaConfig(json: Readonly<Record<string, unknown>>): LlamaConfig {
  const c = readConfig(json, 'llama');
  c.only('hidden_act', ['silu']);
  c.only('attention_dropout', [0, undefined]);
  c.only('rope_scaling', [null, undefined]);
  const ropeParameters = c.object('rope_parameters');
  ropeParameters?.only('rope_type', ['default', undefined]);
  const hiddenSize = c.count('hidden_size');
  const heads = c.count('num_attention_heads');
  const keyValueHeads = c.count('num_key_value_heads', heads);
  c.check(heads % keyValueHeads === 0, 'num_attention_heads a multiple of num_key_value_heads');
  const headSize = c.count('head_dim', hiddenSize / heads);
  c.check(headSize % 2 === 0, 'an even head_dim');
  return {
    vocabSize: c.count('vocab_size'),
    hiddenSize,
    intermediateSize: c.count('intermediate_size'),
    layers: c.count('num_hidden_layers'),
    heads,
    keyValueHeads,
    headSize,
    maxPositions: c.count('max_position_embeddings', 2048),
    normEps: c.number('rms_norm_eps', 1e-6),
    ropeTheta: ropeParameters?.number('rope_theta', 10000) ?? c.number('rope_theta', 10000),
    tiedHead: c.flag('tie_word_embeddings', false),
    attentionBias: c.flag('attention_bias', false),
    mlpBias: c.flag('mlp_bias', false),
  };
}

/** What every layer of a forward pass shares. */
interface Pass extends BodyInput {
  readonly invFreq: Tensor;
}

class Attention extends Module {
  q_proj: Dense;
  k_proj: Dense;
  v_proj: Dense;
  o_proj: Dense;

  constructor(
    source: ParameterSource,
    name: string,
    readonly layer: number,
    private readonly config: LlamaConfig,
  ) {
    super();
    const { hiddenSize: C, heads: H, keyValueHeads: G, headSize: D, attentionBias } = config;
    this.q_proj = Linear.from(source, `${name}.q_proj`, H * D, C, attentionBias);
    this.k_proj = Linear.from(source, `${name}.k_proj`, G * D, C, attentionBias);
    this.v_proj = Linear.from(source, `${name}.v_proj`, G * D, C, attentionBias);
    this.o_proj = Linear.from(source, `${name}.o_proj`, C, H * D, attentionBias);
  }

  /** x [B, T, C] → [B, T, C] */
  forward(x: Tensor, { positions, invFreq, mask, cache }: Pass): Tensor {
    const [B, T] = x.shape as [number, number, number];
    const { heads: H, keyValueHeads: G, headSize: D } = this.config;
    const q = rope(reshape(this.q_proj.forward(x), [B, T, H, D]), positions, invFreq);
    let k = rope(reshape(this.k_proj.forward(x), [B, T, G, D]), positions, invFreq);
    let v = reshape(this.v_proj.forward(x), [B, T, G, D]);
    let keyLength = -1;
    if (cache) {
      const past = cache.length;
      writeInto(cache.keys[this.layer] as Tensor, k, [0, past, 0, 0]);
      writeInto(cache.values[this.layer] as Tensor, v, [0, past, 0, 0]);
      k = cache.keys[this.layer] as Tensor;
      v = cache.values[this.layer] as Tensor;
      keyLength = past + T;
    }
    const y = attention(q, k, v, { causal: true, keyLength, ...(mask ? { mask } : {}) });
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

/** The Llama architecture (Touvron et al., 2023), parameters named as Hugging Face names them. */
export class LlamaForCausalLM extends CausalLM {
  readonly model: Body;
  /** Null where the head is the embedding's table. */
  lm_head: Dense | null;
  /** [D/2], radians a position. */
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
    const { headSize: D, ropeTheta } = config;
    this.#invFreq = tensor(
      Float32Array.from({ length: D / 2 }, (_, i) => ropeTheta ** ((-2 * i) / D)),
      [D / 2],
      { backend: this.backend, purpose: 'frozen' },
    ).keep();
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

  protected body(input: BodyInput): Tensor {
    return this.model.forward({ ...input, invFreq: this.#invFreq });
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
