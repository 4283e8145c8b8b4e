import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { type Backend, PURPOSES } from '../src/tensor/backend.js';
import { full, ones, tensor, zeros } from '../src/tensor/create.js';
import { DTYPES, dtypeBytes, dtypeCode, viewOf } from '../src/tensor/dtype.js';
import { nearest } from '../src/tensor/errors.js';
import { loadNative } from '../src/tensor/native.js';
import { ReferenceBackend } from '../src/tensor/reference/backend.js';
import { getBackend } from '../src/tensor/registry.js';
import {
  broadcastShapes,
  checkShape,
  normalAxes,
  normalAxis,
  numel,
  stridesOf,
  withoutAxes,
} from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';

test('shape rules', () => {
  assert.is(numel([]), 1);
  assert.is(numel([3, 0, 2]), 0);
  assert.equal(stridesOf([2, 3, 5]), [15, 5, 1]);
  assert.equal(broadcastShapes('t', [4, 1, 3], [5, 1]), [4, 5, 3]);
  assert.equal(broadcastShapes('t', [], [2]), [2]);
  assert.equal(broadcastShapes('t', [0, 3], [1, 3]), [0, 3]);
  assert.equal(broadcastShapes('t', [0], [1]), [0]);
  assert.throws(
    () => broadcastShapes('add', [2, 3], [2]),
    '[add] expected shapes that broadcast, received [2, 3] and [2]',
  );
  assert.throws(() => broadcastShapes('add', [0], [2]), 'that broadcast');
  assert.is(normalAxis('t', -1, 3), 2);
  assert.throws(() => normalAxis('sum', 3, 3), '[sum] expected an axis of -3…2, received 3');
  assert.throws(() => normalAxis('sum', 0.5, 3), 'received 0.5');
  assert.equal(normalAxes('t', [-1, 0], 3), [0, 2]);
  assert.throws(() => normalAxes('sum', [2, -1], 3), 'axes each once');
  assert.equal(withoutAxes([2, 3, 5], [0, 2]), [3]);
  assert.throws(() => checkShape('t', [2, -1]), 'whole sizes of 0 or more');
  assert.throws(() => checkShape('t', [2.5]), 'whole sizes');
  assert.throws(() => checkShape('t', new Array(9).fill(1)), 'at most 8 dimensions');
});

test('dtype codes are their places in the list, as the native side has them', () => {
  assert.equal(DTYPES, ['f32', 'f16', 'bf16', 'f64', 'i32', 'i64', 'u8', 'bool']);
  DTYPES.forEach((d, i) => {
    assert.is(dtypeCode(d), i);
    assert.is(viewOf(d, new ArrayBuffer(8), 0, 1).BYTES_PER_ELEMENT, dtypeBytes(d));
  });
});

test('near misses of names come nearest first', () => {
  assert.equal(nearest('k_proj', ['q_proj', 'o_proj', 'lm_head', 'q_proj'], 2), [
    'o_proj',
    'q_proj',
  ]);
  assert.throws(() => getBackend('cpus'), 'Did you mean cpu?');
});

onEachBackend(test, 'creation, and reading back', (backend) => {
  const on = { backend };
  const x = tensor([1, 2, 3, 4, 5, 6], [2, 3], on);
  assert.equal(x.toNumbers(), [1, 2, 3, 4, 5, 6]);
  assert.is(x.dtype, 'f32');
  assert.is(x.byteLength, 24);
  assert.equal(tensor([7, 8], undefined, on).shape, [2]);
  assert.is(tensor([3.5], [], on).item(), 3.5);
  assert.equal(zeros([2, 2], on).toNumbers(), [0, 0, 0, 0]);
  assert.equal(ones([3], { ...on, dtype: 'bf16' }).toNumbers(), [1, 1, 1]);
  assert.equal(full([2], -7, { ...on, dtype: 'i32' }).toNumbers(), [-7, -7]);
  assert.equal(full([2], 5, { ...on, dtype: 'i64' }).toNumbers(), [5, 5]);
  assert.equal(
    full([2], 0.1, { ...on, dtype: 'f16' }).toNumbers(),
    [0.0999755859375, 0.0999755859375],
  );
  assert.equal(zeros([0, 3], on).toNumbers(), []);
  const half = new Float32Array([9, 1, 2]).subarray(1);
  assert.equal(tensor(half, undefined, on).toNumbers(), [1, 2], 'a view into a larger array');
  const ids = tensor(new Int32Array([-1, 2 ** 31 - 1]), undefined, { ...on, dtype: 'i32' });
  assert.equal(ids.toNumbers(), [-1, 2 ** 31 - 1]);
  assert.equal(tensor([0, 2, -1], [3], { ...on, dtype: 'bool' }).toNumbers(), [0, 1, 1]);
  assert.equal(tensor([2n ** 40n], [1], { ...on, dtype: 'i64' }).toNumbers(), [2 ** 40]);
  assert.throws(() => tensor([1, 2, 3], [2, 2], on), 'expected 4 values for [2, 2], received 3');
  assert.throws(() => x.item(), '[item] expected a tensor of one element, received [2, 3]');
  x.setBytes(new Uint8Array(24));
  assert.equal(x.toNumbers(), [0, 0, 0, 0, 0, 0]);
  assert.throws(() => x.setBytes(new Uint8Array(23)), 'expected 24 bytes, received 23');
});

onEachBackend(test, 'use after dispose throws, a second dispose does nothing', (backend) => {
  const x = ones([2, 3], { backend });
  const other = x.alias([3, 2]);
  const before = backend.memory().handles;
  x.dispose();
  assert.is(backend.memory().handles, before, 'an alias keeps the storage');
  x.dispose();
  assert.equal(other.toNumbers(), [1, 1, 1, 1, 1, 1]);
  assert.throws(() => x.toNumbers(), 'expected a live tensor, received one of shape [2, 3]');
  assert.throws(() => x.alias(), 'disposed');
  assert.throws(() => x.setBytes(new Uint8Array(24)), 'disposed');
  other.dispose();
  assert.is(backend.memory().handles, before - 1);
});

onEachBackend(test, 'a dead or made-up handle is an error', (backend) => {
  const handle = backend.allocate(64, 'workspace');
  backend.free(handle);
  const into = new Uint8Array(4);
  for (const bad of [handle, 0, -1, 1e9, 0.5, Number.NaN]) {
    assert.throws(() => backend.free(bad));
    assert.throws(() => backend.upload(bad, 0, into));
    assert.throws(() => backend.download(bad, 0, into));
    assert.throws(() => backend.retag(bad, 'frozen'));
    const t = { storage: { handle: bad }, byteOffset: 0, dtype: 'f32' as const, shape: [1] };
    assert.throws(() => backend.run('fill', [t], [0]));
  }
});

onEachBackend(test, 'reads and writes stay inside the buffer', (backend) => {
  const handle = backend.allocate(16, 'workspace');
  const bytes = new Uint8Array(8);
  for (const offset of [9, 16, -1, 0.5, Number.NaN, 2 ** 53, 2 ** 60]) {
    assert.throws(() => backend.upload(handle, offset, bytes), undefined, `upload at ${offset}`);
    assert.throws(
      () => backend.download(handle, offset, bytes),
      undefined,
      `download at ${offset}`,
    );
  }
  const view = (byteOffset: number, shape: number[]) => ({
    storage: { handle },
    byteOffset,
    dtype: 'f32' as const,
    shape,
  });
  assert.throws(() => backend.run('fill', [view(4, [4])], [0]), undefined, 'beyond the end');
  assert.throws(() => backend.run('fill', [view(-4, [1])], [0]), undefined, 'before the start');
  assert.throws(
    () => backend.run('fill', [view(0, [2 ** 31, 2 ** 31, 4])], [0]),
    undefined,
    'huge',
  );
  assert.throws(() => backend.run('fill', [view(0, [-1])], [0]), undefined, 'negative size');
  backend.run('fill', [view(4, [3])], [2]);
  const read = new Float32Array(3);
  backend.download(handle, 4, new Uint8Array(read.buffer));
  assert.equal([...read], [2, 2, 2]);
  backend.free(handle);
});

onEachBackend(
  test,
  'impossible sizes and settings are errors, and the backend lives on',
  (backend) => {
    const before = backend.memory();
    assert.throws(() => backend.allocate(-1, 'workspace'));
    assert.throws(() => backend.allocate(0.5, 'workspace'));
    assert.throws(
      () => backend.allocate(2 ** 52, 'workspace'),
      (error: Error) => error instanceof RangeError,
    );
    assert.throws(() => backend.allocate(8, 'nothing' as 'frozen'));
    for (const count of [0, -1, 1.5, Number.NaN]) assert.throws(() => backend.setThreads(count));
    assert.throws(() => backend.run('no such kernel', [], []), 'no such kernel');
    assert.throws(() => backend.mapFile('/no/such/file'));
    assert.equal(backend.memory().live, before.live);
    assert.is(backend.memory().handles, before.handles);
  },
);

onEachBackend(test, 'the books count live and peak bytes by purpose', (backend) => {
  backend.resetPeak();
  const start = backend.memory();
  const made = PURPOSES.map((purpose, i) => ({
    purpose,
    bytes: 64 * (i + 1),
    handle: backend.allocate(64 * (i + 1), purpose),
  }));
  let now = backend.memory();
  for (const { purpose, bytes } of made) {
    assert.is(now.live[purpose] - start.live[purpose], bytes, purpose);
    assert.is(now.peak[purpose] - start.live[purpose], bytes, purpose);
  }
  assert.is(now.total - start.total, 64 * 21);
  assert.is(now.handles - start.handles, 6);
  const [frozen] = made;
  backend.retag((frozen as { handle: number }).handle, 'trainable');
  now = backend.memory();
  assert.is(now.live.frozen, start.live.frozen);
  assert.is(now.live.trainable - start.live.trainable, 64 + 128);
  assert.is(now.peak.trainable - start.live.trainable, 64 + 128);
  assert.is(now.total - start.total, 64 * 21, 'another purpose, the same bytes');
  for (const { handle } of made) backend.free(handle);
  now = backend.memory();
  assert.equal(now.live, start.live);
  assert.is(now.handles, start.handles);
  assert.is(now.totalPeak - start.total, 64 * 21);
  backend.resetPeak();
  assert.equal(backend.memory().peak, backend.memory().live);
  assert.is(backend.memory().totalPeak, backend.memory().total);
  backend.trim();
  assert.is(backend.memory().pooled, 0);
});

onEachBackend(test, 'a mapped file is read in place and never written', (backend) => {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-map-'));
  try {
    const path = join(folder, 'weights.bin');
    writeFileSync(path, new Uint8Array(new Float32Array([0, 1.5, -2, 4]).buffer));
    const before = backend.memory();
    const { handle, bytes } = backend.mapFile(path);
    assert.is(bytes, 16);
    assert.is(backend.memory().live.frozen - before.live.frozen, 16);
    assert.is(backend.memory().mapped - before.mapped, 16);
    const at = (byteOffset: number, dtype: 'f32' | 'f16', shape: number[]) => ({
      storage: { handle },
      byteOffset,
      dtype,
      shape,
    });
    const y = Tensor.empty(backend, [3], 'f32');
    backend.run('neg', [at(4, 'f32', [3]), y], []);
    assert.equal(y.toNumbers(), [-1.5, 2, -4]);
    assert.throws(() => backend.run('fill', [at(0, 'f32', [4])], [0]));
    assert.throws(() => backend.run('accumulate', [y, at(4, 'f32', [3])], []));
    assert.throws(() => backend.upload(handle, 0, new Uint8Array(4)));
    const held = new Float32Array(4);
    backend.download(handle, 0, new Uint8Array(held.buffer));
    assert.equal([...held], [0, 1.5, -2, 4]);
    backend.free(handle);
    assert.is(backend.memory().live.frozen, before.live.frozen);
    assert.is(backend.memory().mapped, before.mapped);
    const empty = join(folder, 'empty');
    writeFileSync(empty, '');
    const none = backend.mapFile(empty);
    assert.is(none.bytes, 0);
    backend.free(none.handle);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('the pool of the reference backend gives buffers out again and lets them go', () => {
  const backend: Backend = new ReferenceBackend();
  backend.free(backend.allocate(1000, 'activation'));
  assert.is(backend.memory().pooled, 1024);
  const again = backend.allocate(1010, 'activation');
  assert.is(backend.memory().pooled, 0);
  assert.is(backend.memory().total, 1010);
  backend.free(again);
  backend.trim();
  assert.is(backend.memory().pooled, 0);
});

test('an addon of another build is refused with the way out', () => {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-addon-'));
  try {
    const old = join(folder, 'old.cjs');
    writeFileSync(old, "exports.info = () => ({ version: '0', kernels: [] });");
    assert.throws(() => loadNative(old), /an addon of contract \d+, received one of contract 0/);
    const broken = join(folder, 'broken.cjs');
    writeFileSync(broken, "throw new Error('not for this machine');");
    assert.throws(() => loadNative(broken), /not for this machine.*npx lowrank build/);
    assert.throws(() => loadNative(join(folder, 'none.cjs')), /received none/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test.run();
