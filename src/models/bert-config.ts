import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { readActivation } from './activations.js';
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
