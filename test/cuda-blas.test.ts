// time-limit: 300
// Products on CUDA through cuBLASLt, in whose place a library of the tests' own stands.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { buildShim } from '../scripts/cuda-shim.mjs';
import { noGrad, scope } from '../src/autograd/index.js';
import { setProducts } from '../src/models/compute.js';
import { cast } from '../src/ops/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import type { CudaBackend } from '../src/tensor/cuda.js';
import { normal } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { native, reference } from './backends.js';
import { cudaShim } from './cuda.js';
import { dtypesOf, table } from './op-cases.js';
import { LARGE_CASES } from './op-cases-large.js';
import { check, halfDTypes } from './op-checks.js';
import { skipUnless } from './support.js';

const root = mkdtempSync(join(tmpdir(), 'lowrank-blas-'));
const log = join(root, 'products');
test.after(() => rmSync(root, { recursive: true, force: true }));
const onCuda = skipUnless(test, native !== null, 'no native addon, and so no CUDA shim');
const folder = native ? dirname(buildShim()) : '';
const library = (name: string) => join(folder, `libcublasLt_${name}.so`);
process.env.LOWRANK_SHIM_BLAS = library('shim');
process.env.LOWRANK_SHIM_BLAS_LOG = log;
const cuda = native ? (cudaShim() as CudaBackend) : null;

type Stored = 'f32' | 'f16' | 'bf16';

interface Product {
  readonly a: Shape;
  readonly b: Shape;
  readonly y: Shape;
  readonly attrs: readonly [number, number, number, number];
  readonly bias?: Shape;
  readonly stored?: readonly [Stored, Stored];
}

/** The product by the kernel, from the same random numbers on any backend. */
function multiply(backend: Backend, p: Product, kernel = 'matmul'): number[] {
  return scope(() => {
    const make = (shape: Shape, stream: number, dtype: Stored = 'f32'): Tensor => {
      const values = normal({ seed: 5, stream }, numel(shape));
      const exact = tensor(values, shape, { backend: reference });
      const bytes = noGrad(() => cast(exact, dtype)).toNumbers();
      return tensor(bytes, shape, { backend, dtype });
    };
    const [a, b] = [make(p.a, 1, p.stored?.[0]), make(p.b, 2, p.stored?.[1])];
    const y = make(p.y, 3);
    const inputs = p.bias ? [a, b, make(p.bias, 4)] : [a, b];
    backend.run(kernel, [...inputs, y], kernel === 'linear' ? p.attrs.slice(0, 1) : p.attrs);
    return y.toNumbers();
  });
}

function agree(got: readonly number[], want: readonly number[], what: string): void {
  const largest = Math.max(0.01, ...want.map(Math.abs));
  got.forEach((v, i) => {
    const off = Math.abs(v - (want[i] as number)) / largest;
    assert.ok(off < 1e-5, `${what}: element ${i} is ${v}, expected ${want[i]}`);
  });
}

/** Lines that the library wrote while `body` ran: one for each product it computed. */
function products(body: () => void): string[] {
  writeFileSync(log, '');
  body();
  return readFileSync(log, 'utf8').split('\n').slice(0, -1);
}

function matrices(m: number, n: number, k: number, transA: boolean, transB: boolean): Product {
  return {
    a: transA ? [k, m] : [m, k],
    b: transB ? [n, k] : [k, n],
    y: [m, n],
    attrs: [+transA, +transB, 0.75, 1],
  };
}

const FLAGS = [false, true];

onCuda('every order, with alpha and added to what is there', () => {
  for (const transA of FLAGS) {
    for (const transB of FLAGS) {
      const p = matrices(33, 24, 40, transA, transB);
      const what = `aᵀ ${transA}, bᵀ ${transB}`;
      const lines = products(() => {
        agree(multiply(cuda as Backend, p), multiply(reference, p), what);
      });
      assert.equal(lines, ['type 0, 33 x 24 x 40, batch 1'], what);
    }
  }
});

onCuda('factors of one half type, one of them or both bf16 under compute bf16', () => {
  const backend = cuda as NonNullable<typeof cuda>;
  for (const stored of ['bf16', 'f16'] as const) {
    const p = { ...matrices(33, 24, 40, false, true), stored: [stored, stored] as const };
    const lines = products(() => agree(multiply(backend, p), multiply(reference, p), stored));
    assert.equal(lines, [`type ${stored === 'bf16' ? 14 : 2}, 33 x 24 x 40, batch 1`]);
  }
  const mixed = { ...matrices(33, 24, 40, false, true), stored: ['f32', 'bf16'] as const };
  const exact = multiply(reference, mixed);
  agree(multiply(backend, mixed), exact, 'exact');
  backend.setCompute('bf16');
  try {
    const rounded = multiply(reference, { ...mixed, stored: ['bf16', 'bf16'] as const });
    const lines = products(() => agree(multiply(backend, mixed), rounded, 'rounded'));
    assert.equal(lines, ['type 14, 33 x 24 x 40, batch 1']);
    const plain = matrices(33, 24, 40, false, true);
    agree(multiply(backend, plain), multiply(reference, plain), 'f32 with f32 stays exact');
  } finally {
    backend.setCompute('exact');
  }
});

onCuda('a bias, by the library where it is f32', () => {
  const p: Product = {
    a: [3, 11, 40],
    b: [24, 40],
    y: [3, 11, 24],
    bias: [24],
    attrs: [0, 0, 1, 0],
  };
  const lines = products(() => {
    agree(multiply(cuda as Backend, p, 'linear'), multiply(reference, p, 'linear'), 'bias');
  });
  assert.equal(lines, ['type 0, 33 x 24 x 40, batch 1, bias']);
});

onCuda('GELU by the library under compute bf16 alone, and what it is taken of where asked', () => {
  const backend = cuda as NonNullable<typeof cuda>;
  const shapes = [
    { m: 33, n: 24, what: '33 x 24 x 40, batch 1' },
    { m: 20, n: 17, what: '20 x 17 x 40, batch 1' },
  ];
  const call = (on: Backend, { m, n }: { m: number; n: number }, form: number, kept: boolean) =>
    scope(() => {
      const make = (shape: Shape, stream: number, dtype: Stored = 'f32') =>
        tensor(normal({ seed: 5, stream }, numel(shape)), shape, { backend: on, dtype });
      const made = [make([m, n], 4), ...(kept ? [make([m, n], 5)] : [])];
      // Both factors rounded, so that the exact product is what bf16's must be.
      const inputs = [make([m, 40], 1, 'bf16'), make([n, 40], 2, 'bf16'), make([n], 3)];
      on.run('activatedLinear', [...inputs, ...made], [0, form, kept ? 1 : 0]);
      return made.map((t) => t.toNumbers());
    });
  const tanh = 3;
  for (const shape of shapes) {
    for (const kept of FLAGS) {
      for (const [compute, form] of [
        ['exact', tanh],
        ['bf16', tanh],
        ['bf16', 2],
      ] as const) {
        backend.setCompute(compute);
        const lines = products(() => {
          const want = call(reference, shape, form, kept);
          call(backend, shape, form, kept).forEach((got, i) => {
            agree(got, want[i] as number[], `${shape.what}, output ${i}`);
          });
        });
        backend.setCompute('exact');
        // Lines of what is kept are whole eights, or the kernel of its own follows.
        const own = compute === 'exact' || form !== tanh || (kept && shape.n % 8 !== 0);
        const how = own ? '' : `, gelu${kept ? ', aux' : ''}`;
        assert.equal(lines, [`type 14, ${shape.what}, bias${how}`], `${compute}, form ${form}`);
      }
    }
  }
  process.env.LOWRANK_SHIM_BLAS_REFUSE = 'gelu';
  backend.setCompute('bf16');
  try {
    const shape = { m: 41, n: 24 };
    const lines = products(() => {
      const want = call(reference, shape, tanh, true);
      call(backend, shape, tanh, true).forEach((got, i) => {
        agree(got, want[i] as number[], `refused, output ${i}`);
      });
    });
    assert.equal(lines, ['type 14, 41 x 24 x 40, batch 1, bias']);
  } finally {
    delete process.env.LOWRANK_SHIM_BLAS_REFUSE;
    backend.setCompute('exact');
  }
});

onCuda('batches of one step by the library, others by tiles', () => {
  const batch = (a: Shape, b: Shape, y: Shape): Product => ({ a, b, y, attrs: [0, 0, 1, 0] });
  const cases: readonly (readonly [Product, number])[] = [
    [batch([4, 20, 17], [4, 17, 19], [4, 20, 19]), 1],
    [batch([2, 3, 20, 17], [2, 3, 17, 19], [2, 3, 20, 19]), 1],
    [batch([20, 17], [4, 17, 19], [4, 20, 19]), 1],
    [batch([2, 1, 20, 17], [3, 17, 19], [2, 3, 20, 19]), 0],
  ];
  for (const [p, calls] of cases) {
    const lines = products(() => {
      agree(multiply(cuda as Backend, p), multiply(reference, p), `${p.a} ${p.b}`);
    });
    assert.is(lines.length, calls, `${p.a} ${p.b}`);
  }
});

onCuda('f32 in TF32 where it is asked for, and nowhere else', () => {
  const backend = cuda as CudaBackend;
  const p = matrices(33, 24, 40, false, true);
  const half = { ...p, stored: ['bf16', 'bf16'] as const };
  const lines = () =>
    products(() => {
      for (const each of [p, half]) multiply(backend, each);
    });
  const [plain, other] = ['type 0, 33 x 24 x 40, batch 1', 'type 14, 33 x 24 x 40, batch 1'];
  assert.not.ok(backend.tf32);
  assert.equal(lines(), [plain, other]);
  backend.setTf32(true);
  try {
    assert.ok(backend.tf32);
    assert.is(backend.describe(), 'cuda (CUDA shim, f32 in TF32)');
    assert.is(backend.facts().tf32, 'on');
    assert.equal(lines(), ['type 0 in TF32, 33 x 24 x 40, batch 1', other]);
    assert.throws(
      () => backend.setBatchInvariant(true),
      /\[batchInvariant\] expected tf32 or batchInvariant, received both/,
    );
  } finally {
    backend.setTf32(false);
  }
  assert.equal(lines(), [plain, other]);
  backend.setBatchInvariant(true);
  try {
    assert.equal(lines(), [], 'batch-invariant products are the own kernels’');
    assert.throws(() => backend.setTf32(true), /\[tf32\] expected tf32 or batchInvariant/);
  } finally {
    backend.setBatchInvariant(false);
  }
});

onCuda('setProducts sets what is given, and back; other backends refuse what they lack', () => {
  const backend = cuda as CudaBackend;
  const now = () => [backend.tf32, backend.batchInvariant];
  const restore = setProducts(backend, { tf32: true });
  assert.equal(now(), [true, false]);
  const again = setProducts(backend, { tf32: false, batchInvariant: true });
  assert.equal(now(), [false, true]);
  again();
  assert.equal(now(), [true, false]);
  assert.throws(() => setProducts(backend, { batchInvariant: true }), 'expected tf32 or');
  assert.equal(now(), [true, false], 'a refused setting changes nothing');
  restore();
  assert.equal(now(), [false, false]);
  setProducts(reference, { batchInvariant: true })();
  assert.throws(
    () => setProducts(reference, { tf32: true }),
    '[tf32] expected the cuda backend, received reference. Leave it out',
  );
});

onCuda('thin products, and those over no terms, by own kernels', () => {
  for (const [m, n, k] of [
    [1, 40, 40],
    [200, 8, 300],
    [8, 200, 300],
    [20, 20, 0],
  ] as const) {
    const p = matrices(m, n, k, false, true);
    const lines = products(() =>
      agree(multiply(cuda as Backend, p), multiply(reference, p), `${m}`),
    );
    assert.equal(lines, []);
  }
});

onCuda('the op table’s products, with their gradients', () => {
  const names = ['matmul', 'linear', 'addLowRank', 'headLoss'];
  const lines = products(() => {
    for (const { name, cases } of table()) {
      for (const c of names.includes(name) ? cases : []) {
        for (const dtypes of [dtypesOf(c, 'f32'), ...halfDTypes(c)])
          check(c, cuda as Backend, dtypes);
      }
    }
    for (const c of LARGE_CASES) {
      if (names.includes(c.op.spec.name)) check(c, cuda as Backend, dtypesOf(c, 'f32'));
    }
  });
  assert.ok(lines.length > 60, `${lines.length} by the library`);
});

/** What a process with this environment prints: the bits of its products, and what computed them. */
function inProcess(env: Record<string, string>): string[] {
  const script = fileURLToPath(new URL('./cuda-shim/blas/products.ts', import.meta.url));
  const run = spawnSync(process.execPath, ['--import', import.meta.resolve('tsx'), script], {
    encoding: 'utf8',
    env: {
      ...process.env,
      LOWRANK_SHIM_BLAS_LOG: '',
      LOWRANK_TEST_LIBRARY: join(folder, 'lowrank_cuda_shim.so'),
      ...env,
    },
  });
  assert.is(run.status, 0, run.stderr);
  return run.stdout.trim().split('\n');
}

onCuda(
  'without the library, or where it fails, own kernels answer the same bits, and it is said',
  () => {
    const own = inProcess({ LOWRANK_SHIM_BLAS: '' });
    assert.match(own[3] as string, /^\[tf32\] expected cuBLASLt, which alone .* Install CUDA/);
    assert.match(own[2] as string, /^own kernels; cuBLASLt was not found .*Install CUDA's cuBLAS/);
    const shim = { LOWRANK_SHIM_BLAS: library('shim') };
    const refused = /libcublasLt_shim\.so\); own kernels where it has no way \(shapes so far: 1\)$/;
    for (const [env, said] of [
      [{ LOWRANK_SHIM_BLAS: library('lacking') }, /libcublasLt_lacking\.so lacks cublasLtMatmul/],
      [{ ...shim, LOWRANK_SHIM_BLAS_REFUSE: 'heuristic' }, refused],
      [{ ...shim, LOWRANK_SHIM_BLAS_REFUSE: 'matmul' }, refused],
    ] as const) {
      const got = inProcess(env);
      assert.equal(got.slice(0, 2), own.slice(0, 2), JSON.stringify(env));
      assert.match(got[2] as string, said);
    }
    assert.match(cuda?.facts().products as string, /^cuBLASLt 13\.1 \(.*libcublasLt_shim\.so\)$/);
  },
);

test.run();
