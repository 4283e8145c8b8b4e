import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { argmax, dropout, max, permute, sum } from '../src/ops/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import { onEachBackend, onNative, reference } from './backends.js';

const numbers = (n: number, stream: number) => Float32Array.from(normal({ seed: 9, stream }, n));

const inScope = (body: () => void) => noGrad(() => scope(body));

onEachBackend(test, 'the largest is the first of its kind at every place', (backend) => {
  const { NaN: nan, POSITIVE_INFINITY: inf } = Number;
  inScope(() => {
    for (let n = 1; n <= 70; n++) {
      for (const top of [5, inf, nan]) {
        const at = (n * 7) % n;
        const first = (n * 5) % n;
        for (const [i, j] of [
          [first, n - 1],
          [at, first],
        ] as const) {
          const row = numbers(n, n);
          row[i] = row[j] = top;
          const x = tensor(row, [1, n], { backend });
          assert.equal(argmax(x).toNumbers(), [Math.min(i, j)], `${top} at ${i} and ${j} of ${n}`);
          assert.equal(max(x).toNumbers(), [top]);
        }
      }
      const lowest = tensor(new Float32Array(n).fill(-inf), [1, n], { backend });
      assert.equal(argmax(lowest).toNumbers(), [0]);
    }
    // A NaN that comes first counts, whatever is beside it.
    const row = numbers(40, 1);
    row[3] = inf;
    row[17] = row[30] = nan;
    assert.equal(argmax(tensor(row, [1, 40], { backend })).toNumbers(), [17]);
  });
});

onNative(test, 'dropout keeps what the reference keeps, at every length', (backend) => {
  inScope(() => {
    for (const n of [...Array(140).keys(), 16384 + 5, 40000]) {
      for (const p of n < 140 ? [0, 0.25, 0.999] : [0.25]) {
        const address = { seed: 2 ** 40 + 11, stream: 3, step: n };
        const of = (b: Backend) =>
          dropout(tensor(numbers(n, 2), [n], { backend: b }), p, address).toNumbers();
        const want = of(reference);
        of(backend).forEach((v, i) => {
          const w = want[i] as number;
          const near = Math.abs(v - w) <= 1e-6 * Math.abs(w);
          assert.ok(near && (v === 0) === (w === 0), `element ${i} of ${n}, p = ${p}`);
        });
      }
    }
  });
});

onNative(test, 'sums over leading, middle and several axes agree with the reference', (backend) => {
  const shape = [3, 5, 7, 143];
  const x = numbers(3 * 5 * 7 * 143, 4);
  inScope(() => {
    for (const axes of [[0], [1], [0, 2], [0, 1, 2], [1, 3]]) {
      const of = (b: Backend) => sum(tensor(x, shape, { backend: b }), axes).toNumbers();
      const want = of(reference);
      of(backend).forEach((v, i) => {
        assert.ok(Math.abs(v - (want[i] as number)) < 1e-5, `axes ${axes}, element ${i}`);
      });
    }
  });
});

onNative(test, 'permute moves every element as the reference does', (backend) => {
  const orders = [0, 1, 2, 3].flatMap((a) =>
    [0, 1, 2, 3].flatMap((b) => [0, 1, 2, 3].map((c) => [a, b, c, 6 - a - b - c])),
  );
  inScope(() => {
    for (const shape of [
      [2, 35, 3, 70],
      [65, 4, 17, 5],
      [1, 130, 1, 33],
    ]) {
      const x = numbers(numel(shape), 5);
      for (const dtype of ['f32', 'bf16'] as const) {
        for (const axes of orders.filter((o) => new Set(o).size === 4)) {
          const of = (b: Backend) => permute(tensor(x, shape, { backend: b, dtype }), axes).bytes();
          assert.ok(
            Buffer.from(of(backend)).equals(of(reference)),
            `${shape} by ${axes}, ${dtype}`,
          );
        }
      }
    }
  });
});

test.run();
