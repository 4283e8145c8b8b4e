import type { Command } from 'commander';
import { backendOptions, loadForUse, type ModelFlags, modelOptions } from './model.js';
import {
  command,
  commonOptions,
  countText,
  lossText,
  needs,
  note,
  printJson,
  say,
  timeText,
  wholeNumber,
} from './output.js';

interface EvalFlags extends ModelFlags {
  readonly data: string;
  readonly seqLength?: number;
  readonly batchSize: number;
}

const EXAMPLES = [
  'lowrank eval --model base --data test.jsonl',
  'lowrank eval --model base --adapter adapter --data test.jsonl --json',
];

const SUMMARY = 'Measure the loss of a model on a JSON Lines file.';

const DETAILS =
  'The loss is the mean over all tokens that count, in nats. Of a prompt and completion only ' +
  'the completion counts; plain texts are packed as in training.';

/** `lowrank eval`. */
export function evalCommand(): Command {
  const c = modelOptions(command('eval', SUMMARY, DETAILS, EXAMPLES), 'optional');
  needs(c, '--data <file>', 'data, JSON Lines')
    .option(
      '--seq-length <n>',
      'most tokens of a sequence (default: 512, or the model’s positions)',
      wholeNumber(2),
    )
    .option('--batch-size <n>', 'sequences computed together', wholeNumber(1), 8);
  return commonOptions(backendOptions(c)).action(runEval);
}

async function runEval(flags: EvalFlags): Promise<void> {
  const [{ readJsonl }, { evaluate }, { evaluationBatches, sequenceLength }, { failure }] =
    await Promise.all([
      import('../io/dataset.js'),
      import('../train/evaluate.js'),
      import('../train/data.js'),
      import('../tensor/errors.js'),
    ]);
  const records = readJsonl(flags.data);
  const { model, tokenizer, backend } = await loadForUse(flags);
  const seqLength = sequenceLength(flags.seqLength, model.maxPositions);
  if (!flags.json) note(`${countText(records.length)} records on ${backend}`);
  const started = performance.now();
  const batches = evaluationBatches(records, tokenizer, seqLength, flags.batchSize);
  const result = evaluate(model, batches);
  if (result.tokens === 0) {
    const expected = 'something to predict: a completion, or a text of two tokens or more';
    throw failure(`data ${flags.data}`, expected, `${records.length} records without`);
  }
  const seconds = (performance.now() - started) / 1000;
  if (flags.json) printJson({ type: 'done', ...result, records: records.length, seconds });
  else say(`${lossText(result)} in ${timeText(seconds)}`);
}
