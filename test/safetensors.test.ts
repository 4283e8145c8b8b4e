import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  type FileDType,
  SafetensorsFile,
  type WriteEntry,
  writeSafetensors,
} from '../src/io/safetensors.js';
import { FILE_DTYPES } from '../src/io/safetensors-header.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { DTYPES, type DType, dtypeBytes } from '../src/tensor/dtype.js';
import { ReferenceBackend } from '../src/tensor/reference/backend.js';
import { getBackend } from '../src/tensor/registry.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { skipUnless } from './support.js';

const test = suite('safetensors');
const dir = mkdtempSync(join(tmpdir(), 'lowrank-safetensors-'));
const path = join(dir, 'x.safetensors');
test.after(() => rmSync(dir, { recursive: true, force: true }));

function hasCpu(): boolean {
  try {
    getBackend('cpu');
    return true;
  } catch {
    return false;
  }
}
const reference = getBackend('reference');
const onCpu = skipUnless(test, hasCpu(), 'no native addon was built');
const golden = new URL('../../shared/golden/', import.meta.url).pathname;
const onGolden = skipUnless(test, existsSync(golden), 'the golden cases are not here');

const copyOf = (file: SafetensorsFile): WriteEntry[] =>
  Array.from(file.tensors, ([name, { dtype, shape }]) => ({
    name,
    dtype,
    shape,
    bytes: () => file.bytes(name),
  }));

onGolden('files of PEFT, transformers and safetensors are written again byte for byte', () => {
  let files = 0;
  for (const name of readdirSync(golden, { recursive: true, encoding: 'utf8' })) {
    if (!name.endsWith('.safetensors')) continue;
    const file = SafetensorsFile.open(join(golden, name));
    writeSafetensors(path, copyOf(file).reverse(), file.metadata);
    assert.is(Buffer.compare(readFileSync(path), readFileSync(file.path)), 0, name);
    files++;
  }
  assert.ok(files >= 15);
});

test('the layout: length, metadata first, large dtypes first, then names by their bytes', () => {
  const entry = (name: string, dtype: FileDType, bytes: number): WriteEntry => ({
    name,
    dtype,
    shape: [1],
    bytes: () => new Uint8Array(bytes).fill(bytes),
  });
  // In UTF-8 U+FF5E sorts before U+1F600, in UTF-16 after it.
  const entries = [
    entry('b', 'U8', 1),
    entry('\u{1F600}', 'F32', 4),
    entry('\uFF5E', 'F32', 4),
    entry('a', 'BF16', 2),
    entry('z', 'I64', 8),
    entry('h', 'F16', 2),
  ];
  writeSafetensors(path, entries, { format: 'pt' });
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE(0));
  assert.is(length % 8, 0);
  const json = bytes.subarray(8, 8 + length).toString();
  assert.match(
    json,
    /^\{"__metadata__":\{"format":"pt"\},"z":\{"dtype":"I64","shape":\[1\],"data_of/,
  );
  const names = [...SafetensorsFile.open(path).tensors.keys()];
  assert.equal(names, ['z', '\uFF5E', '\u{1F600}', 'a', 'h', 'b']);
  assert.is(bytes.length, 8 + length + 8 + 4 + 4 + 2 + 2 + 1);
});

/** Bytes with every interesting pattern of a dtype: NaN payloads, −0, infinities, subnormals. */
function patterns(dtype: DType): Uint8Array {
  const hex: Record<DType, string> = {
    f32: '000000800100c07fefbead7fefbeadff0000807f000080ff01000000ffff7f7f',
    f16: '00800100017cff7dff7fffff007c00fcff7b',
    bf16: '00800100807f817fc17fff7fffff80ff7f7f',
    f64: '0000000000000080efbeaddeefbef47f010000000000f8ff000000000000f07f0100000000000000',
    i32: '00000080ffffff7fffffffff00000000',
    i64: '0000000000000080ffffffffffffff7f01000000000020000000000000000000',
    u8: '00017f80ff',
    bool: '000100',
  };
  return Uint8Array.from(Buffer.from(hex[dtype], 'hex'));
}

function roundTrip(dtype: DType, backend: Backend): void {
  const bytes = patterns(dtype);
  const shape = [bytes.length / dtypeBytes(dtype)];
  const entries = [{ name: 'w', dtype, shape, bytes: () => bytes }];
  writeSafetensors(path, entries);
  const loaded = SafetensorsFile.open(path).load('w', { backend });
  assert.is(loaded.dtype, dtype);
  assert.equal(loaded.shape, shape);
  assert.equal(loaded.bytes(), bytes);
  writeSafetensors(path, new Map([['again', loaded]]), { from: 'a tensor' });
  const again = SafetensorsFile.open(path);
  assert.equal(again.bytes('again'), bytes);
  assert.equal([...again.metadata], [['from', 'a tensor']]);
  loaded.dispose();
}

for (const dtype of DTYPES) {
  test(`${dtype} makes the round trip bit for bit`, () => roundTrip(dtype, reference));
  onCpu(`${dtype} makes the round trip bit for bit on cpu`, () =>
    roundTrip(dtype, getBackend('cpu')),
  );
}

const names = fc.oneof(
  fc.string({ unit: 'grapheme', maxLength: 12 }),
  fc.constantFrom('__proto__', 'constructor', 'a.weight', '"', '\\', '\n', '\u{1F600}'),
);
const entries = fc
  .uniqueArray(
    fc.record({
      name: names.filter((n) => n !== '__metadata__'),
      dtype: fc.constantFrom(...FILE_DTYPES.filter((d) => !/^F[46]/.test(d))),
      shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
    }),
    { selector: (e) => e.name, maxLength: 8 },
  )
  .map((list) =>
    list.map((e, i): WriteEntry & { data: Uint8Array } => {
      const width = /64$/.test(e.dtype) ? 8 : /32$/.test(e.dtype) ? 4 : /16$/.test(e.dtype) ? 2 : 1;
      const size = e.shape.reduce((n, d) => n * d, width);
      const data = Uint8Array.from({ length: size }, (_, j) => (i * 31 + j * 7) % 256);
      return { ...e, data, bytes: () => data };
    }),
  );

test('what is written is read, whatever the names, dtypes and shapes', () => {
  const metadata = fc.dictionary(names, fc.string({ unit: 'grapheme', maxLength: 8 }));
  fc.assert(
    fc.property(entries, metadata, (list, notes) => {
      writeSafetensors(path, list, new Map(Object.entries(notes)));
      const file = SafetensorsFile.open(path);
      assert.is(file.tensors.size, list.length);
      assert.equal(new Map(file.metadata), new Map(Object.entries(notes)));
      for (const e of list) {
        assert.is(file.entry(e.name).dtype, e.dtype);
        assert.equal(file.entry(e.name).shape, e.shape);
        assert.equal(file.bytes(e.name), e.data);
      }
      const first = readFileSync(path);
      writeSafetensors(path, copyOf(file), file.metadata);
      assert.is(Buffer.compare(first, readFileSync(path)), 0);
    }),
    { numRuns: 150, seed: 7 },
  );
});

test('no change of a byte of a header crashes the reader or passes with other contents', () => {
  const data = Uint8Array.from({ length: 24 }, (_, i) => i);
  writeSafetensors(
    path,
    [
      { name: 'a', dtype: 'f32', shape: [2, 2], bytes: () => data.subarray(0, 16) },
      { name: 'b', dtype: 'u8', shape: [8], bytes: () => data.subarray(16) },
    ],
    { format: 'pt' },
  );
  const whole = readFileSync(path);
  const header = whole.length - 24;
  const other = join(dir, 'mutated.safetensors');
  fc.assert(
    fc.property(fc.nat(header - 1), fc.integer({ min: 0, max: 255 }), (at, value) => {
      const bytes = Buffer.from(whole);
      bytes[at] = value;
      writeSafetensorsRaw(other, bytes);
      let file: SafetensorsFile;
      try {
        file = SafetensorsFile.open(other);
      } catch (e) {
        assert.match((e as Error).message, /^\[safetensors .*\] expected .*, received /s);
        return;
      }
      const total = [...file.tensors.values()].reduce((n, t) => n + t.byteLength, 0);
      assert.is(total, 24);
    }),
    { numRuns: 400, seed: 11 },
  );
});

function writeSafetensorsRaw(to: string, bytes: Uint8Array): void {
  rmSync(to, { force: true });
  writeFileSync(to, bytes);
}

test('loading as another dtype rounds as the cast does', () => {
  const values = [1, -0, Math.PI, 1e-8, 65504, Number.NaN, -7.5];
  const source = tensor(values, [values.length], { backend: reference, dtype: 'f64' });
  writeSafetensors(path, new Map([['w', source]]));
  const file = SafetensorsFile.open(path);
  const as = (dtype: DType) => {
    const t = file.load('w', { backend: reference, dtype });
    const out = t.toNumbers();
    t.dispose();
    return out;
  };
  assert.equal(as('f32'), values.map(Math.fround));
  assert.equal(as('bf16').slice(0, 3), [1, -0, 3.140625]);
  assert.ok(Object.is(as('f32')[1], -0));
  assert.equal(as('i32').slice(0, 5), [1, 0, 3, 0, 65504]);
  source.dispose();
});

onCpu('f64 is converted for a backend that has none', () => {
  const source = tensor([1.5, -2.25, 1 / 3], [3], { backend: reference, dtype: 'f64' });
  writeSafetensors(path, new Map([['w', source]]));
  const loaded = SafetensorsFile.open(path).load('w', { backend: getBackend('cpu'), dtype: 'f32' });
  assert.equal(loaded.toNumbers(), [1.5, -2.25, Math.fround(1 / 3)]);
  loaded.dispose();
  source.dispose();
});

test('dtypes without a counterpart are read as bytes and refused as tensors', () => {
  for (const dtype of ['I8', 'U16', 'U64', 'F8_E4M3', 'C64'] as const) {
    writeSafetensors(path, [{ name: 'w', dtype, shape: [0], bytes: () => new Uint8Array() }]);
    const file = SafetensorsFile.open(path);
    assert.is(file.bytes('w').length, 0);
    assert.throws(
      () => file.load('w', { backend: reference }),
      new RegExp(`tensor "w"\\] expected a dtype of F32, .*received ${dtype}\\. Store the tensor`),
    );
  }
});

test('a scalar and an empty tensor', () => {
  const scalar = tensor([2.5], [], { backend: reference });
  const empty = tensor([], [0, 3], { backend: reference });
  writeSafetensors(
    path,
    new Map([
      ['s', scalar],
      ['e', empty],
    ]),
  );
  const file = SafetensorsFile.open(path);
  const loaded = ['s', 'e'].map((n) => file.load(n, { backend: reference }));
  assert.equal(
    loaded.map((t) => t.shape),
    [[], [0, 3]],
  );
  assert.is((loaded[0] as Tensor).item(), 2.5);
  for (const t of [scalar, empty, ...loaded]) t.dispose();
});

test('an unknown name is answered with near ones', () => {
  const w = tensor([1], [1], { backend: reference });
  writeSafetensors(path, new Map([['model.layers.0.q_proj.weight', w]]));
  const file = SafetensorsFile.open(path);
  assert.throws(
    () => file.load('model.layers.0.qproj.weight'),
    /The nearest are "model\.layers\.0\.q_p/,
  );
  assert.throws(() => file.bytes('constructor'), /expected a tensor "constructor", received none/);
  w.dispose();
});

test('loading and disposing leaves nothing behind', () => {
  const w = tensor([1, 2, 3, 4], [2, 2], { backend: reference, dtype: 'bf16' });
  writeSafetensors(path, new Map([['w', w]]));
  w.dispose();
  const before = reference.memory();
  const file = SafetensorsFile.open(path);
  for (let i = 0; i < 3; i++) file.load('w', { backend: reference }).dispose();
  file.load('w', { backend: reference, dtype: 'f32', purpose: 'trainable' }).dispose();
  const after = reference.memory();
  assert.is(after.handles, before.handles);
  assert.is(after.total, before.total);
});

function sharedMapping(cpu: Backend): void {
  const a = tensor([1, 2], [2], { backend: reference });
  const b = tensor([3, 4, 5], [3], { backend: reference, dtype: 'bf16' });
  writeSafetensors(
    path,
    new Map([
      ['a', a],
      ['b', b],
    ]),
  );
  const file = SafetensorsFile.open(path);
  const before = cpu.memory();
  const first = file.load('a', { backend: cpu });
  const second = file.load('b', { backend: cpu });
  assert.is(first.storage, second.storage);
  assert.is(cpu.memory().handles, before.handles + 1);
  assert.is(cpu.memory().mapped, before.mapped + file.fileBytes);
  const copy = file.load('a', { backend: cpu, purpose: 'trainable' });
  assert.is.not(copy.storage, first.storage);
  copy.setBytes(new Uint8Array(8));
  assert.equal(first.toNumbers(), [1, 2]);
  assert.equal(second.toNumbers(), [3, 4, 5]);
  first.dispose();
  assert.equal(second.toNumbers(), [3, 4, 5]);
  for (const t of [second, copy]) t.dispose();
  assert.is(cpu.memory().handles, before.handles);
  const again = file.load('b', { backend: cpu });
  assert.equal(again.toNumbers(), [3, 4, 5]);
  for (const t of [again, a, b]) t.dispose();
}

const SHARED = 'frozen tensors of a file share one mapping, trainable ones are copies';
onCpu(SHARED, () => sharedMapping(getBackend('cpu')));
test(`${SHARED}, by a reference backend that takes the name of one that maps`, () => {
  sharedMapping(Object.defineProperty(new ReferenceBackend(), 'name', { value: 'cpu' }));
});

const refused: [name: string, entries: WriteEntry[], notes: Record<string, string>, RegExp][] = [
  ['a name twice', [blank('w'), blank('w')], {}, /each tensor name once, received "w" twice/],
  ['the name of the metadata', [blank('__metadata__')], {}, /a name other than __metadata__/],
  ['half a surrogate pair', [blank('\ud800')], {}, /whole characters, received .* lone surrogate/],
  ['half a pair in the metadata', [], { a: '\udc00' }, /lone surrogate/],
  [
    'an unknown dtype',
    [{ ...blank('w'), dtype: 'f99' as DType }],
    {},
    /a dtype of the format, recei/,
  ],
  [
    'a negative size',
    [{ ...blank('w'), shape: [-1] }],
    {},
    /whole sizes of 0 or more, received \[-1/,
  ],
  ['a fractional size', [{ ...blank('w'), shape: [0.5] }], {}, /whole sizes of 0 or more/],
  [
    'too few bytes',
    [{ ...blank('w'), shape: [2] }],
    {},
    /expected 2 bytes for \[2\] of U8, received 1/,
  ],
  [
    'too many bytes',
    [{ ...blank('w'), shape: [0] }],
    {},
    /expected 0 bytes for \[0\] of U8, received 1/,
  ],
];

function blank(name: string): WriteEntry {
  return { name, dtype: 'U8', shape: [1], bytes: () => new Uint8Array(1) };
}

for (const [name, list, notes, message] of refused) {
  test(`not written: ${name}; the old file stays`, () => {
    writeSafetensors(path, [blank('old')]);
    const before = readFileSync(path);
    assert.throws(() => writeSafetensors(path, list, notes), message);
    assert.equal(readFileSync(path), before);
    assert.equal(
      readdirSync(dir).filter((n) => n.endsWith('.tmp')),
      [],
    );
  });
}

test.run();
