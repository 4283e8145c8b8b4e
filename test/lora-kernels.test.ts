import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { addLowRankRows, cast, lowRankNorms, mergeLowRank, slice } from '../src/ops/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import type { DType } from '../src/tensor/dtype.js';
import { normal } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import { onEachBackend, onNative } from './backends.js';

const HALVES = ['f32', 'bf16', 'f16'] as const;

function maker(backend: Backend, seed: number) {
  let stream = 0;
  return (shape: number[], dtype: DType = 'f32') =>
    tensor(normal({ seed, stream: stream++ }, numel(shape)), shape, { backend, dtype });
}

onEachBackend(test, 'a merge to any dtype is the f32 sum, rounded once', (backend) => {
  fc.assert(
    fc.property(
      fc.record({
        seed: fc.integer({ min: 0, max: 1e6 }),
        out: fc.integer({ min: 1, max: 40 }),
        inner: fc.oneof(fc.integer({ min: 1, max: 70 }), fc.constant(1100)),
        rank: fc.constantFrom(1, 2, 3, 4, 8, 16, 20, 33),
        transposed: fc.boolean(),
        stored: fc.constantFrom(...HALVES),
        dtype: fc.constantFrom(...HALVES),
      }),
      ({ seed, out, inner, rank, transposed, stored, dtype }) =>
        noGrad(() =>
          scope(() => {
            const make = maker(backend, seed);
            const w = make(transposed ? [inner, out] : [out, inner], stored);
            const factors = [{ a: make([rank, inner]), b: make([out, rank]), scale: 0.5 }];
            const wide = mergeLowRank(w, factors, { transposed, dtype: 'f32' });
            const { merged, finite } = mergeLowRank(w, factors, { transposed, dtype });
            assert.is(finite, true);
            assert.is(merged.dtype, dtype);
            const want = cast(wide.merged, dtype).bytes();
            assert.ok(Buffer.from(want).equals(Buffer.from(merged.bytes())));
          }),
        ),
    ),
    { numRuns: 60 },
  );
});

onEachBackend(test, 'a merge past the end of its dtype, or of a NaN, says so', (backend) => {
  noGrad(() =>
    scope(() => {
      for (const [value, dtype, finite] of [
        [60000, 'f16', true],
        [70000, 'f16', false],
        [70000, 'bf16', true],
        [3.4e38, 'bf16', false],
        [3.4e38, 'f32', true],
        [Number.NaN, 'f32', false],
        [Number.NaN, 'bf16', false],
        [Number.POSITIVE_INFINITY, 'f32', false],
      ] as const) {
        for (const at of [0, 530, 3 * 531 - 1]) {
          const values = new Float32Array(3 * 531);
          values[at] = value;
          const w = tensor(values, [3, 531], { backend });
          assert.is(mergeLowRank(w, [], { dtype }).finite, finite, `${value} at ${at} as ${dtype}`);
        }
      }
    }),
  );
});

onEachBackend(test, 'row lengths are told where W and its change nearly cancel', (backend) => {
  noGrad(() =>
    scope(() => {
      const make = maker(backend, 7);
      const a = make([2, 600]);
      const b = make([5, 2]);
      // W = −B A + a thousandth: squares added up term by term would lose it.
      const change = mergeLowRank(
        tensor(new Float32Array(3000).fill(1e-3), [5, 600], { backend }),
        [{ a, b, scale: -1 }],
      ).merged;
      const lengths = lowRankNorms(change, { a, b, scale: 1 }).toNumbers();
      for (const n of lengths) assert.ok(Math.abs(n / (1e-3 * Math.sqrt(600)) - 1) < 1e-3, `${n}`);
    }),
  );
});

onEachBackend(test, 'a row of a mixed batch has the same bits in any company', (backend) => {
  noGrad(() =>
    scope(() => {
      for (const rank of [1, 3, 8, 24]) {
        const make = maker(backend, rank);
        const [rows, inner, out] = [37, 45, 530];
        const x = make([rows, 3, inner]);
        const y = make([rows, 3, out]);
        const factors = [1, 2, 3].map(() => ({
          a: make([rank, inner]),
          b: make([out, rank]),
          scale: 0.5,
        }));
        const groups = Array.from({ length: rows }, (_, i) => [0, 0, 1, -1, 2, 2, 2][i % 7] ?? 0);
        const all = addLowRankRows(y, x, factors, groups).toArray() as Float32Array;
        const width = 3 * out;
        groups.forEach((group, i) => {
          const one = (t: typeof x, size: number) =>
            tensor(
              (t.toArray() as Float32Array).slice(i * size, (i + 1) * size),
              [1, 3, size / 3],
              { backend },
            );
          const alone = addLowRankRows(one(y, width), one(x, 3 * inner), factors, [group]);
          const want = Buffer.from(alone.bytes());
          const got = all.slice(i * width, (i + 1) * width);
          assert.ok(want.equals(Buffer.from(got.buffer)), `row ${i}, rank ${rank}`);
        });
      }
    }),
  );
});

onNative(
  test,
  'any number of threads, and a result past the caches, give the same bits',
  (backend) => {
    const { threads } = backend.info();
    const make = maker(backend, 3);
    const hex = (t: { bytes(): Uint8Array }) =>
      createHash('sha256').update(t.bytes()).digest('hex');
    noGrad(() =>
      scope(() => {
        // 4 MB and more as f32: half the rows stay in the caches.
        const [w, a, b] = [make([1040, 1040]), make([8, 1040]), make([1040, 8])];
        const factors = [{ a, b, scale: 0.5 }];
        const x = make([9, 1040]);
        const groups = [0, 1, 1, -1, 0, 0, 0, 1, 0];
        const pair = [...factors, { a: make([3, 1040]), b: make([1040, 3]), scale: 2 }];
        const all = [1, 2, 3].map((count) => {
          backend.setThreads(count);
          return [
            ...[false, true].map((t) => hex(mergeLowRank(w, factors, { transposed: t }).merged)),
            ...[false, true].map((t) => hex(lowRankNorms(w, { a, b, scale: 0.5 }, t))),
            hex(addLowRankRows(x, x, pair, groups)),
          ];
        });
        assert.equal(all[1], all[0]);
        assert.equal(all[2], all[0]);
        for (const dtype of HALVES) {
          const whole = mergeLowRank(w, factors, { dtype }).merged;
          const half = mergeLowRank(
            slice(w, 0, 0, 520),
            [{ a, b: slice(b, 0, 0, 520), scale: 0.5 }],
            { dtype },
          ).merged;
          assert.ok(Buffer.from(slice(whole, 0, 0, 520).bytes()).equals(half.bytes()), dtype);
        }
      }),
    );
    backend.setThreads(threads);
  },
);

test.run();
