import {
  type Batch,
  collate,
  type DataRecord,
  type Example,
  packExamples,
  type Tokenized,
  tokenizeRecords,
} from '../io/dataset.js';
import { BatchSampler, LengthSampler } from '../io/sampler.js';
import type { Tokenizer } from '../io/tokenizer.js';
import { failure, onlyKnown } from '../tensor/errors.js';
import type { BatchSource } from './trainer.js';

/** How records become batches. */
export interface DataOptions {
  /** The most tokens of a sequence. */
  readonly seqLength: number;
  /** Sequences of a micro-batch. */
  readonly batchSize: number;
  /** Micro-batches of a step. Default 1. */
  readonly accumulation?: number;
  readonly seed: number;
}

/** Examples ready for training, and the batches they make. */
export interface TrainingData extends BatchSource {
  readonly examples: readonly Example[];
  /** What the tokenizer made of the records; its counts say what was cut. */
  readonly tokenized: Tokenized;
  /** Steps of one pass over the examples. */
  readonly stepsPerEpoch: number;
}

const NO_PADDING_ID = 0;

const DEFAULT_SEQ_LENGTH = 512;

/**
 * The most tokens of a sequence: as asked for, by default 512 or the model's positions where they
 * are fewer.
 * @throws when the model has fewer positions than were asked for
 */
export function sequenceLength(asked: number | undefined, positions: number): number {
  if (asked === undefined) return Math.min(DEFAULT_SEQ_LENGTH, positions);
  if (asked > positions) {
    throw failure('seqLength', `at most the model's ${positions} positions`, String(asked));
  }
  return asked;
}

/** Whether records become packed sequences: all of them are plain texts. */
export function isPacked(records: readonly DataRecord[]): boolean {
  return records.every((r) => r.kind === 'text');
}

/**
 * The examples of some records. Plain texts are cut into full sequences of `seqLength` tokens end to
 * end (sequence packing); prompts with completions stay one a row.
 */
export function makeExamples(
  records: readonly DataRecord[],
  tokenizer: Tokenizer,
  seqLength: number,
): { examples: Example[]; tokenized: Tokenized } {
  const packed = isPacked(records);
  const longest = packed ? Number.MAX_SAFE_INTEGER : seqLength;
  const tokenized = tokenizeRecords(records, tokenizer, {
    maxLength: longest,
    eosId: tokenizer.eosId,
    bosId: tokenizer.addsBos ? tokenizer.bosId : null,
  });
  const { examples } = tokenized;
  return { examples: packed ? packExamples(examples, seqLength).examples : examples, tokenized };
}

/** The most batches that are sorted by length together. */
const MOST_GROUPED = 50;

/**
 * Batches that are sorted by length together, of so many examples: at least four such windows make
 * an epoch, so that the batches of two epochs differ.
 */
export function lengthWindow(examples: number, batchSize: number): number {
  return Math.max(1, Math.min(MOST_GROUPED, Math.floor(examples / (4 * batchSize))));
}

/**
 * Shuffled batches over records; those of prompts and completions are alike in length, which saves
 * padding (packed texts have none). Each is found from its number alone. */
export function trainingData(
  records: readonly DataRecord[],
  tokenizer: Tokenizer,
  options: DataOptions,
): TrainingData {
  onlyKnown('trainingData', options, ['seqLength', 'batchSize', 'accumulation', 'seed']);
  const { seqLength, batchSize, accumulation = 1, seed } = options;
  const { examples, tokenized } = makeExamples(records, tokenizer, seqLength);
  const lengths = examples.map((e) => e.ids.length);
  const window = lengthWindow(examples.length, batchSize);
  const sampler = isPacked(records)
    ? new BatchSampler(examples.length, { batchSize, seed })
    : new LengthSampler(lengths, { batchSize, seed, window });
  const padId = tokenizer.padId ?? NO_PADDING_ID;
  return {
    examples,
    tokenized,
    stepsPerEpoch: Math.ceil(sampler.batchesPerEpoch / accumulation),
    batch(step, micro) {
      const rows = sampler.at(step * accumulation + micro);
      return collate(
        Array.from(rows, (i) => examples[i] as Example),
        padId,
      );
    },
  };
}

/** Every example of some records once, in batches of like lengths. */
export function* evaluationBatches(
  records: readonly DataRecord[],
  tokenizer: Tokenizer,
  seqLength: number,
  batchSize: number,
): Generator<Batch> {
  const { examples } = makeExamples(records, tokenizer, seqLength);
  examples.sort((a, b) => a.ids.length - b.ids.length);
  for (let from = 0; from < examples.length; from += batchSize) {
    yield collate(examples.slice(from, from + batchSize), tokenizer.padId ?? NO_PADDING_ID);
  }
}
