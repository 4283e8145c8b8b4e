import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { openCheckpoint } from '../src/io/checkpoint.js';
import { saveCheckpoint } from '../src/io/checkpoint-writer.js';
import { type WriteEntry, writeSafetensors } from '../src/io/safetensors.js';
import { tensor } from '../src/tensor/create.js';
import { getBackend } from '../src/tensor/registry.js';
import { skipUnless } from './support.js';

const test = suite('checkpoints');
const backend = getBackend('reference');
const INDEX = 'model.safetensors.index.json';
let root = '';
let dir = '';
test.before.each(() => {
  root = mkdtempSync(join(tmpdir(), 'lowrank-checkpoint-'));
  dir = join(root, 'model');
  mkdirSync(dir);
  writeFileSync(join(dir, 'config.json'), '{"model_type":"llama"}');
});
test.after.each(() => rmSync(root, { recursive: true, force: true }));

function entry(name: string, ...values: number[]): WriteEntry {
  return { name, dtype: 'U8', shape: [values.length], bytes: () => Uint8Array.from(values) };
}

function index(map: unknown): void {
  writeFileSync(join(dir, INDEX), JSON.stringify({ metadata: {}, weight_map: map }));
}

/** Two shards with tensors a, b and c, and their index. */
function sharded(): void {
  writeSafetensors(join(dir, 'one.safetensors'), [entry('a', 1), entry('b', 2, 2)]);
  writeSafetensors(join(dir, 'two.safetensors'), [entry('c', 3)]);
  index({ a: 'one.safetensors', b: 'one.safetensors', c: 'two.safetensors' });
}

test('one file', () => {
  writeSafetensors(join(dir, 'model.safetensors'), [entry('a', 1, 2)]);
  const checkpoint = openCheckpoint(dir);
  assert.equal(checkpoint.config, { model_type: 'llama' });
  assert.equal([...checkpoint.tensors.keys()], ['a']);
  assert.equal(checkpoint.bytes('a'), Uint8Array.of(1, 2));
  assert.ok(checkpoint.has('a'));
  assert.not.ok(checkpoint.has('constructor'));
  assert.throws(
    () => checkpoint.loadTensor('A'),
    /a tensor "A", received none among 1\. The nearest/,
  );
});

test('shards', () => {
  sharded();
  const checkpoint = openCheckpoint(dir);
  assert.equal([...checkpoint.tensors.keys()].sort(), ['a', 'b', 'c']);
  assert.is(checkpoint.files.length, 2);
  const c = checkpoint.loadTensor('c', { backend });
  assert.equal(c.toNumbers(), [3]);
  c.dispose();
});

test('a single file wins over shards, as in transformers', () => {
  sharded();
  writeSafetensors(join(dir, 'model.safetensors'), [entry('only', 9)]);
  assert.equal([...openCheckpoint(dir).tensors.keys()], ['only']);
});

test('a tensor that the index leaves out is still there', () => {
  sharded();
  index({ a: 'one.safetensors', c: 'two.safetensors' });
  assert.equal(openCheckpoint(dir).bytes('b'), Uint8Array.of(2, 2));
});

test('names of prototypes are data in an index', () => {
  writeSafetensors(join(dir, 'one.safetensors'), [entry('__proto__', 7)]);
  writeFileSync(join(dir, INDEX), '{"weight_map":{"__proto__":"one.safetensors"}}');
  assert.equal(openCheckpoint(dir).bytes('__proto__'), Uint8Array.of(7));
});

const attacks: [name: string, prepare: () => void, message: RegExp][] = [
  ['..', () => index({ a: '../one.safetensors' }), /within the model directory.*"\.\.\/one\.safet/],
  ['.. further down', () => index({ a: 'x/../../one.safetensors' }), /within the model directory/],
  [
    'absolute name',
    () => index({ a: '/etc/one.safetensors' }),
    /within the model dir.*"\/etc\/one/,
  ],
  ['drive letter', () => index({ a: 'C:one.safetensors' }), /without \.\., \\ or drive letter/],
  ['backslashes', () => index({ a: '..\\one.safetensors' }), /without \.\., \\ or drive letter/],
  [
    'network share',
    () => index({ a: '\\\\host\\one.safetensors' }),
    /without \.\., \\ or drive lett/,
  ],
  ['NUL in the name', () => index({ a: 'one\0.safetensors' }), /within the model directory/],
  ['empty name', () => index({ a: '' }), /end in \.safetensors, received ""/],
  ['folder', () => index({ a: 'sub/.safetensors/' }), /end in \.safetensors/],
  [
    'pickle in the index',
    () => index({ a: 'one.bin' }),
    /safetensors files, received "one\.bin"\. Pick/,
  ],
  [
    'another ending',
    () => index({ a: 'config.json' }),
    /end in \.safetensors, received "config\.json"/,
  ],
  ['number for a name', () => index({ a: 1 }), /a file name for tensor "a", received 1/],
  ['null for a name', () => index({ a: null }), /a file name for tensor "a", received null/],
  ['no weight_map', () => index(undefined), /an object weight_map .*received none/],
  [
    'weight_map an array',
    () => index(['one.safetensors']),
    /an object weight_map .*received \["one/,
  ],
  ['weight_map empty', () => index({}), /a weight_map with tensors, received an empty one/],
  ['index no JSON', () => writeFileSync(join(dir, INDEX), '{'), /index\.json\] expected JSON/],
  [
    'index an array',
    () => writeFileSync(join(dir, INDEX), '[]'),
    /a JSON object, received an array/,
  ],
  [
    'tensor twice',
    () => writeFileSync(join(dir, INDEX), '{"weight_map":{"a":"one.safetensors","a":"x"}}'),
    /each name in weight_map once, received "a" twice/,
  ],
  [
    'tensor twice, once escaped',
    () => writeFileSync(join(dir, INDEX), '{"weight_map":{"a":"x","\\u0061":"one.safetensors"}}'),
    /each name in weight_map once, received "a" twice/,
  ],
  [
    'weight_map twice',
    () => writeFileSync(join(dir, INDEX), '{"weight_map":{"a":"x"},"weight_map":{}}'),
    /each name in the index once, received "weight_map" twice/,
  ],
  [
    'levels without end',
    () => writeFileSync(join(dir, INDEX), `{"metadata":${'['.repeat(99)}${']'.repeat(99)}}`),
    /metadata of at most 64 levels/,
  ],
  [
    'missing shard',
    () => index({ a: 'oen.safetensors' }),
    /oen\.safetensors, received none; the folder/,
  ],
  [
    'shard a directory',
    () => {
      mkdirSync(join(dir, 'x.safetensors'));
      index({ a: 'x.safetensors' });
    },
    /expected a file, received a directory/,
  ],
  [
    'tensor in no shard',
    () => index({ a: 'one.safetensors', d: 'one.safetensors' }),
    /tensor "d" in one/,
  ],
  [
    'tensor in another shard',
    () => index({ a: 'one.safetensors', c: 'one.safetensors', b: 'two.safetensors' }),
    /tensor "c" in one\.safetensors, received it in two\.safetensors/,
  ],
  [
    'tensor twice and not listed',
    () => {
      writeSafetensors(join(dir, 'two.safetensors'), [entry('c', 3), entry('b', 4)]);
      index({ a: 'one.safetensors', c: 'two.safetensors' });
    },
    /tensor "b", which is not listed, once, received it in one\.safetensors and two/,
  ],
  [
    'link out of the directory',
    () => {
      renameSync(join(dir, 'one.safetensors'), join(root, 'one.safetensors'));
      symlinkSync(join(root, 'one.safetensors'), join(dir, 'one.safetensors'));
    },
    /"one\.safetensors" to lie in the model directory, received a link to .*Copy the file/,
  ],
  [
    'relative link out of the directory',
    () => {
      renameSync(join(dir, 'one.safetensors'), join(root, 'one.safetensors'));
      symlinkSync('../one.safetensors', join(dir, 'one.safetensors'));
    },
    /to lie in the model directory, received a link to/,
  ],
  [
    'folder that links out of the directory',
    () => {
      mkdirSync(join(root, 'elsewhere'));
      writeSafetensors(join(root, 'elsewhere', 'one.safetensors'), [entry('a', 1)]);
      symlinkSync(join(root, 'elsewhere'), join(dir, 'sub'));
      index({ a: 'sub/one.safetensors' });
    },
    /to lie in the model directory, received a link to/,
  ],
  [
    'link to nowhere',
    () => {
      rmSync(join(dir, 'one.safetensors'));
      symlinkSync('nowhere', join(dir, 'one.safetensors'));
    },
    /received a link that leads nowhere/,
  ],
  [
    'index that links out',
    () => {
      renameSync(join(dir, INDEX), join(root, INDEX));
      symlinkSync(join(root, INDEX), join(dir, INDEX));
    },
    /index\.json" to lie in the model directory/,
  ],
  [
    'config that links out',
    () => {
      rmSync(join(dir, 'config.json'));
      writeFileSync(join(root, 'secret.json'), '{}');
      symlinkSync(join(root, 'secret.json'), join(dir, 'config.json'));
    },
    /"config\.json" to lie in the model directory/,
  ],
  [
    'broken shard',
    () => writeFileSync(join(dir, 'one.safetensors'), 'abc'),
    /one\.safetensors\] expect/,
  ],
];

for (const [name, prepare, message] of attacks) {
  test(`refused: ${name}`, () => {
    sharded();
    prepare();
    assert.throws(() => openCheckpoint(dir), message);
  });
}

test('links within a model of the Hugging Face cache are followed, out of it not', () => {
  const model = join(root, 'models--org--name');
  const snapshot = join(model, 'snapshots', 'abc');
  mkdirSync(snapshot, { recursive: true });
  mkdirSync(join(model, 'blobs'));
  writeFileSync(join(model, 'blobs', '1'), '{}');
  writeSafetensors(join(model, 'blobs', '2'), [entry('a', 5)]);
  symlinkSync('../../blobs/1', join(snapshot, 'config.json'));
  symlinkSync('../../blobs/2', join(snapshot, 'model.safetensors'));
  assert.equal(openCheckpoint(snapshot).bytes('a'), Uint8Array.of(5));
  rmSync(join(snapshot, 'model.safetensors'));
  writeSafetensors(join(root, 'other.safetensors'), [entry('a', 5)]);
  symlinkSync('../../../other.safetensors', join(snapshot, 'model.safetensors'));
  assert.throws(() => openCheckpoint(snapshot), /to lie in the model directory, received a link/);
});

test('a model directory may itself be reached through a link', () => {
  writeSafetensors(join(dir, 'model.safetensors'), [entry('a', 1)]);
  symlinkSync(dir, join(root, 'link'));
  assert.ok(openCheckpoint(join(root, 'link')).has('a'));
});

test('what is missing is named, with the way out', () => {
  assert.throws(
    () => openCheckpoint(dir),
    /model\.safetensors or .*received neither; the directory has/,
  );
  writeFileSync(join(dir, 'pytorch_model.bin'), '');
  assert.throws(
    () => openCheckpoint(dir),
    /the pickle file pytorch_model\.bin\. Pickle files can run/,
  );
  rmSync(join(dir, 'pytorch_model.bin'));
  writeFileSync(join(dir, 'model.gguf'), '');
  assert.throws(() => openCheckpoint(dir), /received model\.gguf\. Use the original checkpoint/);
  rmSync(join(dir, 'config.json'));
  writeFileSync(join(dir, 'confg.json'), '{}');
  assert.throws(
    () => openCheckpoint(dir),
    /config\.json, received none; the folder has confg\.json/,
  );
  assert.throws(() => openCheckpoint(join(root, 'modle')), /received none; the folder has model/);
  assert.throws(
    () => openCheckpoint(join(dir, 'confg.json')),
    /received the file .*Give its directory/,
  );
});

test('a saved checkpoint is read again, with its other files', () => {
  const w = tensor([1, 2, 3, 4], [2, 2], { backend, dtype: 'bf16' });
  const extraFiles = new Map<string, string | Uint8Array>([
    ['tokenizer.json', '{}'],
    ['blob', Uint8Array.of(1)],
  ]);
  saveCheckpoint(dir, { config: { model_type: 'x' }, tensors: new Map([['w', w]]), extraFiles });
  const checkpoint = openCheckpoint(dir);
  assert.equal(checkpoint.config, { model_type: 'x' });
  assert.equal(checkpoint.bytes('w'), w.bytes());
  assert.equal([...(checkpoint.files[0]?.metadata ?? [])], [['format', 'pt']]);
  assert.equal(readdirSync(dir).sort(), [
    'blob',
    'config.json',
    'model.safetensors',
    'tokenizer.json',
  ]);
  w.dispose();
});

test('shards by size, and no weights of an older save beside them', () => {
  const tensors = [
    entry('a', 1, 1, 1),
    entry('b', 2, 2),
    entry('c', 3),
    entry('big', 4, 4, 4, 4, 4, 4),
  ];
  saveCheckpoint(dir, { config: {}, tensors, maxShardBytes: 5 });
  const shards = ['model-00001-of-00003', 'model-00002-of-00003', 'model-00003-of-00003'];
  assert.equal(
    readdirSync(dir).sort(),
    ['config.json', ...shards.map((s) => `${s}.safetensors`), INDEX].sort(),
  );
  const map = JSON.parse(readFileSync(join(dir, INDEX), 'utf8'));
  assert.is(map.metadata.total_size, 12);
  assert.is(map.weight_map.b, `${shards[0]}.safetensors`);
  assert.is(map.weight_map.big, `${shards[2]}.safetensors`);
  assert.equal(openCheckpoint(dir).bytes('big'), new Uint8Array(6).fill(4));

  saveCheckpoint(dir, { config: {}, tensors });
  assert.equal(readdirSync(dir).sort(), ['config.json', 'model.safetensors']);
  saveCheckpoint(dir, { config: {}, tensors, maxShardBytes: 8 });
  assert.not.ok(existsSync(join(dir, 'model.safetensors')));
  assert.equal(openCheckpoint(dir).bytes('c'), Uint8Array.of(3));
});

test('incomplete files of a save that was killed are removed by the next one', () => {
  const dead = spawnSync(process.execPath, ['-e', '']).pid;
  const old = `.model.safetensors.${dead}-0123456789ab.tmp`;
  const fresh = `.config.json.${dead}-0123456789ab.tmp`;
  const running = `.model.safetensors.${process.pid}-0123456789ab.tmp`;
  const others = ['.hidden', `.notes.${dead}.tmp`];
  for (const name of [old, fresh, running, ...others]) {
    writeFileSync(join(dir, name), '');
    if (name !== fresh) utimesSync(join(dir, name), 1e9, 1e9);
  }
  saveCheckpoint(dir, { config: {}, tensors: [entry('a', 1)] });
  assert.equal(
    readdirSync(dir).sort(),
    [...others, fresh, running, 'config.json', 'model.safetensors'].sort(),
  );
});

test('misuse of saving is refused before anything is written', () => {
  const save = (extra: [string, string][], tensors = [entry('a', 1)]) =>
    saveCheckpoint(dir, { config: {}, tensors, extraFiles: extra });
  assert.throws(
    () => save([['config.json', '{}']]),
    /names that the checkpoint does not use itself/,
  );
  assert.throws(() => save([['model-00001-of-00002.safetensors', '']]), /does not use itself/);
  assert.throws(() => save([['../x', '']]), /a plain file name/);
  assert.throws(
    () => save([], [entry('a', 1), entry('a', 2)]),
    /each tensor once, received "a" twice/,
  );
  assert.throws(
    () => saveCheckpoint(join(root, 'none'), { config: {}, tensors: [] }),
    /received none; the folder has model/,
  );
  assert.throws(
    () => saveCheckpoint(dir, { config: {}, tensors: [], maxShardBytes: 0 }),
    /\[maxShardBytes\] expected more than 0/,
  );
  assert.equal(readdirSync(dir), ['config.json']);
});

const golden = new URL('../../shared/golden/', import.meta.url).pathname;
const onGolden = skipUnless(test, existsSync(golden), 'the golden cases are not here');
onGolden('golden models open', () => {
  for (const name of readdirSync(golden)) {
    const checkpoint = openCheckpoint(join(golden, name));
    assert.type(checkpoint.config.model_type, 'string');
    assert.ok(checkpoint.tensors.size > 10);
  }
});

test.run();
