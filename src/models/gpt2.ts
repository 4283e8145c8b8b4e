import { scope } from '../autograd/index.js';
import {
  blockDType,
  Conv1D,
  type Dense,
  Embedding,
  LayerNorm,
  Linear,
  Module,
  type ParameterSource,
  parameter,
} from '../nn/index.js';
import { add, reshape } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import type { Tensor } from '../tensor/tensor.js';
import { activated, readActivation } from './activations.js';
import { fusedHeads, layerDropout } from './attention.js';
import { blockPass } from './block-pass.js';
import { type BodyInput, CausalLM, KvCache, plainHead } from './causal-lm.js';
import { readConfig, refuseUnhandled } from './config.js';
import { ScoreClassifier, type ScoreConfig } from './score.js';

/** The settings of config.json that shape a GPT-2 model. */
export interface Gpt2Config {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly innerSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly maxPositions: number;
  readonly normEps: number;
  readonly activation: (x: Tensor) => Tensor;
  /** Factor of the attention scores, by layer. */
  readonly scales: readonly number[];
  readonly tiedHead: boolean;
  readonly embeddingDropout: number;
  readonly attentionDropout: number;
  readonly residualDropout: number;
}

/** Names that other models have for these settings, which transformers takes too. */
const ALIASES = {
  hidden_size: 'n_embd',
  max_position_embeddings: 'n_positions',
  num_attention_heads: 'n_head',
  num_hidden_layers: 'n_layer',
} as const;

/** Fields that old configurations have, or that other heads than these read. */
const NEUTRAL = [
  'n_ctx',
  // In f32 the order of scaling and product makes no difference but rounding.
  'reorder_and_upcast_attn',
  'summary_activation',
  'summary_first_dropout',
  'summary_proj_to_labels',
  'summary_type',
  'summary_use_proj',
];

function ownNames(json: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const rename = ALIASES as Readonly<Record<string, string>>;
  const known = Object.entries(json).map(([name, v]) => [rename[name] ?? name, v]);
  return Object.fromEntries(known);
}

/**
 * Reads Hugging Face's config.json of `model_type` gpt2.
 * @throws naming a field that is out of range or changes the arithmetic in a way not handled
 */
export function gpt2Config(json: Readonly<Record<string, unknown>>): Gpt2Config {
  const c = readConfig(ownNames(json), 'gpt2');
  refuseUnhandled(c);
  const hiddenSize = c.count('n_embd', 768);
  const heads = c.count('n_head', 12);
  c.check(hiddenSize % heads === 0, 'n_embd a multiple of n_head');
  const layers = c.count('n_layer', 12);
  const scale = c.flag('scale_attn_weights', true) ? 1 / Math.sqrt(hiddenSize / heads) : 1;
  const byLayer = c.flag('scale_attn_by_inverse_layer_idx', false);
  const config: Gpt2Config = {
    vocabSize: c.count('vocab_size', 50257),
    hiddenSize,
    innerSize: c.countOrNull('n_inner', null) ?? 4 * hiddenSize,
    layers,
    heads,
    maxPositions: c.count('n_positions', 1024),
    normEps: c.number('layer_norm_epsilon', 1e-5),
    activation: readActivation(c, 'activation_function', 'gelu_new'),
    scales: Array.from({ length: layers }, (_, i) => (byLayer ? scale / (i + 1) : scale)),
    tiedHead: c.flag('tie_word_embeddings', true),
    embeddingDropout: c.dropout('embd_pdrop', 0.1),
    attentionDropout: c.dropout('attn_pdrop', 0.1),
    residualDropout: c.dropout('resid_pdrop', 0.1),
  };
  c.end(NEUTRAL);
  return config;
}

/**
 * Our name of a tensor of a GPT-2 checkpoint: some lack the prefix `transformer.`; null for the
 * buffers of the causal mask, which old ones hold, and for a tied head written a second time.
 */
export function gpt2TensorName(
  name: string,
  config: Readonly<Record<string, unknown>>,
): string | null {
  if (/(^|\.)attn\.(masked_)?bias$/.test(name)) return null;
  if (name === 'lm_head.weight') return config.tie_word_embeddings === false ? name : null;
  if (name === 'score.weight') return name;
  return name.startsWith('transformer.') ? name : `transformer.${name}`;
}

function norm(source: ParameterSource, name: string, { hiddenSize, normEps }: Gpt2Config) {
  return new LayerNorm(
    parameter(source, `${name}.weight`, [hiddenSize]),
    parameter(source, `${name}.bias`, [hiddenSize]),
    normEps,
  );
}

class Attention extends Module {
  /** Queries, keys and values in one: [C] → [3·C]. */
  c_attn: Dense;
  c_proj: Dense;

  constructor(
    source: ParameterSource,
    private readonly name: string,
    private readonly layer: number,
    private readonly config: Gpt2Config,
  ) {
    super();
    const C = config.hiddenSize;
    this.c_attn = Conv1D.from(source, `${name}.c_attn`, 3 * C, C);
    this.c_proj = Conv1D.from(source, `${name}.c_proj`, C, C);
  }

  /** x [B, T, C] → [B, T, C] */
  forward(x: Tensor, { mask, cache }: BodyInput): Tensor {
    const [B, T, C] = x.shape as [number, number, number];
    const { heads: H, residualDropout, attentionDropout } = this.config;
    const fused = this.c_attn.forward(x);
    const y = fusedHeads(fused, H, cache, this.layer, {
      causal: true,
      scale: this.config.scales[this.layer] as number,
      mask,
      dropout: attentionDropout,
      name: this.name,
    });
    fused.dispose();
    const out = this.c_proj.forward(reshape(y, [B, T, C]));
    return layerDropout(out, residualDropout, `${this.name}.resid_dropout`);
  }
}

class Mlp extends Module {
  c_fc: Dense;
  c_proj: Dense;

  constructor(
    source: ParameterSource,
    private readonly name: string,
    private readonly config: Gpt2Config,
  ) {
    super();
    const { hiddenSize: C, innerSize: F } = config;
    this.c_fc = Conv1D.from(source, `${name}.c_fc`, F, C);
    this.c_proj = Conv1D.from(source, `${name}.c_proj`, C, F);
  }

  /** x [B, T, C] → [B, T, C] */
  forward(x: Tensor): Tensor {
    const { activation, residualDropout } = this.config;
    const inner = activated(this.c_fc, x, activation);
    const y = this.c_proj.forward(inner);
    return layerDropout(y, residualDropout, `${this.name}.dropout`);
  }
}

class Block extends Module {
  readonly ln_1: LayerNorm;
  readonly attn: Attention;
  readonly ln_2: LayerNorm;
  readonly mlp: Mlp;

  constructor(source: ParameterSource, name: string, layer: number, config: Gpt2Config) {
    super();
    this.ln_1 = norm(source, `${name}.ln_1`, config);
    this.attn = new Attention(source, `${name}.attn`, layer, config);
    this.ln_2 = norm(source, `${name}.ln_2`, config);
    this.mlp = new Mlp(source, `${name}.mlp`, config);
  }

  forward(x: Tensor, input: BodyInput): Tensor {
    return scope(() => {
      // Scopes of their own: what one half computes on the way is gone before the other begins.
      const h = scope(() => add(x, this.attn.forward(this.ln_1.forward(x, blockDType()), input)));
      return scope(() => add(h, this.mlp.forward(this.ln_2.forward(h, blockDType()))));
    });
  }
}

class Transformer extends Module {
  readonly wte: Embedding;
  readonly wpe: Embedding;
  readonly h: Block[];
  readonly ln_f: LayerNorm;

  constructor(
    source: ParameterSource,
    private readonly config: Gpt2Config,
  ) {
    super();
    const { vocabSize, maxPositions, hiddenSize: C } = config;
    this.wte = new Embedding(parameter(source, 'transformer.wte.weight', [vocabSize, C]));
    this.wpe = new Embedding(parameter(source, 'transformer.wpe.weight', [maxPositions, C]));
    this.h = Array.from(
      { length: config.layers },
      (_, i) => new Block(source, `transformer.h.${i}`, i, config),
    );
    this.ln_f = norm(source, 'transformer.ln_f', config);
  }

  forward(input: BodyInput): Tensor {
    const sum = scope(() => add(this.wte.forward(input.ids), this.wpe.forward(input.positions)));
    let x = layerDropout(sum, this.config.embeddingDropout, 'transformer.drop');
    for (const block of this.h) x = blockPass(x, input, (h, pass) => block.forward(h, pass));
    return this.ln_f.forward(x);
  }
}

/** GPT-2 (Radford et al., 2019), parameters named as Hugging Face names them. */
export class Gpt2LMHeadModel extends CausalLM {
  readonly transformer: Transformer;
  /** Null where the head is the embedding's table. */
  lm_head: Dense | null;
  /** The base's table: a tied head stays what it is while an adapter has an embedding of its own. */
  readonly #table: Tensor;

  constructor(
    readonly config: Gpt2Config,
    source: ParameterSource,
  ) {
    super();
    this.transformer = new Transformer(source, config);
    this.#table = this.transformer.wte.weight;
    this.lm_head = config.tiedHead
      ? null
      : Linear.from(source, 'lm_head', config.vocabSize, config.hiddenSize);
  }

  get backend(): Backend {
    return this.transformer.ln_f.weight.backend;
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get maxPositions(): number {
    return this.config.maxPositions;
  }

  protected body(input: BodyInput): Tensor {
    return this.transformer.forward(input);
  }

  protected head(hidden: Tensor): Tensor {
    return this.lm_head
      ? this.lm_head.forward(hidden)
      : this.transformer.wte.unembed(hidden, this.#table);
  }

  protected headWeight(): Tensor | null {
    return plainHead(this.lm_head, this.transformer.wte, this.#table);
  }

  makeCache(batch: number, positions: number): KvCache {
    const { layers, heads, hiddenSize } = this.config;
    return new KvCache(this.backend, layers, [batch, positions, heads, hiddenSize / heads]);
  }
}

/** The same body with a head that scores sequences by their last token. */
export class Gpt2ForSequenceClassification extends ScoreClassifier {
  readonly transformer: Transformer;
  score: Dense;

  constructor(
    readonly config: Gpt2Config,
    scoring: ScoreConfig,
    source: ParameterSource,
  ) {
    super(scoring);
    this.transformer = new Transformer(source, config);
    this.score = Linear.from(source, 'score', scoring.labelCount, config.hiddenSize);
  }

  get backend(): Backend {
    return this.transformer.ln_f.weight.backend;
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get maxPositions(): number {
    return this.config.maxPositions;
  }

  protected body(input: BodyInput): Tensor {
    return this.transformer.forward(input);
  }
}
