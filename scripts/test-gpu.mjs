/**
 * `npm run test:gpu [-- pattern…]`: the op table, the laws, the goldens and the GPU's own tests on
 * the cuda backend. Says so, and ends with 0, where there is no GPU. Where no node_modules are, the
 * bundles of scripts/gpu-kit.mjs are run instead, with nothing but Node.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';
import { ROOT, runScript, TSX } from './lib/steps.mjs';

/** Test files by the start of their paths. */
export const GPU_TESTS = [
  'test/ops.test.ts',
  'test/ops-kernels.test.ts',
  'test/ops-values.test.ts',
  'test/head-loss.test.ts',
  'test/lora-kernels.test.ts',
  'test/cuda-ops.test.ts',
  'test/cuda-graph.test.ts',
  'test/laws-lora.test.ts',
  'test/laws-training.test.ts',
  'test/laws-variants.test.ts',
  'test/optim.test.ts',
  'test/train.test.ts',
  'test/golden.test.ts',
];

/** Those of laws that a GPU keeps where it is batch-invariant: neighbours change no bit of a row. */
export const ROW_TESTS = ['test/laws-batch.test.ts', 'test/lora-mixed.test.ts'];

const INVARIANT = { LOWRANK_TEST_BATCH_INVARIANT: '1' };

/** @param {readonly string[]} patterns @returns {number} exit status */
function runTests(patterns) {
  const limits = ['--time-limit', '900', '--jobs', '1'];
  return runScript(TSX, ['test/run.ts', ...limits, ...patterns]);
}

/** @returns {string | undefined} why there is no GPU to test on */
function obstacle() {
  const addon = join(ROOT, 'build/Release/lowrank.node');
  const library = join(ROOT, 'build/Release/liblowrank_cuda.so');
  for (const path of [addon, library]) {
    if (!existsSync(path)) return `${path} is missing; build it: npx lowrank build --cuda on`;
  }
  try {
    createRequire(import.meta.url)(addon).open(library, 0);
    return undefined;
  } catch (error) {
    return /** @type {Error} */ (error).message;
  }
}

/** @param {string} kit @param {readonly string[]} patterns @returns {number} exit status */
function runKit(kit, patterns) {
  const files = readdirSync(kit).filter((name) => name.endsWith('.test.mjs'));
  const wanted = (/** @type {string} */ name) =>
    patterns.length === 0 || patterns.some((p) => name.startsWith(basename(p, '.ts')));
  let failed = 0;
  for (const name of files.filter(wanted)) {
    const rows = ROW_TESTS.some((path) => basename(path, '.ts') === basename(name, '.mjs'));
    const env = rows ? { ...process.env, ...INVARIANT } : process.env;
    const { status } = spawnSync(process.execPath, [join(kit, name)], { stdio: 'inherit', env });
    console.log(`${status === 0 ? 'ok  ' : 'FAIL'} ${name}`);
    if (status !== 0) failed++;
  }
  console.log(`\n${files.filter(wanted).length - failed} files passed, ${failed} failed`);
  return failed > 0 ? 1 : 0;
}

const why = obstacle();
if (why !== undefined) {
  console.log(`[test:gpu] skipped, no test was run: ${why}`);
} else {
  process.env.LOWRANK_TEST_GPU = '1';
  const patterns = process.argv.slice(2);
  const kit = join(ROOT, 'build-gpu/kit');
  if (!existsSync(join(ROOT, TSX))) {
    process.exitCode = runKit(kit, patterns);
  } else {
    const ofRows = (/** @type {string} */ p) => ROW_TESTS.some((path) => path.startsWith(p));
    const plain = patterns.length > 0 ? patterns.filter((p) => !ofRows(p)) : GPU_TESTS;
    const rows = patterns.length > 0 ? patterns.filter(ofRows) : ROW_TESTS;
    const first = plain.length > 0 ? runTests(plain) : 0;
    Object.assign(process.env, INVARIANT);
    process.exitCode = (rows.length > 0 ? runTests(rows) : 0) || first;
  }
}
