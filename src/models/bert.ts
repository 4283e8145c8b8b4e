import { scope } from '../autograd/index.js';
import {
  blockDType,
  type Dense,
  Embedding,
  LayerNorm,
  Linear,
  Module,
  type ParameterSource,
  parameter,
} from '../nn/index.js';
import { add, cast, reshape, tanh } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import { tensor } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { activated } from './activations.js';
import { layerDropout, modelAttention } from './attention.js';
import type { BertConfig } from './bert-config.js';
import { blockPass } from './block-pass.js';
import {
  firstTokens,
  type ProblemType,
  type SequenceBatch,
  SequenceClassifier,
} from './classifier.js';

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

/** The residual as the products of a block read it: rounded once for all of them where asked. */
function handedOn(x: Tensor): Tensor {
  const dtype = blockDType();
  return dtype === x.dtype ? x : cast(x, dtype);
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
    return this.output.forward(this.self.forward(handedOn(x), mask), x);
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
      const inner = activated(this.intermediate.dense, handedOn(h), this.config.activation);
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
