import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import {
  bf16ToNumber,
  type DType,
  f16ToNumber,
  numberToBf16,
  numberToF16,
} from '../src/tensor/dtype.js';
import { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';

interface Half {
  readonly dtype: 'f16' | 'bf16';
  readonly toNumber: (bits: number) => number;
  readonly toBits: (value: number) => number;
  /** The pattern of +∞, and of a quiet NaN's quiet bit. */
  readonly infinity: number;
  readonly quiet: number;
}

const HALVES: readonly Half[] = [
  {
    dtype: 'f16',
    toNumber: f16ToNumber,
    toBits: numberToF16,
    infinity: 0x7c00,
    quiet: 0x200,
  },
  {
    dtype: 'bf16',
    toNumber: bf16ToNumber,
    toBits: numberToBf16,
    infinity: 0x7f80,
    quiet: 0x40,
  },
];

const isNaNPattern = (half: Half, bits: number) => (bits & 0x7fff) > half.infinity;

/** The f32 next to a positive finite one, in the given direction. */
function next(value: number, step: 1 | -1): number {
  const f = new Float32Array([value]);
  const u = new Uint32Array(f.buffer);
  u[0] = (u[0] as number) + step;
  return f[0] as number;
}

for (const half of HALVES) {
  test(`every ${half.dtype} pattern comes back from its number`, () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = half.toNumber(bits);
      const back = half.toBits(value);
      if (!isNaNPattern(half, bits)) {
        assert.is(back, bits);
        assert.is(Math.fround(value), value, 'f32 holds every half exactly');
      } else {
        assert.ok(Number.isNaN(value));
        assert.ok(isNaNPattern(half, back) && back & half.quiet, 'NaN becomes a quiet NaN');
      }
    }
  });

  test(`numbers round to the nearest ${half.dtype}, ties to the even one`, () => {
    for (let bits = 0; bits < half.infinity; bits++) {
      const low = half.toNumber(bits);
      // Beyond the largest finite one the next step of the same size is where ∞ begins.
      const high =
        bits + 1 === half.infinity ? 2 * low - half.toNumber(bits - 1) : half.toNumber(bits + 1);
      const middle = Math.fround((low + high) / 2);
      // The smallest bf16 numbers are f32 subnormals whose middle f32 still holds.
      assert.is(middle, (low + high) / 2);
      const even = bits % 2 === 0 ? bits : bits + 1;
      if (half.toBits(middle) !== even) assert.unreachable(`${middle} to ${even}`);
      if (half.toBits(next(middle, -1)) !== bits) assert.unreachable(`below ${middle}`);
      if (half.toBits(next(middle, 1)) !== bits + 1) assert.unreachable(`above ${middle}`);
      if (half.toBits(-middle) !== (even | 0x8000)) assert.unreachable(`-${middle}`);
    }
    assert.is(half.toBits(Number.POSITIVE_INFINITY), half.infinity);
    assert.is(half.toBits(Number.NEGATIVE_INFINITY), half.infinity | 0x8000);
    assert.is(half.toBits(-0), 0x8000);
    assert.is(half.toBits(1e-60), 0);
    assert.is(half.toBits(3.4e38), half.infinity === 0x7c00 ? 0x7c00 : half.toBits(3.4e38));
  });
}

/** x through the backend's cast kernel. */
function castOn(backend: Backend, x: Tensor, dtype: DType): Tensor {
  const y = Tensor.empty(backend, x.shape, dtype);
  backend.run('cast', [x, y], []);
  return y;
}

/** A tensor of raw 16-bit patterns. */
function patterns(backend: Backend, dtype: 'f16' | 'bf16', bits: Uint16Array): Tensor {
  const t = Tensor.empty(backend, [bits.length], dtype);
  t.setBytes(new Uint8Array(bits.buffer));
  return t;
}

for (const half of HALVES) {
  onEachBackend(test, `cast widens and narrows every ${half.dtype} pattern`, (backend) => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const x = patterns(backend, half.dtype, bits);
    const wide = castOn(backend, x, 'f32');
    const values = wide.toArray() as Float32Array;
    const back = new Uint16Array(castOn(backend, wide, half.dtype).bytes().buffer);
    for (let i = 0; i < 65536; i++) {
      if (isNaNPattern(half, i)) {
        assert.ok(Number.isNaN(values[i]) && isNaNPattern(half, back[i] as number));
      } else {
        if (!Object.is(values[i], half.toNumber(i))) assert.unreachable(`${i}: ${values[i]}`);
        if (back[i] !== i) assert.unreachable(`${i}: back as ${back[i]}`);
      }
    }
    const same = castOn(backend, x, half.dtype);
    assert.equal(same.bytes(), x.bytes(), 'the same dtype keeps every bit, NaN payloads too');
  });

  onEachBackend(test, `cast rounds f32 to ${half.dtype} as the scalar rule does`, (backend) => {
    // All magnitudes, ties, both neighbours of ties, overflow.
    const words = new Uint32Array(3 * 65536);
    for (let i = 0; i < 65536; i++) {
      const middle = half.dtype === 'bf16' ? 0x8000 : 0x1000;
      words[3 * i] = i * 65536 + middle;
      words[3 * i + 1] = i * 65536 + middle - 1;
      words[3 * i + 2] = i * 65536 + ((i * 40503) % 65536);
    }
    const x = tensor(new Float32Array(words.buffer), undefined, { backend });
    const y = new Uint16Array(castOn(backend, x, half.dtype).bytes().buffer);
    const values = new Float32Array(words.buffer);
    for (let i = 0; i < y.length; i++) {
      const value = values[i] as number;
      const got = y[i] as number;
      const right = Number.isNaN(value) ? isNaNPattern(half, got) : got === half.toBits(value);
      if (!right) assert.unreachable(`${value}: ${got}, expected ${half.toBits(value)}`);
    }
  });
}

onEachBackend(test, 'cast between floats and integers truncates', (backend) => {
  const x = tensor([0, -0, 1.9, -1.9, 200.5, 2 ** 30], undefined, { backend });
  assert.equal(castOn(backend, x, 'i32').toNumbers(), [0, 0, 1, -1, 200, 2 ** 30]);
  assert.equal(castOn(backend, x, 'i64').toNumbers(), [0, 0, 1, -1, 200, 2 ** 30]);
  assert.equal(castOn(backend, x, 'bool').toNumbers(), [0, 0, 1, 1, 1, 1]);
  const small = tensor([0, 1.9, 255], undefined, { backend });
  assert.equal(castOn(backend, small, 'u8').toNumbers(), [0, 1, 255]);
  const ids = tensor([-3, 0, 2 ** 31 - 1], undefined, { backend, dtype: 'i32' });
  assert.equal(castOn(backend, ids, 'f32').toNumbers(), [-3, 0, 2 ** 31]);
  assert.equal(castOn(backend, ids, 'i64').toNumbers(), [-3, 0, 2 ** 31 - 1]);
  const long = tensor([-3, 7], undefined, { backend, dtype: 'i64' });
  assert.equal(castOn(backend, long, 'i32').toNumbers(), [-3, 7]);
  const mask = tensor([0, 1], undefined, { backend, dtype: 'u8' });
  assert.equal(castOn(backend, mask, 'f32').toNumbers(), [0, 1]);
});

onEachBackend(test, 'kernels that only move elements keep every bit', (backend) => {
  // A signalling NaN with a payload, −0, a subnormal.
  const words = new Uint32Array([0x7fa12345, 0xffc00001, 0x80000000, 0x00000001]);
  const x = Tensor.empty(backend, [2, 2], 'f32');
  x.setBytes(new Uint8Array(words.buffer));
  const bitsAfter = (kernel: string, attrs: number[]) => {
    const y = Tensor.empty(backend, [2, 2], 'f32');
    backend.run(kernel, [x, y], attrs);
    return [...new Uint32Array(y.bytes().buffer)];
  };
  const [a, b, c, d] = words as unknown as [number, number, number, number];
  assert.equal(bitsAfter('copy', []), [a, b, c, d]);
  assert.equal(bitsAfter('permute', [1, 0]), [a, c, b, d]);
  assert.equal(bitsAfter('slice', [0, 0]), [a, b, c, d]);
  assert.equal(bitsAfter('concat', [0]), [a, b, c, d]);
  assert.equal(bitsAfter('write', [0, 0]), [a, b, c, d]);
  assert.equal(bitsAfter('broadcast', []), [a, b, c, d]);
});

test.run();
