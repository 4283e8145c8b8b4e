import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import type { EvalEvent } from '../train/pretrain.js';
import { backendOptions } from './model.js';
import {
  type CommonOptions,
  command,
  commonOptions,
  needs,
  note,
  notNegative,
  positive,
  printJson,
  Stopped,
  say,
  stopSignal,
  timeText,
  wholeNumber,
} from './output.js';
import { type Progress, showProgress } from './progress.js';

interface PretrainFlags extends CommonOptions {
  readonly config: string;
  readonly tokenizer: string;
  readonly data: string;
  readonly heldout?: ReadonlyMap<string, string>;
  readonly out: string;
  readonly steps: number;
  readonly batchSize: number;
  readonly accumulation: number;
  readonly seqLength: number;
  readonly lr: number;
  readonly warmup: number;
  readonly weightDecay: number;
  readonly seed: number;
  readonly evalEvery: number;
  readonly backend?: string;
  readonly threads?: number;
}

const EXAMPLES = [
  'lowrank pretrain --config config.json --tokenizer tokenizer --data train.bin \\\n' +
    '      --heldout news=news.bin --heldout law=law.bin --out base --steps 15000',
];

const SUMMARY = 'Train a new model from random weights on a file of token ids.';

const DETAILS =
  'The file holds 16-bit ids, documents one after the other; they are cut into full ' +
  'sequences. A run that was stopped goes on by the same command line, bit for bit. The model ' +
  'is written in bf16 when all steps are done.';

/** `lowrank pretrain`. */
export function pretrainCommand(): Command {
  const c = command('pretrain', SUMMARY, DETAILS, EXAMPLES);
  needs(c, '--config <file>', 'a config.json: the architecture and its sizes');
  needs(c, '--tokenizer <dir>', 'the directory of the tokenizer that made the ids');
  needs(c, '--data <file>', 'token ids to train on');
  needs(c, '--out <dir>', 'where the model is written');
  needs(c, '--steps <n>', 'optimizer steps', wholeNumber(1))
    .option('--heldout <name=file>', 'token ids to evaluate on; may be repeated', heldOut)
    .option('--batch-size <n>', 'sequences of a micro-batch', wholeNumber(1), 16)
    .option('--accumulation <n>', 'micro-batches of a step', wholeNumber(1), 1)
    .option('--seq-length <n>', 'tokens of a sequence', wholeNumber(2), 256)
    .option('--lr <rate>', 'peak learning rate', positive, 1e-3)
    .option('--warmup <steps>', 'steps of warm-up', wholeNumber(0), 300)
    .option('--weight-decay <x>', 'decoupled weight decay of matrices', notNegative, 0.1)
    .option('--seed <n>', 'weights and order follow from it', wholeNumber(0), 1)
    .option('--eval-every <steps>', 'steps between evaluations and saves', wholeNumber(1), 500);
  return commonOptions(backendOptions(c)).action(runPretrain);
}

function heldOut(text: string, before?: ReadonlyMap<string, string>): Map<string, string> {
  const at = text.indexOf('=');
  if (at < 1 || at === text.length - 1) throw new InvalidArgumentError('Expected name=file.');
  const name = text.slice(0, at);
  if (before?.has(name)) throw new InvalidArgumentError(`Expected each name once.`);
  return new Map([...(before ?? []), [name, text.slice(at + 1)]]);
}

/** Steps whose speed is averaged. */
const WINDOW = 20;

async function runPretrain(flags: PretrainFlags): Promise<void> {
  const [{ pretrain }, { readJsonObject }, { getBackend }] = await Promise.all([
    import('../train/pretrain.js'),
    import('../io/files.js'),
    import('../tensor/registry.js'),
  ]);
  const { out, steps, json, warmup, tokenizer, data } = flags;
  if (existsSync(join(out, 'model.safetensors')) && !existsSync(join(out, 'state'))) {
    throw new Error(
      `[pretrain] expected a new folder or a stopped run, received ${out} with a model in it. ` +
        'Give another --out',
    );
  }
  const backend = getBackend(flags.backend ?? 'auto');
  if (flags.threads !== undefined) backend.setThreads(flags.threads);
  let progress: Progress | undefined;
  const signal = stopSignal((line) => (progress ? progress.note(line) : note(line)));
  const run = pretrain({
    ...flags,
    config: readJsonObject(flags.config, 'config'),
    tokenizerDir: tokenizer,
    trainFile: data,
    heldOut: flags.heldout ?? new Map(),
    warmupSteps: warmup,
    ...{ backend, signal },
  });
  if (!json) note(`Pretraining on ${backend.describe()}, ${steps} steps`);
  const started = performance.now();
  const recent: { seconds: number; positions: number }[] = [];
  let done = 0;
  try {
    for await (const event of run) {
      if (event.type === 'eval') {
        if (json) printJson(event);
        else progress?.note(evalText(event));
        continue;
      }
      done = event.step;
      recent.push(event);
      if (recent.length > WINDOW) recent.shift();
      const seconds = recent.reduce((n, r) => n + r.seconds, 0);
      const tokensPerSecond = recent.reduce((n, r) => n + r.positions, 0) / seconds;
      const secondsLeft = ((steps - done) * seconds) / recent.length;
      if (json) {
        printJson({ ...event, steps, tokensPerSecond, secondsLeft });
        continue;
      }
      progress ??= await showProgress(steps, done);
      progress.step({ ...event, tokensPerSecond, secondsLeft });
      if (event.skipped !== undefined) {
        progress.note(`step ${done} changed nothing: ${event.skipped}`);
      }
    }
  } finally {
    progress?.end();
  }
  const seconds = (performance.now() - started) / 1000;
  const stopped = signal.aborted && done < steps;
  if (json) printJson({ type: 'done', step: done, steps, stopped, seconds, out });
  else if (stopped) say(`Stopped; the same command goes on from ${out}`);
  else say(`${out}: done in ${timeText(seconds)}`);
  if (stopped) throw new Stopped();
}

function evalText({ step, sources }: EvalEvent): string {
  const parts = Object.entries(sources).map(([name, { loss }]) => `${name} ${loss.toFixed(4)}`);
  return `evaluation at step ${step}: ${parts.join(', ') || 'no held-out file'}`;
}
