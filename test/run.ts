/**
 * The test runner: `tsx test/run.ts [options] [pattern…]` runs every `*.test.ts` under `test/` whose
 * path contains one of the patterns, a process per file, and ends with `N passed, N failed`.
 *
 *   --jobs N         files at once (default: 2, or 1 on one core)
 *   --time-limit S   seconds a file may take unless it says `// time-limit: S` itself (default 180)
 *   --root DIR       the folder whose test/ is run (default: the current folder)
 *   --verbose        print the output of every file, not only of failed ones
 */
import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { type FileResult, findTestFiles, runFile, stopAll } from './runner.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    jobs: { type: 'string', default: String(Math.min(2, availableParallelism())) },
    'time-limit': { type: 'string', default: '180' },
    root: { type: 'string', default: '.' },
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

function summarize(results: readonly FileResult[]): void {
  const skips = results.flatMap((r) => r.skipReasons.map((reason) => `  ${r.file}: ${reason}`));
  if (skips.length > 0) console.log(`\nSkipped:\n${skips.join('\n')}`);
  const failures = results.filter((r) => r.failed > 0);
  if (failures.length > 0)
    console.log(`\nFailed:\n${failures.map((r) => `  ${r.file}`).join('\n')}`);
  const total = (key: 'passed' | 'failed' | 'skipped') => results.reduce((n, r) => n + r[key], 0);
  const skipped = total('skipped');
  console.log(
    `\n${total('passed')} passed, ${total('failed')} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`,
  );
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
  const waiting = [...files];
  async function work(): Promise<void> {
    for (let file = waiting.shift(); file !== undefined; file = waiting.shift()) {
      const result = await runFile(root, file, timeLimit);
      results.push(result);
      report(result);
    }
  }
  await Promise.all(Array.from({ length: Math.min(jobs, files.length) }, work));
  results.sort((a, b) => a.file.localeCompare(b.file));
  summarize(results);
  if (results.some((r) => r.failed > 0)) process.exitCode = 1;
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    stopAll();
    process.exit(130);
  });
}

await main();
