import { noGrad, scope } from '../autograd/index.js';
import { concat, crossEntropy, embedding, mul, reshape, scale, sub, sum } from '../ops/index.js';
import { tensor, zeros } from '../tensor/create.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { LossResult } from './causal-lm.js';
import {
  type FlatInput,
  type ForwardInput,
  type ForwardOutput,
  flatValues,
  isRows,
  wholeNumbers,
} from './inputs.js';
import { PretrainedModel } from './pretrained.js';

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
export abstract class SequenceClassifier extends PretrainedModel {
  abstract readonly labelCount: number;
  /** Null: regression with one label; else one class for whole-number labels, several for others. */
  abstract readonly problemType: ProblemType | null;
  readonly peftTask = 'SEQ_CLS';

  /** Scores [B, L]. */
  protected abstract scores(batch: SequenceBatch): Tensor;

  /** Scores [B, L] before any softmax. */
  logits(batch: SequenceBatch): Tensor {
    checkSequences(batch, this.vocabSize, this.maxPositions);
    return scope(() => this.scores(batch));
  }

  /** Scores before any softmax as plain numbers, L of each sequence, without a graph. */
  predict({ labels: _, ...input }: ForwardInput): number[][] {
    const flat = noGrad(() => scope(() => this.forward(input).logits.toNumbers()));
    const L = this.labelCount;
    return Array.from({ length: flat.length / L }, (_, b) => flat.slice(b * L, (b + 1) * L));
  }

  protected override outputs({ labels, ...input }: FlatInput): ForwardOutput {
    if (labels === undefined) return { logits: this.logits(input), loss: null };
    return scope(() => {
      const { logits, loss } = this.#scored({ ...input, labels: this.#labels(labels, input) });
      return { logits, loss };
    });
  }

  /** Classes [B] as whole numbers, or values [B, L]; lists of rows are values, others classes. */
  #labels(given: NonNullable<ForwardInput['labels']>, { batch: B }: FlatInput) {
    const where = 'forward labels';
    const values = isRows(given) || given instanceof Float32Array;
    const example = values ? new Float32Array() : new Int32Array();
    if (this.problemOf(example) !== 'single_label_classification') {
      return Float32Array.from(flatValues(where, given, [B, this.labelCount]));
    }
    const classes = wholeNumbers(where, flatValues(where, given, [B, 1]));
    const wrong = classes.find((c) => c !== -100 && (c < 0 || c >= this.labelCount));
    if (wrong === undefined) return classes;
    throw failure(where, `classes of 0…${this.labelCount - 1}, or −100`, String(wrong));
  }

  /** Does not generate. @throws always */
  override generate(): never {
    throw failure(
      'generate',
      'a model that predicts the next token',
      'a classifier of sequences',
      'forward() and predict() give its scores',
    );
  }

  /** The kind of problem that these labels pose. */
  problemOf(labels: Int32Array | Float32Array): ProblemType {
    if (this.problemType) return this.problemType;
    if (this.labelCount === 1) return 'regression';
    return labels instanceof Int32Array
      ? 'single_label_classification'
      : 'multi_label_classification';
  }

  /** Labels of a batch that count for the loss: classes but −100, or all values. */
  countLabels({ labels }: SequenceBatch): number {
    if (!labels) return 0;
    if (this.problemOf(labels) !== 'single_label_classification') return labels.length;
    return Array.from(labels).filter((l) => l !== -100).length;
  }

  /**
   * Cross-entropy, binary cross-entropy of each label or squared error, by the kind of problem;
   * summed and divided by `denominator`, by default the number of labels, so that it is a mean.
   * A class of −100 does not count. `tokens` of the result is the number of labels that count.
   */
  loss(batch: SequenceBatch, denominator?: number): LossResult {
    let tokens = 0;
    const loss = scope(() => {
      const scored = this.#scored(batch, denominator);
      tokens = scored.tokens;
      return scored.loss;
    });
    return { loss, tokens };
  }

  #scored(batch: SequenceBatch, denominator?: number): LossResult & { logits: Tensor } {
    const { labels, batch: B } = batch;
    if (!labels) throw failure('loss', 'a batch with labels', 'none');
    const problem = this.problemOf(labels);
    const wanted = problem === 'single_label_classification' ? [B] : [B, this.labelCount];
    if (labels.length !== wanted.reduce((n, d) => n * d, 1)) {
      throw failure('loss', `labels ${shapeText(wanted)} for ${problem}`, `${labels.length}`);
    }
    const tokens = this.countLabels(batch);
    const logits = this.logits(batch);
    const sum = this.#summed(logits, labels, problem);
    return { logits, loss: scale(sum, 1 / Math.max(1, denominator ?? tokens)), tokens };
  }

  #summed(logits: Tensor, labels: Int32Array | Float32Array, problem: ProblemType): Tensor {
    const { backend } = this;
    const B = logits.shape[0] as number;
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
