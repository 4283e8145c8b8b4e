// time-limit: 120
import { spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { staleness } from '../scripts/bootstrap.mjs';
import { buildKeys } from '../scripts/build-native.mjs';
import { withLock } from '../scripts/lib/lock.mjs';
import {
  chooseBuilder,
  findTool,
  findTools,
  missingFor,
  type Tools,
} from '../scripts/lib/toolchain.mjs';
import { skipUnless } from './support.js';

const test = suite('scripts');
const roots: string[] = [];
test.after(() => {
  for (const root of roots) rmSync(root, { recursive: true, force: true });
});

function tree(files: Record<string, string>): string {
  const root = mkdtempSync(join(tmpdir(), 'scripts-'));
  roots.push(root);
  for (const [path, text] of Object.entries(files)) put(root, path, text);
  return root;
}

function put(root: string, path: string, text: string): void {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), text);
}

const tool = { path: '/bin/tool', version: 'tool 1.0' };
const ALL: Tools = { cxx: tool, cmake: tool, make: tool, python: tool };

function choice(without: readonly (keyof Tools)[], headers: string | undefined = '/usr') {
  const tools = { ...ALL };
  for (const key of without) delete tools[key];
  return chooseBuilder(tools, (builder) => missingFor(builder, tools, () => true, headers));
}

test('cmake-js is picked where CMake is, else node-gyp, else nothing, with the reason', () => {
  assert.is(choice([]).builder, 'cmake');
  assert.equal(choice(['cmake']), { builder: 'gyp', why: 'for cmake-js CMake is missing' });
  assert.is(choice(['cmake', 'python']).builder, 'none');
  assert.match(choice(['cmake', 'python']).why, 'for node-gyp python3 is missing');
  assert.is(choice(['make']).builder, 'none');
  assert.equal(choice(['cxx']), {
    builder: 'none',
    why: 'no C++ compiler (c++, g++ or clang++) was found',
  });
  const tools = { ...ALL, ninja: tool };
  delete tools.make;
  assert.equal(
    missingFor('cmake', tools, () => true),
    [],
  );
});

test('node-gyp is not picked where it would fetch headers', () => {
  const tools = { cxx: tool, make: tool, python: tool };
  const missing = (builder: 'cmake' | 'gyp') =>
    builder === 'cmake' ? ['CMake'] : ["Node's headers"];
  assert.is(chooseBuilder(tools, missing).builder, 'none');
});

test('a tool that does not answer is not there', () => {
  const root = tree({ broken: '#!/bin/sh\nexit 127\n', good: '#!/bin/sh\necho good 1.2\n' });
  spawnSync('chmod', ['+x', join(root, 'broken'), join(root, 'good')]);
  const path = process.env.PATH;
  process.env.PATH = `${root}:${path}`;
  try {
    assert.is(findTool(['broken']), undefined);
    assert.is(findTool(['broken', 'good'])?.version, 'good 1.2');
    assert.is(findTool(['no-such-tool']), undefined);
  } finally {
    process.env.PATH = path;
  }
});

test('the build key follows the sources and the settings', () => {
  const root = tree({ 'native/a.cc': 'int a;', 'CMakeLists.txt': 'x', 'README.md': 'r' });
  const first = buildKeys(root, ['cmake']);
  assert.equal(buildKeys(root, ['cmake']), first);
  assert.is.not(buildKeys(root, ['gyp']).key, first.key);
  assert.is(buildKeys(root, ['gyp']).sources, first.sources);
  put(root, 'README.md', 'changed');
  assert.equal(buildKeys(root, ['cmake']), first);
  put(root, 'native/a.cc', 'int b;');
  assert.is.not(buildKeys(root, ['cmake']).key, first.key);
  put(root, 'native/a.cc', 'int a;');
  put(root, 'native/cuda/kernels.cu', '');
  assert.equal(buildKeys(root, ['cmake']), first, 'the CUDA library has a key of its own');
  put(root, 'native/cpu/new.cc', '');
  assert.is.not(buildKeys(root, ['cmake']).sources, first.sources);
});

test('installed packages that differ from the lock file are noticed', () => {
  const lock = (version: string) =>
    JSON.stringify({
      packages: {
        '': {},
        'node_modules/a': { version },
        'node_modules/b-other-platform': { version: '1.0.0', optional: true },
      },
    });
  const hidden = JSON.stringify({ packages: { 'node_modules/a': { version: '1.0.0' } } });
  const root = tree({ 'package-lock.json': lock('1.0.0') });
  assert.match(staleness(root)!, 'node_modules is missing');
  put(root, 'node_modules/.package-lock.json', hidden);
  assert.match(staleness(root)!, 'node_modules/a is incomplete');
  put(root, 'node_modules/a/package.json', '{}');
  assert.is(staleness(root), undefined);
  put(root, 'package-lock.json', lock('2.0.0'));
  assert.is(staleness(root), 'node_modules/a is 1.0.0, the lock file says 2.0.0');
  put(root, 'package-lock.json', lock('1.0.0').replace('node_modules/a', 'node_modules/c'));
  assert.is(staleness(root), 'node_modules/c is not installed');
  assert.is(staleness(resolve('.')), undefined);
});

test('a lock is held by one, waited for, and taken from the dead', async () => {
  const root = tree({});
  const path = join(root, 'lock');
  assert.is(
    withLock(path, (waited) => (existsSync(path) ? !waited : false)),
    true,
  );
  assert.not.ok(existsSync(path));
  assert.throws(
    () =>
      withLock(path, () => {
        throw new Error('inside');
      }),
    'inside',
  );
  assert.not.ok(existsSync(path));
  const dead = spawnSync(process.execPath, ['-e', '0']).pid;
  writeFileSync(path, String(dead));
  assert.is(
    withLock(path, (waited) => waited),
    false,
  );
  const other = spawn('sleep', ['20'], { stdio: 'ignore' });
  writeFileSync(path, String(other.pid));
  assert.throws(() => withLock(path, () => 0, 300), `expected process ${other.pid} to finish`);
  assert.ok(existsSync(path));
  other.kill();
});

/** Copies what the build script needs beside native sources made for a test. */
function project(files: Record<string, string>): string {
  const root = tree(files);
  for (const path of ['build-native.mjs', 'lib/toolchain.mjs', 'lib/lock.mjs']) {
    put(root, `scripts/${path}`, readFileSync(resolve('scripts', path), 'utf8'));
  }
  put(root, 'package.json', '{"name":"p","version":"1.0.0","binary":{"napi_versions":[8]}}');
  return root;
}

function build(root: string, args: readonly string[], path = process.env.PATH) {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(root, 'scripts/build-native.mjs'), ...args],
    { encoding: 'utf8', env: { ...process.env, PATH: path } },
  );
  return { status, output: stdout + stderr };
}

test('without a compiler the build says so, succeeds, and leaves no addon of other sources', () => {
  const root = project({ 'native/a.cc': '', 'build/Release/lowrank.node': 'old' });
  const { status, output } = build(root, [], '/nowhere');
  assert.is(status, 0, output);
  assert.match(output, 'no C++ compiler (c++, g++ or clang++) was found');
  assert.match(output, 'reference backend');
  assert.not.ok(existsSync(join(root, 'build/Release/lowrank.node')));
});

test('without a compiler an addon of the same sources stays, unless told otherwise', () => {
  const root = project({ 'native/a.cc': '', 'build/Release/lowrank.node': 'same' });
  const { sources } = buildKeys(root, []);
  const { size, mtimeMs } = statSync(join(root, 'build/Release/lowrank.node'));
  const state = { sources, addon: `${size} bytes, ${mtimeMs}` };
  put(root, 'build/lowrank.json', JSON.stringify(state));
  assert.match(build(root, [], '/nowhere').output, 'already there, and stays');
  assert.ok(existsSync(join(root, 'build/Release/lowrank.node')));
  assert.is(build(root, ['--backend', 'none']).status, 0);
  assert.not.ok(existsSync(join(root, 'build/Release/lowrank.node')));
});

const native = skipUnless(test, chooseBuilder(findTools()).builder === 'cmake', 'no CMake');

native('a failed build shows why, exits with 1 and keeps the addon there was', () => {
  const root = project({
    'native/a.cc': '',
    'CMakeLists.txt': 'cmake_minimum_required(VERSION 3.19)\nmessage(FATAL_ERROR "no such luck")\n',
    'build/Release/lowrank.node': 'old',
  });
  symlinkSync(resolve('node_modules'), join(root, 'node_modules'));
  const { status, output } = build(root, []);
  assert.is(status, 1);
  assert.match(output, 'no such luck');
  assert.match(output, '[build] cmake-js failed');
  assert.match(output, '--backend none');
  assert.is(readFileSync(join(root, 'build/Release/lowrank.node'), 'utf8'), 'old');
});

test('a builder that cannot be, and one that is unknown, are errors', () => {
  const root = project({ 'native/a.cc': '' });
  const unknown = build(root, ['--backend', 'ninja']);
  assert.is(unknown.status, 1);
  assert.match(unknown.output, '[--backend] expected cmake, gyp or none, received ninja');
  const missing = build(root, ['--backend', 'cmake'], '/nowhere');
  assert.is(missing.status, 1);
  assert.match(missing.output, '[--backend cmake] expected a C++ compiler');
  const sanitize = build(root, ['--sanitize', '--backend', 'none']);
  assert.match(sanitize.output, '[--sanitize] expected the builder cmake, received none');
});

test.run();
