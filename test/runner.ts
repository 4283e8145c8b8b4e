import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join, sep } from 'node:path';
import { performance } from 'node:perf_hooks';
import { SKIP_MARK } from './support.js';

/** A test that was skipped. */
export interface Skip {
  name: string;
  reason: string;
}

/** What one test file came to. A problem of the file itself counts as one failed test. */
export interface FileResult {
  /** Path from the root, with forward slashes. */
  file: string;
  passed: number;
  failed: number;
  skipped: number;
  /** Every skip that gave its reason. */
  skips: Skip[];
  /** What is wrong with the file as a whole. */
  problems: string[];
  output: string;
  seconds: number;
}

/** How a process ended, before anything is read into it. */
export interface Ending {
  output: string;
  code: number | null;
  signal: NodeJS.Signals | null;
  timedOut: boolean;
}

const OUTPUT_LIMIT = 1 << 20;
const running = new Set<ChildProcess>();

/** Test files under `root/test` whose path contains one of the patterns (all, if there is none). */
export function findTestFiles(root: string, patterns: readonly string[]): string[] {
  return readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .map((path) => `test/${path.split(sep).join('/')}`)
    .filter((path) => path.endsWith('.test.ts'))
    .filter((path) => patterns.length === 0 || patterns.some((p) => path.includes(p)))
    .sort();
}

/** Seconds a file asks for by a comment `// time-limit: 300`, or undefined. */
export function statedTimeLimit(source: string): number | undefined {
  const stated = /^\s*\/\/ time-limit: (\d+)\s*$/m.exec(source)?.[1];
  return stated === undefined ? undefined : Number(stated);
}

/**
 * Names of uvu suites that a source makes but never runs. uvu forgets their tests silently.
 * Sees `const name = suite(…)` and the default `test` imported from uvu.
 */
export function suitesNeverRun(source: string): string[] {
  const names = [...source.matchAll(/^(?:export )?const (\w+) = suite\s*[<(]/gm)].map((m) => m[1]!);
  const imported = /import\s*\{([^}]*)\}\s*from\s*['"][^'"]*uvu[^'"]*['"]/.exec(source)?.[1] ?? '';
  for (const part of imported.split(',').map((p) => p.trim())) {
    const match = /^test(?:\s+as\s+(\w+))?$/.exec(part);
    if (match !== null) names.push(match[1] ?? 'test');
  }
  return names.filter((name) => !new RegExp(`\\b${name}\\.run\\(`).test(source));
}

/** The totals uvu printed last, or undefined if it printed none. */
export function parseTotals(
  output: string,
): { total: number; passed: number; skipped: number } | undefined {
  const pattern = /^ {2}Total: +(\d+)\n {2}Passed: +(\d+)\n {2}Skipped: +(\d+)$/gm;
  const last = [...output.matchAll(pattern)].at(-1);
  if (last === undefined) return undefined;
  return { total: Number(last[1]), passed: Number(last[2]), skipped: Number(last[3]) };
}

/** The skips that skipUnless printed. */
export function parseSkips(output: string): Skip[] {
  return output.split('\n').flatMap((line) => {
    const at = line.indexOf(SKIP_MARK);
    if (at < 0) return [];
    try {
      return [JSON.parse(line.slice(at + SKIP_MARK.length)) as Skip];
    } catch {
      return []; // not ours; a skip that is short of its reason is found by the count
    }
  });
}

/** One line for every file and reason, with the tests' names where they are few. */
export function skipLines(file: string, skips: readonly Skip[]): string[] {
  const byReason = new Map<string, string[]>();
  for (const { name, reason } of skips) {
    byReason.set(reason, [...(byReason.get(reason) ?? []), name]);
  }
  return [...byReason].map(([reason, names]) => {
    const tests = names.length > 3 ? `${names.length} tests` : names.join('; ');
    return `  ${file}: ${tests}\n    ${reason}`;
  });
}

/** Turns how a file's process ended into counts: anything but tests that ran and passed is a failure. */
export function judge(
  file: string,
  source: string,
  end: Ending,
  limit: number,
  seconds: number,
): FileResult {
  const totals = parseTotals(end.output);
  const skips = parseSkips(end.output);
  const passed = totals?.passed ?? 0;
  const failed = (totals?.total ?? 0) - passed;
  const skipped = totals?.skipped ?? 0;
  const problems: string[] = [];
  if (end.timedOut) problems.push(`killed after its time limit of ${limit} s`);
  else if (end.signal !== null) problems.push(`killed by ${end.signal}`);
  else if (end.code !== 0 && failed === 0) problems.push(`exited with code ${end.code}`);
  if (totals === undefined) {
    if (problems.length === 0) problems.push('no test ran: does the file call test.run()?');
  } else if (totals.total === 0 && skipped === 0) {
    problems.push('no test ran: the file has none');
  }
  if (skipped > skips.length) {
    problems.push(
      'skips without a reason: use skipUnless of test/support.ts, and leave no test.only',
    );
  }
  for (const name of suitesNeverRun(source)) problems.push(`the suite '${name}' is never run`);
  return {
    file,
    passed,
    failed: failed + (problems.length > 0 ? 1 : 0),
    skipped,
    skips,
    problems,
    output: end.output,
    seconds,
  };
}

function stop(child: ChildProcess): void {
  // The child leads a process group of its own, so that what it started goes with it.
  try {
    if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
  } catch {
    child.kill('SIGKILL');
  }
}

/** Kills every file that still runs. */
export function stopAll(): void {
  for (const child of running) stop(child);
}

function execute(root: string, file: string, limit: number, isa?: string): Promise<Ending> {
  const imports = [import.meta.resolve('tsx')];
  if (isa !== undefined) imports.push(new URL(`./force-isa.ts?${isa}`, import.meta.url).href);
  const args = [...imports.flatMap((path) => ['--import', path]), file];
  return new Promise((settle, fail) => {
    const child = spawn(process.execPath, args, {
      cwd: root,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, FORCE_COLOR: '0', NODE_OPTIONS: '' },
    });
    running.add(child);
    let output = '';
    const add = (chunk: string) => {
      output = (output + chunk).slice(-OUTPUT_LIMIT);
    };
    child.stdout.setEncoding('utf8').on('data', add);
    child.stderr.setEncoding('utf8').on('data', add);
    let timedOut = false;
    const timer = setTimeout(() => {
      timedOut = true;
      stop(child);
    }, limit * 1000);
    child.on('error', fail);
    // A grandchild may hold the pipes open after the file itself ended: end it, too.
    child.on('exit', () => stop(child));
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      running.delete(child);
      settle({ output, code, signal, timedOut });
    });
  });
}

/**
 * Runs one test file in a process of its own.
 * @param defaultLimit seconds it may take if it does not state its own limit
 * @param isa instruction set that the native backend starts on, instead of the processor's best
 */
export async function runFile(
  root: string,
  file: string,
  defaultLimit: number,
  isa?: string,
): Promise<FileResult> {
  const source = readFileSync(join(root, file), 'utf8');
  const limit = statedTimeLimit(source) ?? defaultLimit;
  const start = performance.now();
  const end = await execute(root, file, limit, isa);
  const name = isa === undefined ? file : `${file} (${isa})`;
  return judge(name, source, end, limit, (performance.now() - start) / 1000);
}
