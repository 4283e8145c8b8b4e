// time-limit: 600
// The op table on the CUDA kernels, run on the processor through the shim.
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { native, reference } from './backends.js';
import { cudaShim } from './cuda.js';
import { dtypesOf, table } from './op-cases.js';
import { BF16_CASES, LARGE_CASES } from './op-cases-large.js';
import { bitsOf, check, halfDTypes } from './op-checks.js';
import { skipUnless } from './support.js';

const cuda = native ? cudaShim() : reference;
const onCuda = skipUnless(test, native !== null, 'no native addon, and so no CUDA shim');

for (const { name, cases } of table()) {
  onCuda(`${name}: values and gradients agree with f64, in any order of a block's threads`, () => {
    for (const c of cases) {
      const bits = ['forward', 'reverse', 'shuffled'].map((order) => {
        process.env.LOWRANK_SHIM_ORDER = order;
        return bitsOf(check(c, cuda, dtypesOf(c, 'f32'), order === 'reverse' ? 3 : 0));
      });
      assert.ok(bits[1] === bits[0] && bits[2] === bits[0], `${c.title}: the same bits`);
      for (const dtypes of halfDTypes(c)) check(c, cuda, dtypes);
    }
  });
}

onCuda('larger shapes agree with f64', () => {
  for (const c of LARGE_CASES) check(c, cuda, dtypesOf(c, 'f32'));
});

onCuda('larger shapes in bf16 agree with f64', () => {
  for (const c of BF16_CASES) check(c, cuda, dtypesOf(c, 'bf16'));
});

test.run();
