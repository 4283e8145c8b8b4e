/**
 * Compiles native/cuda for the processor, with the shim of test/cuda-shim in the place of CUDA, into
 * build/cuda-shim/lowrank_cuda_shim.so: test code, to check the kernels' logic without a GPU. Only
 * what changed is compiled again.
 *
 * Beside it, two libraries in the place of cuBLASLt, one of them without its main function.
 *
 *   --sanitize   with AddressSanitizer and UBSan, into build/cuda-shim-asan/
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { cudaSources } from './build-cuda.mjs';
import { withLock } from './lib/lock.mjs';
import { ROOT } from './lib/steps.mjs';
import { findTool } from './lib/toolchain.mjs';

const FLAGS = [
  '-std=c++17',
  '-O1',
  '-g',
  '-Wall',
  '-Wextra',
  '-Werror',
  '-Wno-unknown-pragmas', // loops that nvcc is told to unroll
  '-fPIC',
  '-fvisibility=hidden',
  '-ffp-contract=off',
  '-Itest/cuda-shim',
];
const SANITIZERS = ['-fsanitize=address,undefined', '-fno-omit-frame-pointer'];

/** @param {string} folder @returns {string[]} paths from the root */
function filesIn(folder) {
  return readdirSync(join(ROOT, folder)).map((name) => `${folder}/${name}`);
}

/** @param {string} command @param {string[]} args @returns {Promise<void>} */
function run(command, args) {
  return new Promise((done, fail) => {
    const child = spawn(command, args, { cwd: ROOT, stdio: ['ignore', 'inherit', 'inherit'] });
    child.on('error', fail);
    child.on('exit', (code) => {
      if (code === 0) done();
      else fail(new Error(`[cuda-shim] ${command} ${args.at(-1)}: exit code ${code}`));
    });
  });
}

/** @param {string} path */
const time = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);

/** When the newest file that an object is made of changed, from the list the compiler left. */
function newest(/** @type {string} */ list) {
  const text = readFileSync(list, 'utf8')
    .replace(/^[^:]*:/, '')
    .replace(/\\\n/g, ' ');
  const files = text.split(/\s+/).filter((name) => name !== '');
  return Math.max(...files.map((name) => time(join(ROOT, name)) || Number.POSITIVE_INFINITY));
}

/** @param {string} out */
const libraryIn = (out) => join(out, 'lowrank_cuda_shim.so');

/** @param {boolean} sanitize */
const folderOf = (sanitize) => join(ROOT, 'build', sanitize ? 'cuda-shim-asan' : 'cuda-shim');

const BLAS = 'test/cuda-shim/blas/cublaslt.cc';
const BLAS_PARTS = [BLAS, 'test/cuda-shim/stream.h', 'test/cuda-shim/cuda_fp16.h'];

/** The tests' own cuBLASLt, and one that lacks a function. */
async function compileBlas(
  /** @type {string} */ cxx,
  /** @type {string[]} */ flags,
  /** @type {string} */ out,
) {
  for (const name of ['libcublasLt_shim.so', 'libcublasLt_lacking.so']) {
    const define = name.includes('lacking') ? ['-DLACKS_MATMUL'] : [];
    const library = join(out, name);
    if (BLAS_PARTS.every((part) => time(library) > time(join(ROOT, part)))) continue;
    await run(cxx, [...flags, ...define, '-shared', '-o', `${library}.new`, BLAS]);
    renameSync(`${library}.new`, library);
  }
}

/** @param {boolean} sanitize */
async function compile(sanitize) {
  const cxx = findTool(['g++', 'clang++', 'c++']);
  if (cxx === undefined) throw new Error('[cuda-shim] expected a C++ compiler, found none');
  const out = folderOf(sanitize);
  const flags = sanitize ? [...FLAGS, ...SANITIZERS] : FLAGS;
  const own = filesIn('test/cuda-shim').filter((path) => path.endsWith('.cc'));
  const sources = [...cudaSources(), ...own];
  const object = (/** @type {string} */ path) => join(out, `${path.replaceAll('/', '-')}.o`);
  const stale = sources.filter((path) => {
    const list = `${object(path)}.d`;
    return !existsSync(list) || newest(list) > time(object(path));
  });
  const waiting = [...stale];
  const work = async () => {
    for (let path = waiting.shift(); path !== undefined; path = waiting.shift()) {
      const o = object(path);
      const parts = ['-MMD', '-MF', `${o}.d`, '-x', 'c++', '-c', '-o', o, path];
      await run(cxx.path, [...flags, ...parts]);
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, work));
  await compileBlas(cxx.path, flags, out);
  const library = libraryIn(out);
  if (stale.length === 0 && existsSync(library)) return;
  const link = ['-shared', ...sources.map(object), '-o', `${library}.new`];
  await run(cxx.path, [...(sanitize ? SANITIZERS : []), ...link]);
  renameSync(`${library}.new`, library);
}

const SELF = fileURLToPath(import.meta.url);

/**
 * Builds the shim's library where it is not up to date; one process at a time.
 * @param {boolean} [sanitize]
 * @returns {string} its path
 */
export function buildShim(sanitize = false) {
  const out = folderOf(sanitize);
  mkdirSync(out, { recursive: true });
  return withLock(join(out, 'lock'), () => {
    const args = [SELF, '--compile', ...(sanitize ? ['--sanitize'] : [])];
    const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`[cuda-shim] the build failed:\n${stderr}`);
    return libraryIn(out);
  });
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const sanitize = process.argv.includes('--sanitize');
  if (process.argv.includes('--compile')) await compile(sanitize);
  else console.log(buildShim(sanitize));
}
