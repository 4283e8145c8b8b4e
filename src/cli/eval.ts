import type { Command } from 'commander';
import type { Checkpoint } from '../io/checkpoint.js';
import type { LabelledRecord } from '../io/labelled.js';
import type { ClassifierHead } from '../models/head.js';
import type { Prediction } from '../train/predictions.js';
import { evaluationText } from './evaluation.js';
import {
  backendOptions,
  loadForUse,
  type ModelFlags,
  modelOptions,
  precisionOptions,
  type Resolved,
  resolveFlags,
} from './model.js';
import {
  command,
  commonOptions,
  needs,
  note,
  plural,
  printJson,
  say,
  timeText,
  wholeNumber,
} from './output.js';

interface EvalFlags extends ModelFlags {
  readonly data: string;
  readonly seqLength?: number;
  readonly batchSize: number;
  readonly predictions?: string;
}

const EXAMPLES = [
  'lowrank eval --model base --data test.jsonl',
  'lowrank eval --model base --adapter adapter --data test.jsonl --json',
  'lowrank eval --model roberta-base --adapter mrpc --data test.jsonl --predictions out.jsonl',
];

const SUMMARY = 'Measure a model on a JSON Lines file: its loss, or how well it classifies.';

const DETAILS =
  'Of a model that predicts the next token the loss is the mean over all tokens that count, in ' +
  'nats. Of a prompt and completion only the completion counts; plain texts are packed as in ' +
  'training.\n\n' +
  'A classifier is measured as GLUE does: accuracy, F1 (of class 1 where there are two classes, ' +
  'else the mean over the classes there are) and Matthews’ correlation; for several labels a ' +
  'record micro and macro F1 and the share of records that are all right; for values the squared ' +
  'error and Pearson’s and Spearman’s correlation. As in scikit-learn, F1 and Matthews are 0 ' +
  'where they are 0 / 0; as in scipy, a correlation with something constant is NaN (null with ' +
  '--json). Lines are as for lowrank train; with --predictions they need no "label".';

/** `lowrank eval`. */
export function evalCommand(): Command {
  const c = modelOptions(command('eval', SUMMARY, DETAILS, EXAMPLES), 'optional');
  needs(c, '--data <file>', 'data, JSON Lines')
    .option(
      '--seq-length <n>',
      'most tokens of a sequence (default: 512, or the model’s positions)',
      wholeNumber(2),
    )
    .option('--batch-size <n>', 'sequences computed together', wholeNumber(1), 8)
    .option(
      '--predictions <file>',
      'of a classifier: write a JSON line a record with "line", "idx" (where it has one), ' +
        '"label" and "scores" (probabilities in the order of the labels, or values)',
    );
  return commonOptions(precisionOptions(backendOptions(c))).action(runEval);
}

async function runEval(given: EvalFlags): Promise<void> {
  const flags = await resolveFlags(given);
  const [{ openCheckpoint }, { adapterHead, isClassifier }] = await Promise.all([
    import('../io/checkpoint.js'),
    import('../models/head.js'),
  ]);
  const checkpoint = openCheckpoint(flags.model);
  const head = flags.adapter === undefined ? undefined : adapterHead(flags.adapter, checkpoint);
  const classifies = head !== undefined || isClassifier(checkpoint.config);
  const started = performance.now();
  const end = (result: object, text: string) => {
    const seconds = (performance.now() - started) / 1000;
    if (flags.json) printJson({ type: 'done', ...result, seconds });
    else say(`${text} in ${timeText(seconds)}`);
  };
  if (classifies) await runClassifier(flags, checkpoint, head, end);
  else await runCausal(flags, end);
}

type Flags = Resolved<EvalFlags>;

type End = (result: object, text: string) => void;

async function runCausal(flags: Flags, end: End): Promise<void> {
  const [{ readJsonl }, { evaluate }, { evaluationBatches, sequenceLength }, { failure }] =
    await Promise.all([
      import('../io/dataset.js'),
      import('../train/evaluate.js'),
      import('../train/data.js'),
      import('../tensor/errors.js'),
    ]);
  if (flags.predictions !== undefined) {
    throw failure('--predictions', 'a classifier', `a causal model, ${flags.modelName}`);
  }
  const records = readJsonl(flags.data);
  const loaded = await loadForUse(flags, 'causal-lm');
  using model = loaded.model;
  const seqLength = sequenceLength(flags.seqLength, model.maxPositions);
  if (!flags.json) note(`${plural(records.length, 'record')} on ${loaded.backend}`);
  const batches = evaluationBatches(records, loaded.tokenizer, seqLength, flags.batchSize);
  const result = evaluate(model, batches);
  if (result.tokens === 0) {
    const expected = 'something to predict: a completion, or a text of two tokens or more';
    throw failure(`data ${flags.data}`, expected, `${records.length} records without`);
  }
  end({ ...result, records: records.length }, evaluationText(result));
}

/** Throws unless all records have labels, or none of them and that is of use. */
async function checkLabels(flags: Flags, records: readonly LabelledRecord[]): Promise<void> {
  const { failure } = await import('../tensor/errors.js');
  const without = records.filter(({ label }) => label === undefined);
  if (without.length === 0) return;
  const place = `${flags.data}:${without[0]?.line}`;
  if (without.length < records.length) {
    throw failure(place, '"label", as other records have one', 'none');
  }
  const hint = 'Give --predictions <file> to write what the model says';
  if (flags.predictions === undefined) throw failure(place, '"label"', 'none', hint);
}

async function writePredictions(path: string, predictions: readonly Prediction[]): Promise<void> {
  const { writeFileAtomic } = await import('../io/files.js');
  const text = predictions.map((p) => `${JSON.stringify(p)}\n`).join('');
  writeFileAtomic(path, [new TextEncoder().encode(text)]);
}

async function runClassifier(
  flags: Flags,
  checkpoint: Checkpoint,
  head: ClassifierHead | undefined,
  end: End,
): Promise<void> {
  const [
    { readLabelled },
    { hasHead, headConfig },
    { knownLabels, paddingOf },
    { encodeRecords, givesTokenTypes },
    { predictRecords },
    { sequenceLength },
    { failure },
  ] = await Promise.all([
    import('../io/labelled.js'),
    import('../models/head.js'),
    import('../train/labels.js'),
    import('../train/sequences.js'),
    import('../train/predictions.js'),
    import('../train/data.js'),
    import('../tensor/errors.js'),
  ]);
  if (!head && !hasHead(checkpoint)) {
    const hint = 'Train one: lowrank train makes a head for the labels of its data';
    throw failure(`model ${flags.modelName}`, 'a head for sequences', 'none', hint);
  }
  const records = readLabelled(flags.data);
  await checkLabels(flags, records);
  const space = knownLabels(checkpoint.config, head, records);
  const loaded = await loadForUse(flags, 'classification', head);
  using model = loaded.model;
  const { tokenizer, backend } = loaded;
  const maxLength = sequenceLength(flags.seqLength, model.maxPositions);
  const tokenTypes = givesTokenTypes(checkpoint.config, tokenizer);
  const how = { maxLength, tokenTypes, file: flags.data };
  const { examples, truncated } = encodeRecords(records, tokenizer, space, how);
  if (!flags.json) note(`${plural(records.length, 'record')} on ${backend}`);
  if (truncated > 0) {
    note(`lowrank: ${plural(truncated, 'record')} cut to ${plural(maxLength, 'token')}`);
  }
  const config = head ? headConfig(checkpoint.config, head) : checkpoint.config;
  const padId = paddingOf(config, tokenizer);
  const batchSize = flags.batchSize;
  const said = predictRecords(model, records, examples, space, { batchSize, padId });
  const { predictions, evaluation } = said;
  const { predictions: file } = flags;
  if (file !== undefined) await writePredictions(file, predictions);
  const written = file === undefined ? {} : { predictions: file };
  const wrote = file === undefined ? '' : `; predictions in ${file}`;
  if (evaluation) end({ ...evaluation, ...written }, `${evaluationText(evaluation)}${wrote}`);
  else end({ records: records.length, ...written }, `${plural(records.length, 'record')}${wrote}`);
}
