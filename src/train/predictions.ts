import type { LabelledRecord } from '../io/labelled.js';
import type { SequenceClassifier } from '../models/classifier.js';
import {
  bestClass,
  type ClassifierEvaluation,
  ClassifierMeter,
  probabilities,
} from './classify.js';
import type { LabelSpace } from './labels.js';
import { placedBatches, type SequenceExample } from './sequences.js';

/** What a classifier says of one record; a line of a file of predictions. */
export interface Prediction {
  /** Of the record in its file, counted from 1, and its own `idx` where it has one. */
  readonly line: number;
  readonly idx?: string | number;
  /** The likeliest class; the labels of a probability above one half; the value or values. */
  readonly label: string | number | readonly string[] | readonly number[];
  /** Probabilities in the order of the model's labels, or the values. */
  readonly scores: readonly number[];
}

/** How sequences are computed. */
export interface PredictOptions {
  readonly batchSize: number;
  readonly padId: number;
}

function labelOf(raw: readonly number[], { names, problemType }: LabelSpace): Prediction['label'] {
  if (problemType === 'regression') return raw.length === 1 ? (raw[0] as number) : raw;
  if (problemType === 'single_label_classification') return names[bestClass(raw)] as string;
  return names.filter((_, i) => (raw[i] as number) > 0);
}

/**
 * What a classifier says of records, in their order, and how right it is where every record has a
 * label.
 * @param examples of the records, from `encodeRecords`
 */
export function predictRecords(
  model: SequenceClassifier,
  records: readonly LabelledRecord[],
  examples: readonly SequenceExample[],
  space: LabelSpace,
  options: PredictOptions,
): { predictions: Prediction[]; evaluation?: ClassifierEvaluation } {
  const { problemType } = space;
  const scores: number[][] = [];
  for (const { batch, rows } of placedBatches(examples, { ...options, problemType })) {
    const { labels: _, ...unlabelled } = batch;
    const computed = model.predict(unlabelled);
    rows.forEach((row, b) => {
      scores[row] = computed[b] as number[];
    });
  }
  const predictions = records.map(({ line, idx }, i): Prediction => {
    const raw = scores[i] as number[];
    const label = labelOf(raw, space);
    return {
      line,
      ...(idx === undefined ? {} : { idx }),
      label,
      scores: probabilities(raw, problemType),
    };
  });
  if (!examples.every((e) => e.labels)) return { predictions };
  const meter = new ClassifierMeter(problemType, space.names.length);
  examples.forEach((e, i) => {
    meter.add(scores[i] as number[], e.labels as readonly number[]);
  });
  return { predictions, evaluation: meter.result() };
}
