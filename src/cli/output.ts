import { readFileSync } from 'node:fs';
import { Command, InvalidArgumentError, Option } from 'commander';
import type { MemoryBooks, Purpose } from '../tensor/backend.js';
import { nearest } from '../tensor/errors.js';
import { PACKAGE_ROOT } from '../tensor/package-root.js';

export function packageVersion(): string {
  const text = readFileSync(new URL('package.json', PACKAGE_ROOT), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

/** A command line that cannot be followed; exit code 2. */
export class UsageError extends Error {}

/** The work was stopped by Ctrl-C, after saving; exit code 130. */
export class Stopped extends Error {}

/** Options that every command has. */
export interface CommonOptions {
  readonly json?: boolean;
}

const required = new WeakMap<Command, Option[]>();

/**
 * A command with examples at the end of its help.
 * @param summary one line for the list of commands; its help adds `details`
 */
export function command(
  name: string,
  summary: string,
  details: string,
  examples: readonly string[],
): Command {
  const lines = examples.map((e) => `  $ ${e}`).join('\n');
  const c = new Command(name)
    .summary(summary)
    .description(details === '' ? summary : `${summary}\n\n${details}`)
    .allowExcessArguments(false)
    .helpOption('-h, --help', 'print this help')
    .addHelpText('after', `\nExamples:\n${lines}`);
  const needed: Option[] = [];
  required.set(c, needed);
  // Commander's own check comes before the one for unknown options, so that a misspelt --model
  // would be told as a missing one.
  c.hook('preAction', () => {
    const missing = needed.filter((o) => c.opts()[o.attributeName()] === undefined);
    if (missing.length === 0) return;
    const list = missing.map((o) => o.flags).join(', ');
    throw new UsageError(`${name} needs ${list}; see lowrank ${name} --help`);
  });
  return c;
}

/** Adds an option that must be given. @param parse is also given the value so far, if repeated */
export function needs<T>(
  c: Command,
  flags: string,
  description: string,
  parse?: (text: string, before?: T) => T,
): Command {
  const option = new Option(flags, `${description} (required)`);
  if (parse) option.argParser(parse);
  required.get(c)?.push(option);
  return c.addOption(option);
}

/** Adds the options every command ends with. */
export function commonOptions(c: Command): Command {
  return c
    .option('--json', 'print events and results as JSON lines on standard output')
    .option('--verbose', 'print where in the code an error came from');
}

/** A parser of a whole number of at least `least`. */
export function wholeNumber(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\+?\d+$/.test(text.trim()) && Number.isSafeInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(`Expected a whole number of ${least} or more.`);
  };
}

/** A parser of a number that a test accepts. */
export function number(expected: string, valid: (v: number) => boolean): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isFinite(value) && valid(value)) return value;
    throw new InvalidArgumentError(`Expected ${expected}.`);
  };
}

export const positive = number('a number above 0', (v) => v > 0);
export const notNegative = number('a number of 0 or more', (v) => v >= 0);

/** A parser of one of a few names; another one is answered with the nearest. */
export function oneOf<T extends string>(values: readonly T[]): (text: string) => T {
  return (text) => {
    if (values.includes(text as T)) return text as T;
    const near =
      values.find((v) => text !== '' && v.startsWith(text)) ?? nearest(text, values, 1)[0];
    throw new InvalidArgumentError(`Expected one of ${values.join(', ')}. Did you mean ${near}?`);
  };
}

const BACKEND_NAMES = ['auto', 'cpu', 'cuda', 'reference'] as const;

/** What `--backend` says of itself. */
export const BACKEND_HELP =
  'auto, cpu, cuda (an NVIDIA GPU; cuda:1 is the second) or reference (default: auto)';

/** A parser of a backend's name, as `getBackend` knows them. */
export function backendName(text: string): string {
  return /^cuda:(0|[1-9]\d{0,3})$/.test(text) ? text : oneOf(BACKEND_NAMES)(text);
}

/** A parser of a comma-separated list of names. */
export function names(text: string): string[] {
  const list = text.split(',').map((n) => n.trim());
  if (list.some((n) => n === '')) {
    throw new InvalidArgumentError('Expected names with commas between them.');
  }
  return list;
}

/** A parser of the parts of a fused layer in order: `q,-,v` is [true, false, true]. */
export function partNames(words: string): boolean[] {
  const list = words.split(',').map((p) => p.trim());
  if (list.length > 1 && list.every((p) => p !== '') && list.some((p) => p !== '-')) {
    return list.map((p) => p !== '-');
  }
  throw new InvalidArgumentError('Expected the parts in order, - for one without LoRA: q,-,v.');
}

/** The most worker threads there can be. */
const MAX_THREADS = 256;

/** A parser of a number of worker threads. */
export function threadCount(text: string): number {
  const count = wholeNumber(1)(text);
  if (count <= MAX_THREADS) return count;
  throw new InvalidArgumentError(`Expected a whole number of 1 to ${MAX_THREADS}.`);
}

/** Prints a value as one line of JSON. */
export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

/** Prints a line of the result. */
export function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Prints a line about the work, on standard error. */
export function note(line: string): void {
  process.stderr.write(`${line}\n`);
}

const UNITS = ['B', 'KB', 'MB', 'GB', 'TB'];

/** Bytes as people read them: `1.2 MB` (powers of 1000). */
export function bytesText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 || value >= 99.5 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** Seconds as people read them: `4.2 s`, `3 min 20 s`, `2 h 5 min`. */
export function timeText(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** A count with thousands apart: `1,234,567`. */
export function countText(n: number): string {
  // By hand: the first toLocaleString of a process loads the tables of all locales.
  return String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, ',');
}

/** `1 step`, `2,000 steps`. */
export function plural(n: number, noun: string): string {
  return `${countText(n)} ${noun}${n === 1 ? '' : 's'}`;
}

export function lossText(e: { loss: number; perplexity: number; tokens: number }): string {
  return `loss ${e.loss.toFixed(4)} (perplexity ${perplexityText(e.perplexity)}, ${countText(e.tokens)} tokens)`;
}

function perplexityText(p: number): string {
  return p < 1000 ? p.toFixed(2) : p < 1e6 ? countText(p) : p.toExponential(2);
}

/** Peak bytes by purpose on one line; purposes that held nothing are left out. */
export function memoryText({ peak, totalPeak }: MemoryBooks): string {
  const parts = (Object.entries(peak) as [Purpose, number][])
    .filter(([, bytes]) => bytes > 0)
    .map(([purpose, bytes]) => `${purpose} ${bytesText(bytes)}`);
  return `${bytesText(totalPeak)} at most (${parts.join(', ')}; each at its own most)`;
}

/** Signals so soon after the first one are the same one. */
const SAME_KEY_MS = 500;

let stopListener: (() => void) | undefined;

/**
 * A signal that the first Ctrl-C (or SIGTERM) aborts; the second one ends the process at once.
 * @param tell prints what happens at the first
 */
export function stopSignal(tell: (line: string) => void): AbortSignal {
  const controller = new AbortController();
  let first = Number.NEGATIVE_INFINITY;
  stopListener = () => {
    // npx and npm hand a Ctrl-C on that the terminal has given to us, too.
    if (performance.now() - first < SAME_KEY_MS) return;
    if (controller.signal.aborted) process.exit(130);
    first = performance.now();
    tell('Stopping after this step, and saving (Ctrl-C once more quits at once)');
    controller.abort();
  };
  process.on('SIGINT', stopListener);
  process.on('SIGTERM', stopListener);
  return controller.signal;
}

/** Stops listening to signals, so that the process ends as it would by itself. */
export function stopListening(): void {
  if (!stopListener) return;
  process.off('SIGINT', stopListener);
  process.off('SIGTERM', stopListener);
  stopListener = undefined;
}
