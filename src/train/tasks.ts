import type { Checkpoint } from '../io/checkpoint.js';
import { countTargets, readJsonl } from '../io/dataset.js';
import { type LabelledRecord, readLabelled } from '../io/labelled.js';
import type { Tokenizer } from '../io/tokenizer.js';
import type { CausalLM } from '../models/causal-lm.js';
import type { SequenceClassifier } from '../models/classifier.js';
import { type ClassifierHead, isClassifier } from '../models/head.js';
import type { Model } from '../models/load.js';
import { failure } from '../tensor/errors.js';
import { classifierSteps } from './classify.js';
import { evaluationBatches, isPacked, lengthWindow, sequenceLength, trainingData } from './data.js';
import { evaluationSteps } from './evaluate.js';
import type { AnyEvaluation, FinetuneOptions, StartEvent } from './finetune-options.js';
import type { Settled } from './finetune-settings.js';
import { chooseLabels, paddingOf } from './labels.js';
import { encodeRecords, givesTokenTypes, placedBatches, sequenceSource } from './sequences.js';
import type { RunSettings } from './state.js';
import type { AnyBatch, BatchSource } from './trainer.js';

/** What the records of a run came to. */
export interface TaskData {
  readonly source: BatchSource<AnyBatch>;
  readonly seqLength: number;
  readonly counts: Pick<
    StartEvent,
    'examples' | 'tokens' | 'targets' | 'truncatedExamples' | 'truncatedTokens'
  >;
  /** Measures the model on the evaluation file, a batch a `next()`; undefined without a file. */
  readonly measure?: () => Generator<void, AnyEvaluation>;
}

/** What a model is to learn: its files read, before there is a model. */
export interface Task {
  /** What a classifier answers, where that is not what its config.json says. */
  readonly head?: ClassifierHead;
  /** For the start event. */
  readonly about: Pick<StartEvent, 'task' | 'labels' | 'problemType' | 'newHead'>;
  /** What must be equal for a stopped run to go on. */
  readonly settings: RunSettings;
  /** The records as batches for a model. */
  batches(model: Model): TaskData;
}

/** What a task is made of. */
interface Parts {
  readonly options: FinetuneOptions;
  readonly s: Settled;
  readonly checkpoint: Checkpoint;
  readonly tokenizer: Tokenizer;
}

/** Reads the data of a run, for a model that predicts tokens or for one that classifies. */
export function readTask(parts: Parts): Task {
  const { numLabels, problemType } = parts.options;
  const asked = numLabels !== undefined || problemType !== undefined;
  return isClassifier(parts.checkpoint.config) || asked ? classifierTask(parts) : causalTask(parts);
}

function causalTask({ options, s, tokenizer }: Parts): Task {
  const { dataFile, evalFile } = options;
  const { batchSize, accumulation, seed } = s;
  const records = readJsonl(dataFile);
  const packed = isPacked(records);
  return {
    about: { task: 'causal-lm' },
    settings: packed ? {} : { groupedByLength: lengthWindow(records.length, batchSize) },
    batches(model) {
      const lm = model as CausalLM;
      const seqLength = sequenceLength(options.seqLength, lm.maxPositions);
      const data = trainingData(records, tokenizer, { seqLength, batchSize, accumulation, seed });
      const { examples, tokenized } = data;
      const tokens = examples.reduce((n, e) => n + e.ids.length, 0);
      const targets = examples.reduce((n, e) => n + countTargets(e), 0);
      if (targets === 0) {
        const expected = 'something to learn: a completion, or a text of two tokens or more';
        const received = `${examples.length} examples of ${tokens} tokens without one`;
        throw failure(`data ${dataFile}`, expected, received);
      }
      const evaluation =
        evalFile === undefined
          ? undefined
          : readEvaluation(evalFile, tokenizer, seqLength, batchSize);
      return {
        ...{ source: data, seqLength },
        counts: {
          ...{ examples: examples.length, tokens, targets },
          truncatedExamples: tokenized.truncated,
          truncatedTokens: tokenized.truncatedTokens,
        },
        ...(evaluation ? { measure: () => evaluationSteps(lm, evaluation) } : {}),
      };
    },
  };
}

/** The evaluation file's batches, checked to have something to predict. */
function readEvaluation(file: string, tokenizer: Tokenizer, seqLength: number, batchSize: number) {
  const batches = [...evaluationBatches(readJsonl(file), tokenizer, seqLength, batchSize)];
  if (batches.some((b) => b.targets > 0)) return batches;
  const count = batches.reduce((n, b) => n + b.batch, 0);
  throw failure(`eval ${file}`, 'something to predict', `${count} examples without`);
}

/** Throws where a record has no label. */
function checkLabelled(records: readonly LabelledRecord[], file: string): void {
  const without = records.find(({ label }) => label === undefined);
  if (without) throw failure(`${file}:${without.line}`, '"label"', 'none');
}

function classifierTask({ options, s, checkpoint, tokenizer }: Parts): Task {
  const { dataFile, evalFile, numLabels, problemType } = options;
  const { batchSize, accumulation, seed } = s;
  const records = readLabelled(dataFile);
  checkLabelled(records, dataFile);
  const evalRecords = evalFile === undefined ? undefined : readLabelled(evalFile);
  if (evalRecords) checkLabelled(evalRecords, evalFile as string);
  const { space, head } = chooseLabels(checkpoint, tokenizer, records, dataFile, {
    seed,
    ...(numLabels === undefined ? {} : { count: numLabels }),
    ...(problemType === undefined ? {} : { problemType }),
  });
  const about = {
    task: 'classification' as const,
    labels: space.names,
    problemType: space.problemType,
    newHead: head?.seed !== undefined,
  };
  const { task: _, ...settings } = about;
  return {
    ...(head ? { head } : {}),
    about,
    settings,
    batches(model) {
      const classifier = model as SequenceClassifier;
      const seqLength = sequenceLength(options.seqLength, classifier.maxPositions);
      const encode = (list: readonly LabelledRecord[], file: string) => {
        const tokenTypes = givesTokenTypes(checkpoint.config, tokenizer);
        return encodeRecords(list, tokenizer, space, { maxLength: seqLength, tokenTypes, file });
      };
      const padId = paddingOf(checkpoint.config, tokenizer);
      const how = { batchSize, padId, problemType: space.problemType };
      const data = encode(records, dataFile);
      const evaluation = evalRecords && encode(evalRecords, evalFile as string).examples;
      const placed = evaluation && placedBatches(evaluation, how).map(({ batch }) => batch);
      return {
        source: sequenceSource(data.examples, { ...how, accumulation, seed }),
        seqLength,
        counts: {
          ...{ examples: data.examples.length, tokens: data.tokens, targets: data.targets },
          truncatedExamples: data.truncated,
          truncatedTokens: data.truncatedTokens,
        },
        ...(placed ? { measure: () => classifierSteps(classifier, placed) } : {}),
      };
    },
  };
}
