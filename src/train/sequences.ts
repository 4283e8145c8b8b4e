import type { LabelledRecord } from '../io/labelled.js';
import { LengthSampler } from '../io/sampler.js';
import type { Tokenizer } from '../io/tokenizer.js';
import type { ProblemType, SequenceBatch } from '../models/classifier.js';
import { failure } from '../tensor/errors.js';
import { lengthWindow } from './data.js';
import type { LabelSpace } from './labels.js';
import type { BatchSource } from './trainer.js';

/** A text or pair of texts to classify, as tokens. */
export interface SequenceExample {
  readonly ids: Int32Array;
  /** Which text each token is of; left out where the model does not look at it. */
  readonly typeIds?: Int32Array;
  /** As {@link LabelSpace.encode} has them; left out where there is none. */
  readonly labels?: readonly number[];
}

/** What became of the records. */
export interface EncodedRecords {
  /** One for each record, in their order. */
  readonly examples: readonly SequenceExample[];
  readonly tokens: number;
  /** Values that count for the loss. */
  readonly targets: number;
  /** Examples that were longer than `maxLength`, and the tokens they lost. */
  readonly truncated: number;
  readonly truncatedTokens: number;
}

/** How records become sequences. */
export interface EncodeRecordsOptions {
  /** The most tokens of a sequence, special ones included. */
  readonly maxLength: number;
  /** Of BERT: whether the model tells the two texts of a pair apart by type. */
  readonly tokenTypes: boolean;
  /** Their file's name, for messages. */
  readonly file: string;
}

/**
 * Whether an encoder is given token types: as the tokenizer's `model_input_names` say, else as its
 * architecture's tokenizers do, BERT's but not RoBERTa's. Other models have none.
 */
export function givesTokenTypes(
  { model_type: type }: Readonly<Record<string, unknown>>,
  tokenizer: Tokenizer,
): boolean {
  if (type !== 'bert' && type !== 'roberta') return false;
  return tokenizer.givesTokenTypes ?? type === 'bert';
}

/**
 * Records as a classifier sees them: special tokens and pairs as the tokenizer's own template says,
 * the longer text cut first.
 * @throws with file:line on an unknown label, or a text without any token
 */
export function encodeRecords(
  records: readonly LabelledRecord[],
  tokenizer: Pick<Tokenizer, 'encodeSequence'>,
  space: LabelSpace,
  { maxLength, tokenTypes, file }: EncodeRecordsOptions,
): EncodedRecords {
  const counts = { tokens: 0, targets: 0, truncated: 0, truncatedTokens: 0 };
  const examples = records.map(({ text, pair, label, line }): SequenceExample => {
    const place = `${file}:${line}`;
    const { ids, typeIds, lost } = tokenizer.encodeSequence(text, pair ?? null, maxLength);
    if (ids.length === 0) throw failure(place, 'a text of one token or more', 'none');
    const labels = label === undefined ? undefined : space.encode(label, place);
    counts.tokens += ids.length;
    counts.targets += labels?.length ?? 0;
    counts.truncatedTokens += lost;
    if (lost > 0) counts.truncated++;
    return {
      ids: Int32Array.from(ids),
      ...(tokenTypes ? { typeIds: Int32Array.from(typeIds) } : {}),
      ...(labels ? { labels } : {}),
    };
  });
  return { examples, ...counts };
}

/** Puts sequences into one batch, padded on the right to the longest. */
export function collateSequences(
  examples: readonly SequenceExample[],
  padId: number,
  problem: ProblemType,
): SequenceBatch {
  const length = examples.reduce((n, e) => Math.max(n, e.ids.length), 0);
  if (length === 0) throw failure('collate', 'sequences with tokens', 'none');
  const batch = examples.length;
  const inputIds = new Int32Array(batch * length).fill(padId);
  const attentionMask = new Uint8Array(batch * length);
  const tokenTypeIds = new Int32Array(batch * length);
  examples.forEach((e, row) => {
    inputIds.set(e.ids, row * length);
    attentionMask.fill(1, row * length, row * length + e.ids.length);
    if (e.typeIds) tokenTypeIds.set(e.typeIds, row * length);
  });
  const values = examples.flatMap((e) => e.labels ?? []);
  const whole = problem === 'single_label_classification';
  const labels = whole ? Int32Array.from(values) : Float32Array.from(values);
  const typed = examples.some((e) => e.typeIds);
  return {
    ...{ inputIds, attentionMask, batch, length },
    ...(typed ? { tokenTypeIds } : {}),
    ...(examples.every((e) => e.labels) ? { labels } : {}),
  };
}

/** How sequences become batches. */
export interface SequenceBatchOptions {
  readonly batchSize: number;
  /** Micro-batches of a step. Default 1. */
  readonly accumulation?: number;
  readonly seed: number;
  readonly padId: number;
  readonly problemType: ProblemType;
}

/** Shuffled batches of sequences alike in length, each found from its number alone. */
export function sequenceSource(
  examples: readonly SequenceExample[],
  options: SequenceBatchOptions,
): BatchSource<SequenceBatch> {
  const { batchSize, accumulation = 1, seed, padId, problemType } = options;
  const window = lengthWindow(examples.length, batchSize);
  const lengths = examples.map((e) => e.ids.length);
  const sampler = new LengthSampler(lengths, { batchSize, seed, window });
  return {
    batch(step, micro) {
      const rows = sampler.at(step * accumulation + micro);
      const chosen = Array.from(rows, (i) => examples[i] as SequenceExample);
      return collateSequences(chosen, padId, problemType);
    },
  };
}

/** A batch, and the places of its rows in the data. */
export interface PlacedBatch {
  readonly batch: SequenceBatch;
  readonly rows: readonly number[];
}

/** Every sequence once, in batches of like lengths. */
export function placedBatches(
  examples: readonly SequenceExample[],
  options: Pick<SequenceBatchOptions, 'batchSize' | 'padId' | 'problemType'>,
): PlacedBatch[] {
  const { batchSize, padId, problemType } = options;
  const lengthOf = (i: number) => (examples[i] as SequenceExample).ids.length;
  const order = examples.map((_, i) => i).sort((a, b) => lengthOf(a) - lengthOf(b));
  const out: PlacedBatch[] = [];
  for (let from = 0; from < order.length; from += batchSize) {
    const rows = order.slice(from, from + batchSize);
    const chosen = rows.map((i) => examples[i] as SequenceExample);
    out.push({ rows, batch: collateSequences(chosen, padId, problemType) });
  }
  return out;
}
