import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from './backends.js';
import { parseTotals, skipLines, statedTimeLimit, suitesNeverRun } from './runner.js';
import { skipUnless } from './support.js';

const test = suite('runner');

const UVU = import.meta.resolve('uvu');
const SUPPORT = pathToFileURL(resolve('test/support.ts')).href;
const HEAD = `import { suite } from '${UVU}';\nimport { skipUnless } from '${SUPPORT}';\n`;

const roots: string[] = [];
test.after(() => {
  for (const root of roots) rmSync(root, { recursive: true, force: true });
});

/** Runs the runner over files of test/ made for the purpose; gives back its output and status. */
function runRunner(
  files: Record<string, string>,
  args: readonly string[] = [],
): { status: number | null; output: string; last: string } {
  const root = mkdtempSync(join(tmpdir(), 'runner-'));
  roots.push(root);
  mkdirSync(join(root, 'test'));
  writeFileSync(join(root, 'package.json'), '{"type":"module"}');
  for (const [name, source] of Object.entries(files)) {
    writeFileSync(join(root, 'test', name), HEAD + source);
  }
  const command = ['--import', import.meta.resolve('tsx'), 'test/run.ts', '--root', root, ...args];
  const { status, stdout, stderr } = spawnSync(process.execPath, command, { encoding: 'utf8' });
  const output = stdout + stderr;
  return { status, output, last: output.trimEnd().split('\n').at(-1) ?? '' };
}

const PASSING = "const t = suite('p');\nt('a', () => {});\nt('b', () => {});\nt.run();\n";

test('counts passed tests and ends with the total', () => {
  const { status, last, output } = runRunner({ 'a.test.ts': PASSING, 'b.test.ts': PASSING });
  assert.is(last, '4 passed, 0 failed', output);
  assert.is(status, 0);
});

test('a failing test fails, and its output is shown', () => {
  const source =
    "const t = suite('f');\nt('good', () => {});\nt('bad', () => { throw new Error('no ' + 'luck'); });\nt.run();\n";
  const { status, last, output } = runRunner({ 'a.test.ts': source });
  assert.is(last, '1 passed, 1 failed');
  assert.match(output, 'no luck');
  assert.is(status, 1);
});

test('a file in which no test ran fails', () => {
  const { last, output } = runRunner({
    'empty.test.ts': 'export {};\n',
    'forgotten.test.ts': "const t = suite('x');\nt('a', () => {});\n",
    'none.test.ts': "const t = suite('x');\nt.run();\n",
    'good.test.ts': PASSING,
  });
  assert.is(last, '2 passed, 3 failed', output);
  assert.match(output, "the suite 't' is never run");
  assert.match(output, 'test/empty.test.ts: no test ran');
});

test('a suite that is forgotten beside one that runs fails the file', () => {
  const source = `${PASSING}const other = suite<number>('x');\nother('c', () => {});\n`;
  const { last } = runRunner({ 'a.test.ts': source });
  assert.is(last, '2 passed, 1 failed');
});

test('a file that takes too long is killed, with what it started', () => {
  const source =
    "import { spawn } from 'node:child_process';\nconst t = suite('slow');\n" +
    "t('never ends', () => { const c = spawn('sleep', ['30']); console.log('child ' + c.pid); for (;;); });\nt.run();\n";
  const { last, output, status } = runRunner({ 'a.test.ts': source }, ['--time-limit', '2']);
  assert.is(last, '0 passed, 1 failed');
  assert.is(status, 1);
  assert.match(output, 'killed after its time limit of 2 s');
  const child = /child (\d+)/.exec(output)?.[1];
  assert.ok(child, output);
  const listed = execFileSync('ps', ['-A', '-o', 'pid=,stat=']).toString().split('\n');
  assert.not.ok(
    listed.some((line) => line.trim().split(/\s+/)[0] === child && !line.includes('Z')),
  );
});

test('a file may state its own time limit', () => {
  const source =
    "// time-limit: 1\nconst t = suite('slow');\nt('never ends', () => { for (;;); });\nt.run();\n";
  const { output } = runRunner({ 'a.test.ts': source });
  assert.match(output, 'killed after its time limit of 1 s');
});

test('a crash fails: a signal, an exit in the middle, an exit code after all tests passed', () => {
  const { last, output } = runRunner({
    'signal.test.ts': `const t = suite('s');\nt('a', () => { process.kill(process.pid, 'SIGABRT'); });\nt.run();\n`,
    'exit.test.ts': "const t = suite('s');\nt('a', () => { process.exit(0); });\nt.run();\n",
    'code.test.ts': `${PASSING}process.on('exit', () => { process.exitCode = 3; });\n`,
    'import.test.ts': "import './nowhere.js';\n",
  });
  assert.is(last, '2 passed, 4 failed', output);
  assert.match(output, 'killed by SIGABRT');
  assert.match(output, 'exited with code 3');
});

test('skips are counted and their reasons printed', () => {
  const source =
    "const t = suite('s');\nt('a', () => {});\n" +
    "skipUnless(t, false, 'there is no moon')('tides', () => {});\n" +
    "skipUnless(t, true, 'never said')('sun', () => {});\nt.run();\n";
  const { status, last, output } = runRunner({ 'a.test.ts': source });
  assert.is(last, '2 passed, 0 failed, 1 skipped', output);
  assert.match(output, '  test/a.test.ts: tides\n    there is no moon\n');
  assert.not.match(output, 'never said');
  assert.is(status, 0);
});

const onNative = skipUnless(test, native !== null, 'no native addon is built');
onNative('--isa all runs each file on every instruction set, --isa NAME on that one', () => {
  const isas = native?.info().isas ?? [];
  const registry = pathToFileURL(resolve('src/tensor/registry.ts')).href;
  const source =
    `import { getBackend } from '${registry}';\nconst t = suite('i');\n` +
    "t('a', () => { console.log('on ' + getBackend('cpu').info().isa); });\nt.run();\n";
  const all = runRunner({ 'a.test.ts': source }, ['--isa', 'all', '--verbose']);
  assert.is(all.last, `${isas.length} passed, 0 failed`, all.output);
  const one = runRunner({ 'a.test.ts': source }, ['--isa', 'generic', '--verbose']);
  for (const isa of isas) {
    assert.match(all.output, `ok   test/a.test.ts (${isa})`);
    assert.match(all.output, new RegExp(`on ${isa}\\n`));
    assert.is(one.output.includes(`on ${isa}\n`), isa === 'generic');
  }
  const wrong = runRunner({ 'a.test.ts': source }, ['--isa', 'mmx']);
  assert.match(wrong.output, '[--isa] expected all or one of');
  assert.is(wrong.status, 1);
});

test('many skips of one reason are one line', () => {
  const skips = ['a', 'b', 'c', 'd'].map((name) => ({ name, reason: 'no moon' }));
  assert.equal(skipLines('x', skips), ['  x: 4 tests\n    no moon']);
  assert.equal(skipLines('x', skips.slice(2)), ['  x: c; d\n    no moon']);
});

test('a file whose tests are all skipped with a reason passes', () => {
  const source =
    "const t = suite('s');\nskipUnless(t, false, 'no moon')('tides', () => {});\nt.run();\n";
  assert.is(runRunner({ 'a.test.ts': source }).last, '0 passed, 0 failed, 1 skipped');
});

test('a skip without a reason fails, and so does a test.only left behind', () => {
  const bare = `${PASSING.replace("t('b'", "t.skip('b'")}`;
  const only = `${PASSING.replace("t('b'", "t.only('b'")}`;
  const { last, output } = runRunner({ 'bare.test.ts': bare, 'only.test.ts': only });
  assert.is(last, '2 passed, 2 failed, 2 skipped');
  assert.match(output, 'skips without a reason');
});

test('patterns choose files, and none that matches is a failure', () => {
  const files = { 'apple.test.ts': PASSING, 'pear.test.ts': PASSING };
  const { output, last } = runRunner(files, ['apple']);
  assert.is(last, '2 passed, 0 failed');
  assert.not.match(output, 'pear');
  const none = runRunner(files, ['plum']);
  assert.is(none.last, '0 passed, 1 failed');
  assert.is(none.status, 1);
  assert.match(none.output, 'expected a test file that matches plum');
});

test('checks made before are part of the total', () => {
  const args = ['--check', 'types=ok', '--check', 'format=failed'];
  const { last, output, status } = runRunner({ 'a.test.ts': PASSING }, args);
  assert.is(last, '3 passed, 1 failed');
  assert.match(output, 'check: format');
  assert.is(status, 1);
});

test('a setting that cannot be is an error', () => {
  const { status, output } = runRunner({ 'a.test.ts': PASSING }, ['--jobs', 'many']);
  assert.is(status, 1);
  assert.match(output, '[--jobs] expected a positive number, received many');
});

test('parts: totals, time limits, suites, empty reasons', () => {
  assert.is(parseTotals('nothing'), undefined);
  const block = (n: number) => `\n  Total:     ${n}\n  Passed:    ${n}\n  Skipped:   0\n`;
  assert.equal(parseTotals(block(2) + block(3)), { total: 3, passed: 3, skipped: 0 });
  assert.is(statedTimeLimit('a\n// time-limit: 300\n'), 300);
  assert.is(statedTimeLimit("const s = '// time-limit: 300';"), undefined);
  assert.equal(suitesNeverRun("import { test } from 'uvu';\ntest('a', () => {});"), ['test']);
  assert.equal(suitesNeverRun("import { test } from 'uvu';\ntest.run();"), []);
  assert.throws(() => skipUnless(test, true, ' '), '[skipUnless] expected a reason');
});

test.run();
