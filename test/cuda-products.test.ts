// time-limit: 300
// Products of bf16 on CUDA's tensor cores, without cuBLASLt: every order, tiles in part, batches.
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { scope } from '../src/autograd/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { native, reference } from './backends.js';
import { cudaShim } from './cuda.js';
import { rounded } from './op-cases.js';
import { skipUnless } from './support.js';

process.env.LOWRANK_SHIM_BLAS = '';
const cuda = native ? cudaShim() : null;
const onCuda = skipUnless(test, cuda !== null, 'no native addon, and so no CUDA shim');

interface Product {
  readonly a: Shape;
  readonly b: Shape;
  readonly y: Shape;
  readonly attrs: readonly [number, number, number, number];
}

/** What the kernel adds to y, of factors whose values bf16 holds. */
function multiply(backend: Backend, p: Product, dtypes: readonly ['f32' | 'bf16', 'bf16']) {
  return scope(() => {
    const values = (shape: Shape, stream: number) =>
      rounded(normal({ seed: 8, stream }, numel(shape)), 'bf16');
    const a = tensor(values(p.a, 1), p.a, { backend, dtype: dtypes[0] });
    const b = tensor(values(p.b, 2), p.b, { backend, dtype: dtypes[1] });
    const y = tensor(values(p.y, 3), p.y, { backend });
    backend.run('matmul', [a, b, y], p.attrs);
    return y.toNumbers();
  });
}

function agree(p: Product): void {
  const backend = cuda as NonNullable<typeof cuda>;
  const want = multiply(reference, p, ['bf16', 'bf16']);
  const largest = want.reduce((m, v) => Math.max(m, Math.abs(v)), 0.01);
  const near = (got: readonly number[], what: string) =>
    got.forEach((v, i) => {
      const off = Math.abs(v - (want[i] as number)) / largest;
      assert.ok(off < 1e-5, `${what}, element ${i}: ${v}, expected ${want[i]}`);
    });
  const all = ['forward', 'reverse', 'shuffled'].map((order) => {
    process.env.LOWRANK_SHIM_ORDER = order;
    return multiply(backend, p, ['bf16', 'bf16']);
  });
  near(all[0] as number[], `${p.a} ${p.b}`);
  for (const other of all) assert.equal(other, all[0], 'the same bits in any order of threads');
  near(multiply(backend, p, ['f32', 'bf16']), 'one factor in f32');
  backend.setCompute('bf16');
  try {
    near(multiply(backend, p, ['f32', 'bf16']), 'one factor rounded');
  } finally {
    backend.setCompute('exact');
  }
}

for (const transA of [false, true]) {
  for (const transB of [false, true]) {
    onCuda(`aᵀ ${transA}, bᵀ ${transB}`, () => {
      for (const [m, n, k] of [
        [136, 144, 40],
        [24, 40, 104],
        // Copies of 16 bytes fit along k only, or not at all.
        [21, 35, 64],
        [18, 20, 30],
      ] as const) {
        agree({
          a: transA ? [k, m] : [m, k],
          b: transB ? [n, k] : [k, n],
          y: [m, n],
          attrs: [+transA, +transB, 0.5, 1],
        });
      }
    });
  }
}

onCuda('batches that broadcast', () => {
  agree({ a: [2, 1, 24, 16], b: [3, 40, 16], y: [2, 3, 24, 40], attrs: [0, 1, 1, 0] });
});

test.run();
