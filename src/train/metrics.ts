import { failure } from '../tensor/errors.js';

/** Throws unless two lists belong together. */
function checkLengths(where: string, a: ArrayLike<unknown>, b: ArrayLike<unknown>): void {
  if (a.length === b.length) return;
  throw failure(where, 'as many predictions as labels', `${a.length} and ${b.length}`);
}

/** Share of predictions that are the label; NaN of none. */
export function accuracy(predicted: readonly number[], labels: readonly number[]): number {
  checkLengths('accuracy', predicted, labels);
  return predicted.filter((p, i) => p === labels[i]).length / predicted.length;
}

/** 2·tp / (2·tp + fp + fn); 0 where that is 0 / 0, as scikit-learn's `zero_division` default. */
function f1Of(hits: number, falsePositives: number, falseNegatives: number): number {
  const below = 2 * hits + falsePositives + falseNegatives;
  return below === 0 ? 0 : (2 * hits) / below;
}

/** Counts of one class against all others. */
function countsOf(predicted: readonly number[], labels: readonly number[], positive: number) {
  let hits = 0;
  let falsePositives = 0;
  let falseNegatives = 0;
  predicted.forEach((p, i) => {
    const is = labels[i] === positive;
    if (p === positive && is) hits++;
    else if (p === positive) falsePositives++;
    else if (is) falseNegatives++;
  });
  return [hits, falsePositives, falseNegatives] as const;
}

/**
 * F1 of one class, as GLUE measures MRPC and QQP: the harmonic mean of precision and recall.
 * 0 where neither predictions nor labels have the class, as scikit-learn's `f1_score`.
 * @param positive the class; default 1
 */
export function binaryF1(
  predicted: readonly number[],
  labels: readonly number[],
  positive = 1,
): number {
  checkLengths('f1', predicted, labels);
  return f1Of(...countsOf(predicted, labels, positive));
}

/** Mean of the F1 of the classes that predictions or labels have, as scikit-learn's macro average. */
export function macroF1(predicted: readonly number[], labels: readonly number[]): number {
  checkLengths('f1', predicted, labels);
  const classes = [...new Set([...predicted, ...labels])];
  const sum = classes.reduce((n, c) => n + f1Of(...countsOf(predicted, labels, c)), 0);
  return sum / classes.length;
}

/**
 * Matthews' correlation of any number of classes (Gorodkin, 2004), as GLUE measures CoLA.
 * 0 where predictions or labels are all of one class, as scikit-learn's `matthews_corrcoef`.
 */
export function matthews(predicted: readonly number[], labels: readonly number[]): number {
  checkLengths('matthews', predicted, labels);
  const n = predicted.length;
  if (n === 0) return Number.NaN;
  const times = (list: readonly number[]) => {
    const counts = new Map<number, number>();
    for (const c of list) counts.set(c, (counts.get(c) ?? 0) + 1);
    return counts;
  };
  const [p, t] = [times(predicted), times(labels)];
  const product = (a: Map<number, number>, b: Map<number, number>) =>
    [...a].reduce((sum, [c, count]) => sum + count * (b.get(c) ?? 0), 0);
  const correct = predicted.filter((c, i) => c === labels[i]).length;
  const below = Math.sqrt((n * n - product(p, p)) * (n * n - product(t, t)));
  return below === 0 ? 0 : (correct * n - product(p, t)) / below;
}

/**
 * Pearson's correlation. NaN where either list is constant or shorter than two, as scipy's
 * `pearsonr`.
 */
export function pearson(predicted: readonly number[], labels: readonly number[]): number {
  checkLengths('pearson', predicted, labels);
  const n = predicted.length;
  // A constant list is told by its values: the rounding of its mean may leave something else.
  const constant = (list: readonly number[]) => list.every((v) => v === list[0]);
  if (n < 2 || constant(predicted) || constant(labels)) return Number.NaN;
  const mean = (list: readonly number[]) => list.reduce((sum, v) => sum + v, 0) / n;
  const [mp, mt] = [mean(predicted), mean(labels)];
  let both = 0;
  let pp = 0;
  let tt = 0;
  for (let i = 0; i < n; i++) {
    const p = (predicted[i] as number) - mp;
    const t = (labels[i] as number) - mt;
    both += p * t;
    pp += p * p;
    tt += t * t;
  }
  return Math.max(-1, Math.min(1, both / (Math.sqrt(pp) * Math.sqrt(tt))));
}

/** Ranks from 1; equal values share the mean of their ranks, as scipy's `rankdata`. */
export function ranks(values: readonly number[]): number[] {
  const order = values.map((_, i) => i);
  order.sort((a, b) => (values[a] as number) - (values[b] as number));
  const out = new Array<number>(values.length);
  for (let from = 0; from < order.length; ) {
    let to = from + 1;
    while (to < order.length && values[order[to] as number] === values[order[from] as number]) to++;
    // Ranks from + 1 … to have this mean.
    for (let i = from; i < to; i++) out[order[i] as number] = (from + 1 + to) / 2;
    from = to;
  }
  return out;
}

/** Spearman's rank correlation, ties sharing their mean rank; NaN as {@link pearson}. */
export function spearman(predicted: readonly number[], labels: readonly number[]): number {
  checkLengths('spearman', predicted, labels);
  if ([...predicted, ...labels].some(Number.isNaN)) return Number.NaN;
  return pearson(ranks(predicted), ranks(labels));
}

/** Measures of rows of several labels, each 0 or 1. */
export interface MultiLabelScores {
  /** F1 of all labels of all rows together. */
  readonly microF1: number;
  /** Mean of the F1 of each label; 0 for one that is never there nor predicted. */
  readonly macroF1: number;
  /** Share of rows whose every label is right, as scikit-learn's `accuracy_score`. */
  readonly subsetAccuracy: number;
}

/** {@link MultiLabelScores} of rows of 0 and 1, as scikit-learn measures them. */
export function multiLabelScores(
  predicted: readonly (readonly number[])[],
  labels: readonly (readonly number[])[],
): MultiLabelScores {
  checkLengths('multi-label', predicted, labels);
  const columns = labels[0]?.length ?? 0;
  const column = (rows: readonly (readonly number[])[], c: number) =>
    rows.map((row) => row[c] as number);
  const counts = Array.from({ length: columns }, (_, c) =>
    countsOf(column(predicted, c), column(labels, c), 1),
  );
  const total = (k: 0 | 1 | 2) => counts.reduce((n, c) => n + c[k], 0);
  const right = predicted.filter((row, i) => row.every((v, c) => v === labels[i]?.[c]));
  return {
    microF1: f1Of(total(0), total(1), total(2)),
    macroF1: counts.reduce((n, c) => n + f1Of(...c), 0) / columns,
    subsetAccuracy: right.length / predicted.length,
  };
}

/** Mean of squared differences over all values; NaN of none. */
export function meanSquaredError(predicted: readonly number[], labels: readonly number[]): number {
  checkLengths('mse', predicted, labels);
  const sum = predicted.reduce((n, p, i) => n + (p - (labels[i] as number)) ** 2, 0);
  return sum / predicted.length;
}
