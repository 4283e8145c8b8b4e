import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  readJson,
  readJsonObject,
  writeDirectoryAtomic,
  writeFileAtomic,
  writeFilesAtomic,
  writeJsonAtomic,
} from '../src/io/files.js';
import { skipUnless } from './support.js';

const test = suite('files');
let dir = '';
test.before.each(() => {
  dir = mkdtempSync(join(tmpdir(), 'lowrank-files-'));
});
test.after.each(() => rmSync(dir, { recursive: true, force: true }));

const bytes = (text: string) => new TextEncoder().encode(text);
const text = (name: string) => readFileSync(join(dir, name), 'utf8');

/** Two pieces, then an error, as a full disk or a failing kernel would make it. */
function* failing(): Generator<Uint8Array> {
  yield bytes('new, first half; ');
  yield bytes('second half');
  throw new Error('no space left');
}

test('a file is written whole, over an old one, its mode kept', () => {
  const path = join(dir, 'a.txt');
  writeFileAtomic(path, [bytes('one '), new Uint8Array(), bytes('two')]);
  assert.is(text('a.txt'), 'one two');
  chmodSync(path, 0o640);
  writeFileAtomic(path, [bytes('three')]);
  assert.is(text('a.txt'), 'three');
  assert.is(statSync(path).mode & 0o777, 0o640);
  writeFileAtomic(path, []);
  assert.is(text('a.txt'), '');
  assert.equal(readdirSync(dir), ['a.txt']);
});

test('a failure midway leaves the old file and no debris', () => {
  writeFileAtomic(join(dir, 'a.txt'), [bytes('old')]);
  assert.throws(
    () => writeFileAtomic(join(dir, 'a.txt'), failing()),
    /\[write .*a\.txt\] no space/,
  );
  assert.throws(() => writeFileAtomic(join(dir, 'b.txt'), failing()), /no space left/);
  assert.is(text('a.txt'), 'old');
  assert.equal(readdirSync(dir), ['a.txt']);
});

test('the cause of a failure is kept', () => {
  try {
    writeFileAtomic(join(dir, 'a.txt'), failing());
    assert.unreachable();
  } catch (error) {
    assert.is(((error as Error).cause as Error).message, 'no space left');
  }
});

test('several files are written all or none', () => {
  writeFilesAtomic(dir, [
    ['a', [bytes('a1')]],
    ['b', [bytes('b1')]],
  ]);
  const half: [string, Iterable<Uint8Array>][] = [
    ['a', [bytes('a2')]],
    ['b', failing()],
  ];
  assert.throws(() => writeFilesAtomic(dir, half), /\[write .*b\] no space left/);
  assert.is(text('a'), 'a1');
  assert.is(text('b'), 'b1');
  assert.equal(readdirSync(dir).sort(), ['a', 'b']);
});

test('a directory in the place of the file is refused', () => {
  mkdirSync(join(dir, 'a'));
  assert.throws(
    () => writeFileAtomic(join(dir, 'a'), [bytes('x')]),
    /a file name, received a direct/,
  );
  assert.equal(readdirSync(dir), ['a']);
});

test('a missing folder is an error that names the file', () => {
  assert.throws(
    () => writeFileAtomic(join(dir, 'no', 'a'), [bytes('x')]),
    /\[write .*no.a\] ENOENT/,
  );
  assert.equal(readdirSync(dir), []);
});

test('a link is replaced, not written through', () => {
  writeFileSync(join(dir, 'target'), 'shared');
  symlinkSync(join(dir, 'target'), join(dir, 'link'));
  writeFileAtomic(join(dir, 'link'), [bytes('own')]);
  assert.is(text('target'), 'shared');
  assert.is(text('link'), 'own');
});

for (const name of ['', '.', '..', '../x', 'a/b', 'a\\b', 'C:x', 'a\0']) {
  test(`${JSON.stringify(name)} is no plain file name`, () => {
    assert.throws(() => writeFilesAtomic(dir, [[name, []]]), /expected a plain file name/);
  });
}

const asUser = skipUnless(
  test,
  process.getuid?.() !== 0 && process.platform !== 'win32',
  'the superuser may write into read-only folders',
);
asUser('a read-only folder leaves the old file', () => {
  writeFileSync(join(dir, 'a'), 'old');
  chmodSync(dir, 0o555);
  try {
    assert.throws(() => writeFileAtomic(join(dir, 'a'), [bytes('new')]), /EACCES/);
    assert.is(text('a'), 'old');
  } finally {
    chmodSync(dir, 0o755);
  }
});

test('a folder appears at once and replaces an older one', () => {
  const target = join(dir, 'made', 'step-1');
  writeDirectoryAtomic(target, [['a', [bytes('1')]]]);
  assert.equal(readdirSync(target), ['a']);
  writeDirectoryAtomic(target, [['b', [bytes('2')]]]);
  assert.equal(readdirSync(target), ['b']);
  assert.throws(() => writeDirectoryAtomic(target, [['c', failing()]]), /no space left/);
  assert.equal(readdirSync(target), ['b']);
  assert.throws(
    () => writeDirectoryAtomic(join(dir, 'other'), [['c', failing()]]),
    /no space left/,
  );
  assert.not.ok(existsSync(join(dir, 'other')));
  assert.equal(readdirSync(dir), ['made']);
  assert.equal(readdirSync(join(dir, 'made')), ['step-1']);
});

test('JSON is written with indent and read again', () => {
  const path = join(dir, 'x.json');
  writeJsonAtomic(path, { b: [1], a: 'ü' });
  assert.is(text('x.json'), '{\n  "b": [\n    1\n  ],\n  "a": "ü"\n}\n');
  assert.equal(readJson(path), { b: [1], a: 'ü' });
});

test('JSON errors name the file', () => {
  const put = (contents: string | Uint8Array) => {
    writeFileSync(join(dir, 'config.json'), contents);
    return join(dir, 'config.json');
  };
  assert.throws(() => readJson(join(dir, 'config.json')), /a file .*config\.json, received none/);
  assert.throws(() => readJson(put('{"a": }')), /config\.json\] expected JSON, received .*token/);
  assert.throws(() => readJson(put('')), /config\.json\] expected JSON, received/);
  assert.throws(() => readJson(put(Uint8Array.of(0x22, 0xff, 0x22))), /expected UTF-8 text/);
  assert.throws(
    () => readJsonObject(put('[1]')),
    /config\.json\] expected a JSON object, received an a/,
  );
  assert.throws(() => readJsonObject(put('null')), /a JSON object, received null/);
  assert.throws(() => readJsonObject(put('3')), /a JSON object, received a number/);
  assert.equal(readJsonObject(put('\uFEFF{}')), {});
  assert.throws(() => readJson(join(dir, 'confg.json')), /the folder has config\.json/);
  assert.throws(() => readJson(join(dir, 'nowhere', 'x.json')), /received no folder .*nowhere/);
  assert.throws(() => readJson(dir), /EISDIR/);
});

test.run();
