import { noGrad, scope } from '../autograd/index.js';
import { Module } from '../nn/index.js';
import { concat, crossEntropy, embedding, mul, reshape, scale, sub, sum } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import { tensor, zeros } from '../tensor/create.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { LossResult } from './causal-lm.js';

/** Sequences to classify, padded to one length; row-major [B, T]. */
export interface SequenceBatch {
  readonly inputIds: Int32Array;
  /** 1 where a token counts, 0 at padding; default all 1. */
  readonly attentionMask?: Uint8Array;
  /** Which part of a pair of texts each token is of; default all 0. */
  readonly tokenTypeIds?: Int32Array;
  /** [B] classes for one label a sequence; else [B, L]: 0 or 1 a label, or values to meet. */
  readonly labels?: Int32Array | Float32Array;
  readonly batch: number;
  readonly length: number;
}

/** What the labels of a classifier are; Hugging Face's names. */
export type ProblemType =
  | 'single_label_classification'
  | 'multi_label_classification'
  | 'regression';

export const PROBLEM_TYPES: readonly ProblemType[] = [
  'single_label_classification',
  'multi_label_classification',
  'regression',
];

/** A model that answers one row of scores a sequence. */
export abstract class SequenceClassifier extends Module {
  abstract readonly backend: Backend;
  abstract readonly vocabSize: number;
  /** The most tokens of a sequence. */
  abstract readonly maxPositions: number;
  abstract readonly labelCount: number;
  /** Null: regression with one label; else one class for whole-number labels, several for others. */
  abstract readonly problemType: ProblemType | null;
  /** PEFT's name of what it is for. */
  readonly peftTask = 'SEQ_CLS';

  /** Scores [B, L]. */
  protected abstract scores(batch: SequenceBatch): Tensor;

  /** Scores [B, L] before any softmax. */
  logits(batch: SequenceBatch): Tensor {
    checkSequences(batch, this.vocabSize, this.maxPositions);
    return scope(() => this.scores(batch));
  }

  /** Scores as plain numbers, a list a sequence, without a graph. */
  predict(batch: SequenceBatch): number[][] {
    const flat = noGrad(() => scope(() => this.logits(batch).toNumbers()));
    const L = this.labelCount;
    return Array.from({ length: batch.batch }, (_, b) => flat.slice(b * L, (b + 1) * L));
  }

  /** The kind of problem that these labels pose. */
  problemOf(labels: Int32Array | Float32Array): ProblemType {
    if (this.problemType) return this.problemType;
    if (this.labelCount === 1) return 'regression';
    return labels instanceof Int32Array
      ? 'single_label_classification'
      : 'multi_label_classification';
  }

  /**
   * Cross-entropy, binary cross-entropy of each label or squared error, by the kind of problem;
   * summed and divided by `denominator`, by default the number of labels, so that it is a mean.
   * A class of −100 does not count. `tokens` of the result is the number of labels that count.
   */
  loss(batch: SequenceBatch, denominator?: number): LossResult {
    const { labels, batch: B } = batch;
    if (!labels) throw failure('loss', 'a batch with labels', 'none');
    const problem = this.problemOf(labels);
    const wanted = problem === 'single_label_classification' ? [B] : [B, this.labelCount];
    if (labels.length !== wanted.reduce((n, d) => n * d, 1)) {
      throw failure('loss', `labels ${shapeText(wanted)} for ${problem}`, `${labels.length}`);
    }
    const tokens =
      problem === 'single_label_classification'
        ? Array.from(labels).filter((l) => l !== -100).length
        : labels.length;
    const loss = scope(() =>
      scale(this.#summed(batch, labels, problem), 1 / Math.max(1, denominator ?? tokens)),
    );
    return { loss, tokens };
  }

  #summed(batch: SequenceBatch, labels: Int32Array | Float32Array, problem: ProblemType): Tensor {
    const { backend } = this;
    const { batch: B } = batch;
    const logits = this.logits(batch);
    if (problem === 'single_label_classification') {
      const classes = tensor(Int32Array.from(labels), [B], { backend, dtype: 'i32' });
      return crossEntropy(logits, classes, { reduction: 'sum' });
    }
    const targets = tensor(Float32Array.from(labels), [B, this.labelCount], { backend });
    if (problem === 'regression') {
      const difference = sub(logits, targets);
      return sum(mul(difference, difference));
    }
    // −y·log σ(x) − (1 − y)·log(1 − σ(x)) = softplus(x) − x·y
    return sub(softplusSum(logits), sum(mul(logits, targets)));
  }
}

/** Σ log(1 + eˣ): the cross-entropy of the scores (0, x) with the first of them. */
function softplusSum(x: Tensor): Tensor {
  const n = x.size;
  const { backend } = x;
  const pairs = concat([zeros([n, 1], { backend }), reshape(x, [n, 1])], 1);
  const firsts = zeros([n], { backend, dtype: 'i32' });
  return crossEntropy(pairs, firsts, { reduction: 'sum' });
}

/** The first token's hidden state of each row: [B, T, C] → [B, C]. */
export function firstTokens(hidden: Tensor): Tensor {
  const [B, T, C] = hidden.shape as [number, number, number];
  const rows = Int32Array.from({ length: B }, (_, b) => b * T);
  const { backend } = hidden;
  return embedding(reshape(hidden, [B * T, C]), tensor(rows, [B], { backend, dtype: 'i32' }));
}

function checkSequences(batch: SequenceBatch, vocabSize: number, maxPositions: number): void {
  const { inputIds, attentionMask, tokenTypeIds, batch: B, length: T } = batch;
  const arrays = [inputIds, attentionMask, tokenTypeIds].filter((a) => a !== undefined);
  if (B < 1 || T < 1 || arrays.some((a) => a.length !== B * T)) {
    const received = arrays.map((a) => a.length).join(', ');
    throw failure('model', `arrays of ${shapeText([B, T])}, both at least 1`, received);
  }
  if (T > maxPositions) throw failure('model', `at most ${maxPositions} positions`, `${T}`);
  const wrong = inputIds.find((id) => id < 0 || id >= vocabSize);
  if (wrong === undefined) return;
  const hint = 'Is it this model’s tokenizer?';
  throw failure('model', `token ids of 0…${vocabSize - 1}`, String(wrong), hint);
}
