import { PROBLEM_TYPES } from '../models/classifier.js';
import { SCHEDULES } from '../optim/index.js';
import { ACTIVATION_DTYPES } from '../tensor/dtype.js';
import { failure, nearest, onlyKnown } from '../tensor/errors.js';
import type { FinetuneOptions } from './finetune-options.js';

const SETTINGS: readonly string[] = Object.keys({
  modelDir: true,
  modelName: true,
  dataFile: true,
  evalFile: true,
  out: true,
  numLabels: true,
  problemType: true,
  lora: true,
  loraPlus: true,
  full: true,
  lr: true,
  steps: true,
  epochs: true,
  batchSize: true,
  accumulation: true,
  seqLength: true,
  schedule: true,
  warmupSteps: true,
  weightDecay: true,
  maxGradNorm: true,
  gradientCheckpointing: true,
  seed: true,
  backend: true,
  threads: true,
  dtype: true,
  compute: true,
  activations: true,
  tf32: true,
  batchInvariant: true,
  evalEvery: true,
  saveEvery: true,
  keepBest: true,
  resume: true,
  overwrite: true,
  signal: true,
} satisfies Record<keyof FinetuneOptions, true>);

/** Throws unless a name is one of a list, with the nearest of it. */
function checkName(setting: string, name: string, names: readonly string[]): void {
  if (names.includes(name)) return;
  const near = nearest(String(name), names, 1)[0];
  const known = `one of ${names.join(', ')}`;
  throw failure(`finetune ${setting}`, known, `"${name}"`, `Did you mean ${near}?`);
}

/** Throws unless a number is `least` or more, and whole unless said otherwise. */
function check(name: string, value: number | undefined, least: number, whole = true): void {
  if (value === undefined) return;
  if ((whole ? Number.isSafeInteger(value) : Number.isFinite(value)) && value >= least) return;
  const kind = whole ? 'a whole number' : 'a number';
  throw failure(`finetune ${name}`, `${kind} of ${least} or more`, String(value));
}

/** Settings that exclude each other, or do nothing without another. */
function checkTogether(options: FinetuneOptions, evalEvery: number): void {
  const { epochs, steps, full, lora, loraPlus, evalFile, keepBest } = options;
  if (epochs !== undefined && steps !== undefined) {
    throw failure('finetune', 'steps or epochs', 'both', 'Leave one of them out');
  }
  if (full && lora !== undefined) {
    throw failure('finetune', 'full or lora', 'both', 'Leave one of them out');
  }
  if (full && loraPlus !== undefined) {
    throw failure('finetune', 'full or loraPlus', 'both', 'Leave one of them out');
  }
  if (full && options.dtype !== undefined) {
    throw failure('finetune dtype', 'none with full, which trains in f32', options.dtype);
  }
  if (keepBest && evalEvery === 0) {
    throw failure('finetune keepBest', 'evaluations to choose by: evalEvery', 'none');
  }
  if (evalEvery > 0 && evalFile === undefined) {
    throw failure('finetune evalEvery', 'an evalFile to evaluate on', 'none');
  }
}

/** Plain settings with their defaults filled in. @throws naming one that is out of range */
export function settle(options: FinetuneOptions) {
  onlyKnown('finetune', options, SETTINGS);
  const { full = false } = options;
  const s = {
    full,
    lr: options.lr ?? (full ? 2e-5 : 2e-4),
    batchSize: options.batchSize ?? 8,
    accumulation: options.accumulation ?? 1,
    schedule: options.schedule ?? 'cosine',
    weightDecay: options.weightDecay ?? 0,
    maxGradNorm: options.maxGradNorm ?? 1,
    seed: options.seed ?? 0,
    evalEvery: options.evalEvery ?? 0,
    saveEvery: options.saveEvery ?? 200,
  };
  if (!(s.lr > 0 && s.lr < Infinity)) throw failure('finetune lr', 'more than 0', String(s.lr));
  check('steps', options.steps, 1);
  check('batchSize', s.batchSize, 1);
  check('accumulation', s.accumulation, 1);
  check('seqLength', options.seqLength, 2);
  check('warmupSteps', options.warmupSteps, 0);
  check('weightDecay', s.weightDecay, 0, false);
  check('maxGradNorm', s.maxGradNorm, 0, false);
  check('seed', s.seed, 0);
  check('evalEvery', s.evalEvery, 0);
  check('saveEvery', s.saveEvery, 0);
  check('threads', options.threads, 1);
  check('numLabels', options.numLabels, 1);
  const { epochs, loraPlus } = options;
  if (loraPlus !== undefined && !(loraPlus > 0 && loraPlus < Infinity)) {
    throw failure('finetune loraPlus', 'more than 0', String(loraPlus));
  }
  if (epochs !== undefined && !(epochs > 0 && epochs < Infinity)) {
    throw failure('finetune epochs', 'more than 0', String(epochs));
  }
  checkName('schedule', s.schedule, SCHEDULES);
  if (options.problemType !== undefined) {
    checkName('problemType', options.problemType, PROBLEM_TYPES);
  }
  if (options.activations !== undefined) {
    checkName('activations', options.activations, ACTIVATION_DTYPES);
  }
  checkTogether(options, s.evalEvery);
  return s;
}

/** {@link FinetuneOptions} with their defaults. */
export type Settled = ReturnType<typeof settle>;
