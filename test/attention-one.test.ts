import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope, setTrainable } from '../src/autograd/index.js';
import { attention, mul, slice, sum } from '../src/ops/index.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onNative } from './backends.js';

const BATCH = 2;

onNative(test, 'a single query has the bits that it has as the last of many', (backend) => {
  let stream = 0;
  const values = (shape: number[]) => normal({ seed: 4, stream: stream++ }, numel(shape));
  const make = (shape: number[]) => tensor(values(shape), shape, { backend });
  noGrad(() =>
    scope(() => {
      for (const [heads, groups, size] of [
        [2, 2, 64],
        [6, 2, 24],
        [4, 1, 80],
        [5, 1, 16],
        [3, 3, 7],
      ] as const) {
        for (const keys of [1, 31, 64, 127, 129, 300]) {
          const q = make([BATCH, keys, heads, size]);
          const k = make([BATCH, keys, groups, size]);
          const v = make([BATCH, keys, groups, size]);
          const mask = tensor(
            Uint8Array.from({ length: BATCH * keys }, (_, i) => (i % 7 === 3 ? 0 : 1)),
            [BATCH, keys],
            { backend, dtype: 'u8' },
          );
          for (const options of [{}, { window: 40 }, { mask }, { mask, window: 90 }]) {
            const all = attention(q, k, v, { causal: true, ...options });
            const last = slice(q, 1, keys - 1);
            const one = attention(last, k, v, { causal: true, ...options });
            const want = Buffer.from(slice(all, 1, keys - 1).bytes());
            const about = `${heads} heads of ${size} on ${groups}, ${keys} keys`;
            assert.ok(want.equals(one.bytes()), `${about}, ${Object.keys(options)}`);
          }
        }
      }
    }),
  );
});

onNative(test, 'a hidden value does not reach a single query, be it NaN', (backend) => {
  noGrad(() =>
    scope(() => {
      const [keys, size] = [150, 32];
      const kept = normal({ seed: 8, stream: 0 }, keys * size);
      const of = (at: number, value: number) => {
        const values = kept.slice();
        values.fill(value, at * size, (at + 1) * size);
        const hidden = new Uint8Array(keys).fill(1);
        hidden[at] = 0;
        const k = tensor(kept, [1, keys, 1, size], { backend });
        const v = tensor(values, [1, keys, 1, size], { backend });
        const mask = tensor(hidden, [1, keys], { backend, dtype: 'u8' });
        return attention(slice(k, 1, 0, 1), k, v, { causal: true, mask }).toNumbers();
      };
      for (const at of [0, 77, 149]) {
        const want = of(at, 0);
        of(at, Number.NaN).forEach((x, i) => {
          assert.ok(Math.abs(x - (want[i] as number)) < 1e-5, `channel ${i}, key ${at} hidden`);
        });
      }
    }),
  );
});

onNative(
  test,
  'the gradient has the same bits whether heads are computed apart or not',
  (backend) => {
    const threads = backend.info().threads;
    const run = (count: number, [batch, heads, groups]: readonly [number, number, number]) => {
      backend.setThreads(count);
      return scope(() => {
        const [length, size] = [130, 20];
        const leaf = (h: number, stream: number) => {
          const shape = [batch, length, h, size];
          const values = normal({ seed: 2, stream }, numel(shape));
          return setTrainable(tensor(values, shape, { backend }), true);
        };
        const leaves = [leaf(heads, 0), leaf(groups, 1), leaf(groups, 2)] as const;
        const y = attention(...leaves, { causal: true });
        backward(sum(mul(y, y)));
        return leaves.map((t) => Buffer.from((t.grad as Tensor).bytes()));
      });
    };
    try {
      for (const shape of [
        [1, 4, 1],
        [2, 6, 3],
        [3, 8, 4],
      ] as const) {
        const one = run(1, shape);
        for (const count of [2, 3, 5])
          assert.equal(run(count, shape), one, `${shape}, ${count} threads`);
      }
    } finally {
      backend.setThreads(threads);
    }
  },
);

test.run();
