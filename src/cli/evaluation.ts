import type { ClassifierEvaluation } from '../train/classify.js';
import type { AnyEvaluation } from '../train/finetune.js';
import { countText, lossText } from './output.js';

/** Measures of a classifier by what people call them. */
const MEASURES: readonly (readonly [keyof ClassifierEvaluation, string])[] = [
  ['accuracy', 'accuracy'],
  ['f1', 'F1'],
  ['matthews', 'Matthews'],
  ['microF1', 'micro F1'],
  ['macroF1', 'macro F1'],
  ['subsetAccuracy', 'subset accuracy'],
  ['mse', 'MSE'],
  ['pearson', 'Pearson'],
  ['spearman', 'Spearman'],
];

/** What was measured, on one line. */
export function evaluationText(e: AnyEvaluation): string {
  if (!('problemType' in e)) return lossText(e);
  const parts = MEASURES.filter(([key]) => e[key] !== undefined).map(
    ([key, name]) => `${name} ${(e[key] as number).toFixed(4)}`,
  );
  return `loss ${e.loss.toFixed(4)}, ${parts.join(', ')} (${countText(e.records)} records)`;
}
