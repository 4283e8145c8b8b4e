// time-limit: 300
// What the CUDA backend promises where it is batch-invariant: a row's bits depend on the row alone.
import { dirname, join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { cast } from '../src/ops/index.js';
import { tensor } from '../src/tensor/create.js';
import type { CudaBackend } from '../src/tensor/cuda.js';
import { normal } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { native, onGpu, reference } from './backends.js';
import { cudaShim, shimLibrary } from './cuda.js';
import { logitBytes, sameBytes, TINY, tinyBatch, tinyModel } from './support/tiny.js';
import { skipUnless } from './support.js';

const test = suite('cuda, batch-invariant');
// With a library of products at hand, which must not be asked.
if (native && !onGpu) {
  process.env.LOWRANK_SHIM_BLAS = join(dirname(shimLibrary()), 'libcublasLt_shim.so');
}
const cuda = native ? (cudaShim() as CudaBackend) : null;
const onCuda = skipUnless(test, cuda !== null, 'no native addon, and so no CUDA shim');
const backend = cuda as CudaBackend;

test.before.each(() => cuda?.setBatchInvariant(true));
test.after.each(() => {
  cuda?.setBatchInvariant(false);
  cuda?.setCompute('exact');
});

type Stored = 'f32' | 'f16' | 'bf16';

/** The same random numbers for the same stream, rounded to a dtype. */
function make(shape: Shape, stream: number, dtype: Stored = 'f32'): Tensor {
  const values = normal({ seed: 11, stream }, numel(shape));
  const exact = tensor(values, shape, { backend: reference });
  return tensor(noGrad(() => cast(exact, dtype)).toNumbers(), shape, { backend, dtype });
}

const MOST = 200;
const COUNTS = [1, 2, 8, 9, 16, 17, 64, 65, 130, MOST];

for (const [a, b, compute] of [
  ['f32', 'f32', 'exact'],
  ['f32', 'bf16', 'exact'],
  ['f32', 'bf16', 'bf16'],
  ['bf16', 'bf16', 'exact'],
  ['f16', 'f16', 'exact'],
] as const) {
  onCuda(`rows of ${a} by ${b}, compute ${compute}: the same bits in any number`, () => {
    backend.setCompute(compute);
    // Widths that the tensor cores take, that they do not, narrow ones, and sums that were cut.
    for (const [k, n] of [
      [64, 72],
      [37, 30],
      [40, 8],
      [1100, 24],
    ] as const) {
      for (const transB of [0, 1]) {
        scope(() => {
          const w = make(transB ? [n, k] : [k, n], 1, b);
          const x = make([MOST, k], 2, a);
          const rows = (from: number, count: number): Uint8Array => {
            const y = Tensor.empty(backend, [count, n], 'f32');
            const part = new Tensor(
              x.storage.retain(),
              [count, k],
              a,
              from * k * (a === 'f32' ? 4 : 2),
            );
            backend.run('matmul', [part, w, y], [0, transB, 1, 0]);
            return y.bytes();
          };
          const all = rows(0, MOST);
          for (const count of COUNTS) {
            const from = MOST - count;
            const want = all.subarray(from * n * 4);
            assert.ok(sameBytes(rows(from, count), want), `${count} rows, k ${k}, n ${n}`);
          }
        });
      }
    }
  });
}

for (const compute of ['exact', 'bf16'] as const) {
  onCuda(`a query alone has the bits of its place among others, compute ${compute}`, () => {
    backend.setCompute(compute);
    scope(() => {
      const [T, H, D] = [140, 2, 24];
      const [k, v] = [make([1, T, 1, D], 3), make([1, T, 1, D], 4)];
      const q = make([1, T, H, D], 5);
      const attend = (queries: Tensor, t: number, length: number) => {
        const y = Tensor.empty(backend, [1, t, H, D], 'f32');
        const lse = Tensor.empty(backend, [1, H, t], 'f32');
        backend.run('attention', [queries, k, v, y, lse], [0, 1, 0.3, 0, length]);
        return y.bytes();
      };
      const row = H * D * 4;
      const all = attend(q, T, -1);
      for (const at of [0, 5, 64, 139]) {
        const one = new Tensor(q.storage.retain(), [1, 1, H, D], 'f32', at * row);
        const want = all.subarray(at * row, (at + 1) * row);
        assert.ok(sameBytes(attend(one, 1, at + 1), want), `query ${at}`);
      }
    });
  });
}

onCuda('sums along rows have the same bits for any number of them', () => {
  scope(() => {
    const [n, width] = [3, 30_000];
    const x = make([n, width], 6);
    const sum = (rows: number) => {
      const part = new Tensor(x.storage.retain(), [rows, width], 'f32');
      const y = Tensor.empty(backend, [rows], 'f32');
      backend.run('sum', [part, y], [1]);
      return y.bytes().subarray(0, 4);
    };
    assert.ok(sameBytes(sum(1), sum(n)));
  });
});

onCuda('a model answers a row with the same bits alone and in a batch', () => {
  for (const dtype of ['f32', 'bf16'] as const) {
    const settings = { ...TINY, dtype };
    using model = tinyModel(settings, backend);
    const lengths = [9, 30, 4];
    const batch = tinyBatch(3, lengths, TINY.vocab);
    const all = logitBytes(model, batch);
    lengths.forEach((own, b) => {
      const inputIds = batch.inputIds.slice(b * 30, b * 30 + own);
      const alone = logitBytes(model, { inputIds, batch: 1, length: own });
      const from = b * 30 * TINY.vocab * 4;
      assert.ok(sameBytes(all.subarray(from, from + alone.length), alone), `${dtype}, row ${b}`);
    });
  }
});

onCuda('off, it is cuBLASLt’s or the own kernels’ choice again', () => {
  assert.ok(backend.batchInvariant);
  assert.match(backend.describe(), /batch-invariant/);
  assert.is(backend.facts()['batch-invariant'], 'on');
  backend.setBatchInvariant(false);
  assert.not.ok(backend.batchInvariant);
  assert.not.match(backend.describe(), /batch-invariant/);
  scope(() => {
    const [w, x] = [make([24, 1100], 1), make([MOST, 1100], 2)];
    const first = (count: number) => {
      const y = Tensor.empty(backend, [count, 24], 'f32');
      const part = new Tensor(x.storage.retain(), [count, 1100], 'f32');
      backend.run('matmul', [part, w, y], [0, 1, 1, 0]);
      return y.bytes().subarray(0, 96);
    };
    assert.not.ok(sameBytes(first(1), first(MOST)), 'or the test above says nothing');
  });
});

test.run();
