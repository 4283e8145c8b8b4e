import { scope } from '../autograd/index.js';
import {
  blockDType,
  type Dense,
  Embedding,
  gatedLayers,
  Linear,
  layerDType,
  Module,
  type ParameterSource,
  parameter,
  RMSNorm,
} from '../nn/index.js';
import { add, mul, reshape, rope } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import { tensor } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { activated } from './activations.js';
import { cachedAttention } from './attention.js';
import { blockPass } from './block-pass.js';
import { type BodyInput, CausalLM, KvCache, plainHead } from './causal-lm.js';
import { isSilu, type LlamaConfig } from './llama-config.js';
import { ScoreClassifier, type ScoreConfig } from './score.js';

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
      return rope(
        norm ? norm.forward(split, layerDType(split)) : split,
        positions,
        invFreq,
        turn.factor,
      );
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

  constructor(
    source: ParameterSource,
    name: string,
    private readonly config: LlamaConfig,
  ) {
    super();
    const { hiddenSize: C, intermediateSize: F, mlpBias } = config;
    this.gate_proj = Linear.from(source, `${name}.gate_proj`, F, C, mlpBias);
    this.up_proj = Linear.from(source, `${name}.up_proj`, F, C, mlpBias);
    this.down_proj = Linear.from(source, `${name}.down_proj`, C, F, mlpBias);
  }

  /** x [B, T, C] → [B, T, C] */
  forward(x: Tensor): Tensor {
    const { activation } = this.config;
    const { gate_proj: gate, up_proj: up } = this;
    const inner = isSilu(activation)
      ? gatedLayers(gate, up, x)
      : scope(() => mul(activated(gate, x, activation), up.forward(x)));
    return this.down_proj.forward(inner);
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
      // Scopes of their own: what one half computes on the way is gone before the other begins.
      const h = scope(() =>
        add(x, this.self_attn.forward(this.input_layernorm.forward(x, blockDType()), pass)),
      );
      return scope(() =>
        add(h, this.mlp.forward(this.post_attention_layernorm.forward(h, blockDType()))),
      );
    });
  }
}

/** Embeddings, layers and the last norm. */
class Body extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: Layer[];
  readonly norm: RMSNorm;
  #frequencies: (length: number) => Float32Array;
  /** [D/2], radians a position, of sequences up to `rope.fixedUpTo`. */
  #invFreq: Tensor | null = null;

  constructor(
    source: ParameterSource,
    private readonly config: LlamaConfig,
  ) {
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
    this.#frequencies = config.rope.frequencies;
  }

  get backend(): Backend {
    return this.norm.weight.backend;
  }

  /**
   * Turns queries and keys by these angles a position [D/2] from now on; by default the
   * configuration's. The last thing a model's constructor does: the tensor is none of the source's.
   */
  setFrequencies(frequencies: (length: number) => Float32Array = this.#frequencies): void {
    this.#frequencies = frequencies;
    this.#invFreq?.dispose();
    this.#invFreq = this.#angles(1).keep();
  }

  #angles(length: number): Tensor {
    const values = this.#frequencies(length);
    return tensor(values, [values.length], { backend: this.backend, purpose: 'frozen' });
  }

  forward(input: BodyInput): Tensor {
    const long = input.longest > this.config.rope.fixedUpTo;
    const invFreq = long ? this.#angles(input.longest) : (this.#invFreq as Tensor);
    let x = this.embed_tokens.forward(input.ids);
    const shared = { ...input, invFreq };
    for (const layer of this.layers) x = blockPass(x, shared, (h, pass) => layer.forward(h, pass));
    return this.norm.forward(x);
  }

  override dispose(): void {
    super.dispose();
    this.#invFreq?.dispose();
  }
}

/** Llama (Touvron et al., 2023) and its kin, parameters named as Hugging Face names them. */
export class LlamaForCausalLM extends CausalLM {
  readonly model: Body;
  /** Null where the head is the embedding's table. */
  lm_head: Dense | null;
  /** The base's table: a tied head stays what it is while an adapter has an embedding of its own. */
  readonly #table: Tensor;

  constructor(
    readonly config: LlamaConfig,
    source: ParameterSource,
  ) {
    super();
    this.model = new Body(source, config);
    this.#table = this.model.embed_tokens.weight;
    this.lm_head = config.tiedHead
      ? null
      : Linear.from(source, 'lm_head', config.vocabSize, config.hiddenSize);
    this.model.setFrequencies();
  }

  get backend(): Backend {
    return this.model.backend;
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get maxPositions(): number {
    return this.config.maxPositions;
  }

  /** Rotary angles have no table that ends. */
  override get positionLimit(): number {
    return Number.POSITIVE_INFINITY;
  }

  override get cacheablePositions(): number {
    return Math.min(this.maxPositions, this.config.rope.fixedUpTo);
  }

  protected body(input: BodyInput): Tensor {
    return this.model.forward(input);
  }

  protected head(hidden: Tensor): Tensor {
    return this.lm_head
      ? this.lm_head.forward(hidden)
      : this.model.embed_tokens.unembed(hidden, this.#table);
  }

  protected headWeight(): Tensor | null {
    return plainHead(this.lm_head, this.model.embed_tokens, this.#table);
  }

  makeCache(batch: number, positions: number): KvCache {
    const { layers, keyValueHeads, headSize } = this.config;
    return new KvCache(this.backend, layers, [batch, positions, keyValueHeads, headSize]);
  }
}

/** The same body with a head that scores sequences by their last token. */
export class LlamaForSequenceClassification extends ScoreClassifier {
  readonly model: Body;
  score: Dense;

  constructor(
    readonly config: LlamaConfig,
    scoring: ScoreConfig,
    source: ParameterSource,
  ) {
    super(scoring);
    this.model = new Body(source, config);
    this.score = Linear.from(source, 'score', scoring.labelCount, config.hiddenSize);
    this.model.setFrequencies();
  }

  get backend(): Backend {
    return this.model.backend;
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get maxPositions(): number {
    return this.config.maxPositions;
  }

  protected body(input: BodyInput): Tensor {
    return this.model.forward(input);
  }
}
