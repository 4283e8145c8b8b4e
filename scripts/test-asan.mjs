/**
 * `npm run test:asan [-- pattern…]`: builds the addon with AddressSanitizer and UBSan into
 * build-asan/ and runs the tests that call it (by default the op table,
 * products, autograd, determinism, threads, the laws, safetensors, and CUDA's kernels in their shim).
 * They run in a copy of src/ and test/ beside that addon, so that the usual build stays in place.
 */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, rmSync, symlinkSync } from 'node:fs';
import { isAbsolute, join } from 'node:path';
import { bootstrap } from './bootstrap.mjs';
import { buildNative } from './build-native.mjs';
import { ROOT, TSX } from './lib/steps.mjs';
import { findTools } from './lib/toolchain.mjs';

const DEFAULT_PATTERNS = [
  'test/ops',
  'test/products',
  'test/head-loss',
  'test/lora-kernels',
  'test/lora-mixed',
  'test/tensor',
  'test/autograd',
  'test/few-rows',
  'test/merge-kernel',
  'test/row-kernels',
  'test/attention-one',
  'test/optim',
  'test/adamw-each',
  'test/one-pass',
  'test/determinism',
  'test/threads',
  'test/laws',
  'test/safetensors',
  'test/cuda-ops',
  'test/cuda-runtime',
  'test/cuda-graph',
  'test/cuda-attention',
  'test/train-ahead',
];
const STAGE = join(ROOT, 'build-asan/stage');

/** @returns {string[]} the libraries that must be loaded before everything else */
function sanitizerLibraries() {
  const cxx = findTools().cxx;
  if (cxx === undefined) throw new Error('[test:asan] expected a C++ compiler, found none');
  return ['libasan.so', 'libstdc++.so'].map((name) => {
    const found = spawnSync(cxx.path, [`-print-file-name=${name}`], { encoding: 'utf8' });
    const path = found.stdout.trim();
    if (isAbsolute(path) && existsSync(path)) return path;
    throw new Error(`[test:asan] expected ${name} of ${cxx.path} (use gcc), found none`);
  });
}

function stage() {
  rmSync(STAGE, { recursive: true, force: true });
  mkdirSync(join(STAGE, 'build/Release'), { recursive: true });
  for (const name of ['src', 'test', 'package.json', 'tsconfig.json']) {
    cpSync(join(ROOT, name), join(STAGE, name), { recursive: true });
  }
  cpSync(join(ROOT, 'build-asan/Release/lowrank.node'), join(STAGE, 'build/Release/lowrank.node'));
  for (const name of ['node_modules', 'assets', 'docs', 'scripts']) {
    if (existsSync(join(ROOT, name))) symlinkSync(join(ROOT, name), join(STAGE, name));
  }
}

try {
  bootstrap();
  if (buildNative(['--sanitize']) !== 0) throw new Error('[test:asan] the native build failed');
  stage();
  const args = process.argv.slice(2);
  const patterns = args.some((arg) => !arg.startsWith('-')) ? [] : DEFAULT_PATTERNS;
  const result = spawnSync(
    process.execPath,
    [join(ROOT, TSX), 'test/run.ts', '--time-limit', '900', ...patterns, ...args],
    {
      cwd: STAGE,
      stdio: 'inherit',
      env: {
        ...process.env,
        LOWRANK_SHIM_SANITIZE: '1',
        LD_PRELOAD: sanitizerLibraries().join(' '),
        // Tests ask for more memory than there is, and expect an error.
        ASAN_OPTIONS: 'detect_leaks=0:allocator_may_return_null=1',
        UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
      },
    },
  );
  process.exitCode = result.status ?? 1;
} catch (error) {
  console.error(/** @type {Error} */ (error).message);
  process.exitCode = 1;
}
