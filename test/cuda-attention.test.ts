// time-limit: 300
// Attention on CUDA's tensor cores (`compute: bf16`), whose instructions the shim plays.
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { scope } from '../src/autograd/index.js';
import type { Backend, KernelTensor } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { native, reference } from './backends.js';
import { cudaShim } from './cuda.js';
import { rounded } from './op-cases.js';
import { skipUnless } from './support.js';

const cuda = native ? cudaShim() : null;
const onCuda = skipUnless(test, cuda !== null, 'no native addon, and so no CUDA shim');

interface Case {
  readonly title: string;
  /** B, T, H, D and S, G */
  readonly q: readonly [number, number, number, number];
  readonly k: readonly [number, number];
  readonly causal?: boolean;
  readonly window?: number;
  readonly keyLength?: number;
  /** Hides the keys j of row i with (3i + j) mod 4 = 0. */
  readonly masked?: boolean;
  /** Sets an element of an input, of row `at` of head 0 of the first batch. */
  readonly bad?: readonly (readonly [input: 'q' | 'k' | 'v' | 'dy', at: number, value: number])[];
  /** Every score is 0: the weights of what is seen are equal, and exact in bf16. */
  readonly flat?: boolean;
}

const CASES: readonly Case[] = [
  { title: 'causal, several tiles', q: [1, 130, 2, 64], k: [130, 1], causal: true },
  { title: 'full, a head size that is padded', q: [2, 67, 1, 24], k: [35, 1] },
  { title: 'odd sizes', q: [1, 5, 3, 13], k: [7, 3] },
  { title: 'more keys than queries', q: [1, 3, 4, 16], k: [70, 2], causal: true },
  { title: 'one query', q: [2, 1, 2, 64], k: [65, 1], causal: true },
  { title: 'one query, keys in shares', q: [1, 1, 4, 24], k: [300, 2], causal: true },
  { title: 'one query, masked', q: [2, 1, 2, 80], k: [150, 1], masked: true, keyLength: 131 },
  { title: 'one query, a window', q: [1, 1, 1, 130], k: [300, 1], causal: true, window: 129 },
  { title: 'a window', q: [1, 140, 1, 32], k: [140, 1], causal: true, window: 37 },
  { title: 'a mask', q: [2, 66, 2, 8], k: [66, 1], causal: true, masked: true },
  { title: 'a key length', q: [1, 9, 2, 64], k: [80, 2], causal: true, keyLength: 41 },
  { title: 'fewer keys than queries', q: [1, 70, 1, 8], k: [3, 1], causal: true },
  { title: 'a large head', q: [1, 66, 2, 128], k: [66, 1], causal: true },
  { title: 'a head between', q: [1, 20, 1, 80], k: [70, 1] },
  { title: 'equal weights', q: [1, 130, 1, 16], k: [130, 1], causal: true, window: 70, flat: true },
  { title: 'equal weights, masked', q: [2, 40, 1, 16], k: [70, 1], masked: true, flat: true },
];

type Names = 'y' | 'lse' | 'dq' | 'dk' | 'dv';

/** Both kernels on bf16 values; y and lse go into the gradient as the backend computed them. */
function attend(c: Case, backend: Backend): { values: Record<Names, number[]>; bits: string } {
  return scope(() => {
    const [B, T, H, D] = c.q;
    const [S, G] = c.k;
    const make = (name: 'q' | 'k' | 'v' | 'dy', shape: Shape, stream: number, by = 1) => {
      const exact = rounded(normal({ seed: 9, stream }, numel(shape)), 'bf16');
      const values = exact.map((v) => v * by);
      for (const [input, at, value] of c.bad ?? []) {
        if (input === name) values[at * (shape[2] as number) * D + 3] = value;
      }
      return tensor(values, shape, { backend });
    };
    const q = make('q', [B, T, H, D], 1, c.flat ? 0 : 1);
    const [k, v] = [make('k', [B, S, G, D], 2), make('v', [B, S, G, D], 3)];
    const dy = make('dy', [B, T, H, D], 4);
    const hidden = Float64Array.from({ length: B * S }, (_, i) =>
      (3 * Math.floor(i / S) + (i % S)) % 4 === 0 ? 0 : 1,
    );
    const mask = c.masked ? [tensor(hidden, [B, S], { backend, dtype: 'u8' })] : [];
    const empty = (t: Tensor) => Tensor.empty(backend, t.shape, 'f32');
    const y = empty(q);
    const lse = Tensor.empty(backend, [B, H, T], 'f32');
    const [dq, dk, dv] = [empty(q), empty(k), empty(v)];
    const attrs = [mask.length, c.causal ? 1 : 0, 0.3, c.window ?? 0, c.keyLength ?? -1];
    const run = (name: string, tensors: readonly KernelTensor[]) =>
      backend.run(name, tensors, attrs);
    run('attention', [q, k, v, ...mask, y, lse]);
    run('attention.grad', [q, k, v, ...mask, y, lse, dy, dq, dk, dv]);
    const all = { y, lse, dq, dk, dv };
    const of = (f: (t: Tensor) => unknown) =>
      Object.fromEntries(Object.entries(all).map(([name, t]) => [name, f(t)]));
    return {
      values: of((t) => t.toNumbers()) as Record<Names, number[]>,
      bits: JSON.stringify(of((t) => Buffer.from(t.bytes()).toString('hex'))),
    };
  });
}

/** Largest difference as a share of the largest value; infinities must agree. */
function difference(got: readonly number[], want: readonly number[]): number {
  const finite = want.filter(Number.isFinite).map(Math.abs);
  const largest = finite.reduce((a, b) => Math.max(a, b), 0.01);
  return got.reduce((worst, v, i) => {
    const w = want[i] as number;
    if (!Number.isFinite(w)) return Object.is(v, w) ? worst : Number.POSITIVE_INFINITY;
    return Math.max(worst, Number.isNaN(v) ? Number.POSITIVE_INFINITY : Math.abs(v - w) / largest);
  }, 0);
}

for (const c of CASES) {
  onCuda(`compute bf16: ${c.title}`, () => {
    const backend = cuda as NonNullable<typeof cuda>;
    const want = attend(c, reference).values;
    const exact = attend(c, backend);
    backend.setCompute('bf16');
    try {
      const all = ['forward', 'reverse', 'shuffled'].map((order) => {
        process.env.LOWRANK_SHIM_ORDER = order;
        return attend(c, backend);
      });
      const [got] = all as [ReturnType<typeof attend>];
      for (const name of ['y', 'lse', 'dq', 'dk', 'dv'] as const) {
        const off = difference(got.values[name], want[name]);
        const limit = name === 'lse' || (c.flat && name === 'y') ? 1e-5 : 0.01;
        assert.ok(off < limit, `${name}: ${off}`);
        assert.ok(difference(exact.values[name], want[name]) < 1e-5, `${name}, exact`);
      }
      assert.ok(
        all.every((a) => a.bits === got.bits),
        'the same bits in any order of threads',
      );
      // A single query is weighed in f32; its gradients are not, up to 128 channels.
      const rounds = c.flat || c.q[3] > 128 || got.bits !== exact.bits;
      assert.ok(rounds, 'the tensor cores took it');
    } finally {
      backend.setCompute('exact');
    }
  });
}

const HIDDEN = { q: [1, 140, 2, 24], k: [140, 1], causal: true } as const;
const LARGE_HIDDEN = { q: [1, 70, 1, 80], k: [70, 1], causal: true, window: 40 } as const;

for (const [title, shape, bad] of [
  ['v', HIDDEN, [['v', 100, Number.NaN]]],
  [
    'v, both infinities',
    HIDDEN,
    [
      ['v', 70, Infinity],
      ['v', 100, -Infinity],
    ],
  ],
  ['a number above those of bf16 in v', HIDDEN, [['v', 100, 3.4e38]]],
  ['k', HIDDEN, [['k', 100, Number.NaN]]],
  ['q', HIDDEN, [['q', 100, Number.NaN]]],
  ['dy', HIDDEN, [['dy', 100, Number.NaN]]],
  ['dy, infinite', HIDDEN, [['dy', 70, -Infinity]]],
  [
    'v and dy, with a window',
    LARGE_HIDDEN,
    [
      ['v', 10, Infinity],
      ['dy', 12, Number.NaN],
    ],
  ],
] as const) {
  onCuda(`compute bf16: ${title} without bounds reaches those alone that see it`, () => {
    const backend = cuda as NonNullable<typeof cuda>;
    const c: Case = { title, ...shape, bad };
    backend.setCompute('bf16');
    try {
      const [got, clean] = [attend(c, backend).values, attend({ title, ...shape }, backend).values];
      // What is seen by whom, by the reference; too large for bf16 is infinite there.
      const marked = bad.map(
        ([input, at, value]) => [input, at, Math.abs(value) > 3e38 ? value * 2 : value] as const,
      );
      const want = attend({ ...c, bad: marked }, reference).values;
      let [hidden, seen] = [0, 0];
      for (const name of ['y', 'lse', 'dq', 'dk', 'dv'] as const) {
        got[name].forEach((v, i) => {
          const [w, plain] = [want[name][i] as number, clean[name][i] as number];
          const what = `${name} ${i} is ${v}, expected ${w}`;
          const forward = name === 'y' || name === 'lse';
          assert.ok(Number.isFinite(v) === Number.isFinite(w), what);
          if (Number.isFinite(w)) hidden++;
          else seen++;
          if (!forward) return;
          if (!Number.isFinite(w)) assert.ok(Object.is(v, w), what);
          else if (name === 'y') assert.is(v, plain, `${what}: the same bits`);
        });
      }
      assert.ok(hidden > 0 && seen > 0, `${hidden} hidden, ${seen} seen`);
    } finally {
      backend.setCompute('exact');
    }
  });
}

test.run();
