/** What dist/ holds: the library and the command line in few files, with the names of the sources. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { suite } from 'uvu';
import { bundle } from '../scripts/lib/steps.mjs';

const test = suite('bundle');
const root = mkdtempSync(join(tmpdir(), 'lowrank-bundle-'));
const dist = join(root, 'dist');
for (const name of ['node_modules', 'package.json', 'build', 'assets']) {
  symlinkSync(resolve(name), join(root, name));
}
const written = bundle(dist);

function node(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  return stdout;
}

test('the library is a few files, and what it exports has the names of the sources', () => {
  const program = [...written].filter((path) => path.endsWith('.js'));
  const library = program.filter((path) => !path.startsWith('cli'));
  assert.ok(library.includes('index.js') && library.length < 25, library.join(' '));
  for (const path of program) assert.ok(written.has(`${path}.map`), `${path} has a source map`);
  const out = node(
    '--input-type=module',
    '-e',
    `import * as all from ${JSON.stringify(join(dist, 'index.js'))};
    const wrong = Object.entries(all).filter(([k, v]) => typeof v === 'function' && v.name !== k);
    const t = all.tensor([1, 2]);
    console.log(t.constructor.name, all.ops.add(t, t).toNumbers().join());
    console.log(JSON.stringify(wrong.map(([k, v]) => [k, v.name])));`,
  );
  assert.equal(out, 'Tensor 2,4\n[]\n');
});

test('the command line starts, and finds the package it belongs to', () => {
  const { version } = JSON.parse(readFileSync('package.json', 'utf8')) as { version: string };
  const main = join(dist, 'cli/main.js');
  assert.equal(node(main, '--version').trim(), version);
  assert.match(node(main, 'train', '--help'), /^Usage: lowrank train/);
  const inspected = node(main, 'inspect', join(root, 'assets/base'), '--json');
  assert.match(inspected, /"parameters"/);
});

test('source maps lead to lines of the sources', () => {
  const map = JSON.parse(readFileSync(join(dist, 'index.js.map'), 'utf8')) as {
    sources: string[];
    sourcesContent: string[];
  };
  assert.equal(map.sources.length, map.sourcesContent.length);
  assert.ok(map.sources.some((path) => path.endsWith('src/index.ts') || path.includes('src/')));
});

test.after(() => rmSync(root, { recursive: true, force: true }));
test.run();
