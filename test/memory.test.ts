import { readFileSync } from 'node:fs';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import type { Handle } from '../src/tensor/backend.js';
import type { NativeBackend } from '../src/tensor/native.js';
import { randomWords } from '../src/tensor/random.js';
import { native, onNative } from './backends.js';
import { skipUnless } from './support.js';

const test = suite('native memory');

const MIB = 2 ** 20;
const pooled = (b: NativeBackend) => b.memory().pooled / MIB;

/** Under AddressSanitizer every buffer is one of the system's: nothing is pooled. */
function pools(b: NativeBackend): boolean {
  b.trim();
  b.free(b.allocate(1000, 'workspace'));
  return pooled(b) > 0;
}

onNative(test, 'what small blocks gave back serves a large one', (b) => {
  if (!pools(b)) return assert.is(pooled(b), 0);
  b.trim();
  const start = b.memory();
  const parts = Array.from({ length: 4 }, () => b.allocate(8 * MIB, 'activation'));
  // Not in the order they were made, so that neighbours join on both sides.
  for (const i of [1, 3, 2, 0]) b.free(parts[i] as Handle);
  assert.ok(Math.abs(pooled(b) - 32) < 0.1, `${pooled(b)} MiB idle`);
  const large = b.allocate(24 * MIB, 'gradient');
  assert.ok(Math.abs(pooled(b) - 8) < 0.1, `${pooled(b)} MiB idle beside 24 in use`);
  const larger = b.allocate(30 * MIB, 'gradient');
  assert.ok(pooled(b) < 8.1);
  b.free(large);
  b.free(larger);
  b.trim();
  assert.is(pooled(b), 0);
  assert.is(b.memory().handles, start.handles);
});

onNative(test, 'live blocks never share memory, whatever is freed between', (b) => {
  const words = randomWords({ seed: 5, stream: 1 }, 3000);
  const live: { handle: Handle; count: number; value: number }[] = [];
  const shape = (count: number) => [count];
  const view = (h: Handle, count: number, byteOffset = 0) => ({
    storage: { handle: h },
    byteOffset,
    dtype: 'f32' as const,
    shape: shape(count),
  });
  const check = ({ handle, count, value }: (typeof live)[number]) => {
    const ends = new Float32Array(2);
    const bytes = new Uint8Array(ends.buffer);
    b.download(handle, 0, bytes.subarray(0, 4));
    b.download(handle, 4 * (count - 1), bytes.subarray(4));
    assert.equal([...ends], [value, value]);
  };
  for (let i = 0; i + 2 < words.length; i += 3) {
    const [what, size, which] = [0, 1, 2].map((k) => words[i + k] as number) as [
      number,
      number,
      number,
    ];
    if (what % 100 < 55 && live.length < 24) {
      const count = 1 + (size % (size % 3 === 0 ? 1000 : MIB));
      const handle = b.allocate(4 * count, 'activation');
      b.run('fill', [view(handle, count)], [i]);
      live.push({ handle, count, value: i });
    } else if (live.length > 0) {
      const [gone] = live.splice(which % live.length, 1);
      check(gone as (typeof live)[number]);
      b.free((gone as (typeof live)[number]).handle);
    }
    if (what % 500 === 0) b.trim();
  }
  for (const l of live) {
    check(l);
    b.free(l.handle);
  }
  b.trim();
});

/** Resident bytes of this process, from Linux's own count. */
function resident(): number {
  const pages = Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[1]);
  return (4096 * pages) / MIB;
}

const linux = process.platform === 'linux' && process.arch === 'x64' && native !== null;
const onLinux = skipUnless(test, linux, 'needs the addon, and counts pages as Linux does on x64');

onLinux('idle memory is bounded by the most in use, and trim() gives it back', () => {
  const b = native as NativeBackend;
  if (!pools(b)) return assert.is(pooled(b), 0);
  b.trim();
  const fill = (h: Handle, mib: number) =>
    b.run(
      'fill',
      [{ storage: { handle: h }, byteOffset: 0, dtype: 'u8', shape: [mib * MIB] }],
      [1],
    );
  const before = resident();
  // Every second block stays, so that what is idle lies in pieces too small for what follows.
  const pieces = Array.from({ length: 40 }, () => b.allocate(4 * MIB, 'activation'));
  for (const h of pieces) fill(h, 4);
  pieces.forEach((h, i) => {
    if (i % 2 === 0) b.free(h);
  });
  const large = Array.from({ length: 4 }, () => b.allocate(20 * MIB, 'activation'));
  for (const h of large) fill(h, 20);
  // 160 MiB are in use at most, and 32 may be idle; without the bound 240 were resident.
  const grown = resident() - before;
  assert.ok(grown < 160 + 32 + 24, `${grown} MiB more resident`);
  for (const h of large) b.free(h);
  pieces.forEach((h, i) => {
    if (i % 2 === 1) b.free(h);
  });
  b.trim();
  assert.is(pooled(b), 0);
  const left = resident() - before;
  assert.ok(left < 24, `${left} MiB stay resident`);
});

test.run();
