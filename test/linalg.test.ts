import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { scope } from '../src/autograd/index.js';
import {
  jacobiSvd,
  Matrix,
  qr,
  randomizedSvd,
  type Svd,
  svd,
  svdOfProduct,
  thinQr,
  topSvd,
  truncatedSvd,
} from '../src/linalg/index.js';
import {
  eigenvectors,
  largestEigenvalues,
  rotateBack,
  tridiagonalize,
} from '../src/linalg/tridiagonal.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';

function randomMatrix(rows: number, cols: number, seed: number): Matrix {
  return new Matrix(rows, cols, normal({ seed, stream: rows * 1000 + cols }, rows * cols));
}

/** Of a given rank, singular values falling by `fall`. */
function lowRank(rows: number, cols: number, rank: number, seed: number, fall = 0.5): Matrix {
  const { q: u } = thinQr(randomMatrix(rows, rank, seed));
  const { q: v } = thinQr(randomMatrix(cols, rank, seed + 1));
  return u.scaleColumns(Array.from({ length: rank }, (_, i) => fall ** i)).times(v.transposed());
}

function difference(a: Matrix, b: Matrix): number {
  return new Matrix(
    a.rows,
    a.cols,
    a.data.map((x, i) => x - (b.data[i] as number)),
  ).norm();
}

const orthogonality = (q: Matrix) => difference(q.transposedTimes(q), Matrix.identity(q.cols));

const product = (u: Matrix, s: Float64Array, v: Matrix) =>
  new Matrix(u.rows, u.cols, u.data.slice()).scaleColumns(s).times(v.transposed());

const toTensor = (m: Matrix, backend: Backend) =>
  tensor(m.toRows32(), [m.rows, m.cols], { backend });

const toMatrix = (t: Tensor) =>
  Matrix.fromRows(t.toNumbers(), t.shape[0] as number, t.shape[1] as number);

function matrices({ u, s, vt }: Svd) {
  return { u: toMatrix(u), s, v: toMatrix(vt).transposed() };
}

const sizes = fc.record({
  rows: fc.integer({ min: 1, max: 24 }),
  cols: fc.integer({ min: 1, max: 24 }),
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
});

test('thinQr: A = QR, Q orthonormal, R upper triangular with LAPACK’s signs', () => {
  fc.assert(
    fc.property(sizes, ({ rows, cols, seed }) => {
      const a = randomMatrix(rows, cols, seed);
      const { q, r } = thinQr(a);
      assert.ok(difference(q.times(r), a) <= 1e-14 * (1 + a.norm()) * (rows + cols));
      assert.ok(orthogonality(q) < 1e-13);
      for (let j = 0; j < cols; j++) {
        for (let i = j + 1; i < r.rows; i++) assert.is(r.at(i, j), 0);
      }
      if (rows > 1) assert.is(Math.sign(r.at(0, 0)), -Math.sign(a.at(0, 0)));
    }),
    { verbose: 1 },
  );
});

test('jacobiSvd: A = U S Vᵀ, orthonormal, descending; also of deficient rank', () => {
  fc.assert(
    fc.property(sizes, fc.boolean(), fc.integer({ min: 0, max: 4 }), (c, deficient, rank) => {
      const { rows, cols, seed } = c;
      const a = deficient
        ? randomMatrix(rows, rank, seed).times(randomMatrix(rank, cols, seed + 1))
        : randomMatrix(rows, cols, seed);
      const { u, s, v } = jacobiSvd(a);
      assert.ok(difference(product(u, s, v), a) <= 1e-13 * (1 + a.norm()));
      assert.ok(orthogonality(u) < 1e-11, `U ${orthogonality(u)}`);
      assert.ok(orthogonality(v) < 1e-11, `V ${orthogonality(v)}`);
      s.forEach((x, i) => {
        assert.ok(x >= 0 && (i === 0 || x <= (s[i - 1] as number)));
      });
      if (deficient && rank < s.length) assert.ok((s[rank] as number) <= 1e-13 * (1 + a.norm()));
    }),
    { verbose: 1 },
  );
});

test('jacobiSvd ends on columns of zeros and on tiny ones', () => {
  for (const tiny of [0, 1e-20, 1e-160, 5e-324]) {
    const a = randomMatrix(10, 3, 4);
    for (let i = 10; i < 20; i++) a.data[i] = tiny * (a.data[i] as number);
    const { u, s, v } = jacobiSvd(a);
    assert.ok(orthogonality(u) < 1e-12 && orthogonality(v) < 1e-12);
    assert.ok((s[2] as number) <= 10 * tiny + 1e-15 && difference(product(u, s, v), a) < 1e-14);
  }
});

test('jacobiSvd gives small singular values their digits, and refuses NaN', () => {
  const a = new Matrix(2, 2, Float64Array.of(1, 0, 1, 1e-12));
  const { s } = jacobiSvd(a);
  // det A = s₁ s₂ = 10⁻¹², s₁² + s₂² = 2.
  assert.ok(Math.abs(((s[0] as number) * (s[1] as number)) / 1e-12 - 1) < 1e-12);
  assert.throws(() => jacobiSvd(new Matrix(1, 1, Float64Array.of(Number.NaN))), /finite numbers/);
});

/** Symmetric of these eigenvalues. */
function symmetric(values: readonly number[], seed: number): Matrix {
  const { q } = thinQr(randomMatrix(values.length, values.length, seed));
  return new Matrix(q.rows, q.cols, q.data.slice()).scaleColumns(values).times(q.transposed());
}

test('the largest eigenvalues and their vectors, by tridiagonal reduction', () => {
  const spectra: Record<string, number[]> = {
    falling: Array.from({ length: 30 }, (_, i) => 0.6 ** i),
    'both signs': Array.from({ length: 21 }, (_, i) => 10 - i),
    repeated: [5, 5, 5, 5, 2, 2, 1, 0, 0, 0, 0, 0],
    'close together': [1, 1 - 1e-12, 1 - 1e-6, 0.5, 0.1, 0, 0, 0],
    'one number': [3],
    'all zero': [0, 0, 0, 0],
    huge: [1e150, 1e149, 1, 0],
  };
  for (const [name, values] of Object.entries(spectra)) {
    for (const seed of [1, 2, 3]) {
      const a = symmetric(values, seed);
      const t = tridiagonalize(new Matrix(a.rows, a.cols, a.data.slice()));
      const count = Math.min(6, values.length);
      const found = largestEigenvalues(t, count);
      const sorted = [...values].sort((x, y) => y - x);
      const size = Math.max(...values.map(Math.abs));
      found.forEach((x, i) => {
        assert.ok(Math.abs(x - (sorted[i] as number)) <= 1e-14 * 30 * size, `${name}: ${x}`);
      });
      const v = rotateBack(t, eigenvectors(t, found));
      assert.ok(orthogonality(v) < 1e-6, `${name}: ${orthogonality(v)}`);
      const { q } = thinQr(v);
      const rest = difference(
        a.times(q),
        new Matrix(q.rows, q.cols, q.data.slice()).scaleColumns(found),
      );
      // Clusters mix; what is left of A v − λ v is no wider than they are.
      assert.ok(rest <= 1e-11 * size, `${name}: ${rest}`);
    }
  }
});

test('eigenvectors of a matrix that is in blocks already', () => {
  const n = 12;
  const a = new Matrix(n, n);
  for (let i = 0; i < n; i++) a.data[i * n + i] = i % 3;
  a.data[3 * n + 4] = 1;
  a.data[4 * n + 3] = 1;
  const t = tridiagonalize(new Matrix(n, n, a.data.slice()));
  const values = largestEigenvalues(t, 5);
  const v = thinQr(rotateBack(t, eigenvectors(t, values))).q;
  const wanted = new Matrix(n, 5, v.data.slice()).scaleColumns(values);
  assert.ok(difference(a.times(v), wanted) < 1e-13);
});

test('topSvd: the first triples, as the whole decomposition has them', () => {
  const large = fc.record({
    rows: fc.integer({ min: 1, max: 90 }),
    cols: fc.integer({ min: 1, max: 90 }),
    count: fc.integer({ min: 1, max: 12 }),
    kind: fc.constantFrom('random', 'falling', 'low rank', 'equal', 'tiny', 'huge'),
    seed: fc.integer({ min: 0, max: 2 ** 31 }),
  });
  fc.assert(
    fc.property(large, ({ rows, cols, kind, seed, ...c }) => {
      const short = Math.min(rows, cols);
      const count = Math.min(c.count, short);
      const scale = kind === 'tiny' ? 1e-120 : kind === 'huge' ? 1e120 : 1;
      const a =
        kind === 'random'
          ? randomMatrix(rows, cols, seed)
          : lowRank(
              rows,
              cols,
              kind === 'low rank' ? Math.min(3, short) : short,
              seed,
              kind === 'equal' ? 1 : 0.7,
            );
      for (let i = 0; i < a.data.length; i++) a.data[i] = scale * (a.data[i] as number);
      const { u, s, v } = topSvd(a, count);
      const { s: all } = jacobiSvd(a);
      const first = all[0] as number;
      assert.equal([u.rows, u.cols, s.length, v.rows, v.cols], [rows, count, count, cols, count]);
      s.forEach((x, i) => {
        assert.ok(Math.abs(x - (all[i] as number)) <= 2e-8 * first, `s ${i}: ${x} ${all[i]}`);
      });
      assert.ok(orthogonality(u) < 1e-11 && orthogonality(v) < 1e-11);
      const rest = difference(a.times(v), new Matrix(rows, count, u.data.slice()).scaleColumns(s));
      assert.ok(rest <= 1e-12 * count * first, `A v − s u: ${rest}`);
      const back = difference(
        a.transposed().times(u),
        new Matrix(cols, count, v.data.slice()).scaleColumns(s),
      );
      assert.ok(back <= 2e-8 * count * first, `Aᵀ u − s v: ${back}`);
    }),
    { numRuns: 80 },
  );
  const bad = randomMatrix(40, 30, 1);
  bad.data[7] = Number.POSITIVE_INFINITY;
  assert.throws(() => topSvd(bad, 2), /finite numbers/);
});

test('svdOfProduct is the decomposition of the product, which is not formed', () => {
  fc.assert(
    fc.property(sizes, fc.integer({ min: 1, max: 30 }), ({ rows, cols, seed }, rank) => {
      const b = randomMatrix(rows, rank, seed);
      const at = randomMatrix(cols, rank, seed + 1);
      const whole = b.times(at.transposed());
      const { u, s, v } = svdOfProduct(b, at);
      assert.is(s.length, Math.min(rows, cols, rank));
      assert.ok(difference(product(u, s, v), whole) <= 1e-12 * (1 + whole.norm()));
      const direct = jacobiSvd(whole).s;
      const few = svdOfProduct(b, at, 2);
      const squares = (values: Float64Array) => values.reduce((sum, x) => sum + x * x, 0);
      assert.is(few.s.length, Math.min(2, s.length));
      few.s.forEach((x, i) => {
        assert.ok(Math.abs(x - (direct[i] as number)) <= 2e-8 * (direct[0] as number));
      });
      const total = squares(direct);
      assert.ok(Math.abs(squares(few.s) + few.rest - total) <= 1e-12 * (1 + total));
      s.forEach((x, i) => {
        assert.ok(Math.abs(x - (direct[i] as number)) <= 1e-12 * (1 + whole.norm()));
      });
    }),
    { verbose: 1 },
  );
});

onEachBackend(test, 'qr of tensors, in several panels, tall and wide', (backend) => {
  for (const [rows, cols] of [
    [1, 1],
    [1, 5],
    [7, 3],
    [150, 130],
    [40, 100],
    [100, 40],
  ] as const) {
    scope(() => {
      const a = randomMatrix(rows, cols, 3);
      const { q, r } = qr(toTensor(a, backend));
      const wanted = thinQr(a);
      assert.equal(q.shape, [rows, Math.min(rows, cols)]);
      assert.ok(difference(toMatrix(q), wanted.q) < 2e-5, `Q of ${rows}, ${cols}`);
      assert.ok(difference(toMatrix(r), wanted.r) < 2e-6 * a.norm(), `R of ${rows}, ${cols}`);
      assert.ok(orthogonality(toMatrix(q)) < 1e-5);
    });
  }
});

onEachBackend(test, 'qr of deficient matrices keeps Q orthonormal', (backend) => {
  for (const a of [
    new Matrix(9, 5),
    lowRank(90, 80, 3, 1),
    new Matrix(3, 3, Float64Array.of(1e-30, 1, 0, 0, 1, 1, 2, 2, 1e20)),
  ]) {
    scope(() => {
      const { q, r } = qr(toTensor(a, backend));
      assert.ok(orthogonality(toMatrix(q)) < 1e-5);
      assert.ok(difference(toMatrix(q).times(toMatrix(r)), a) <= 2e-6 * a.norm());
    });
  }
});

onEachBackend(test, 'svd, truncatedSvd and randomizedSvd agree', (backend) => {
  scope(() => {
    const a = lowRank(60, 45, 20, 5, 0.6);
    const t = toTensor(a, backend);
    const whole = matrices(svd(t));
    assert.ok(difference(product(whole.u, whole.s, whole.v), a) < 1e-6 * a.norm());
    for (const part of [truncatedSvd(t, 6), randomizedSvd(t, 6)].map(matrices)) {
      assert.is(part.s.length, 6);
      part.s.forEach((x, i) => {
        assert.ok(Math.abs(x - 0.6 ** i) < 1e-6, `s${i} ${x}`);
      });
      const error = difference(product(part.u, part.s, part.v), a);
      // Eckart and Young: nothing of this rank is nearer than the tail of the singular values.
      const tail = Math.hypot(...whole.s.slice(6));
      assert.ok(Math.abs(error - tail) < 1e-5, `${error} and ${tail}`);
    }
  });
});

onEachBackend(
  test,
  'truncatedSvd by Krylov spaces: a slow fall, exact rank, a wide matrix',
  (backend) => {
    const cases = [
      // 300 values from 1 to 0.05: neighbours differ by a hundredth.
      { a: lowRank(330, 300, 300, 7, 0.99), rank: 4 },
      { a: lowRank(280, 520, 3, 8), rank: 5 },
    ];
    for (const { a, rank } of cases) {
      scope(() => {
        const { u, s, v } = matrices(truncatedSvd(toTensor(a, backend), rank));
        assert.ok(orthogonality(u) < 1e-5 && orthogonality(v) < 1e-5);
        const av = a.times(v);
        const us = new Matrix(u.rows, u.cols, u.data.slice()).scaleColumns(s);
        assert.ok(difference(av, us) < 5e-5, `residual ${difference(av, us)}`);
        if (rank === 4) {
          s.forEach((x, i) => {
            assert.ok(Math.abs(x - 0.99 ** i) < 1e-5);
          });
        } else assert.ok((s[3] as number) < 1e-6);
      });
    }
  },
);

onEachBackend(test, 'the same bits each time, and a zero matrix', (backend) => {
  scope(() => {
    const a = toTensor(randomMatrix(70, 50, 1), backend);
    const bits = () => Buffer.from(randomizedSvd(a, 5).u.bytes());
    assert.ok(bits().equals(bits()));
    const zero = tensor(new Float32Array(300 * 270), [300, 270], { backend });
    const { u, s } = matrices(truncatedSvd(zero, 3));
    assert.equal([...s], [0, 0, 0]);
    assert.ok(orthogonality(u) < 1e-6);
  });
});

onEachBackend(test, 'misuse is told', (backend) => {
  scope(() => {
    const a = toTensor(randomMatrix(4, 3, 1), backend);
    assert.throws(() => truncatedSvd(a, 4), /\[truncatedSvd\] expected a rank of 1 to 3/);
    assert.throws(() => randomizedSvd(a, 0), /\[randomizedSvd\] expected a rank/);
    assert.throws(() => qr(tensor([1, 2], [2], { backend })), /\[qr\] expected a matrix/);
    const bad = tensor([1, Number.NaN, 2, 3], [2, 2], { backend });
    assert.throws(() => qr(bad), /\[qr\] expected finite numbers/);
    assert.throws(() => svd(bad), /\[svd\] expected finite numbers/);
  });
});

test.run();
