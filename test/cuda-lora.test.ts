// time-limit: 300
// LoRA's branches on CUDA beyond the op table: many rows and adapters, every mode of the gradients.
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { scope } from '../src/autograd/index.js';
import { mergeLowRank } from '../src/ops/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { native, reference } from './backends.js';
import { cudaShim } from './cuda.js';
import { skipUnless } from './support.js';

const cuda = native ? cudaShim() : null;
const onCuda = skipUnless(test, cuda !== null, 'no native addon, and so no CUDA shim');

interface Case {
  /** Rows of the batch, and of each of them. */
  readonly batch: number;
  readonly each: number;
  readonly inner: number;
  readonly out: number;
  readonly ranks: readonly number[];
  readonly groups: (row: number) => number;
  /** 0 not wanted, 1 written, 2 added; of dx, then dA and dB of each adapter. */
  readonly modeX: number;
  readonly modes: readonly (readonly [number, number])[];
}

const CASES: readonly Case[] = [
  // More segments than a launch takes; parts of 64 rows and less.
  {
    batch: 40,
    each: 3,
    inner: 21,
    out: 37,
    ranks: [2, 9, 1],
    groups: (i) => (i % 4) - 1,
    modeX: 2,
    modes: [
      [1, 2],
      [2, 1],
      [0, 1],
    ],
  },
  // Parts that end in another launch than they began in.
  {
    batch: 150,
    each: 3,
    inner: 10,
    out: 6,
    ranks: [3, 2],
    groups: (i) => i % 2,
    modeX: 1,
    modes: [
      [1, 2],
      [2, 1],
    ],
  },
  {
    batch: 1,
    each: 150,
    inner: 130,
    out: 12,
    ranks: [8],
    groups: () => 0,
    modeX: 1,
    modes: [[1, 1]],
  },
  // A rank beyond what a block holds; an adapter without rows.
  {
    batch: 3,
    each: 7,
    inner: 18,
    out: 520,
    ranks: [260, 3],
    groups: (i) => (i === 1 ? -1 : 0),
    modeX: 1,
    modes: [
      [1, 1],
      [1, 2],
    ],
  },
  { batch: 2, each: 5, inner: 9, out: 8, ranks: [4], groups: (i) => -i, modeX: 0, modes: [[2, 0]] },
  { batch: 2, each: 5, inner: 9, out: 8, ranks: [4], groups: (i) => -i, modeX: 0, modes: [[0, 2]] },
];

/** Every output of the branches and of their gradients, by name. */
function branches(c: Case, backend: Backend): Record<string, number[]> {
  return scope(() => {
    let stream = 0;
    const make = (shape: readonly number[]) =>
      tensor(normal({ seed: 4, stream: stream++ }, numel(shape)), shape, { backend });
    const { batch, each, inner, out, ranks, modeX, modes } = c;
    const factors = ranks.map((r) => ({ a: make([r, inner]), b: make([out, r]) }));
    const scales = ranks.map((_, i) => 0.5 + i);
    const groups = Array.from({ length: batch }, (_, i) => c.groups(i));
    const [x, y, dy] = [
      make([batch, each, inner]),
      make([batch, each, out]),
      make([batch, each, out]),
    ];
    const z = Tensor.empty(backend, y.shape, 'f32');
    const h = Tensor.empty(backend, [batch, each, Math.max(...ranks)], 'f32');
    const pairs = factors.flatMap(({ a, b }) => [a, b]);
    backend.run('addLowRankRows', [y, x, ...pairs, z, h], [...scales, ...groups]);
    // Into y itself: the same.
    backend.run('addLowRankRows', [y, x, ...pairs, y], [...scales, ...groups]);
    const outputs: Record<string, Tensor> = { z, h, y };
    const tensors: Tensor[] = [dy];
    if (modes.some(([a]) => a > 0)) tensors.push(x);
    if (modes.some(([, b]) => b > 0)) tensors.push(h);
    factors.forEach(({ a, b }, i) => {
      if (modeX > 0) tensors.push(a);
      if (modeX > 0 || (modes[i]?.[0] ?? 0) > 0) tensors.push(b);
    });
    const want = (name: string, shape: readonly number[]) => {
      const t = make(shape);
      outputs[name] = t;
      tensors.push(t);
    };
    if (modeX > 0) want('dx', x.shape);
    factors.forEach(({ a, b }, i) => {
      if ((modes[i]?.[0] ?? 0) > 0) want(`dA${i}`, a.shape);
      if ((modes[i]?.[1] ?? 0) > 0) want(`dB${i}`, b.shape);
    });
    const attrs = [ranks.length, ...scales, modeX, ...modes.flat(), ...groups];
    backend.run('addLowRankRows.grad', tensors, attrs);
    return Object.fromEntries(Object.entries(outputs).map(([name, t]) => [name, t.toNumbers()]));
  });
}

for (const c of CASES) {
  const what = `${c.batch} × ${c.each} rows, ranks ${c.ranks}, modes ${c.modeX} ${c.modes.flat()}`;
  onCuda(what, () => {
    const want = branches(c, reference);
    const all = ['forward', 'reverse', 'shuffled'].map((order) => {
      process.env.LOWRANK_SHIM_ORDER = order;
      return branches(c, cuda as Backend);
    });
    for (const [name, values] of Object.entries(want)) {
      const largest = values.reduce((m, v) => Math.max(m, Math.abs(v)), 0.01);
      const got = all[0]?.[name] as number[];
      values.forEach((v, i) => {
        const off = Math.abs((got[i] as number) - v) / largest;
        assert.ok(off < 1e-5, `${name}, element ${i}: ${got[i]}, expected ${v}`);
      });
      for (const other of all) assert.equal(other[name], got, `${name} in any order of threads`);
    }
  });
}

onCuda('more pairs than a launch takes are merged with one rounding', () => {
  const merged = [reference, cuda as Backend].map((backend) =>
    scope(() => {
      let stream = 100;
      const make = (shape: readonly number[]) =>
        tensor(normal({ seed: 4, stream: stream++ }, numel(shape)), shape, { backend });
      const w = make([5, 70]);
      const factors = Array.from({ length: 67 }, () => ({
        a: make([1, 70]),
        b: make([5, 1]),
        scale: 0.25,
      }));
      return mergeLowRank(w, factors, { dtype: 'f32' }).merged.toNumbers();
    }),
  ) as [number[], number[]];
  merged[0].forEach((v, i) => {
    assert.ok(Math.abs((merged[1][i] as number) - v) < 1e-5, `element ${i}`);
  });
});

test.run();
