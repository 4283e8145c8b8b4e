import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { scope } from '../src/autograd/index.js';
import { jacobiSvd, Matrix, thinQr } from '../src/linalg/index.js';
import type { Adapter } from '../src/lora/algebra/index.js';
import {
  amplification,
  analyze,
  directionsOf,
  randomSimilarity,
  spectrumOf,
  subspaceSimilarity,
} from '../src/lora/analysis/index.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { onEachBackend } from './backends.js';
import { deltaOf, forPairs, LAYERS, randomAdapter } from './support/adapters.js';

const near = (a: number, b: number, by = 1e-9) => Math.abs(a - b) <= by * Math.max(1, Math.abs(b));

function randomDirections(d: number, k: number, seed: number): Matrix {
  return thinQr(new Matrix(d, k, normal({ seed, stream: d }, d * k))).q;
}

const [PATH] = Object.keys(LAYERS) as [string];

/** A module of an adapter. */
function moduleOf(adapter: Adapter, path = PATH) {
  const m = adapter.modules.get(path);
  if (!m) throw new Error(`no layer ${path}`);
  return m;
}

test('spectra: r equal values have effective rank r, one has 1, none 0', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 20 }),
      fc.double({ min: 0.1, max: 9, noNaN: true }),
      (r, x) => {
        const s = spectrumOf(new Array(r).fill(x));
        assert.ok(
          near(s.effectiveRank, r) && near(s.stableRank, r) && near(s.norm, x * Math.sqrt(r)),
        );
        assert.is(s.rank99, Math.ceil(0.99 * r));
        assert.is(s.rank90, Math.ceil(0.9 * r - 1e-9));
      },
    ),
    { verbose: 1 },
  );
  const one = spectrumOf([2, 0, 0]);
  assert.equal([one.effectiveRank, one.stableRank, one.rank90, one.norm], [1, 1, 1, 2]);
  const none = spectrumOf([0, 0]);
  assert.equal([none.effectiveRank, none.stableRank, none.rank90, none.norm], [0, 0, 0, 0]);
});

test('singular values are those of ΔW, formed', () => {
  forPairs(15, (a) => {
    for (const { path, spectrum, similarity, amplification: none } of analyze(a)) {
      const { s } = jacobiSvd(deltaOf(a, path));
      spectrum.singularValues.forEach((x, i) => {
        assert.ok(near(x, s[i] as number, 1e-10 * (1 + (s[0] as number))));
      });
      assert.equal([similarity, none], [null, null]);
    }
  });
});

test('φ: 1 with itself on the diagonal, 0 for orthogonal directions, symmetric, in 0 … 1', () => {
  const u = randomDirections(20, 6, 1);
  const own = subspaceSimilarity(u, u);
  own.forEach((row, i) => {
    row.forEach((x, j) => {
      assert.ok(near(x, 1, 1e-12), `one within the other, ${i} ${j}: ${x}`);
    });
  });
  const all = randomDirections(12, 12, 2);
  const other = new Matrix(12, 5, all.data.slice(12 * 6, 12 * 11));
  for (const row of subspaceSimilarity(all.firstColumns(6), other)) {
    assert.ok(row.every((x) => x < 1e-12));
  }
  const v = randomDirections(20, 4, 3);
  const [uv, vu] = [subspaceSimilarity(u, v), subspaceSimilarity(v, u)];
  uv.forEach((row, i) => {
    row.forEach((x, j) => {
      assert.ok(x >= 0 && x <= 1 && near(x, vu[j]?.[i] as number, 1e-12));
      // By definition: the squares of the first i by j overlaps over the smaller number.
      let sum = 0;
      for (let p = 0; p <= i; p++) {
        for (let q = 0; q <= j; q++) {
          let dot = 0;
          for (let k = 0; k < 20; k++) dot += u.at(k, p) * v.at(k, q);
          sum += dot * dot;
        }
      }
      assert.ok(near(x, sum / (Math.min(i, j) + 1), 1e-12));
    });
  });
});

test('random directions have φ = max(i, j) / d in the mean', () => {
  const [d, i, j, times] = [16, 3, 5, 400];
  let sum = 0;
  for (let n = 0; n < times; n++) {
    const phi = subspaceSimilarity(
      randomDirections(d, i, 2 * n),
      randomDirections(d, j, 2 * n + 1),
    );
    sum += phi[i - 1]?.[j - 1] as number;
  }
  assert.is(randomSimilarity(i, j, d), 5 / 16);
  assert.ok(Math.abs(sum / times - 5 / 16) < 0.02, `${sum / times}`);
});

test('directions: of A, and of ΔW in its inputs and outputs', () => {
  const m = moduleOf(randomAdapter(4, 3, 6));
  const [a, right, left] = (['A', 'right', 'left'] as const).map((s) => directionsOf(m, s));
  assert.equal([a?.rows, right?.rows, left?.rows], [10, 10, 12]);
  // A and ΔW span the same inputs, in another order of strength.
  const whole = subspaceSimilarity(a as Matrix, right as Matrix)
    .at(-1)
    ?.at(-1) as number;
  assert.ok(near(whole, 1, 1e-9));
  const padded = { ...m, a: m.a.slice(), b: m.b.slice() };
  padded.a.fill(0, 10, 20);
  assert.is(directionsOf(padded, 'A').cols, 2, 'a row of zeros is no direction');
});

test('two adapters: the same are similar, random ones as chance has it', () => {
  const a = randomAdapter(1, 4, 8, { x: [64, 256] });
  const [same] = analyze(a, { other: a });
  assert.ok(near(same?.similarity?.whole as number, 1));
  const [chance] = analyze(a, { other: randomAdapter(2, 8, 8, { x: [64, 256] }) });
  assert.is(chance?.similarity?.random, 8 / 256);
  assert.ok((chance?.similarity?.whole as number) < 0.12);
  assert.equal([chance?.similarity?.phi.length, chance?.similarity?.phi[0]?.length], [4, 8]);
  const stranger = randomAdapter(2, 8, 8, { y: [64, 256] });
  assert.throws(() => analyze(a, { other: stranger }), /\[analyze\].*same layers.*y and others/);
});

onEachBackend(test, 'amplification: ‖ΔW‖ / ‖Uᵀ W V‖, by hand and in either layout', (backend) => {
  scope(() => {
    // ΔW = 6 e₁e₁ᵀ + 2 e₂e₂ᵀ on W = diag(3, 1, 10): √40 over √(9 + 1).
    const svd = {
      u: Matrix.identity(3, 2),
      s: Float64Array.of(6, 2),
      v: Matrix.identity(4, 2),
    };
    const w = [3, 0, 0, 0, 0, 1, 0, 0, 0, 0, 10, 0];
    const plain = tensor(Float32Array.from(w), [3, 4], { backend });
    const found = amplification(plain, svd);
    assert.ok(near(found?.factor as number, 2, 1e-6));
    assert.ok(near(found?.projected as number, Math.sqrt(10), 1e-6));
    assert.ok(near(found?.own as number, Math.sqrt(109), 1e-6), 'W’s own first two');
    assert.ok(near(found?.random as number, (2 * Math.sqrt(110)) / Math.sqrt(12), 1e-6));
    assert.ok(near(amplification(plain, svd, { rank: 1 })?.factor as number, 2, 1e-6));
    const turned = Matrix.fromRows(w, 3, 4).toColumns32();
    const transposed = tensor(turned, [4, 3], { backend });
    const other = amplification(transposed, svd, { transposed: true });
    for (const key of ['factor', 'projected', 'own', 'random', 'weightNorm'] as const) {
      assert.ok(near(other?.[key] as number, found?.[key] as number, 1e-6), key);
    }
    const zero = { ...svd, s: new Float64Array(2) };
    assert.is(amplification(plain, zero), null);
    assert.throws(
      () => amplification(transposed, svd),
      /\[amplification\] expected a weight \[3, 4\]/,
    );
  });
});

onEachBackend(test, 'amplification’s random directions: right in the mean square', (backend) => {
  scope(() => {
    const w = tensor(Float32Array.from(normal({ seed: 1, stream: 1 }, 240)), [12, 20], { backend });
    let squares = 0;
    let random = 0;
    for (let n = 0; n < 60; n++) {
      const svd = {
        u: randomDirections(12, 3, 3 * n),
        s: Float64Array.of(3, 2, 1),
        v: randomDirections(20, 3, 3 * n + 1),
      };
      const found = amplification(w, svd);
      squares += (found?.projected as number) ** 2 / 60;
      random = found?.random as number;
    }
    assert.ok(near(Math.sqrt(squares), random, 0.1), `${Math.sqrt(squares)} and ${random}`);
  });
});

test.run();
