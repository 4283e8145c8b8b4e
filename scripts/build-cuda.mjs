#!/usr/bin/env node
/**
 * Builds the CUDA backend's library, build/Release/liblowrank_cuda.so, by calling nvcc for each file
 * of native/cuda, several at a time; only what changed is compiled again. It is the one way, for
 * both builders of the addon and for machines without CMake or npm. Needs nothing but Node and CUDA.
 *
 *   --arch 90 | 80,90 | all   for these compute capabilities, and as PTX of the last for later
 *                             cards; the default is the GPU found here, else 90
 *   --werror                  warnings are errors
 *   --report FILE             compiles everything again, with what ptxas says of each kernel in FILE
 *   --force, --verbose        as of build-native.mjs
 */
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { withLock } from './lib/lock.mjs';
import { findNvcc } from './lib/toolchain.mjs';

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const LIBRARY = 'build/Release/liblowrank_cuda.so';
const OUT = join(ROOT, 'build-cuda');
/** The cards of `--arch all`: those since Ampere that a nvcc knows, of 12.4 not the last two. */
const EVERY = ['80', '86', '89', '90', '100', '120'];
const FLAGS = ['-std=c++17', '-O3', '--compiler-options=-fPIC,-fvisibility=hidden,-Wall,-Wextra'];
const STRICT = ['-Werror', 'all-warnings', '--compiler-options=-Werror'];

/**
 * What the library is made of, in order, as paths from the root.
 * @param {string} [root]
 */
export function cudaSources(root = ROOT) {
  const own = readdirSync(join(root, 'native/cuda'))
    .filter((name) => /\.(cu|cc)$/.test(name))
    .sort()
    .map((name) => `native/cuda/${name}`);
  return [...own, ...['call', 'mapped_file', 'memory'].map((name) => `native/common/${name}.cc`)];
}

/** Compute capabilities of the GPUs here, as nvidia-smi says: ['90']. */
export function capabilitiesHere() {
  const args = ['--query-gpu=compute_cap', '--format=csv,noheader'];
  const { status, stdout } = spawnSync('nvidia-smi', args, { encoding: 'utf8', timeout: 20_000 });
  const found = status === 0 ? (stdout.match(/\d+\.\d+/g) ?? []) : [];
  return [...new Set(found.map((c) => c.replace('.', '')))].sort((a, b) => Number(a) - Number(b));
}

/**
 * The architectures to build for.
 * @param {string | undefined} asked `--arch`
 * @param {readonly string[]} known to nvcc
 * @param {readonly string[]} here of the GPUs found
 * @returns {string[]}
 */
export function pickArchitectures(asked, known, here) {
  if (asked === undefined) {
    const usable = here.filter((a) => known.includes(a));
    return usable.length > 0 ? usable : ['90'];
  }
  if (asked === 'all') return EVERY.filter((a) => known.includes(a));
  const list = [...new Set(asked.split(',').map((a) => a.trim()))];
  for (const a of list) {
    if (known.includes(a) && Number(a) >= 80) continue;
    const usable = known.filter((k) => Number(k) >= 80).join(', ');
    throw new Error(`[--cuda-arch] expected all, or some of ${usable}, received ${a || 'nothing'}`);
  }
  return list.sort((a, b) => Number(a) - Number(b));
}

/** @param {string} nvcc path @returns {string[]} architectures it compiles for: ['80', '90'] */
function knownTo(nvcc) {
  const { stdout } = spawnSync(nvcc, ['--list-gpu-code'], { encoding: 'utf8' });
  return [...(stdout ?? '').matchAll(/^sm_(\d+)$/gm)].map((m) => /** @type {string} */ (m[1]));
}

/** Machine code for each, and PTX of the last. @param {readonly string[]} architectures */
function codeFlags(architectures) {
  const last = architectures.at(-1);
  return [
    ...architectures.map((a) => `-gencode=arch=compute_${a},code=sm_${a}`),
    `-gencode=arch=compute_${last},code=compute_${last}`,
  ];
}

/**
 * A hash of the command and of all files of this project that an object was made of, by the list
 * that the compiler left; undefined where there is none.
 * @param {string} object @param {unknown} command
 */
function keyOf(object, command) {
  if (!existsSync(`${object}.d`)) return undefined;
  const files = readFileSync(`${object}.d`, 'utf8')
    .replace(/^[^:]*:/, '')
    .split(/[\s\\]+/)
    .map((name) => relative(ROOT, resolve(ROOT, name)))
    .filter((name) => name !== '' && !name.startsWith('..'));
  const hash = createHash('sha256').update(JSON.stringify(command));
  for (const name of [...new Set(files)].sort()) {
    if (!existsSync(join(ROOT, name))) return undefined;
    hash
      .update(`${name}\0`)
      .update(readFileSync(join(ROOT, name)))
      .update('\0');
  }
  return hash.digest('hex');
}

/** @param {string} path */
const textOf = (path) => (existsSync(path) ? readFileSync(path, 'utf8') : undefined);

/**
 * @param {string} command @param {readonly string[]} args
 * @returns {Promise<{ ok: boolean, output: string }>}
 */
function run(command, args) {
  return new Promise((done) => {
    const child = spawn(command, args, { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        output += text;
      });
    }
    child.on('error', (error) => done({ ok: false, output: `${output}${error.message}\n` }));
    child.on('close', (code) => done({ ok: code === 0, output }));
  });
}

/**
 * @typedef {{ nvcc: string, version: string, architectures: string[], werror: boolean,
 *   force: boolean, verbose: boolean, report?: string }} Plan
 */

/**
 * Compiles what is not up to date. An object built with warnings as errors serves both ways.
 * @param {readonly string[]} sources @param {Plan} plan
 */
async function compileAll(sources, plan) {
  const { nvcc, version, architectures, werror } = plan;
  const flags = [...FLAGS, ...codeFlags(architectures)];
  const command = [nvcc, version, flags];
  const object = (/** @type {string} */ path) => join(OUT, `${path.replaceAll('/', '-')}.o`);
  const stale = sources.filter((path) => {
    const key = keyOf(object(path), command);
    const [of, strict] = (textOf(`${object(path)}.key`) ?? '').split(' ');
    const fresh = existsSync(object(path)) && key === of && (strict === 'strict' || !werror);
    return plan.force || plan.report !== undefined || !fresh;
  });
  /** @type {string[]} */
  const said = [];
  const waiting = [...stale];
  let failed = false;
  const work = async () => {
    for (let path = waiting.shift(); path !== undefined && !failed; path = waiting.shift()) {
      const o = object(path);
      rmSync(`${o}.key`, { force: true });
      const more = [
        ...(werror ? STRICT : []),
        ...(plan.report === undefined ? [] : ['-Xptxas=-v']),
      ];
      const parts = ['-MMD', '-MF', `${o}.d`, '-c', '-o', o, path];
      const { ok, output } = await run(nvcc, [...flags, ...more, ...parts]);
      said.push(output);
      if (plan.verbose || !ok) process.stderr.write(output);
      failed ||= !ok;
      if (ok) writeFileSync(`${o}.key`, `${keyOf(o, command)} ${werror ? 'strict' : 'plain'}`);
    }
  };
  if (stale.length > 0) {
    const cards = architectures.map((a) => `sm_${a}`).join(', ');
    console.log(`[cuda] compiling ${stale.length} files with nvcc for ${cards}: ${version}`);
  }
  await Promise.all(Array.from({ length: availableParallelism() }, work));
  if (plan.report !== undefined) writeFileSync(plan.report, said.join(''));
  return { ok: !failed, objects: sources.map(object) };
}

/** Puts the library in its place by a rename: a process that has the old one loaded keeps it. */
function publish(/** @type {string} */ from) {
  const to = join(ROOT, LIBRARY);
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, `${to}.new`);
  renameSync(`${to}.new`, to);
}

/** @param {Plan} plan @returns {Promise<number>} exit status */
async function build(plan) {
  mkdirSync(OUT, { recursive: true });
  const start = performance.now();
  const { ok, objects } = await compileAll(cudaSources(), plan);
  if (!ok) return 1;
  const hash = createHash('sha256').update(JSON.stringify(plan.architectures));
  for (const o of objects) hash.update(readFileSync(`${o}.key`));
  const key = hash.digest('hex');
  const library = join(OUT, 'liblowrank_cuda.so');
  const note = join(OUT, 'library.key');
  const fresh = existsSync(library) && textOf(note) === key;
  if (!fresh) {
    rmSync(note, { force: true });
    const { ok, output } = await run(plan.nvcc, [
      ...['-shared', '-cudart', 'static', '-Xlinker', '--exclude-libs,ALL', '-o', library],
      ...objects,
    ]);
    if (!ok) {
      process.stderr.write(output);
      return 1;
    }
    writeFileSync(note, key);
  }
  const placed = join(ROOT, LIBRARY);
  const there = existsSync(placed) && readFileSync(placed).equals(readFileSync(library));
  if (!there) publish(library);
  const cards = plan.architectures.map((a) => `sm_${a}`).join(', ');
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  if (fresh && there) console.log(`[cuda] ${LIBRARY} is up to date (${cards})`);
  else console.log(`[cuda] built ${LIBRARY} in ${seconds} s (${cards})`);
  return 0;
}

const SELF = fileURLToPath(import.meta.url);

/**
 * Builds the library where nvcc is there; one process at a time.
 * @param {readonly string[]} argv the options above
 * @returns {number} exit status: not 0 where the build failed; `missing` where there is no nvcc
 */
export function buildCuda(argv, missing = 1) {
  if (!existsSync(join(ROOT, 'native/cuda'))) return missing;
  const nvcc = findNvcc();
  if (nvcc === undefined) {
    console.log(
      '[cuda] no nvcc was found (CUDACXX, PATH, /usr/local/cuda/bin): the CUDA library is not ' +
        "built. Install NVIDIA's CUDA toolkit, 12.4 or later, for --backend cuda",
    );
    return missing;
  }
  return withLock(join(ROOT, '.build-cuda.lock'), () => {
    const args = [SELF, '--compile', nvcc.path, ...argv];
    return spawnSync(process.execPath, args, { stdio: 'inherit' }).status ?? 1;
  });
}

/** @param {string[]} argv */
async function main(argv) {
  const { values } = parseArgs({
    args: argv,
    options: {
      arch: { type: 'string' },
      werror: { type: 'boolean', default: false },
      report: { type: 'string' },
      force: { type: 'boolean', default: false },
      verbose: { type: 'boolean', default: false },
      compile: { type: 'string' },
    },
  });
  if (values.compile === undefined) return buildCuda(argv);
  const nvcc = values.compile;
  const answer = spawnSync(nvcc, ['--version'], { encoding: 'utf8' }).stdout;
  const version = /release [\d.]+, V[\d.]+/.exec(answer)?.[0] ?? 'unknown version';
  const architectures = pickArchitectures(values.arch, knownTo(nvcc), capabilitiesHere());
  const { werror, force, verbose, report } = values;
  const plan = { nvcc, version, architectures, werror, force, verbose };
  return build(report === undefined ? plan : { ...plan, report });
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    process.exitCode = await main(process.argv.slice(2));
  } catch (error) {
    console.error(/** @type {Error} */ (error).message);
    process.exitCode = 1;
  }
}
