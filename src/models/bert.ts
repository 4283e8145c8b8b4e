import { scope } from '../autograd/index.js';
import {
  type Dense,
  Embedding,
  LayerNorm,
  Linear,
  Module,
  type ParameterSource,
  parameter,
} from '../nn/index.js';
import { add, reshape, tanh } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import { tensor } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { readActivation } from './activations.js';
import { layerDropout, modelAttention } from './attention.js';
import { blockPass } from './block-pass.js';
import {
  firstTokens,
  type ProblemType,
  type SequenceBatch,
  SequenceClassifier,
} from './classifier.js';
import { readConfig, refuseUnhandled } from './config.js';
import { type LabelConfig, readLabels } from './score.js';

/** The settings of config.json that shape a BERT or RoBERTa classifier. */
export interface BertConfig extends LabelConfig {
  readonly modelType: 'bert' | 'roberta';
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layers: number;
  readonly heads: number;
  /** Rows of the table of positions. */
  readonly positions: number;
  readonly tokenTypes: number;
  readonly normEps: number;
  readonly activation: (x: Tensor) => Tensor;
  /** The id of padding; RoBERTa counts positions over all others. */
  readonly padId: number;
  readonly hiddenDropout: number;
  readonly attentionDropout: number;
  readonly classifierDropout: number;
}

const ROBERTA_PAD = 1;

/** Fields of Google's checkpoints that nothing reads, and the tie of a head that is not ours. */
const NEUTRAL = [
  'directionality',
  'pooler_fc_size',
  'pooler_num_attention_heads',
  'pooler_num_fc_layers',
  'pooler_size_per_head',
  'pooler_type',
  'tie_word_embeddings',
];

/**
 * Reads Hugging Face's config.json of `model_type` bert or roberta, as a classifier.
 * @throws naming a field that is missing, or that changes the arithmetic in a way not handled
 */
export function bertConfig(json: Readonly<Record<string, unknown>>): BertConfig {
  const modelType = json.model_type;
  if (modelType !== 'bert' && modelType !== 'roberta') {
    throw failure('model_type', 'bert or roberta', `"${modelType}"`);
  }
  const c = readConfig(json, modelType);
  const suffix = 'ForSequenceClassification';
  const architectures = c.texts('architectures') ?? [`…${suffix}`];
  c.check(
    architectures.every((a) => a.endsWith(suffix)),
    `architectures: one that ends with ${suffix} (give labels for a new head)`,
  );
  c.only('position_embedding_type', ['absolute', null, undefined]);
  refuseUnhandled(c);
  const hiddenSize = c.count('hidden_size', 768);
  const heads = c.count('num_attention_heads', 12);
  c.check(hiddenSize % heads === 0, 'hidden_size a multiple of num_attention_heads');
  const roberta = modelType === 'roberta';
  const hiddenDropout = c.dropout('hidden_dropout_prob', 0.1);
  const config: BertConfig = {
    modelType,
    vocabSize: c.count('vocab_size', roberta ? 50265 : 30522),
    hiddenSize,
    intermediateSize: c.count('intermediate_size', 3072),
    layers: c.count('num_hidden_layers', 12),
    heads,
    positions: c.count('max_position_embeddings', 512),
    tokenTypes: c.count('type_vocab_size', 2),
    normEps: c.number('layer_norm_eps', 1e-12),
    activation: readActivation(c, 'hidden_act', 'gelu'),
    padId: c.optionalNumber('pad_token_id') ?? (roberta ? ROBERTA_PAD : 0),
    ...readLabels(c),
    hiddenDropout,
    attentionDropout: c.dropout('attention_probs_dropout_prob', 0.1),
    classifierDropout: c.dropout('classifier_dropout', hiddenDropout),
  };
  c.end(NEUTRAL);
  return config;
}

/** Heads that other models of the family have. */
const OTHER_HEADS = ['cls.', 'lm_head.', 'qa_outputs.'];

/**
 * Our name of a tensor of a checkpoint; null for one that a classifier does not use: the buffers of
 * positions and types, RoBERTa's pooler, and the heads of other models.
 */
export function bertTensorName(
  name: string,
  config: Readonly<Record<string, unknown>>,
): string | null {
  const type = String(config.model_type);
  // A checkpoint of the body alone has no prefix.
  const full = /^(embeddings|encoder|pooler)\./.test(name) ? `${type}.${name}` : name;
  if (/\.embeddings\.(position|token_type)_ids$/.test(full)) return null;
  if (type === 'roberta' && full.startsWith('roberta.pooler.')) return null;
  if (OTHER_HEADS.some((head) => full.startsWith(head))) return null;
  // The oldest checkpoints have TensorFlow's names for the norms.
  return full
    .replace(/\.LayerNorm\.gamma$/, '.LayerNorm.weight')
    .replace(/\.LayerNorm\.beta$/, '.LayerNorm.bias');
}

function norm(source: ParameterSource, name: string, { hiddenSize, normEps }: BertConfig) {
  return new LayerNorm(
    parameter(source, `${name}.weight`, [hiddenSize]),
    parameter(source, `${name}.bias`, [hiddenSize]),
    normEps,
  );
}

/** What every part of a forward pass shares. */
interface Pass {
  readonly ids: Tensor;
  readonly positions: Tensor;
  readonly tokenTypes: Tensor;
  readonly mask: Tensor | null;
}

class Embeddings extends Module {
  readonly word_embeddings: Embedding;
  readonly position_embeddings: Embedding;
  readonly token_type_embeddings: Embedding;
  readonly LayerNorm: LayerNorm;

  constructor(
    source: ParameterSource,
    private readonly name: string,
    private readonly config: BertConfig,
  ) {
    super();
    const table = (part: string, rows: number) =>
      new Embedding(parameter(source, `${name}.${part}.weight`, [rows, config.hiddenSize]));
    this.word_embeddings = table('word_embeddings', config.vocabSize);
    this.position_embeddings = table('position_embeddings', config.positions);
    this.token_type_embeddings = table('token_type_embeddings', config.tokenTypes);
    this.LayerNorm = norm(source, `${name}.LayerNorm`, config);
  }

  forward({ ids, positions, tokenTypes }: Pass): Tensor {
    const words = this.word_embeddings.forward(ids);
    const typed = add(words, this.token_type_embeddings.forward(tokenTypes));
    const all = add(typed, this.position_embeddings.forward(positions));
    return layerDropout(this.LayerNorm.forward(all), this.config.hiddenDropout, this.name);
  }
}

class SelfAttention extends Module {
  query: Dense;
  key: Dense;
  value: Dense;

  constructor(
    source: ParameterSource,
    private readonly name: string,
    private readonly config: BertConfig,
  ) {
    super();
    const C = config.hiddenSize;
    this.query = Linear.from(source, `${name}.query`, C, C, true);
    this.key = Linear.from(source, `${name}.key`, C, C, true);
    this.value = Linear.from(source, `${name}.value`, C, C, true);
  }

  /** x [B, T, C] → [B, T, C] */
  forward(x: Tensor, mask: Tensor | null): Tensor {
    const [B, T, C] = x.shape as [number, number, number];
    const { heads: H, attentionDropout } = this.config;
    const split = (layer: Dense) => reshape(layer.forward(x), [B, T, H, C / H]);
    const y = modelAttention(split(this.query), split(this.key), split(this.value), {
      causal: false,
      mask,
      dropout: attentionDropout,
      name: this.name,
    });
    return reshape(y, [B, T, C]);
  }
}

/** A dense layer, dropout, the residual and a norm after it. */
class Output extends Module {
  dense: Dense;
  readonly LayerNorm: LayerNorm;

  constructor(
    source: ParameterSource,
    private readonly name: string,
    inFeatures: number,
    private readonly config: BertConfig,
  ) {
    super();
    this.dense = Linear.from(source, `${name}.dense`, config.hiddenSize, inFeatures, true);
    this.LayerNorm = norm(source, `${name}.LayerNorm`, config);
  }

  forward(x: Tensor, residual: Tensor): Tensor {
    const y = layerDropout(this.dense.forward(x), this.config.hiddenDropout, this.name);
    return this.LayerNorm.forward(add(y, residual));
  }
}

class AttentionBlock extends Module {
  readonly self: SelfAttention;
  readonly output: Output;

  constructor(source: ParameterSource, name: string, config: BertConfig) {
    super();
    this.self = new SelfAttention(source, `${name}.self`, config);
    this.output = new Output(source, `${name}.output`, config.hiddenSize, config);
  }

  forward(x: Tensor, mask: Tensor | null): Tensor {
    return this.output.forward(this.self.forward(x, mask), x);
  }
}

/** A part that holds one dense layer under its name in the checkpoint. */
class Inner extends Module {
  dense: Dense;

  constructor(source: ParameterSource, name: string, outFeatures: number, inFeatures: number) {
    super();
    this.dense = Linear.from(source, `${name}.dense`, outFeatures, inFeatures, true);
  }
}

class Layer extends Module {
  readonly attention: AttentionBlock;
  readonly intermediate: Inner;
  readonly output: Output;

  constructor(
    source: ParameterSource,
    name: string,
    private readonly config: BertConfig,
  ) {
    super();
    const { hiddenSize: C, intermediateSize: F } = config;
    this.attention = new AttentionBlock(source, `${name}.attention`, config);
    this.intermediate = new Inner(source, `${name}.intermediate`, F, C);
    this.output = new Output(source, `${name}.output`, F, config);
  }

  forward(x: Tensor, mask: Tensor | null): Tensor {
    return scope(() => {
      const h = scope(() => this.attention.forward(x, mask));
      const inner = scope(() => this.config.activation(this.intermediate.dense.forward(h)));
      return this.output.forward(inner, h);
    });
  }
}

class Encoder extends Module {
  readonly layer: Layer[];

  constructor(source: ParameterSource, name: string, config: BertConfig) {
    super();
    this.layer = Array.from(
      { length: config.layers },
      (_, i) => new Layer(source, `${name}.layer.${i}`, config),
    );
  }
}

/** Embeddings and encoder, and for BERT the pooler: a dense layer and tanh on the first token. */
class Body extends Module {
  readonly embeddings: Embeddings;
  readonly encoder: Encoder;
  readonly pooler: Inner | null;

  constructor(source: ParameterSource, name: string, config: BertConfig) {
    super();
    const C = config.hiddenSize;
    this.embeddings = new Embeddings(source, `${name}.embeddings`, config);
    this.encoder = new Encoder(source, `${name}.encoder`, config);
    this.pooler = config.modelType === 'bert' ? new Inner(source, `${name}.pooler`, C, C) : null;
  }

  /** [B, C], of the first token. */
  forward(pass: Pass): Tensor {
    let x = this.embeddings.forward(pass);
    const shared = { mask: pass.mask };
    for (const layer of this.encoder.layer) {
      x = blockPass(x, shared, (h, { mask }) => layer.forward(h, mask));
    }
    const firsts = firstTokens(x);
    return this.pooler ? tanh(this.pooler.dense.forward(firsts)) : firsts;
  }
}

/** RoBERTa's head: dropout, dense, tanh, dropout, out_proj. */
class RobertaHead extends Module {
  dense: Dense;
  out_proj: Dense;

  constructor(
    source: ParameterSource,
    private readonly config: BertConfig,
  ) {
    super();
    const { hiddenSize: C, labelCount } = config;
    this.dense = Linear.from(source, 'classifier.dense', C, C, true);
    this.out_proj = Linear.from(source, 'classifier.out_proj', labelCount, C, true);
  }

  /** x [B, C] → [B, L] */
  forward(x: Tensor): Tensor {
    const drop = (y: Tensor, name: string) => layerDropout(y, this.config.classifierDropout, name);
    const h = tanh(this.dense.forward(drop(x, 'classifier.dropout.0')));
    return this.out_proj.forward(drop(h, 'classifier.dropout.1'));
  }
}

/** What both classifiers share; they differ in names and head. */
abstract class EncoderClassifier extends SequenceClassifier {
  protected abstract encoder(): Body;
  protected abstract answer(pooled: Tensor): Tensor;
  abstract readonly config: BertConfig;

  get backend(): Backend {
    return this.encoder().embeddings.LayerNorm.weight.backend;
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get labelCount(): number {
    return this.config.labelCount;
  }

  get problemType(): ProblemType | null {
    return this.config.problemType;
  }

  get maxPositions(): number {
    const { positions, modelType, padId } = this.config;
    return modelType === 'roberta' ? positions - padId - 1 : positions;
  }

  /** BERT's positions are places; RoBERTa counts the tokens that are not padding, from padId + 1. */
  #positions({ inputIds, batch: B, length: T }: SequenceBatch): Int32Array {
    const { modelType, padId } = this.config;
    const out = new Int32Array(B * T);
    for (let b = 0; b < B; b++) {
      let count = 0;
      for (let t = 0; t < T; t++) {
        const pad = inputIds[b * T + t] === padId;
        if (!pad) count++;
        out[b * T + t] = modelType === 'bert' ? t : pad ? padId : padId + count;
      }
    }
    return out;
  }

  protected scores(batch: SequenceBatch): Tensor {
    const { batch: B, length: T, attentionMask, tokenTypeIds, inputIds } = batch;
    const { backend } = this;
    const types = tokenTypeIds ?? new Int32Array(B * T);
    const wrong = types.find((t) => t < 0 || t >= this.config.tokenTypes);
    if (wrong !== undefined) {
      throw failure('model', `token types of 0…${this.config.tokenTypes - 1}`, String(wrong));
    }
    const integers = (values: Int32Array) => tensor(values, [B, T], { backend, dtype: 'i32' });
    const mask = attentionMask?.includes(0)
      ? tensor(attentionMask, [B, T], { backend, dtype: 'u8' })
      : null;
    const pooled = this.encoder().forward({
      ids: integers(inputIds),
      positions: integers(this.#positions(batch)),
      tokenTypes: integers(types),
      mask,
    });
    return this.answer(pooled);
  }
}

/** BERT (Devlin et al., 2018) with a head for sequences, named as Hugging Face names it. */
export class BertForSequenceClassification extends EncoderClassifier {
  readonly bert: Body;
  classifier: Dense;

  constructor(
    readonly config: BertConfig,
    source: ParameterSource,
  ) {
    super();
    this.bert = new Body(source, 'bert', config);
    const { labelCount, hiddenSize } = config;
    this.classifier = Linear.from(source, 'classifier', labelCount, hiddenSize, true);
  }

  protected encoder(): Body {
    return this.bert;
  }

  protected answer(pooled: Tensor): Tensor {
    const { classifierDropout } = this.config;
    return this.classifier.forward(layerDropout(pooled, classifierDropout, 'dropout'));
  }
}

/** RoBERTa (Liu et al., 2019) with a head for sequences, named as Hugging Face names it. */
export class RobertaForSequenceClassification extends EncoderClassifier {
  readonly roberta: Body;
  readonly classifier: RobertaHead;

  constructor(
    readonly config: BertConfig,
    source: ParameterSource,
  ) {
    super();
    this.roberta = new Body(source, 'roberta', config);
    this.classifier = new RobertaHead(source, config);
  }

  protected encoder(): Body {
    return this.roberta;
  }

  protected answer(pooled: Tensor): Tensor {
    return this.classifier.forward(pooled);
  }
}
