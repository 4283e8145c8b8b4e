/**
 * The test runner: `tsx test/run.ts [options] [pattern…]` runs every `*.test.ts` under `test/` whose
 * path contains one of the patterns, a process per file, and ends with `N passed, N failed`.
 *
 *   --jobs N         files at once (default: 2, or 1 on one core)
 *   --time-limit S   seconds a file may take unless it says `// time-limit: S` itself (default 180)
 *   --root DIR       the folder whose test/ is run (default: the current folder)
 *   --isa NAME|all   the native backend starts on this instruction set; all: every one that this
 *                    processor has, in turn (commands that a test starts choose their own)
 *   --check NAME=ok|failed   a check made before the tests, to be counted as one of them
 *   --verbose        print the output of every file, not only of failed ones
 */
import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { type FileResult, findTestFiles, runFile, skipLines, stopAll } from './runner.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    jobs: { type: 'string', default: String(Math.min(2, availableParallelism())) },
    'time-limit': { type: 'string', default: '180' },
    check: { type: 'string', multiple: true, default: [] },
    root: { type: 'string', default: '.' },
    isa: { type: 'string' },
    verbose: { type: 'boolean', default: false },
  },
});

function positive(name: 'jobs' | 'time-limit'): number {
  const value = Number(values[name]);
  if (Number.isFinite(value) && value > 0) return value;
  throw new Error(`[--${name}] expected a positive number, received ${values[name]}`);
}

function indent(text: string): string {
  return text.trimEnd().replace(/^/gm, '    ');
}

function report(result: FileResult): void {
  const counts = [`${result.passed} passed`];
  if (result.failed > 0) counts.push(`${result.failed} failed`);
  if (result.skipped > 0) counts.push(`${result.skipped} skipped`);
  const mark = result.failed > 0 ? 'FAIL' : 'ok  ';
  console.log(`${mark} ${result.file}  ${counts.join(', ')}  ${result.seconds.toFixed(1)} s`);
  if (result.failed > 0 || values.verbose) console.log(indent(result.output));
  for (const problem of result.problems) console.log(`    ${result.file}: ${problem}`);
}

/** The instruction sets to run on; undefined stands for the processor's best. */
async function chosenIsas(): Promise<(string | undefined)[]> {
  const { isa } = values;
  if (isa === undefined) return [undefined];
  const { loadNative } = await import('../src/tensor/native.js');
  const { isas } = loadNative().info();
  if (isa === 'all') return [...isas];
  if (isas.includes(isa)) return [isa];
  throw new Error(`[--isa] expected all or one of ${isas.join(', ')}, received ${isa}`);
}

/** Prints the skips, the failures and, as the last line, the total; tells whether all is well. */
function summarize(results: readonly FileResult[]): boolean {
  const skips = results.flatMap((r) => skipLines(r.file, r.skips));
  if (skips.length > 0) console.log(`\nSkipped:\n${skips.join('\n')}`);
  const failedChecks = values.check.filter((check) => !check.endsWith('=ok'));
  const failures = [
    ...failedChecks.map((check) => `  check: ${check.split('=')[0]}`),
    ...results.filter((r) => r.failed > 0).map((r) => `  ${r.file}`),
  ];
  if (failures.length > 0) console.log(`\nFailed:\n${failures.join('\n')}`);
  const sum = (key: 'passed' | 'failed' | 'skipped') => results.reduce((n, r) => n + r[key], 0);
  const passed = sum('passed') + values.check.length - failedChecks.length;
  const failed = sum('failed') + failedChecks.length;
  const skipped = sum('skipped');
  console.log(`\n${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
  return failed === 0;
}

async function main(): Promise<void> {
  const root = resolve(values.root);
  const jobs = positive('jobs');
  const timeLimit = positive('time-limit');
  const files = findTestFiles(root, positionals);
  if (files.length === 0) {
    const wanted =
      positionals.length > 0
        ? `a test file that matches ${positionals.join(' or ')}`
        : 'a test file';
    console.log(`[test] expected ${wanted} under test/, found none\n\n0 passed, 1 failed`);
    process.exitCode = 1;
    return;
  }
  const results: FileResult[] = [];
  const waiting = (await chosenIsas()).flatMap((isa) => files.map((file) => ({ file, isa })));
  async function work(): Promise<void> {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const result = await runFile(root, next.file, timeLimit, next.isa);
      results.push(result);
      report(result);
    }
  }
  await Promise.all(Array.from({ length: Math.min(jobs, waiting.length) }, work));
  results.sort((a, b) => a.file.localeCompare(b.file));
  if (!summarize(results)) process.exitCode = 1;
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    stopAll();
    process.exit(130);
  });
}

await main();
