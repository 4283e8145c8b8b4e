import { type Command, Option } from 'commander';
import { ACTIVATION_DTYPES } from '../tensor/dtype.js';
import type { DoneEvent, FinetuneEvent, FinetuneOptions, StartEvent } from '../train/finetune.js';
import { evaluationText } from './evaluation.js';
import { isLora, LORA, type LoraFlags, loraOptions, loraSettings } from './lora-options.js';
import { precisionOptions, type Resolved, resolveFlags } from './model.js';
import {
  BACKEND_HELP,
  backendName,
  bytesText,
  type CommonOptions,
  command,
  commonOptions,
  countText,
  memoryText,
  needs,
  note,
  notNegative,
  oneOf,
  plural,
  positive,
  printJson,
  Stopped,
  say,
  stopSignal,
  threadCount,
  timeText,
  UsageError,
  wholeNumber,
} from './output.js';
import { type Progress, showProgress } from './progress.js';

/** The options as commander hands them over. */
interface TrainFlags
  extends CommonOptions,
    LoraFlags,
    Omit<
      FinetuneOptions,
      'modelDir' | 'dataFile' | 'evalFile' | 'lora' | 'loraPlus' | 'warmupSteps' | 'signal'
    > {
  readonly model: string;
  readonly data: string;
  readonly eval?: string;
  readonly warmup?: number;
  /** True where no number was given. */
  readonly loraPlus?: number | true;
  readonly verbose?: boolean;
  readonly dryRun?: boolean;
}

const EXAMPLES = [
  'lowrank train --model base --data train.jsonl --out adapter --epochs 3',
  'lowrank train --model base --data train.jsonl --eval test.jsonl --out adapter \\\n' +
    '      --rank 16 --target-modules qv --lr 1e-3 --steps 500 --eval-every 100 --keep-best',
  'lowrank train --model roberta-base --data mrpc.jsonl --eval dev.jsonl --out mrpc \\\n' +
    '      --target-modules qv --lr 4e-4 --epochs 30 --eval-every 500',
  'lowrank train --model base --data train.jsonl --out tuned --full --lr 5e-5',
  'lowrank train --model base --data train.jsonl --out adapter --epochs 3 --resume',
  'lowrank train --model base --data train.jsonl --out adapter --batch-size 32 --dry-run',
];

const SUMMARY = 'Fine-tune a model with LoRA on a JSON Lines file.';

const DETAILS =
  'Lines have "text", or "prompt" and "completion" (only the completion is learned). The ' +
  'adapter is written as PEFT writes it.\n\n' +
  'A classifier (BERT, RoBERTa, or any model with --num-labels) learns "label": the name or ' +
  'number of a class, a list of names or of 0 and 1, or a value, of "text" (and "text_pair"), or ' +
  'of the fields of GLUE’s tasks: sentence; sentence1, sentence2; question, sentence; premise, ' +
  'hypothesis; question1, question2. Labels are the model’s; a model without a head for ' +
  'sequences gets a new one for the labels of the data. The head is trained, too, and the ' +
  'adapter holds it whole, as in PEFT.\n\n' +
  'Ctrl-C ends the run after the step under way and ' +
  'saves; --resume goes on from there, bit for bit.';

/** `lowrank train`. */
export function trainCommand(): Command {
  const c = command('train', SUMMARY, DETAILS, EXAMPLES);
  needs(c, '--model <dir>', 'the base model: a directory, or org/name[@revision] of the Hub');
  needs(c, '--data <file>', 'training data, JSON Lines');
  needs(c, '--out <dir>', 'where the adapter is written').option(
    '--eval <file>',
    'held-out data: what is measured on it is shown before and after',
  );
  loraOptions(c)
    .option(
      '--num-labels <n>',
      'give a classifier a new head of so many labels, those of the data (default: the model’s ' +
        'own labels; where it has no head, as many as the data has)',
      wholeNumber(1),
    )
    .option(
      '--problem-type <type>',
      'what labels are: single_label_classification, multi_label_classification or regression ' +
        '(default: as config.json says, else as the data looks)',
      problemType,
    )
    .option('--lr <rate>', 'peak learning rate (default: 2e-4, with --full 2e-5)', positive)
    .addOption(
      new Option(
        '--lora-plus [ratio]',
        'LoRA+: B learns so many times faster than A; 16 where no number is given (default: as fast)',
      ).argParser(positive),
    )
    .addOption(
      new Option('--steps <n>', 'optimizer steps').argParser(wholeNumber(1)).conflicts('epochs'),
    )
    .option('--epochs <n>', 'passes over the data (default: 1)', positive)
    .option('--batch-size <n>', 'sequences of a micro-batch (default: 8)', wholeNumber(1))
    .option('--accumulation <n>', 'micro-batches of a step (default: 1)', wholeNumber(1))
    .option(
      '--seq-length <n>',
      'most tokens of a sequence (default: 512, or the model’s positions)',
      wholeNumber(2),
    )
    .option('--schedule <name>', 'constant, linear or cosine (default: cosine)', schedule)
    .option('--warmup <steps>', 'steps of warm-up (default: 3% of the steps)', wholeNumber(0))
    .option('--weight-decay <x>', 'decoupled weight decay (default: 0)', notNegative)
    .option(
      '--max-grad-norm <x>',
      'clip gradients to this norm, 0: never (default: 1)',
      notNegative,
    )
    .option(
      '--gradient-checkpointing',
      'keep only each block’s input for backward: less memory for about a third more time',
    )
    .option(
      '--activations <dtype>',
      'what layers hand on and keep for backward while training: f32, or bf16 for half the ' +
        'memory, as PyTorch’s autocast; with --compute bf16 (default: f32)',
      oneOf(ACTIVATION_DTYPES),
    )
    .option('--seed <n>', 'start, order and dropout follow from it (default: 0)', wholeNumber(0))
    .option('--backend <name>', BACKEND_HELP, backendName)
    .option('--threads <n>', 'worker threads; results do not depend on it', threadCount)
    .addOption(
      new Option('--full', 'train every parameter; writes a model directory').conflicts([
        ...LORA,
        'loraPlus',
        'dtype',
      ]),
    )
    .option('--eval-every <steps>', 'evaluate every so many steps (needs --eval)', wholeNumber(1))
    .option('--save-every <steps>', 'save every so many steps (default: 200)', wholeNumber(1))
    .option(
      '--keep-best',
      'write the weights of the lowest loss on --eval, not the last ones (needs --eval-every)',
    )
    .option('--dry-run', 'say what memory the run will need, by purpose, and do nothing')
    .option('--resume', 'go on where a run of the same settings in --out was stopped')
    .addOption(
      new Option('--overwrite', 'start anew although --out is not empty').conflicts('resume'),
    );
  return commonOptions(precisionOptions(c)).action(runTrain);
}

const problemType = oneOf([
  'single_label_classification',
  'multi_label_classification',
  'regression',
] as const);
const schedule = oneOf(['constant', 'linear', 'cosine'] as const);

/** The ratio that the paper of LoRA+ advises. */
const LORA_PLUS = 16;

function toOptions(flags: Resolved<TrainFlags>, signal: AbortSignal): FinetuneOptions {
  const { model, data, eval: evalFile, warmup, loraPlus, ...others } = flags;
  const { json: _json, verbose: _verbose, dryRun: _dryRun, ...more } = others;
  const lora = loraSettings(flags);
  const rest = Object.fromEntries(Object.entries(more).filter(([key]) => !isLora(key)));
  return {
    ...rest,
    modelDir: model,
    dataFile: data,
    out: flags.out,
    ...(evalFile === undefined ? {} : { evalFile }),
    ...(warmup === undefined ? {} : { warmupSteps: warmup }),
    ...(loraPlus === undefined ? {} : { loraPlus: loraPlus === true ? LORA_PLUS : loraPlus }),
    ...(flags.full ? {} : { lora }),
    signal,
  };
}

async function runTrain(flags: TrainFlags): Promise<void> {
  if (flags.evalEvery !== undefined && flags.eval === undefined) {
    throw new UsageError('option --eval-every needs --eval <file>');
  }
  if (flags.keepBest && flags.evalEvery === undefined) {
    throw new UsageError('option --keep-best needs --eval-every <steps> and --eval <file>');
  }
  const resolved = await resolveFlags(flags);
  if (flags.dryRun) {
    const { runDry } = await import('./dry-run.js');
    await runDry(toOptions(resolved, new AbortController().signal), flags.json ?? false);
    return;
  }
  const { finetune } = await import('../train/finetune.js');
  const view = new View(flags);
  const signal = stopSignal((line) => view.note(line));
  try {
    for await (const event of finetune(toOptions(resolved, signal))) {
      if (flags.json) printJson(event);
      await view.show(event);
    }
  } finally {
    view.close();
  }
  if (view.stopped) throw new Stopped();
}

/** Skipped steps that are told one by one. */
const TOLD = 3;

/** What people see of a run. */
class View {
  stopped = false;
  #start: StartEvent | undefined;
  #progress: Progress | undefined;
  #skipped = 0;

  constructor(readonly flags: TrainFlags) {}

  async show(event: FinetuneEvent): Promise<void> {
    if (event.type === 'done') this.stopped = event.stopped;
    if (event.type === 'start') this.#warn(event);
    if (this.flags.json) return;
    if (event.type === 'start') await this.#begin(event);
    else if (event.type === 'step') {
      this.#progress?.step(event);
      if (event.skipped !== undefined && ++this.#skipped <= TOLD) {
        this.#progress?.note(`step ${event.step} changed nothing: ${event.skipped}`);
      }
    } else if (event.type === 'eval') {
      this.#progress?.note(`evaluation at step ${event.step}: ${evaluationText(event)}`);
    } else if (event.type === 'done') {
      this.close();
      this.#summary(event);
    }
  }

  /** Prints a line, above the bar where there is one. */
  note(line: string): void {
    if (this.#progress) this.#progress.note(line);
    else note(line);
  }

  close(): void {
    this.#progress?.end();
    this.#progress = undefined;
  }

  #warn({ truncatedExamples, truncatedTokens, seqLength, wideRanks = [] }: StartEvent): void {
    const [wide] = wideRanks;
    if (wide) {
      note(
        `lowrank: rank ${wide.rank} is more than ${wide.path} has a use for: ${wide.most} reaches ` +
          `every change of it${wideRanks.length > 1 ? ` (${wideRanks.length} such layers)` : ''}`,
      );
    }
    if (truncatedExamples === 0) return;
    note(
      `lowrank: --seq-length ${seqLength} cuts ${plural(truncatedExamples, 'example')}, which ` +
        `together lose ${plural(truncatedTokens, 'token')}`,
    );
  }

  async #begin(e: StartEvent): Promise<void> {
    this.#start = e;
    const share = shareText(e);
    note(`${e.method === 'full' ? 'Full fine-tuning' : 'LoRA'} of ${e.modelDir} on ${e.backend}`);
    note(`${countText(e.trainableParameters)} trainable parameters, ${share}`);
    if (e.labels) note(labelsText(e, e.labels));
    const learned = e.labels ? plural(e.targets, 'label') : `${countText(e.targets)} of them`;
    note(
      `${countText(e.examples)} sequences, ${countText(e.tokens)} tokens, ${learned} to learn; ` +
        `${countText(e.steps)} steps of ${e.batchSize * e.accumulation} sequences`,
    );
    if (e.resumedFrom > 0 && e.resumedFrom < e.steps) note(`Going on after step ${e.resumedFrom}`);
    if (e.resumedFrom < e.steps) this.#progress = await showProgress(e.steps, e.resumedFrom);
  }

  #summary(e: DoneEvent): void {
    const start = this.#start as StartEvent;
    if (e.alreadyDone) {
      say(`Nothing left to do: the run in ${start.out} has done its ${plural(e.steps, 'step')}.`);
      return;
    }
    const what = start.method === 'full' ? 'Model' : 'Adapter';
    if (e.stopped) say(`Stopped after step ${e.step} of ${e.steps}; --resume goes on from there.`);
    say(`Trainable    ${countText(start.trainableParameters)} parameters, ${shareText(start)}`);
    say(`Time         ${timeText(e.seconds)} for ${plural(e.step - start.resumedFrom, 'step')}`);
    if (e.trainLoss) {
      const { first, last } = e.trainLoss;
      say(`Train loss   ${first.toFixed(4)} → ${last.toFixed(4)} (first and last steps)`);
    }
    if (e.best) say(`Best step    ${e.best.step} of ${e.steps}: its weights are kept`);
    if (e.before) say(`Eval before  ${evaluationText(e.before)}`);
    if (e.after) say(`Eval after   ${evaluationText(e.after)}`);
    if (this.#skipped > 0)
      say(`Skipped      ${plural(this.#skipped, 'step')} that changed nothing`);
    say(`Peak memory  ${memoryText(e.memory)}`);
    say(`${what.padEnd(13)}${start.out} (${bytesText(e.bytes ?? 0)})`);
    const model =
      start.method === 'full'
        ? `--model ${start.out}`
        : `--model ${this.flags.model} --adapter ${start.out}`;
    const use = start.labels ? `eval ${model} --data test.jsonl` : `generate ${model} --prompt "…"`;
    say(`\nTry it: lowrank ${use}`);
  }
}

/** Labels that are named one by one. */
const NAMED = 8;

function labelsText(e: StartEvent, labels: readonly string[]): string {
  const names = labels.slice(0, NAMED).join(', ');
  const more = labels.length > NAMED ? ', …' : '';
  const head = e.newHead ? 'A new head for' : 'The model’s head for';
  return `${head} ${plural(labels.length, 'label')} (${names}${more}): ${e.problemType}`;
}

function shareText({ trainableParameters, totalParameters }: StartEvent): string {
  const share = (100 * trainableParameters) / totalParameters;
  return `${share.toPrecision(3)}% of ${countText(totalParameters)}`;
}
