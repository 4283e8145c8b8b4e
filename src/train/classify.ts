import type { ProblemType, SequenceBatch, SequenceClassifier } from '../models/classifier.js';
import { failure } from '../tensor/errors.js';
import { finished } from './evaluate.js';
import {
  accuracy,
  binaryF1,
  macroF1,
  matthews,
  meanSquaredError,
  multiLabelScores,
  pearson,
  spearman,
} from './metrics.js';

/**
 * How well a classifier does on a data set. Which measures there are depends on the kind of
 * problem; a correlation of something constant is NaN (null in JSON).
 */
export interface ClassifierEvaluation {
  readonly problemType: ProblemType;
  /** Cross-entropy, binary cross-entropy of each label, or squared error; a mean. */
  readonly loss: number;
  /** Records with a label. */
  readonly records: number;
  /** Of single labels: the share of right ones. */
  readonly accuracy?: number;
  /** Of single labels: of class 1 where there are two, else the mean over the classes there are. */
  readonly f1?: number;
  /** Of single labels: Matthews' correlation. */
  readonly matthews?: number;
  /** Of several labels a record. */
  readonly microF1?: number;
  readonly macroF1?: number;
  /** Of several labels: the share of records whose every label is right. */
  readonly subsetAccuracy?: number;
  /** Of values: the mean squared error. */
  readonly mse?: number;
  /** Of values, where each record has one. */
  readonly pearson?: number;
  readonly spearman?: number;
}

/** The index of the largest score; the first of equal ones. */
export function bestClass(scores: readonly number[]): number {
  return scores.reduce((best, s, i) => (s > (scores[best] as number) ? i : best), 0);
}

/** log Σ eˣ without overflow. */
function logSum(scores: readonly number[]): number {
  const top = Math.max(...scores);
  return top + Math.log(scores.reduce((n, s) => n + Math.exp(s - top), 0));
}

/**
 * What scores say: probabilities of the classes (softmax), of each label (sigmoid), or the values
 * themselves.
 */
export function probabilities(scores: readonly number[], problem: ProblemType): number[] {
  if (problem === 'regression') return [...scores];
  if (problem === 'multi_label_classification') return scores.map((s) => 1 / (1 + Math.exp(-s)));
  const top = Math.max(...scores);
  const parts = scores.map((s) => Math.exp(s - top));
  const sum = parts.reduce((n, p) => n + p, 0);
  return parts.map((p) => p / sum);
}

/** The loss of one record's scores, summed over its labels. */
function lossOf(scores: readonly number[], labels: readonly number[], problem: ProblemType) {
  if (problem === 'single_label_classification') {
    return logSum(scores) - (scores[labels[0] as number] as number);
  }
  return scores.reduce((sum, s, i) => {
    const y = labels[i] as number;
    if (problem === 'regression') return sum + (s - y) ** 2;
    // softplus(s) − s·y, written so that nothing overflows.
    return sum + Math.max(s, 0) + Math.log1p(Math.exp(-Math.abs(s))) - s * y;
  }, 0);
}

/** Collects scores and labels of records, and measures them all together. */
export class ClassifierMeter {
  readonly #scores: (readonly number[])[] = [];
  readonly #labels: (readonly number[])[] = [];

  constructor(
    readonly problemType: ProblemType,
    readonly labelCount: number,
  ) {}

  /**
   * @param scores of a record, before any softmax
   * @param labels the class alone, 0 or 1 for each label, or the values; a class of −100 does not
   *   count
   */
  add(scores: readonly number[], labels: readonly number[]): void {
    const single = this.problemType === 'single_label_classification';
    const wanted = single ? 1 : this.labelCount;
    if (scores.length !== this.labelCount || labels.length !== wanted) {
      const received = `${scores.length} and ${labels.length}`;
      throw failure('evaluate', `${this.labelCount} scores and ${wanted} labels`, received);
    }
    if (single && labels[0] === -100) return;
    this.#scores.push(scores);
    this.#labels.push(labels);
  }

  /** The measures of all records so far. */
  result(): ClassifierEvaluation {
    const { problemType } = this;
    const [scores, labels] = [this.#scores, this.#labels];
    const sum = scores.reduce((n, s, i) => n + lossOf(s, labels[i] as number[], problemType), 0);
    const single = problemType === 'single_label_classification';
    const loss = sum / (scores.length * (single ? 1 : this.labelCount));
    return { problemType, loss, records: scores.length, ...this.#measures() };
  }

  #measures(): Partial<ClassifierEvaluation> {
    const [scores, labels] = [this.#scores, this.#labels];
    if (this.problemType === 'multi_label_classification') {
      const predicted = scores.map((row) => row.map((s) => (s > 0 ? 1 : 0)));
      return multiLabelScores(predicted, labels);
    }
    if (this.problemType === 'regression') {
      const [p, t] = [scores.flat(), labels.flat()];
      const mse = meanSquaredError(p, t);
      return this.labelCount > 1
        ? { mse }
        : { mse, pearson: pearson(p, t), spearman: spearman(p, t) };
    }
    const [p, t] = [scores.map(bestClass), labels.flat()];
    const f1 = this.labelCount === 2 ? binaryF1(p, t) : macroF1(p, t);
    return { accuracy: accuracy(p, t), f1, matthews: matthews(p, t) };
  }
}

/** Labels of a batch, a list a row. */
function rowsOf({ labels, batch }: SequenceBatch): number[][] {
  if (!labels) throw failure('evaluate', 'batches with labels', 'none');
  const width = labels.length / batch;
  return Array.from({ length: batch }, (_, b) =>
    Array.from(labels.slice(b * width, (b + 1) * width)),
  );
}

/**
 * Measures a classifier batch by batch: every `next()` computes one. Computes no gradient and
 * changes nothing.
 */
export function* classifierSteps(
  model: SequenceClassifier,
  batches: Iterable<SequenceBatch>,
): Generator<void, ClassifierEvaluation> {
  let meter: ClassifierMeter | undefined;
  for (const batch of batches) {
    const rows = rowsOf(batch);
    const { labels } = batch as { labels: Int32Array | Float32Array };
    meter ??= new ClassifierMeter(model.problemOf(labels), model.labelCount);
    const scores = model.predict(batch);
    for (const [b, row] of rows.entries()) meter.add(scores[b] as number[], row);
    yield;
  }
  if (!meter) throw failure('evaluate', 'at least one batch', 'none');
  return meter.result();
}

/** The loss and GLUE's measures of a classifier over batches with labels. */
export function evaluateClassifier(
  model: SequenceClassifier,
  batches: Iterable<SequenceBatch>,
): ClassifierEvaluation {
  return finished(classifierSteps(model, batches));
}
