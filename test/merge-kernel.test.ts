import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { mergeLowRank } from '../src/ops/index.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { onEachBackend } from './backends.js';

const [ROWS, COLS, RANK] = [17, 75, 3];

onEachBackend(test, 'a merge rounds every NaN to a NaN and leaves its neighbours', (backend) => {
  const values = Float32Array.from(normal({ seed: 5, stream: 0 }, ROWS * COLS));
  const factor = (shape: number[], stream: number) =>
    tensor(normal({ seed: 5, stream }, (shape[0] as number) * (shape[1] as number)), shape, {
      backend,
    });
  noGrad(() =>
    scope(() => {
      const factors = [{ a: factor([RANK, COLS], 1), b: factor([ROWS, RANK], 2), scale: 0.5 }];
      for (const dtype of ['f32', 'bf16', 'f16'] as const) {
        const merge = (w: Float32Array) =>
          mergeLowRank(tensor(w, [ROWS, COLS], { backend }), factors, { dtype });
        const clean = merge(values).merged.toNumbers();
        // Within a block, in a last row, in the last columns; patterns that a carry would turn.
        for (const at of [0, 3 * COLS + 40, 16 * COLS + 8, 5 * COLS + 74]) {
          for (const bits of [0x7fffffff, 0xffffffff, 0x7f800001, 0x7fc00000]) {
            const w = values.slice();
            new Uint32Array(w.buffer)[at] = bits;
            const { merged, finite } = merge(w);
            assert.is(finite, false);
            const got = merged.toNumbers();
            assert.ok(Number.isNaN(got[at]), `${bits.toString(16)} at ${at} as ${dtype}`);
            got[at] = clean[at] as number;
            assert.equal(got, clean);
          }
        }
      }
    }),
  );
});

test.run();
