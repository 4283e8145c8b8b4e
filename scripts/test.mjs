/**
 * `npm test [-- pattern…]`: installs what is missing, builds, checks format, types and import
 * order, and runs the tests. Each check counts as one test; the last line is the total.
 */
import { bootstrap } from './bootstrap.mjs';
import { buildCuda } from './build-cuda.mjs';
import { buildNative } from './build-native.mjs';
import { emit, runScript, TSC, TSX } from './lib/steps.mjs';

/** @type {[string, () => number][]} */
const CHECKS = [
  ['emit', emit],
  ['format', () => runScript('scripts/format.mjs', ['--check'])],
  ['types', () => runScript(TSC, ['--noEmit'])],
  ['imports', () => runScript(TSX, ['scripts/check-imports.ts'])],
  ['cuda compiles without a warning (where nvcc is)', () => buildCuda(['--werror'], 0)],
];

try {
  bootstrap();
  if (buildNative(['--cuda', 'off']) !== 0)
    throw new Error('[test] the native build failed, so no test was run');
  const checks = CHECKS.flatMap(([name, check]) => {
    const ok = check() === 0;
    console.log(`${ok ? 'ok  ' : 'FAIL'} check: ${name}`);
    return ['--check', `${name}=${ok ? 'ok' : 'failed'}`];
  });
  process.exitCode = runScript(TSX, ['test/run.ts', ...checks, ...process.argv.slice(2)]);
} catch (error) {
  console.error(`${/** @type {Error} */ (error).message}\n\n0 passed, 1 failed`);
  process.exitCode = 1;
}
