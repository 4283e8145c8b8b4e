import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { jacobiSvd } from '../src/linalg/index.js';
import {
  type Adapter,
  combine,
  diff,
  negate,
  padRank,
  pruneByMagnitude,
  resize,
  scaleAdapter,
  subtract,
} from '../src/lora/algebra/index.js';
import { normal } from '../src/tensor/random.js';
import { onEachBackend } from './backends.js';
import {
  apart,
  deltaOf,
  forPairs,
  LAYERS,
  randomAdapter,
  relative,
  sumOf,
} from './support/adapters.js';

const RUNS = 25;
const PATHS = Object.keys(LAYERS);

const both = (a: Adapter, b: Adapter, [v, w]: readonly [number, number] = [1, 1]) => [
  { adapter: a, weight: v },
  { adapter: b, weight: w },
];

test('cat and linear are Σ wᵢ ΔWᵢ; ranks add up', () => {
  forPairs(RUNS, (a, b, weights) => {
    for (const method of ['cat', 'linear'] as const) {
      const { adapter } = combine(both(a, b, weights), { method });
      assert.is(adapter.config.r, Number(a.config.r) + Number(b.config.r));
      assert.is(adapter.config.lora_alpha, adapter.config.r);
      for (const p of PATHS) {
        const wanted = sumOf([
          [weights[0], deltaOf(a, p)],
          [weights[1], deltaOf(b, p)],
        ]);
        const scale = Math.max(deltaOf(a, p).norm(), deltaOf(b, p).norm());
        assert.ok(
          sumOf([
            [1, deltaOf(adapter, p)],
            [-1, wanted],
          ]).norm() <=
            1e-6 * scale,
        );
      }
    }
  });
});

test('a combination does not depend on the order, and associates', () => {
  forPairs(RUNS, (a, b, [v, w], seed) => {
    const c = randomAdapter(seed + 7, 2, 4);
    const ab = combine(both(a, b, [v, w])).adapter;
    const ba = combine(both(b, a, [w, v])).adapter;
    const abc = combine(both(ab, c)).adapter;
    const flat = combine([...both(a, b, [v, w]), { adapter: c, weight: 1 }]).adapter;
    for (const [x, y] of [
      [ab, ba],
      [abc, flat],
    ] as const) {
      // Against the parts' size: weights may cancel what they add.
      for (const p of PATHS) {
        const size = deltaOf(a, p).norm() + deltaOf(b, p).norm() + deltaOf(c, p).norm();
        const rest = sumOf([
          [1, deltaOf(x, p)],
          [-1, deltaOf(y, p)],
        ]).norm();
        assert.ok(rest <= 1e-6 * size);
      }
    }
  });
});

test('svd at full rank is cat; cut, it is as near as a rank can be, and says how near', () => {
  forPairs(RUNS, (a, b) => {
    const exact = combine(both(a, b)).adapter;
    const whole = combine(both(a, b), { method: 'svd', rank: Number(exact.config.r) });
    assert.ok(apart(whole.adapter, exact) < 1e-6);
    assert.ok(whole.layers.every((l) => l.error < 1e-12));
    const cut = combine(both(a, b), { method: 'svd', rank: 2 });
    assert.is(cut.adapter.config.r, 2);
    for (const { path, error, energy } of cut.layers) {
      const { s } = jacobiSvd(deltaOf(exact, path));
      const best = Math.hypot(...s.slice(2)) / Math.hypot(...s);
      assert.ok(Math.abs(error - best) < 1e-6, `told ${error}, best ${best}`);
      assert.ok(Math.abs(energy - (1 - best * best)) < 1e-6);
      const found = relative(deltaOf(cut.adapter, path), deltaOf(exact, path));
      assert.ok(Math.abs(found - best) < 1e-6, `found ${found}, best ${best}`);
    }
  });
});

test('averaging A and B apart is not what linear does', () => {
  const [a, b] = [randomAdapter(1, 4, 8), randomAdapter(2, 4, 8)];
  const { adapter } = combine(both(a, b, [0.5, 0.5]), { method: 'linear' });
  const mean = (p: Float32Array, q: Float32Array) => p.map((v, i) => 0.5 * (v + (q[i] as number)));
  const modules = new Map(a.modules);
  for (const [path, x] of a.modules) {
    const y = b.modules.get(path) as typeof x;
    modules.set(path, { ...x, a: mean(x.a, y.a), b: mean(x.b, y.b) });
  }
  for (const p of PATHS) {
    assert.ok(relative(deltaOf({ ...a, modules }, p), deltaOf(adapter, p)) > 0.5);
  }
});

test('negation and subtraction: twice is nothing, a − a is 0, a − b + b is a', () => {
  forPairs(RUNS, (a, b) => {
    assert.equal(negate(negate(a)), a);
    assert.is(apart(combine(both(a, b, [1, -1])).adapter, subtract(a, b)), 0);
    for (const p of PATHS) {
      assert.ok(deltaOf(subtract(a, a), p).norm() <= 1e-12 * deltaOf(a, p).norm());
    }
    const back = combine(both(subtract(a, b), b)).adapter;
    for (const p of PATHS) {
      const size = deltaOf(a, p).norm() + deltaOf(b, p).norm();
      assert.ok(
        sumOf([
          [1, deltaOf(back, p)],
          [-1, deltaOf(a, p)],
        ]).norm() <=
          1e-6 * size,
      );
    }
    const plus = combine(both(a, negate(b))).adapter;
    assert.ok(apart(plus, subtract(a, b)) < 1e-6);
    assert.ok(apart(scaleAdapter(a, 4), combine([{ adapter: a, weight: 4 }]).adapter) < 1e-6);
  });
});

test('resize: up changes nothing, down to the rank of ΔW neither, by energy keeps it', () => {
  forPairs(RUNS, (a) => {
    const rank = Number(a.config.r);
    const up = resize(a, { rank: rank + 3 });
    assert.ok(apart(up.adapter, a) < 1e-6);
    assert.is(up.adapter.config.r, rank + 3);
    assert.ok(apart(resize(up.adapter, { rank }).adapter, a) < 1e-6);
    const kept = resize(a, { energy: 0.8 });
    for (const { path, to, energy, error } of kept.layers) {
      assert.ok(energy >= 0.8 && to <= rank);
      const found = relative(deltaOf(kept.adapter, path), deltaOf(a, path));
      assert.ok(Math.abs(found - error) < 1e-6);
      if (to > 1) {
        const fewer = resize(a, { rank: to - 1 }).layers.find((l) => l.path === path);
        assert.ok((fewer?.energy as number) < 0.8, 'and not with a smaller rank');
      }
    }
    const padded = new Map([...a.modules].map(([p, m]) => [p, padRank(m, rank + 2)]));
    assert.is(apart({ ...a, modules: padded }, a), 0);
  });
});

test('pruning keeps exactly the largest, the first of equals', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: -4, max: 4 }), { minLength: 1, maxLength: 40 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      (list, density) => {
        const values = Float32Array.from(list, (x) => x * 0.37);
        const keep = Math.floor(density * list.length);
        const order = [...values.keys()].sort(
          (i, j) => Math.abs(values[j] as number) - Math.abs(values[i] as number) || i - j,
        );
        const wanted = values.slice();
        for (const i of order.slice(keep)) wanted[i] = 0;
        pruneByMagnitude(values, density);
        assert.equal([...values], [...wanted]);
      },
    ),
    { verbose: 1 },
  );
  const many = Float32Array.from(normal({ seed: 3, stream: 4 }, 20000));
  const sorted = Float32Array.from(many, Math.abs).sort();
  pruneByMagnitude(many, 0.25);
  const kept = many.filter((x) => x !== 0);
  assert.is(kept.length, 5000);
  assert.ok(kept.every((x) => Math.abs(x) >= (sorted[15000] as number)));
});

onEachBackend(test, 'at density 1 prune and dare are the sum, ties of one is itself', (backend) => {
  forPairs(8, (a, b, weights) => {
    const rank = 10;
    const exact = combine(both(a, b, weights), { method: 'svd', rank }).adapter;
    for (const method of ['prune', 'dare'] as const) {
      const { adapter, layers } = combine(both(a, b, weights), {
        ...{ method, rank, density: 1, backend },
      });
      for (const p of PATHS) {
        const size = deltaOf(a, p).norm() + deltaOf(b, p).norm();
        assert.ok(
          sumOf([
            [1, deltaOf(adapter, p)],
            [-1, deltaOf(exact, p)],
          ]).norm() <
            1e-5 * size,
        );
      }
      assert.ok(layers.every((l) => l.error < 1e-3 || l.energy < 1));
    }
    const alone = combine([{ adapter: a, weight: 1 }], {
      ...{ method: 'ties', density: 1, backend },
    });
    assert.ok(apart(alone.adapter, a) < 1e-5);
    const twins = combine(both(a, a), { method: 'ties', density: 1, backend });
    assert.ok(apart(twins.adapter, a) < 1e-5, 'the mean of two that agree is either');
  });
});

onEachBackend(test, 'ties by hand', (backend) => {
  const layers = { 'm.proj': [1, 4] } as const;
  const of = (row: number[]): Adapter => {
    const adapter = randomAdapter(1, 1, 1, layers);
    const m = [...adapter.modules.values()][0];
    if (!m) throw new Error('no layer');
    const module = { ...m, a: Float32Array.from(row), b: Float32Array.of(1) };
    return { ...adapter, modules: new Map([['m.proj', module]]) };
  };
  const [a, b] = [of([4, -1, 3, 0.5]), of([-2, -5, 3, 0.1])];
  const values = (options: object) => {
    const { adapter } = combine(both(a, b, [1, 3]), { backend, ...options });
    return [...deltaOf(adapter, 'm.proj').data].map((x) => Math.round(1e4 * x) / 1e4 + 0);
  };
  // Signs + − + +; those that have them, weighted, over their number.
  assert.equal(values({ method: 'ties', density: 1 }), [4, -8, 6, 0.4]);
  // The two largest of each are left: 4, 3 and −5, 3.
  assert.equal(values({ method: 'ties', density: 0.5 }), [4, -15, 6, 0]);
  assert.equal(values({ method: 'prune', density: 0.5 }), [4, -15, 12, 0]);
  // By count the first is a draw, which goes to +.
  assert.equal(values({ method: 'ties', density: 1, sign: 'frequency' }), [4, -8, 6, 0.4]);
});

onEachBackend(
  test,
  'dare: the same for a seed, another for another, right in the mean',
  (backend) => {
    const a = randomAdapter(3, 3, 6);
    const [path] = PATHS as [string];
    const drawn = (seed: number, rank = 10) =>
      combine([{ adapter: a, weight: 1 }], { method: 'dare', density: 0.5, rank, seed, backend })
        .adapter;
    assert.equal(drawn(5), drawn(5));
    assert.ok(apart(drawn(5), drawn(6)) > 0.1);
    const wanted = deltaOf(a, path);
    const once = deltaOf(drawn(0), path);
    once.data.forEach((x, i) => {
      const doubled = 2 * (wanted.data[i] as number);
      assert.ok(Math.abs(x) < 1e-4 || Math.abs(x - doubled) < 1e-4, 'dropped or doubled');
    });
    const times = 60;
    const mean = sumOf(
      Array.from({ length: times }, (_, seed) => [1 / times, deltaOf(drawn(seed), path)] as const),
    );
    // A share of 1/√60 is noise.
    assert.ok(relative(mean, wanted) < 0.2, `${relative(mean, wanted)}`);
  },
);

test('a layer that only one adapter has: zero in the other', () => {
  const a = randomAdapter(1, 3, 6);
  const { 'model.layers.0.mlp.down_proj': only } = LAYERS;
  const b = randomAdapter(2, 2, 4, { 'model.layers.0.mlp.up_proj': [17, 10], z: only as never });
  const { adapter } = combine(both(a, b));
  assert.is(adapter.modules.size, 6);
  assert.is(adapter.config.r, 3, 'the largest, zeros in the others');
  assert.equal(adapter.config.target_modules, [...PATHS, 'model.layers.0.mlp.up_proj', 'z']);
  for (const p of PATHS) assert.ok(relative(deltaOf(adapter, p), deltaOf(a, p)) < 1e-6);
  assert.ok(relative(deltaOf(adapter, 'z'), deltaOf(b, 'z')) < 1e-6);
});

test('diff: the same, opposite, scaled, missing; and settings', () => {
  forPairs(RUNS, (a, b) => {
    for (const l of diff(a, a).layers) {
      assert.ok((l.difference as number) < 1e-14 && Math.abs((l.cosine as number) - 1) < 1e-12);
    }
    for (const l of diff(a, negate(a)).layers) {
      assert.ok(Math.abs((l.difference as number) - 2) < 1e-12, `${l.difference}`);
      assert.ok(Math.abs((l.cosine as number) + 1) < 1e-12);
    }
    for (const { path, difference, norms, cosine } of diff(a, b).layers) {
      const [x, y] = [deltaOf(a, path), deltaOf(b, path)];
      assert.ok(Math.abs(norms[0] - x.norm()) < 1e-9 * x.norm());
      assert.ok(Math.abs((difference as number) - relative(x, y)) < 1e-9);
      const dot = x.data.reduce((s, v, i) => s + v * (y.data[i] as number), 0);
      assert.ok(Math.abs((cosine as number) - dot / (x.norm() * y.norm())) < 1e-9);
    }
  });
  const a = randomAdapter(1, 2, 4);
  const fewer = { ...a, modules: new Map([...a.modules].slice(1)) };
  const [first, ...others] = diff(a, fewer).layers;
  assert.equal([first?.ranks, first?.difference], [[2, null], 1]);
  assert.ok(others.every((l) => (l.difference as number) < 1e-14));
  const b = {
    ...a,
    config: { ...a.config, lora_alpha: 9, target_modules: ['down_proj', 'q_proj'] },
  };
  assert.equal(diff(a, b).settings, [{ setting: 'lora_alpha', values: [4, 9] }]);
});

test('misuse is told with a way out', () => {
  const a = randomAdapter(1, 2, 4);
  const told = (pattern: RegExp, run: () => unknown) => assert.throws(run, pattern);
  told(/\[combine rank\] expected none for cat.*Use svd/, () => combine(both(a, a), { rank: 3 }));
  told(/\[combine density\] expected 0 < density/, () => combine(both(a, a), { method: 'ties' }));
  told(/\[combine density\] expected none/, () => combine(both(a, a), { density: 1 }));
  told(/\[combine sign\] expected none for dare/, () =>
    combine(both(a, a), { method: 'dare', density: 0.5, sign: 'total' }),
  );
  told(/\[combine weight\]/, () => combine(both(a, a, [1, Number.NaN])));
  told(/\[resize energy\]/, () => resize(a, { energy: 0 }));
  told(/\[resize rank\]/, () => resize(a, { rank: 1.5 }));
  const other = randomAdapter(1, 2, 4, { ...LAYERS, 'model.layers.0.self_attn.q_proj': [12, 11] });
  told(/combine, model\.layers\.0\.self_attn\.q_proj\].*other bases/, () =>
    combine(both(a, other)),
  );
  const pissa = { ...a, config: { ...a.config, init_lora_weights: 'pissa_niter_4' } };
  told(/pissa_niter_4.*convert --initial/, () => negate(pissa));
  const extra = { dtype: 'F32', shape: [1], bytes: new Uint8Array(4) };
  const dora = { ...a, extras: new Map([[`${PATHS[0]}.lora_magnitude_vector`, extra]]) };
  told(/DoRA.*Merge it/, () => resize(dora, { rank: 1 }));
  const whole = { ...a, extras: new Map([['score.weight', extra]]) };
  told(/at most one adapter with modules saved whole/, () => combine(both(whole, whole)));
  assert.equal([...combine(both(a, whole)).adapter.extras.keys()], ['score.weight']);
  // As a merge has it: a module in place of the base's has no weight and no opposite.
  const once = /weight 1 for the adapter that holds score\.weight whole, received (-1|0\.5|2)/;
  told(once, () => combine(both(a, whole, [1, 0.5])));
  told(once, () => subtract(a, whole));
  told(once, () => negate(whole));
  told(once, () => scaleAdapter(whole, 2));
  assert.equal([...subtract(whole, a).extras.keys()], ['score.weight']);
});

test.run();
