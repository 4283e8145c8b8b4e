#!/usr/bin/env node
/**
 * Builds the native addon into build/Release: with cmake-js where CMake and a C++ compiler are
 * found, else with node-gyp, else not at all (lowrank then runs on its reference backend).
 * Plain JavaScript without dependencies, so that it works in a checkout and in an installed package.
 *
 *   --backend cmake|gyp|none   use this builder instead of picking one
 *   --sanitize                 with AddressSanitizer and UBSan, into build-asan/Release (cmake only)
 *   --cuda auto|on|off         also the CUDA library: where nvcc is there (auto, the default; its
 *                              failure is told and leaves the addon as it is), in any case, or not
 *   --cuda-arch 90             for these compute capabilities (80,90 or all), else for the GPU found
 *   --force                    build although nothing changed
 *   --verbose                  show everything the builder prints
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { withLock } from './lib/lock.mjs';
import {
  chooseBuilder,
  findNodeHeaders,
  findNvcc,
  findTools,
  missingFor,
} from './lib/toolchain.mjs';

/** @typedef {import('./lib/toolchain.mjs').Tools} Tools */
/** @typedef {import('./lib/toolchain.mjs').Choice} Choice */

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const ADDON = 'lowrank.node';
const WAY_OUT =
  'Try another builder (--backend cmake or --backend gyp), or run without the addon (--backend none).';

/** @param {string} root @returns {string[]} the files the addon is made of, sorted */
export function nativeSources(root) {
  const cuda = join(root, 'native/cuda');
  const native = existsSync(join(root, 'native'))
    ? readdirSync(join(root, 'native'), { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => join(entry.parentPath ?? entry.path, entry.name))
        .filter((path) => dirname(path) !== cuda)
    : [];
  const files = ['CMakeLists.txt', 'binding.gyp'].map((name) => join(root, name));
  return [...native, ...files.filter(existsSync)].sort();
}

/**
 * A hash of the sources alone, and one that the tools and settings enter, too.
 * @param {string} root
 * @param {unknown} setting
 */
export function buildKeys(root, setting) {
  const hash = createHash('sha256');
  for (const file of nativeSources(root)) {
    hash
      .update(`${file.slice(root.length)}\0`)
      .update(readFileSync(file))
      .update('\0');
  }
  const sources = hash.digest('hex');
  return {
    sources,
    key: createHash('sha256')
      .update(sources + JSON.stringify(setting))
      .digest('hex'),
  };
}

/** @param {string} path @returns {{ key?: string, sources?: string, addon?: string }} */
function readState(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return {};
  }
}

/** @param {string} path what tells this build of the file from another that took its place */
function stamp(path) {
  const { size, mtimeMs } = statSync(path);
  return `${size} bytes, ${mtimeMs}`;
}

/** @param {string} path @param {string} text */
function writeAtomically(path, text) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
}

/** @param {string} name @param {string} file */
function packageFile(name, file) {
  const require = createRequire(join(ROOT, 'package.json'));
  return join(dirname(require.resolve(`${name}/package.json`)), file);
}

/** @param {string} output the last lines of a log, without empty ones */
function tail(output, lines = 40) {
  return output
    .split('\n')
    .filter((line) => line.trim() !== '')
    .slice(-lines)
    .map((line) => `    ${line}`)
    .join('\n');
}

/**
 * @param {string} script @param {string[]} args @param {boolean} verbose
 * @returns {{ ok: boolean, output: string }}
 */
function runNode(script, args, verbose) {
  const result = spawnSync(process.execPath, [script, ...args], {
    cwd: ROOT,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = `${result.stdout ?? ''}${result.stderr ?? ''}${result.error?.message ?? ''}`;
  if (verbose) process.stdout.write(output);
  return { ok: result.status === 0, output };
}

/** @param {string} out @param {boolean} sanitize @param {boolean} verbose */
function buildWithCmake(out, sanitize, verbose) {
  const work = join(out, 'cmake');
  const args = [
    'build',
    '-d',
    ROOT,
    '-O',
    work,
    '-p',
    String(availableParallelism()),
    '-B',
    'Release',
  ];
  args.push(`--CDLOWRANK_SANITIZE=${sanitize ? 'ON' : 'OFF'}`);
  const result = runNode(packageFile('cmake-js', 'bin/cmake-js'), args, verbose);
  if (result.ok) publish(join(work, 'Release'), join(out, 'Release'));
  return result;
}

/** @param {string} out @param {boolean} verbose */
function buildWithGyp(out, verbose) {
  // gyp's make would take what cmake-js put here for its own work.
  rmSync(out, { recursive: true, force: true });
  const headers = findNodeHeaders();
  const args = ['rebuild', '-C', ROOT, '-j', String(availableParallelism())];
  if (headers) args.push(`--nodedir=${headers}`);
  return runNode(packageFile('node-gyp', 'bin/node-gyp.js'), args, verbose);
}

/**
 * Puts the built libraries in their place, each by a rename: a process that has the old one
 * loaded keeps it.
 * @param {string} from @param {string} to
 */
function publish(from, to) {
  mkdirSync(to, { recursive: true });
  for (const name of readdirSync(from)) {
    if (!/\.(node|so|dylib|dll)$/.test(name)) continue;
    copyFileSync(join(from, name), join(to, `${name}.new`));
    renameSync(join(to, `${name}.new`), join(to, name));
  }
}

/** @param {string} addon loads it in a process of its own, and says what it answers about itself */
function tryAddon(addon) {
  const code = `const i = require(${JSON.stringify(addon)}).info();
    console.log(i.isa + ', ' + i.threads + ' threads, ' + i.kernels.length + ' kernels');`;
  const result = spawnSync(process.execPath, ['-e', code], { encoding: 'utf8', timeout: 60_000 });
  return { ok: result.status === 0, output: `${result.stdout}${result.stderr}`.trim() };
}

/** @param {string} out @param {string} addon @param {Choice} choice @param {string} sources */
function withoutAddon(out, addon, choice, sources) {
  const state = readState(join(out, 'lowrank.json'));
  const known = existsSync(addon) && state.sources === sources && state.addon === stamp(addon);
  if (choice.why !== '' && known) {
    console.log(`[build] ${choice.why}; the addon of these sources is already there, and stays`);
    return 0;
  }
  rmSync(addon, { force: true });
  rmSync(join(out, 'lowrank.json'), { force: true });
  const why = choice.why === '' ? 'as asked' : choice.why;
  console.log(
    `[build] no native addon: ${why}.\n[build] lowrank runs on its reference backend, which is ` +
      'right but slow. For speed, install g++ or clang++ (and CMake), then: npx lowrank build',
  );
  return 0;
}

/** @param {Tools} tools @param {string | undefined} asked @returns {Choice} */
function decide(tools, asked) {
  if (asked === undefined) return chooseBuilder(tools);
  if (asked === 'none') return { builder: 'none', why: '' };
  if (asked !== 'cmake' && asked !== 'gyp') {
    throw new Error(`[--backend] expected cmake, gyp or none, received ${asked}`);
  }
  // Without headers at hand node-gyp fetches them, which is fine where it was asked for by name.
  const missing = missingFor(asked, tools, undefined, findNodeHeaders() ?? 'fetched');
  if (missing.length > 0) {
    throw new Error(`[--backend ${asked}] expected ${missing.join(' and ')}, found none`);
  }
  return { builder: asked, why: 'as asked' };
}

/**
 * The CUDA library beside an addon that is there, by build-cuda.mjs.
 * @param {string} mode @param {readonly string[]} args
 * @returns {number} the exit status: not 0 only where it was asked for by `on`
 */
function buildCudaToo(mode, args) {
  const script = join(ROOT, 'scripts/build-cuda.mjs');
  if (mode === 'off' || !existsSync(join(ROOT, 'native/cuda'))) return 0;
  if (mode === 'auto' && (!existsSync(script) || !findNvcc())) return 0;
  const { status } = spawnSync(process.execPath, [script, ...args], { stdio: 'inherit' });
  if (status === 0) return 0;
  console.error(
    '[build] the CUDA library was not built, for the reason above; the addon is not touched, and ' +
      'the cpu backend works. Leave CUDA out with --cuda off',
  );
  return mode === 'on' ? 1 : 0;
}

/** @param {string} [asked] */
function cudaMode(asked = 'auto') {
  if (asked === 'auto' || asked === 'on' || asked === 'off') return asked;
  throw new Error(`[--cuda] expected auto, on or off, received ${asked}`);
}

/**
 * Builds what is asked for on the command line.
 * @param {readonly string[]} argv
 * @returns {number} the exit status: not 0 only where a build was tried and failed
 */
export function buildNative(argv) {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      backend: { type: 'string' },
      sanitize: { type: 'boolean', default: false },
      force: { type: 'boolean', default: false },
      verbose: { type: 'boolean', default: false },
      cuda: { type: 'string' },
      'cuda-arch': { type: 'string' },
    },
  });
  const { sanitize, verbose, force } = values;
  const cuda = cudaMode(values.cuda);
  const { 'cuda-arch': arch } = values;
  const tools = findTools();
  const choice = decide(tools, values.backend ?? (sanitize ? 'cmake' : undefined));
  if (sanitize && choice.builder !== 'cmake') {
    throw new Error(`[--sanitize] expected the builder cmake, received ${choice.builder}`);
  }
  const out = join(ROOT, sanitize ? 'build-asan' : 'build');
  const addon = join(out, 'Release', ADDON);
  const { CXX, CC, CXXFLAGS, LDFLAGS } = process.env;
  const { nvcc: _, ...compilers } = tools;
  const { sources, key } = buildKeys(ROOT, [
    choice.builder,
    sanitize,
    compilers,
    { CXX, CC, CXXFLAGS, LDFLAGS },
    process.arch,
  ]);
  const status = withLock(join(ROOT, sanitize ? '.build-asan.lock' : '.build.lock'), () => {
    if (choice.builder === 'none') return withoutAddon(out, addon, choice, sources);
    const state = readState(join(out, 'lowrank.json'));
    const fresh = existsSync(addon) && state.key === key && state.addon === stamp(addon);
    if (fresh && !force) {
      console.log(`[build] ${out.slice(ROOT.length + 1)}/Release/${ADDON} is up to date`);
      return 0;
    }
    return compile({ out, addon, choice, tools, sanitize, verbose, sources, key });
  });
  if (status !== 0 || sanitize || !existsSync(addon)) return status;
  return buildCudaToo(cuda, [
    ...(arch === undefined ? [] : ['--arch', arch]),
    ...(force ? ['--force'] : []),
    ...(verbose ? ['--verbose'] : []),
  ]);
}

/**
 * @param {{ out: string, addon: string, choice: Choice, tools: Tools, sanitize: boolean,
 *   verbose: boolean, sources: string, key: string }} plan
 */
function compile({ out, addon, choice, tools, sanitize, verbose, sources, key }) {
  const name = choice.builder === 'cmake' ? 'cmake-js' : 'node-gyp';
  console.log(`[build] building the native addon with ${name}: ${choice.why}`);
  console.log(`[build] compiler: ${tools.cxx?.version}`);
  rmSync(join(out, 'lowrank.json'), { force: true });
  const start = performance.now();
  const result =
    choice.builder === 'cmake'
      ? buildWithCmake(out, sanitize, verbose)
      : buildWithGyp(out, verbose);
  writeAtomically(join(out, 'build.log'), result.output);
  const place = addon.slice(ROOT.length + 1);
  if (!result.ok || !existsSync(addon)) {
    const what = result.ok ? `made no ${place}` : 'failed';
    console.error(
      `${tail(result.output)}\n[build] ${name} ${what}. The whole log: ${join(out, 'build.log')}`,
    );
    console.error(`[build] ${WAY_OUT}`);
    return 1;
  }
  // The sanitizers must be loaded first, which the tests that use them see to.
  const trial = sanitize ? { ok: true, output: 'with sanitizers' } : tryAddon(addon);
  if (!trial.ok) {
    console.error(
      `${tail(trial.output)}\n[build] ${place} was built but does not load. ${WAY_OUT}`,
    );
    return 1;
  }
  const state = { builder: choice.builder, key, sources, addon: stamp(addon) };
  writeAtomically(join(out, 'lowrank.json'), `${JSON.stringify(state)}\n`);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(`[build] built ${place} in ${seconds} s (${trial.output})`);
  return 0;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    process.exitCode = buildNative(process.argv.slice(2));
  } catch (error) {
    console.error(/** @type {Error} */ (error).message);
    process.exitCode = 1;
  }
}
