import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope, setTrainable } from '../src/autograd/index.js';
import { fullConfig, type LoraConfig, LoraLinear } from '../src/lora/index.js';
import { LoraConv, LoraEmbedding } from '../src/lora/layer.js';
import { variantOn } from '../src/lora/variants/index.js';
import { Conv1d, Embedding, Linear, withTraining } from '../src/nn/index.js';
import { addLowRank, addLowRankRows, type RowFactors } from '../src/ops/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal, streamOf } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, onNative } from './backends.js';

function maker(backend: Backend, seed: number) {
  let stream = 0;
  return (shape: readonly number[]) =>
    tensor(normal({ seed, stream: stream++ }, numel(shape)), shape, { backend });
}

const floats = (t: Tensor) => t.toArray() as Float32Array;

/** Rows of a batch as a batch of their own. */
function cut(t: Tensor, rows: readonly number[]): Tensor {
  const all = floats(t);
  const width = numel(t.shape.slice(1));
  const values = Float32Array.from(
    rows.flatMap((r) => [...all.subarray(r * width, (r + 1) * width)]),
  );
  return tensor(values, [rows.length, ...t.shape.slice(1)], { backend: t.backend });
}

/** Throws unless two results agree to a share of the largest number. */
function close(got: ArrayLike<number>, want: ArrayLike<number>, rtol: number, what: string): void {
  assert.is(got.length, want.length, what);
  let largest = 1e-6;
  for (let i = 0; i < want.length; i++) largest = Math.max(largest, Math.abs(want[i] as number));
  for (let i = 0; i < want.length; i++) {
    const apart = Math.abs((got[i] as number) - (want[i] as number));
    if (!(apart <= rtol * largest)) {
      assert.unreachable(`${what}: element ${i} is ${got[i]}, expected ${want[i]}`);
    }
  }
}

interface Batch {
  readonly y: Tensor;
  readonly x: Tensor;
  readonly dy: Tensor;
  readonly factors: readonly RowFactors[];
}

function batchOf(
  backend: Backend,
  seed: number,
  rows: readonly number[],
  [inner, out, ranks]: readonly [number, number, readonly number[]],
): Batch {
  const make = maker(backend, seed);
  const factors = ranks.map((r, i) => ({
    a: make([r, inner]),
    b: make([out, r]),
    scale: i + 0.5,
  }));
  return { y: make([...rows, out]), x: make([...rows, inner]), dy: make([...rows, out]), factors };
}

/** Output and gradients of x and of every A and B, as they lie in memory. */
function trained(
  { y, x, dy, factors }: Batch,
  groups: readonly number[],
  run = (sum: Tensor) => addLowRankRows(sum, x, factors, groups),
): { output: Tensor; dx: Tensor; sides: Tensor[] } {
  const leaves = [x, ...factors.flatMap(({ a, b }) => [a, b])];
  for (const t of leaves) setTrainable(t, true);
  const output = run(y);
  backward(output, dy);
  const grads = leaves.map((t) => {
    const { backend } = t;
    // An adapter that no row names may have none.
    const values = t.grad ? floats(t.grad) : new Float32Array(t.size);
    return tensor(values, t.shape, { backend });
  });
  for (const t of leaves) setTrainable(t, false);
  return { output, dx: grads[0] as Tensor, sides: grads.slice(1) };
}

const CASES = fc.record({
  seed: fc.integer({ min: 0, max: 1e6 }),
  time: fc.integer({ min: 1, max: 3 }),
  inner: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constant(1100)),
  out: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constant(530)),
  ranks: fc.array(fc.constantFrom(1, 2, 3, 4, 8, 12, 16, 20), { minLength: 1, maxLength: 4 }),
  picks: fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 9 }),
});

onEachBackend(
  test,
  'training a mixed batch: rows have the bits of their adapter alone, gradients add up',
  (backend) => {
    fc.assert(
      fc.property(CASES, ({ seed, time, inner, out, ranks, picks }) =>
        scope(() => {
          const groups = picks.map((p) => (p % (ranks.length + 1)) - 1);
          const batch = batchOf(backend, seed, [groups.length, time], [inner, out, ranks]);
          const mixed = trained(batch, groups);
          const sums = batch.factors.flatMap(({ a, b }) => [
            new Float64Array(a.size),
            new Float64Array(b.size),
          ]);
          groups.forEach((group, row) => {
            const own = {
              y: cut(batch.y, [row]),
              x: cut(batch.x, [row]),
              dy: cut(batch.dy, [row]),
              factors: group < 0 ? [] : [batch.factors[group] as RowFactors],
            };
            // As the one adapter of a plain layer.
            const [factor] = own.factors;
            const alone = factor
              ? trained(own, [0], (sum) => addLowRank(sum, own.x, factor.a, factor.b, factor))
              : { output: own.y, dx: null, sides: [] };
            assert.equal(cut(mixed.output, [row]).bytes(), alone.output.bytes(), `row ${row}`);
            if (alone.dx) assert.equal(cut(mixed.dx, [row]).bytes(), alone.dx.bytes(), 'dx');
            else assert.ok(floats(cut(mixed.dx, [row])).every((v) => v === 0));
            alone.sides.forEach((g, i) => {
              const sum = sums[2 * group + i] as Float64Array;
              floats(g).forEach((v, k) => {
                sum[k] = (sum[k] as number) + v;
              });
            });
          });
          mixed.sides.forEach((g, i) => {
            close(floats(g), sums[i] as Float64Array, 1e-5, `gradient of side ${i}`);
          });
        }),
      ),
      { numRuns: 60 },
    );
  },
);

onEachBackend(
  test,
  'the order of adapters and who else is in the batch change no bit',
  (backend) => {
    scope(() => {
      const ranks = [8, 3, 16];
      const groups = [1, 0, 0, -1, 2, 1, 0];
      const batch = batchOf(backend, 5, [groups.length, 2], [45, 77, ranks]);
      const bits = (r: { sides: Tensor[]; output: Tensor; dx: Tensor }, sides: number[]) =>
        [r.output, r.dx, ...sides.flatMap((i) => [r.sides[2 * i], r.sides[2 * i + 1]])].map((t) =>
          Buffer.from((t as Tensor).bytes()).toString('hex'),
        );
      const plain = trained(batch, groups);
      const turn = [2, 0, 1];
      const turned = trained(
        { ...batch, factors: turn.map((g) => batch.factors[g] as RowFactors) },
        groups.map((g) => (g < 0 ? g : turn.indexOf(g))),
      );
      assert.equal(
        bits(
          turned,
          ranks.map((_, g) => turn.indexOf(g)),
        ),
        bits(plain, [0, 1, 2]),
      );
      // The rows of adapter 0 alone: its gradients have the same bits.
      const rows = groups.flatMap((g, i) => (g === 0 ? [i] : []));
      const few = trained(
        {
          y: cut(batch.y, rows),
          x: cut(batch.x, rows),
          dy: cut(batch.dy, rows),
          factors: batch.factors.slice(0, 1),
        },
        rows.map(() => 0),
      );
      assert.equal(few.sides[0]?.bytes(), plain.sides[0]?.bytes());
      assert.equal(few.sides[1]?.bytes(), plain.sides[1]?.bytes());
    });
  },
);

onNative(test, 'any number of threads gives a mixed batch’s gradients the same bits', (backend) => {
  const { threads } = backend.info();
  try {
    // One row that threads share, few rows, many; one adapter and several.
    for (const [rows, groups] of [
      [[1, 1], [0]],
      [
        [5, 40],
        [0, 1, -1, 0, 1],
      ],
      [
        [2, 300],
        [0, 0],
      ],
    ] as const) {
      const bits = [1, 2, 3].map((count) => {
        backend.setThreads(count);
        return scope(() => {
          const batch = batchOf(backend, 7, rows, [2100, 1300, [8, 20]]);
          const { output, dx, sides } = trained(batch, groups);
          const hash = createHash('sha256');
          for (const t of [output, dx, ...sides]) hash.update(t.bytes());
          return hash.digest('hex');
        });
      });
      assert.equal(bits, [bits[0], bits[0], bits[0]], `${rows}`);
    }
  } finally {
    backend.setThreads(threads);
  }
});

onEachBackend(test, 'only what is trained gets a gradient, and gradients accumulate', (backend) => {
  scope(() => {
    const groups = [0, 1, 0];
    const batch = batchOf(backend, 3, [3], [9, 11, [2, 5]]);
    const [first, second] = batch.factors as [RowFactors, RowFactors];
    const all = trained(batch, groups);
    // Adapter 1's A, adapter 0's B; x is frozen.
    setTrainable(second.a, true);
    setTrainable(first.b, true);
    const step = () => backward(addLowRankRows(batch.y, batch.x, batch.factors, groups), batch.dy);
    step();
    assert.is(batch.x.grad, null);
    assert.is(first.a.grad, null);
    assert.equal(second.a.grad?.bytes(), all.sides[2]?.bytes());
    assert.equal(first.b.grad?.bytes(), all.sides[1]?.bytes());
    step();
    const twice = floats(all.sides[2] as Tensor).map((v) => 2 * v);
    close(floats(second.a.grad as Tensor), twice, 1e-6, 'two steps');
    for (const t of [second.a, first.b]) setTrainable(t, false);
    // Without adapters y is y, with a gradient of its own.
    setTrainable(batch.y, true);
    backward(addLowRankRows(batch.y, batch.x, [], [-1, -1, -1]), batch.dy);
    assert.equal(batch.y.grad?.bytes(), batch.dy.bytes());
    setTrainable(batch.y, false);
  });
});

type Layer = LoraLinear | LoraEmbedding | LoraConv;

/** A layer with an adapter of each name, and an input for `rows` rows. */
const LAYERS: Record<
  string,
  { layer: (m: ReturnType<typeof maker>) => Layer; input: readonly number[] }
> = {
  dense: { layer: (m) => new LoraLinear(new Linear(m([12, 7]), m([12])), 'l'), input: [3, 7] },
  conv: { layer: (m) => new LoraConv(new Conv1d(m([6, 4, 3]), m([6])), 'l'), input: [4, 9] },
  embedding: { layer: (m) => new LoraEmbedding(new Embedding(m([50, 6])), 'l'), input: [5] },
};

const SETTINGS: readonly [string, Partial<LoraConfig>, readonly string[]][] = [
  ['dora', { variant: 'dora' }, ['dense', 'conv', 'embedding']],
  ['plain', {}, ['conv', 'embedding']],
  ['start', { init: 'olora' }, ['dense']],
  ['parts', { enableLora: { l: [true, false, true] } }, ['dense']],
  ['bias', { loraBias: true }, ['dense']],
];

onEachBackend(test, 'every kind of branch is trained by its own rows alone', (backend) => {
  for (const [title, more, kinds] of SETTINGS) {
    for (const kind of kinds) {
      scope(() => {
        const make = maker(backend, streamOf(`${title} ${kind}`) % 1000);
        const { layer: layerOf, input } = LAYERS[kind] as (typeof LAYERS)[string];
        const layer = layerOf(make);
        for (const name of ['a', 'b']) {
          const config = fullConfig({ rank: 2, targetModules: ['l'], ...more });
          const branch = variantOn(layer.site, config).create(layer.site, config, 1);
          for (const t of branch.tensors().values()) {
            const values = normal({ seed: 2, stream: streamOf(name) % 1000 }, t.size);
            t.setBytes(new Uint8Array(Float32Array.from(values, (v) => 1 + 0.3 * v).buffer));
          }
          branch.setTrainable(true);
          layer.branches.set(name, branch);
        }
        const rows = ['b', null, 'a', 'b', null];
        const size = rows.length * numel(input);
        const x =
          kind === 'embedding'
            ? tensor(
                Int32Array.from({ length: size }, (_, i) => (i * 7) % 50),
                [rows.length, ...input],
                { backend, dtype: 'i32' },
              )
            : setTrainable(make([rows.length, ...input]), true);
        const run = (names: readonly (string | null)[] | null, active: string[], of: Tensor) => {
          layer.rows = names;
          layer.active = active;
          return layer.forward(of);
        };
        const grads = () => {
          const found = ['a', 'b'].flatMap((name) => {
            const branch = layer.branches.get(name);
            const all = [...(branch?.tensors().values() ?? [])].map((t) =>
              t.grad ? [...floats(t.grad)] : Array<number>(t.size).fill(0),
            );
            branch?.setTrainable(false);
            branch?.setTrainable(true);
            return all;
          });
          return found;
        };
        const mixed = run(rows, [], x);
        const dy = make(mixed.shape);
        backward(mixed, dy);
        const got = grads();
        const want = got.map((g) => g.map(() => 0));
        const dx = x.grad ? floats(x.grad) : null;
        rows.forEach((name, row) => {
          const values = x
            .toArray()
            .slice((row * size) / rows.length, ((row + 1) * size) / rows.length);
          const own = tensor(values, [1, ...input], {
            backend,
            dtype: kind === 'embedding' ? 'i32' : 'f32',
          });
          if (own.isFloat) setTrainable(own, true);
          const alone = run(null, name ? [name] : [], own);
          close(floats(cut(mixed, [row])), floats(alone), 1e-5, `${title}, ${kind}, row ${row}`);
          if (!alone.requiresGrad) return;
          backward(alone, cut(dy, [row]));
          grads().forEach((g, i) => {
            g.forEach((v, k) => {
              (want[i] as number[])[k] = ((want[i] as number[])[k] as number) + v;
            });
          });
          if (dx && own.grad) {
            const part = dx.subarray((row * size) / rows.length, ((row + 1) * size) / rows.length);
            close(part, floats(own.grad), 1e-5, `${title}, ${kind}, dx of row ${row}`);
          }
        });
        got.forEach((g, i) => {
          assert.ok(
            g.some((v) => v !== 0),
            `${title}, ${kind}: side ${i} is trained`,
          );
          close(g, want[i] as number[], 1e-5, `${title}, ${kind}, side ${i}`);
        });
        layer.dispose();
      });
    }
  }
});

onEachBackend(test, 'dropout in a mixed batch drops what it drops in a plain one', (backend) => {
  scope(() => {
    const make = maker(backend, 4);
    const layer = new LoraLinear(new Linear(make([6, 40])), 'l');
    for (const [name, dropout] of [
      ['a', 0.5],
      ['b', 0.5],
      ['c', 0.25],
      ['d', 0],
    ] as const) {
      const config = fullConfig({ rank: 2, targetModules: ['l'], dropout });
      const branch = variantOn(layer.site, config).from(layer.site, config, (_, s) => make(s));
      layer.branches.set(name, branch);
    }
    const rows = ['a', 'b', 'c', 'd', null, 'a'];
    const x = make([rows.length, 40]);
    const context = { seed: 1, step: 3 };
    const forward = () => withTraining(context, () => noGrad(() => floats(layer.forward(x))));
    layer.rows = rows;
    const mixed = forward();
    layer.rows = null;
    rows.forEach((name, row) => {
      layer.active = name ? [name] : [];
      const own = forward().subarray(row * 6, (row + 1) * 6);
      assert.equal([...mixed.subarray(row * 6, (row + 1) * 6)], [...own], `row ${row}, ${name}`);
    });
    layer.dispose();
  });
});

test.run();
