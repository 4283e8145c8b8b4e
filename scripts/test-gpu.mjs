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

/**
 * Test files by the start of their paths. Not laws-batch and lora-mixed: that neither neighbours nor
 * padding change a row's bits is the CPU's promise; a GPU's products go by the shape of all rows.
 */
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
    const { status } = spawnSync(process.execPath, [join(kit, name)], { stdio: 'inherit' });
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
  process.exitCode = existsSync(join(ROOT, TSX))
    ? runScript(TSX, [
        'test/run.ts',
        '--time-limit',
        '900',
        '--jobs',
        '1',
        ...(patterns.length > 0 ? patterns : GPU_TESTS),
      ])
    : runKit(kit, patterns);
}
