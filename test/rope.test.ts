import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { rope } from '../src/ops/index.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { onNative } from './backends.js';

const [HEADS, SIZE] = [2, 12];
const ROW = HEADS * SIZE;

onNative(
  test,
  'a position turns to the same bits alone, in a run and among far ones',
  (backend) => {
    const positions = [-3, 0, 1, 15, 16, 17, 40, 4095, 100000];
    const x = normal({ seed: 1, stream: 1 }, positions.length * ROW);
    noGrad(() =>
      scope(() => {
        const frequencies = tensor([1, 0.3, 0.01, 0.5, 0.001], [5], { backend });
        const turn = (at: readonly number[], values: Float32Array) => {
          const tokens = tensor(values, [1, at.length, HEADS, SIZE], { backend });
          const places = tensor([...at], [1, at.length], { backend, dtype: 'i32' });
          return rope(tokens, places, frequencies, 1.25).toNumbers();
        };
        const far = turn(positions, Float32Array.from(x));
        positions.forEach((position, i) => {
          const own = Float32Array.from(x.slice(i * ROW, (i + 1) * ROW));
          const want = far.slice(i * ROW, (i + 1) * ROW);
          assert.equal(turn([position], own), want, `${position} alone`);
          const run = new Float32Array(20 * ROW);
          run.set(own, 7 * ROW);
          const places = Array.from({ length: 20 }, (_, j) => position + j - 7);
          const got = turn(places, run).slice(7 * ROW, 8 * ROW);
          assert.equal(got, want, `${position} in a run`);
        });
      }),
    );
  },
);

test.run();
