import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { linear, slice } from '../src/ops/index.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { onNative } from './backends.js';

const ALL = 40;

/** Inner sizes: less than a vector, odd, more than one block of sums, whole ones. */
const SIZES = [3, 37, 256, 301, 576];

onNative(
  test,
  'a row has the bits it has among many, whatever the weight is stored as',
  (backend) => {
    const random = (shape: number[], stream: number, dtype: 'f32' | 'bf16' | 'f16' = 'f32') =>
      tensor(normal({ seed: 3, stream }, (shape[0] as number) * (shape[1] as number)), shape, {
        backend,
        dtype,
      });
    noGrad(() =>
      scope(() => {
        for (const compute of ['exact', 'bf16'] as const) {
          backend.setCompute(compute);
          for (const dtype of ['f32', 'bf16', 'f16'] as const) {
            for (const inner of SIZES) {
              for (const outer of [7, 64, 203]) {
                const x = random([ALL, inner], 1);
                const w = random([outer, inner], 2, dtype);
                const whole = linear(x, w).bytes();
                for (const rows of [1, 2, 3, 4, 5, 9, 16]) {
                  const part = linear(slice(x, 0, 0, rows), w).bytes();
                  const same = Buffer.from(part).equals(whole.subarray(0, part.length));
                  assert.ok(same, `${rows} × ${inner} by ${outer} of ${dtype}, ${compute}`);
                }
              }
            }
          }
        }
        backend.setCompute('exact');
      }),
    );
  },
);

test.run();
