import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { byteSize, namedAdapter } from '../src/cli/adapters.js';
import { openCheckpoint } from '../src/io/checkpoint.js';
import { events, inside } from './support/cli.js';
import { numbersOf, writeAdapter, writeModel } from './support/merge-dirs.js';
import { writeLines, writeTinyModel } from './support/model-dir.js';
import { relativeDifference } from './support/tiny.js';

let root = '';
const at = (name: string) => join(root, name);
const Q = 'model.layers.0.self_attn.q_proj.weight';
const LORA = { rank: 2, targetModules: ['q_proj'] };

test.before(() => {
  root = mkdtempSync(join(tmpdir(), 'lowrank-merge-'));
  writeModel(at('model'), { tied: true });
  writeAdapter(at('a'), at('model'), LORA, 1);
  writeAdapter(at('b'), at('model'), LORA, 2);
  writeAdapter(at('b:0.5'), at('model'), LORA, 3);
  writeAdapter(at('head'), at('model'), { rank: 1, targetModules: ['lm_head'] }, 4);
});
test.after(() => rmSync(root, { recursive: true, force: true }));

const merge = (...argv: string[]) =>
  inside('merge', '--model', at('model'), ...argv, '--backend', 'reference');

test('the last :number of an adapter is its weight, unless such a directory is there', () => {
  const rows: [string, string, number][] = [
    ['dir', 'dir', 1],
    ['dir:0.5', 'dir', 0.5],
    ['dir:-1', 'dir', -1],
    ['dir:+.25', 'dir', 0.25],
    ['dir:1e-2', 'dir', 0.01],
    ['org/name:2', 'org/name', 2],
    ['org/name@main:2', 'org/name@main', 2],
    ['a:b', 'a:b', 1],
    ['a:b:0.5', 'a:b', 0.5],
    ['a:1:2', 'a:1', 2],
    ['C:\\adapters\\x', 'C:\\adapters\\x', 1],
    ['C:\\adapters\\x:0.5', 'C:\\adapters\\x', 0.5],
    ['C:/x:3', 'C:/x', 3],
    [':5', ':5', 1],
    ['dir:0x10', 'dir:0x10', 1],
    ['dir:', 'dir:', 1],
    ['dir:NaN', 'dir:NaN', 1],
    [at('b:0.5'), at('b:0.5'), 1],
    [`${at('b:0.5')}:0.5`, at('b:0.5'), 0.5],
  ];
  for (const [text, name, weight] of rows) assert.equal(namedAdapter(text), { name, weight }, text);
  for (const text of ['dir:0', 'dir:-0.0', 'dir:1e999']) {
    assert.throws(() => namedAdapter(text), /a weight other than 0 after dir/, text);
  }
});

test('sizes as people write them', () => {
  const rows: [string, number][] = [
    ['5GB', 5e9],
    ['5 gb', 5e9],
    ['1.5MB', 1.5e6],
    ['2GiB', 2 ** 31],
    ['10kib', 10240],
    ['1TB', 1e12],
    ['7', 7],
    ['7B', 7],
  ];
  for (const [text, bytes] of rows) assert.is(byteSize(text), bytes, text);
  for (const text of ['', 'GB', '-1GB', '0', '0.2', '5XB', '1e9', '99999999TB']) {
    assert.throws(() => byteSize(text), /Expected a size such as 5GB/, text);
  }
});

test('merge: several adapters by weight, JSON and words', async () => {
  const both = ['--adapter', at('a'), '--adapter', `${at('b')}:-0.5`];
  const { code, stdout, stderr } = await merge(...both, '--out', at('both'), '--json');
  assert.is(code, 0, stderr);
  assert.is(stderr, '');
  const [done, ...more] = events(stdout);
  assert.equal(more, []);
  const { tensors, parameters, bytes, ...rest } = done as Record<string, number>;
  assert.equal(rest, {
    ...{ type: 'done', out: at('both'), changed: 2, untied: false },
    ...{ weights: ['model.safetensors'], leftOut: [] },
  });
  assert.is(bytes, 4 * (parameters as number));
  assert.is(tensors, openCheckpoint(at('both')).tensors.size);
  const one = async (adapter: string, out: string) => {
    assert.is((await merge('--adapter', adapter, '--out', at(out))).code, 0);
    return numbersOf(at(out), Q);
  };
  const base = numbersOf(at('model'), Q);
  const [a, b] = [await one(at('a'), 'only-a'), await one(at('b'), 'only-b')];
  const want = base.map((w, i) => (a[i] as number) - 0.5 * ((b[i] as number) - w));
  assert.ok(relativeDifference(numbersOf(at('both'), Q), want) < 1e-6);
  // A folder of that very name is no weight.
  assert.not.equal(await one(at('b:0.5'), 'colon'), b);

  const words = await merge(
    '--adapter',
    at('head'),
    '--out',
    at('words'),
    '--max-shard-size',
    '1KB',
  );
  assert.is(words.code, 0, words.stderr);
  assert.match(
    words.stdout,
    /\/words: [\d,]+ parameters in \d+ tensors, 1 of them changed, .* in \d files/,
  );
  assert.match(words.stdout, 'The head was tied to the embeddings and is now a tensor of its own');
  assert.is(openCheckpoint(at('words')).config.tie_word_embeddings, false);
});

test('eval and generate take an adapter that changes a tied head', async () => {
  writeLines(at('text.jsonl'), [{ text: 'the whale swam' }]);
  writeTinyModel(at('tiny'));
  writeAdapter(at('tiny-head'), at('tiny'), { rank: 1, targetModules: ['lm_head'] }, 4, 1);
  const loss = async (...argv: string[]) => {
    const { code, stdout, stderr } = await inside(
      'eval',
      ...argv,
      '--data',
      at('text.jsonl'),
      '--json',
    );
    assert.is(code, 0, stderr);
    assert.is(stderr, '');
    return events(stdout).at(-1)?.loss as number;
  };
  const base = await loss('--model', at('tiny'));
  const adapted = await loss('--model', at('tiny'), '--adapter', at('tiny-head'));
  assert.ok(Math.abs(base - adapted) > 1e-3);
  const pair = ['--model', at('tiny'), '--adapter', at('tiny-head')];
  const merged = await inside('merge', ...pair, '--out', at('tiny-merged'), '--dtype', 'f32');
  assert.is(merged.code, 0, merged.stderr);
  assert.ok(Math.abs((await loss('--model', at('tiny-merged'))) - adapted) < 1e-4);
});

test('an adapter that was trained on the tied base is told as one of that base', async () => {
  // It was saved where the head was the table itself; a merge opens the two apart.
  const { stderr, code } = await merge('--adapter', at('a'), '--out', at('same-base'));
  assert.is(code, 0);
  assert.is(stderr, '');
});

test('merge refuses to write into its sources or over an adapter', async () => {
  const pair = ['--adapter', at('a'), '--overwrite'];
  symlinkSync(at('model'), at('link'));
  for (const out of ['model', 'a', 'model/deeper/still', 'link/m', 'a/m']) {
    const { code, stderr } = await merge(...pair, '--out', at(out));
    assert.is(code, 2, out);
    assert.match(stderr, 'option --out must be a folder outside');
  }
  const over = await merge(...pair, '--out', at('b'));
  assert.is(over.code, 1);
  assert.match(over.stderr, 'which holds an adapter that transformers would load with it');
  const missing = await merge('--adapter', `${at('none')}:0.5`, '--out', at('x'));
  assert.is(missing.code, 1);
  assert.match(missing.stderr, /\[adapter\] expected a file .*none, received none/);
  assert.not.ok(existsSync(at('x')));
});

test('merge --overwrite replaces a model, and leaves other files there alone', async () => {
  mkdirSync(at('old'));
  writeFileSync(at('old/notes.txt'), 'mine');
  const argv = ['--adapter', at('a'), '--out', at('old')];
  assert.match((await merge(...argv)).stderr, 'expected a new or empty folder');
  assert.is((await merge(...argv, '--overwrite', '--max-shard-size', '1KB')).code, 0);
  assert.is((await merge(...argv, '--overwrite')).code, 0);
  assert.ok(existsSync(at('old/notes.txt')));
  assert.not.ok(existsSync(at('old/model.safetensors.index.json')));
  assert.is(openCheckpoint(at('old')).files.length, 1);
});

test.run();
