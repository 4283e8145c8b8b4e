/**
 * `npm run test:tsan`: builds the native code without its bridge to JavaScript, and the driver
 * test/native/pool_tsan.cc, with ThreadSanitizer into build-tsan/, and runs it. Fails on any report.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join } from 'node:path';
import { buildKeys } from './build-native.mjs';
import { ROOT } from './lib/steps.mjs';
import { findTool, findTools } from './lib/toolchain.mjs';

const OUT = join(ROOT, 'build-tsan');
const DRIVER = 'test/native/pool_tsan.cc';
const FLAGS = [
  '-std=c++17',
  '-O1',
  '-g',
  '-fsanitize=thread',
  '-fno-math-errno',
  '-fno-trapping-math',
  '-ffp-contract=fast',
  '-Wall',
  '-Wextra',
  '-pthread',
];

/** @param {string} command @param {string[]} args @returns {Promise<void>} */
function run(command, args) {
  return new Promise((done, fail) => {
    const child = spawn(command, args, { cwd: ROOT, stdio: 'inherit' });
    child.on('error', fail);
    child.on('exit', (code) => {
      if (code === 0) done();
      else fail(new Error(`[test:tsan] ${command} ${args.at(-1)}: exit code ${code}`));
    });
  });
}

/** @param {string} cxx @param {string} program */
async function build(cxx, program) {
  /** @type {string[]} */
  const listed = JSON.parse(readFileSync(join(ROOT, 'native/sources.json'), 'utf8')).cpu;
  const sources = [...listed.filter((path) => path !== 'native/addon.cc'), DRIVER];
  const driver = readFileSync(join(ROOT, DRIVER), 'utf8');
  const { key } = buildKeys(ROOT, [cxx, FLAGS, driver]);
  const keyFile = join(OUT, 'key');
  if (existsSync(program) && existsSync(keyFile) && readFileSync(keyFile, 'utf8') === key) return;
  console.log(`[test:tsan] compiling ${sources.length} files with ThreadSanitizer`);
  mkdirSync(OUT, { recursive: true });
  const object = (/** @type {string} */ path) => join(OUT, `${basename(path, '.cc')}.o`);
  const waiting = [...sources];
  const work = async () => {
    for (let path = waiting.shift(); path !== undefined; path = waiting.shift()) {
      await run(cxx, [...FLAGS, '-c', '-o', object(path), path]);
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, work));
  await run(cxx, ['-fsanitize=thread', '-pthread', ...sources.map(object), '-o', program]);
  writeFileSync(keyFile, key);
}

try {
  const cxx = findTools().cxx;
  if (cxx === undefined) throw new Error('[test:tsan] expected a C++ compiler, found none');
  const program = join(OUT, 'pool_tsan');
  await build(cxx.path, program);
  // The sanitizer's fixed memory layout does not bear much randomization of addresses.
  const setarch = findTool(['setarch']);
  const command = setarch ? [setarch.path, '-R', program] : [program];
  const result = spawnSync(/** @type {string} */ (command[0]), command.slice(1), {
    stdio: 'inherit',
    env: { ...process.env, TSAN_OPTIONS: 'halt_on_error=0:exitcode=66:second_deadlock_stack=1' },
  });
  if (result.status !== 0) {
    throw new Error(
      `[test:tsan] failed: ${
        result.status === 66
          ? 'ThreadSanitizer reported what is printed above'
          : (result.signal ?? `exit code ${result.status}`)
      }`,
    );
  }
  console.log('[test:tsan] passed');
} catch (error) {
  console.error(/** @type {Error} */ (error).message);
  process.exitCode = 1;
}
