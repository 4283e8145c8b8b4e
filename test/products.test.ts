import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { cast, linear } from '../src/ops/index.js';
import type { Backend, Compute } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import type { NativeBackend } from '../src/tensor/native.js';
import { normal } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { onNative, reference } from './backends.js';

// The ways of the native product: by shape, storage order, type, instruction set and arithmetic.

type Stored = 'f32' | 'f16' | 'bf16';

interface Product {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transA: boolean;
  readonly transB: boolean;
  readonly alpha?: number;
  readonly accumulate?: boolean;
}

const values = (shape: Shape, stream: number) => normal({ seed: 6, stream }, numel(shape));

function stored(backend: Backend, shape: Shape, stream: number, dtype: Stored): Tensor {
  const t = tensor(values(shape, stream), shape, { backend });
  return dtype === 'f32' ? t : noGrad(() => cast(t, dtype));
}

/** alpha·op(a) op(b) (+ y) by the kernel, from the same random numbers on any backend. */
function multiply(backend: Backend, p: Product, a: Stored = 'f32', b: Stored = 'f32'): Tensor {
  const { m, n, k, transA, transB, alpha = 1, accumulate = false } = p;
  const left = stored(backend, transA ? [k, m] : [m, k], 1, a);
  const right = stored(backend, transB ? [n, k] : [k, n], 2, b);
  const y = tensor(values([m, n], 3), [m, n], { backend });
  backend.run('matmul', [left, right, y], [+transA, +transB, alpha, +accumulate]);
  return y;
}

/** The greatest difference, in units of what the roundings of a sum of `k` products may add up to. */
function worst(y: Tensor, want: Tensor, k: number): number {
  const right = want.toNumbers();
  const unit = 2 ** -24 * (64 + 4 * k);
  return Math.max(0, ...y.toNumbers().map((v, i) => Math.abs(v - (right[i] as number)) / unit));
}

/** Runs with each instruction set in turn. */
function onEachIsa(backend: NativeBackend, body: (isa: string) => void): void {
  const { isa: before, isas } = backend.info();
  try {
    for (const isa of isas) {
      backend.setIsa(isa);
      body(isa);
    }
  } finally {
    backend.setIsa(before);
  }
}

function withCompute(backend: NativeBackend, mode: Compute, body: () => void): void {
  const before = backend.info().compute;
  backend.setCompute(mode);
  try {
    body();
  } finally {
    backend.setCompute(before);
  }
}

const ORDERS = [
  { transA: false, transB: false },
  { transA: false, transB: true },
  { transA: true, transB: false },
  { transA: true, transB: true },
];

/** Few rows, few columns, few terms, and tall, wide and deep ones that are cut into parts. */
const SIZES: readonly (readonly [number, number, number])[] = [
  [1, 1, 1],
  [1, 1100, 70],
  [3, 70, 300],
  [14, 33, 17],
  [16, 320, 257],
  [17, 96, 600],
  [90, 1, 300],
  [330, 8, 270],
  [75, 16, 40],
  [130, 40, 300],
  [90, 64, 33],
  [190, 130, 3],
  [30, 420, 290],
  [420, 70, 290],
  [66, 80, 1650],
];

const each = (visit: (p: Product) => void) => {
  for (const [m, n, k] of SIZES) for (const order of ORDERS) visit({ m, n, k, ...order });
};

const title = (p: Product) =>
  `${p.m} × ${p.n} × ${p.k}${p.transA ? ' aᵀ' : ''}${p.transB ? ' bᵀ' : ''}`;

onNative(test, 'a product of any shape and order on each instruction set', (backend) => {
  each((p) =>
    scope(() => {
      const rule = { alpha: 0.75, accumulate: (p.m + p.k) % 2 === 0 };
      const wanted = multiply(reference, { ...p, ...rule });
      onEachIsa(backend, (isa) => {
        const off = scope(() => worst(multiply(backend, { ...p, ...rule }), wanted, p.k));
        assert.ok(off < 1, `${title(p)} on ${isa}: ${off}`);
      });
    }),
  );
});

onNative(test, 'factors stored in f16 and bf16 are widened exactly', (backend) => {
  each((p) =>
    scope(() => {
      const dtype = p.transA ? 'f16' : 'bf16';
      const wanted = multiply(reference, p, 'f32', dtype);
      onEachIsa(backend, (isa) => {
        const off = scope(() => worst(multiply(backend, p, 'f32', dtype), wanted, p.k));
        assert.ok(off < 1, `${title(p)}, ${dtype} on ${isa}: ${off}`);
      });
    }),
  );
});

/** The first `rows` rows of a product of `all` rows with the same numbers in them. */
function firstRows(backend: Backend, all: number, rows: number, p: Product, w: Stored): number[] {
  return scope(() => {
    const x = values([all, p.k], 4).subarray(0, rows * p.k);
    const lines = p.transA
      ? Float64Array.from({ length: x.length }, (_, i) => {
          return x[(i % rows) * p.k + Math.floor(i / rows)] as number;
        })
      : x;
    const a = tensor(lines, p.transA ? [p.k, rows] : [rows, p.k], { backend });
    const b = stored(backend, p.transB ? [p.n, p.k] : [p.k, p.n], 5, w);
    const y = Tensor.empty(backend, [rows, p.n], 'f32');
    backend.run('matmul', [a, b, y], [+p.transA, +p.transB, 1, 0]);
    return y.toNumbers();
  });
}

for (const compute of ['exact', 'bf16'] as const) {
  onNative(test, `a row’s bits do not depend on its neighbours, ${compute}`, (backend) => {
    const all = 150;
    withCompute(backend, compute, () =>
      onEachIsa(backend, (isa) => {
        for (const n of [9, 330]) {
          for (const order of ORDERS) {
            const p = { m: all, n, k: 301, ...order };
            const whole = firstRows(backend, all, all, p, 'bf16');
            for (const rows of [1, 5, 16, 101]) {
              const part = firstRows(backend, all, rows, p, 'bf16');
              const same = part.every((v, i) => Object.is(v, whole[i]));
              assert.ok(same, `${rows} rows of ${title(p)} on ${isa}`);
            }
          }
        }
      }),
    );
  });
}

onNative(test, 'a long K in several spans gives the bits of one', (backend) => {
  const { threads } = backend.info();
  const [m, n, k, few] = [500, 520, 1700, 90];
  const x = tensor(values([m, k], 4), [m, k], { backend });
  const head = tensor(values([m, k], 4).subarray(0, few * k), [few, k], { backend });
  try {
    onEachIsa(backend, (isa) => {
      for (const transB of [false, true]) {
        const w = tensor(values([n, k], 5), transB ? [n, k] : [k, n], { backend });
        const [alone, ...others] = [1, 3].flatMap((count) => {
          backend.setThreads(count);
          return [head, x].map((a) => {
            const y = Tensor.empty(backend, [a.shape[0] as number, n], 'f32');
            backend.run('matmul', [a, w, y], [0, +transB, 1, 0]);
            return y.toNumbers();
          });
        }) as [number[], ...number[][]];
        for (const other of others) {
          assert.ok(
            alone.every((v, i) => Object.is(v, other[i])),
            `${isa}${transB ? ' bᵀ' : ''}`,
          );
        }
      }
    });
  } finally {
    backend.setThreads(threads);
  }
});

onNative(test, 'a product’s bits do not depend on the number of threads', (backend) => {
  const { threads } = backend.info();
  try {
    each((p) =>
      scope(() => {
        const bits = [1, 2, 3].map((count) => {
          backend.setThreads(count);
          return multiply(backend, p).toNumbers();
        });
        for (const other of bits.slice(1)) {
          assert.ok(
            other.every((v, i) => Object.is(v, bits[0]?.[i])),
            title(p),
          );
        }
      }),
    );
  } finally {
    backend.setThreads(threads);
  }
});

onNative(test, 'compute bf16 rounds what meets a bf16 factor, and nothing else', (backend) => {
  each((p) =>
    scope(() => {
      const rounded = multiply(reference, p, 'bf16', 'bf16');
      const exact = multiply(backend, p);
      onEachIsa(backend, (isa) => {
        scope(() => {
          withCompute(backend, 'bf16', () => {
            for (const [a, b] of [
              ['f32', 'bf16'],
              ['bf16', 'f32'],
            ] as const) {
              const off = worst(multiply(backend, p, a, b), rounded, p.k);
              assert.ok(off < 1, `${title(p)}, ${a} and ${b} on ${isa}: ${off}`);
            }
            const off = worst(multiply(backend, p), exact, p.k);
            assert.ok(off < 1, `${title(p)}, f32 on ${isa}: ${off}`);
          });
        });
      });
    }),
  );
});

onNative(test, 'NaN and infinity pass through compute bf16', (backend) => {
  withCompute(backend, 'bf16', () =>
    onEachIsa(backend, (isa) => {
      const x = [1, Number.NaN, 0, Number.POSITIVE_INFINITY, 0, 1, 1, 1];
      const y = scope(() => {
        const w = noGrad(() => cast(tensor([1, 1, 2, 2], [2, 2], { backend }), 'bf16'));
        return linear(tensor(x, [4, 2], { backend }), w).toNumbers();
      });
      const inf = Number.POSITIVE_INFINITY;
      assert.equal(y, [Number.NaN, Number.NaN, inf, inf, 1, 2, 2, 4], isa);
    }),
  );
});

onNative(test, 'an unknown arithmetic is named', (backend) => {
  assert.is(backend.info().compute, 'exact');
  assert.throws(
    () => backend.setCompute('fp8' as Compute),
    /\[setCompute\] expected exact or bf16, received fp8/,
  );
  assert.is(backend.info().compute, 'exact');
});

test.run();
