import { Command, CommanderError } from 'commander';
import { adaptersCommand } from './algebra.js';
import { analyzeCommand } from './analyze.js';
import { buildCommand } from './build.js';
import { demoCommand } from './demo.js';
import { doctorCommand } from './doctor.js';
import { evalCommand } from './eval.js';
import { generateCommand } from './generate.js';
import { inspectCommand } from './inspect.js';
import { mergeCommand } from './merge.js';
import { packageVersion, Stopped, stopListening, UsageError } from './output.js';
import { pretrainCommand } from './pretrain.js';
import { pullCommand } from './pull.js';
import { trainCommand } from './train.js';

const HELP = `
Exit codes: 0 it worked, 1 it failed, 2 it was asked for in a wrong way, 130 stopped by Ctrl-C.
Every command has --help with examples, and --json for JSON lines on standard output.

Examples:
  $ lowrank train --model base --data train.jsonl --out adapter --epochs 3
  $ lowrank generate --model base --adapter adapter --prompt "Once upon"
  $ lowrank doctor`;

/** The whole command line. */
export function makeProgram(): Command {
  const program = new Command('lowrank')
    .description('LoRA fine-tuning of Hugging Face models, from the command line.')
    .version(packageVersion(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .helpCommand('help [command]', 'print the help of a command')
    .addHelpText('after', HELP);
  const commands = [
    trainCommand(),
    generateCommand(),
    evalCommand(),
    mergeCommand(),
    adaptersCommand(),
    analyzeCommand(),
    inspectCommand(),
    pullCommand(),
    pretrainCommand(),
    demoCommand(),
    buildCommand(),
    doctorCommand(),
  ];
  for (const command of commands) program.addCommand(command);
  for (const command of [program, ...commands, ...commands.flatMap((c) => c.commands)]) {
    command.exitOverride().configureOutput({
      outputError: (text, write) => write(`${oneLine(text)}\n`),
    });
  }
  return program;
}

/** Commander's message as one line in our form. */
function oneLine(text: string): string {
  const [first = '', ...more] = text.trim().split('\n');
  return `lowrank: ${[first.replace(/^error: /, ''), ...more].join(' ').trim()}`;
}

const GOOD = new Set(['commander.helpDisplayed', 'commander.version']);

/**
 * Runs a command line.
 * @param argv without node and script
 * @returns the exit code
 */
export async function runCli(argv: readonly string[]): Promise<number> {
  const program = makeProgram();
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) {
      return GOOD.has(error.code) || (error.code === 'commander.help' && argv.includes('help'))
        ? 0
        : 2;
    }
    return report(error as Error, argv);
  } finally {
    stopListening();
  }
}

/** Prints an error for people, and in JSON where that was asked for. */
function report(error: Error, argv: readonly string[]): number {
  if (error instanceof Stopped) return 130;
  const usage = error instanceof UsageError;
  if (argv.includes('--json') && !usage) {
    process.stdout.write(`${JSON.stringify({ type: 'error', message: error.message })}\n`);
  }
  const text = argv.includes('--verbose') ? (error.stack ?? error.message) : error.message;
  process.stderr.write(`lowrank: ${text}\n`);
  return usage ? 2 : 1;
}
