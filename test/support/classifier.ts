/** Tiny random encoders with their tokenizers, and tasks that they can learn, for tests. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildModel } from '../../src/models/load.js';
import { saveModel } from '../../src/models/save.js';
import type { ParameterSource } from '../../src/nn/index.js';
import type { Backend } from '../../src/tensor/backend.js';
import { tensor } from '../../src/tensor/create.js';
import { normal, streamOf } from '../../src/tensor/random.js';
import { getBackend } from '../../src/tensor/registry.js';
import { numel } from '../../src/tensor/shape.js';
import type { Tensor } from '../../src/tensor/tensor.js';

export type EncoderType = 'bert' | 'roberta';

const WORDS = [
  ...['the', 'a', 'film', 'was', 'is', 'very', 'so', 'it', 'all', 'plot'],
  ...['good', 'great', 'fine', 'bad', 'awful', 'poor'],
];

const SPECIAL: Readonly<Record<EncoderType, readonly string[]>> = {
  bert: ['[PAD]', '[UNK]', '[CLS]', '[SEP]'],
  roberta: ['<s>', '<pad>', '</s>', '<unk>'],
};

/** What a tiny encoder is. */
export interface TinyEncoder {
  readonly type: EncoderType;
  /** Labels of a head for sequences; left out, the checkpoint has that of a masked model. */
  readonly labels?: readonly string[];
  /** Of config.json. */
  readonly more?: Readonly<Record<string, unknown>>;
  /** Tensors whose names begin with this are left out. */
  readonly without?: string;
}

export function encoderConfig({ type, labels, more }: TinyEncoder): Record<string, unknown> {
  const bert = type === 'bert';
  const family = bert ? 'Bert' : 'Roberta';
  return {
    architectures: [`${family}${labels ? 'ForSequenceClassification' : 'ForMaskedLM'}`],
    model_type: type,
    hidden_size: 16,
    num_attention_heads: 2,
    num_hidden_layers: 1,
    intermediate_size: 24,
    vocab_size: SPECIAL[type].length + WORDS.length,
    max_position_embeddings: bert ? 24 : 26,
    type_vocab_size: bert ? 2 : 1,
    pad_token_id: bert ? 0 : 1,
    hidden_dropout_prob: 0,
    attention_probs_dropout_prob: 0,
    initializer_range: 0.02,
    ...(labels
      ? {
          id2label: Object.fromEntries(labels.map((name, i) => [i, name])),
          label2id: Object.fromEntries(labels.map((name, i) => [name, i])),
        }
      : {}),
    ...more,
  };
}

/** The contents of tokenizer.json: one token a word. */
export function tokenizerJson(type: EncoderType): Record<string, unknown> {
  const special = SPECIAL[type];
  const vocab = Object.fromEntries([...special, ...WORDS].map((token, id) => [token, id]));
  const unk = type === 'bert' ? '[UNK]' : '<unk>';
  return {
    version: '1.0',
    added_tokens: special.map((content, id) => ({
      ...{ id, content, special: true, single_word: false },
      ...{ lstrip: false, rstrip: false, normalized: false },
    })),
    normalizer: null,
    pre_tokenizer: { type: 'Whitespace' },
    post_processor:
      type === 'bert'
        ? { type: 'BertProcessing', cls: ['[CLS]', 2], sep: ['[SEP]', 3] }
        : {
            type: 'RobertaProcessing',
            ...{ cls: ['<s>', 0], sep: ['</s>', 2], trim_offsets: true, add_prefix_space: false },
          },
    decoder: null,
    model: { type: 'WordLevel', vocab, unk_token: unk },
  };
}

/** Random parameters large enough that a tiny frozen body says something. */
function source(backend: Backend): ParameterSource {
  return (name, shape) => {
    const norm = name.includes('LayerNorm') && name.endsWith('.weight');
    const size = name.endsWith('.bias') ? 0.02 : norm ? 0.1 : 0.3;
    const values = normal({ seed: 5, stream: streamOf(name) }, numel(shape));
    return tensor(
      values.map((z) => (norm ? 1 : 0) + size * z),
      shape,
      { backend, purpose: 'frozen' },
    );
  };
}

/** Writes a model directory of a tiny encoder, as transformers writes one. */
export function writeEncoder(dir: string, made: TinyEncoder): string {
  const { type, labels, without } = made;
  const backend = getBackend('reference');
  const config = encoderConfig(made);
  const family = type === 'bert' ? 'Bert' : 'Roberta';
  const built = { ...config, architectures: [`${family}ForSequenceClassification`] };
  const model = buildModel(built, source(backend));
  const extra = labels ? [] : [tensor(new Float32Array(16), [16], { backend }).keep()];
  try {
    const tensors = new Map<string, Tensor>();
    for (const [name, t] of model.namedParameters()) {
      const left =
        (!labels && name.startsWith('classifier.')) || (without && name.startsWith(without));
      if (!left) tensors.set(name, t);
    }
    const head = type === 'bert' ? 'cls.predictions.transform.dense.bias' : 'lm_head.dense.bias';
    for (const t of extra) tensors.set(head, t);
    mkdirSync(dir, { recursive: true });
    writeFileSync(join(dir, 'tokenizer.json'), JSON.stringify(tokenizerJson(type)));
    const [pad, unk] = type === 'bert' ? ['[PAD]', '[UNK]'] : ['<pad>', '<unk>'];
    const settings = { pad_token: pad, unk_token: unk };
    writeFileSync(join(dir, 'tokenizer_config.json'), JSON.stringify(settings));
    saveModel(dir, { tensors, config, tokenizerDir: dir, dtype: 'f32' });
  } finally {
    model.dispose();
    for (const t of extra) t.dispose();
  }
  return dir;
}

const GOOD = ['good', 'great', 'fine'];
const BAD = ['bad', 'awful', 'poor'];
const PLAIN = WORDS.slice(0, 10);

/** The words of one sentence: good or bad as `good` says, of 2 to 7 words. */
function sentence(i: number, good: boolean): string {
  const pick = (list: readonly string[], k: number) => list[k % list.length] as string;
  const words = Array.from({ length: 1 + ((i * 7) % 6) }, (_, k) => pick(PLAIN, i * 3 + k * 5));
  words.splice(i % (words.length + 1), 0, pick(good ? GOOD : BAD, i));
  return words.join(' ');
}

/** Sentences whose label is whether their one word of judgement is a good one. */
export function sentiments(count: number, from = 0): { sentence: string; label: string }[] {
  return Array.from({ length: count }, (_, k) => {
    const good = (((from + k) * 2654435761) >>> 7) % 2 === 0;
    return { sentence: sentence(from + k, good), label: good ? 'positive' : 'negative' };
  });
}

/** Pairs whose label is 1 where the second text is a good one, whatever the first says. */
export function judgements(count: number, from = 0) {
  return Array.from({ length: count }, (_, k) => {
    const good = (((from + k) * 2654435761) >>> 7) % 2 === 0;
    const first = sentence(from + k + 5, k % 3 === 0);
    return { premise: first, hypothesis: sentence(from + k, good), label: good ? 1 : 0 };
  });
}
