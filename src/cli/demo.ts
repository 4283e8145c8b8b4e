import { relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { PACKAGE_ROOT } from '../tensor/package-root.js';
import { backendOptions } from './model.js';
import {
  type CommonOptions,
  command,
  commonOptions,
  note,
  printJson,
  say,
  wholeNumber,
} from './output.js';
import { showProgress } from './progress.js';

interface DemoFlags extends CommonOptions {
  readonly out: string;
  readonly model?: string;
  readonly backend?: string;
  readonly threads?: number;
  readonly seed: number;
  readonly quick?: boolean;
}

const EXAMPLES = ['lowrank demo', 'lowrank demo --out /tmp/demo --json > results.json'];

const SUMMARY = 'Train two adapters of the bundled model on real text, and show what came of it.';

const DETAILS =
  'A task (the category of a WordNet definition) and a style (Moby Dick), each beside the same ' +
  'frozen base; then LoRA beside full fine-tuning, merging, and switching. Writes both adapters, ' +
  'report.html and results.json. About two minutes on two cores.';

/** The bundled base model, from the current folder where it lies below. */
function bundledModel(): string {
  const path = fileURLToPath(new URL('assets/base', PACKAGE_ROOT));
  const below = relative(process.cwd(), path);
  return below.startsWith('..') ? path : below;
}

/** Columns beyond which lines are hard to read. */
const MAX_WIDTH = 100;

/** `lowrank demo`. */
export function demoCommand(): Command {
  const c = command('demo', SUMMARY, DETAILS, EXAMPLES)
    .option('--out <dir>', 'where adapters and report are written', 'lowrank-demo')
    .option('--model <dir>', 'another base model (default: the bundled one)')
    .option(
      '--seed <n>',
      'of the adapters, the order of the data and the samples',
      wholeNumber(0),
      1,
    )
    .option('--quick', 'a few steps of everything, to see that it works; the figures mean nothing');
  return commonOptions(backendOptions(c)).action(runDemoCommand);
}

async function runDemoCommand(flags: DemoFlags): Promise<void> {
  const { runDemo } = await import('../reproduce/demo/run.js');
  const stream = flags.json ? process.stderr : process.stdout;
  const results = await runDemo(
    {
      modelDir: flags.model ?? bundledModel(),
      out: flags.out,
      backend: flags.backend ?? 'auto',
      ...(flags.threads === undefined ? {} : { threads: flags.threads }),
      seed: flags.seed,
      quick: flags.quick ?? false,
    },
    {
      width: Math.min(MAX_WIDTH, stream.columns ?? 96),
      styled: stream.isTTY === true && !process.env.NO_COLOR,
      say: flags.json ? note : say,
      bar: (total) => showProgress(total, 0),
    },
  );
  if (flags.json) printJson(results);
}
