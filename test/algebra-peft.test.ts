import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { scope } from '../src/autograd/index.js';
import { Matrix } from '../src/linalg/index.js';
import {
  type Adapter,
  type CombineOptions,
  combine,
  oloraStart,
  orthogonalStart,
  pissaStart,
  plainFromMutated,
} from '../src/lora/algebra/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';
import { deltaOf, randomAdapter, relative, sumOf } from './support/adapters.js';

/** Numbers that Python makes alike: sin(100 seed + i²) to three digits. */
function values(seed: number, count: number): Float32Array {
  return Float32Array.from(
    { length: count },
    (_, i) => Math.round(Math.sin(100 * seed + i * i) * 1000) / 1000,
  );
}

/** ΔW of combinations as PEFT 0.21 has them, row-major [5, 4]. */
const COMBINED: Readonly<Record<string, readonly number[]>> = {
  cat: [
    1.61019, -1.85602, 3.32321, -0.52121, -0.91686, 0.07561, -3.831, -2.06334, -1.10326, 1.81318,
    -0.92823, 2.27004, -0.10253, -1.1717, 1.24943, 1.16423, -1.39412, -0.75302, 1.05981, 2.815,
  ],
  svd: [
    1.63789, -1.75029, 3.36178, -0.53973, -0.4565, 1.04504, -3.56219, -2.13573, -1.50799, 1.17974,
    -1.06113, 2.26825, 0.13027, -0.40431, 1.51636, 1.04475, -0.7971, 0.23282, 1.28017, 2.80225,
  ],
  ties: [
    0.9729, -1.51855, 2.20902, 0.13512, -1.08728, -0.13743, -1.96847, -1.52401, -1.00514, 1.55124,
    -0.7842, 1.43587, -0.05003, -1.68076, 1.53814, -0.0763, -0.86483, -0.25997, 1.68182, 2.08644,
  ],
  frequency: [
    1.01427, -1.45916, 2.24434, 0.1235, -1.05865, -0.12495, -2.22059, -1.51493, -0.96544, 1.58674,
    -0.76792, 1.43757, -0.03352, -1.72083, 1.49993, -0.04279, -0.87153, -0.28269, 1.66535, 2.09616,
  ],
  prune: [
    0.96596, -1.22675, 2.49596, -0.3718, -1.08932, 0.02436, -3.88865, -1.62849, -1.06962, 1.80102,
    -0.99874, 2.3486, -0.03082, -1.74546, 1.47332, -0.01823, -0.81032, -0.74402, 1.57256, 2.18737,
  ],
};

/** A [2, 4], B [5, 2] and the residual base that PEFT 0.21 starts with, alpha 3. */
const STARTS = {
  pissa: {
    a: [-0.35799, -0.80098, 0.54418, 0.63387, 0.89835, 0.0851, 0.56836, 0.12695],
    b: [
      -0.80625, 0.25213, -0.17748, -0.50407, -0.13059, 0.54375, -0.22385, 0.62693, -0.84791,
      -0.38349,
    ],
    residual: [
      0.2253, -0.40587, -0.25884, -0.16342, -0.39107, 0.8311, 0.38161, 0.50174, -0.35083, 0.5067,
      0.47003, 0.03862, -0.12801, 0.40803, 0.05223, 0.39846, -0.04455, 0.02621, 0.08007, -0.06077,
    ],
  },
  olora: {
    a: [-1.69196, -0.29413, -0.17676, 0.44224, 0.0, -1.8249, 0.37374, 0.46831],
    b: [
      -0.58985, -0.23098, 0.57625, -0.62989, -0.26715, -0.35861, -0.49469, -0.33508, 0.06265,
      -0.55588,
    ],
    residual: [
      -0.499, -0.2975, -0.7289, -0.32847, 0.4875, -0.49, 0.31291, 0.29721, -0.226, -0.3665, 0.95721,
      0.44712, -0.4185, -0.3785, 0.46069, 0.86854, 0.053, -0.498, -0.61075, -0.59107,
    ],
  },
};

const [IN, OUT] = [4, 5];

function adapter(place: number, rank: number, alpha: number): Adapter {
  const made = randomAdapter(0, rank, alpha, { proj: [OUT, IN] });
  const m = [...made.modules.values()][0];
  if (!m) throw new Error('no layer');
  const module = {
    ...m,
    a: values(2 * place + 1, rank * IN),
    b: values(2 * place + 2, OUT * rank),
  };
  return { ...made, modules: new Map([['proj', module]]) };
}

const close = (found: ArrayLike<number>, wanted: readonly number[], message: string) =>
  wanted.forEach((w, i) => {
    assert.ok(Math.abs((found[i] as number) - w) < 3e-5, `${message} ${i}: ${found[i]} for ${w}`);
  });

const CASES: Readonly<Record<string, CombineOptions>> = {
  cat: { method: 'cat' },
  svd: { method: 'svd', rank: 2 },
  ties: { method: 'ties', rank: 3, density: 0.6 },
  frequency: { method: 'ties', rank: 3, density: 0.6, sign: 'frequency' },
  prune: { method: 'prune', rank: 3, density: 0.6 },
};

onEachBackend(test, 'combinations are those of PEFT’s add_weighted_adapter', (backend) => {
  const parts = [
    { adapter: adapter(0, 2, 6), weight: 0.7 },
    { adapter: adapter(1, 3, 4), weight: -1.3 },
  ];
  for (const [name, options] of Object.entries(CASES)) {
    const { adapter: found } = combine(parts, { ...options, backend });
    close(deltaOf(found, 'proj').toRows32(), COMBINED[name] as number[], name);
  }
});

const matrix = (t: Tensor) =>
  Matrix.fromRows(t.toNumbers(), t.shape[0] as number, t.shape[1] as number);

function weightOf(backend: Backend, transposed = false, dtype: 'f32' | 'bf16' = 'f32'): Tensor {
  const w = Matrix.fromRows(values(9, OUT * IN), OUT, IN);
  return transposed
    ? tensor(w.toColumns32(), [IN, OUT], { backend, dtype })
    : tensor(w.toRows32(), [OUT, IN], { backend, dtype });
}

onEachBackend(
  test,
  'OLoRA’s and PiSSA’s starts are PEFT’s (a pair of PiSSA up to its sign)',
  (backend) => {
    scope(() => {
      const options = { rank: 2, scaling: 1.5 };
      const olora = oloraStart(weightOf(backend), options);
      close(olora.a.toNumbers(), STARTS.olora.a, 'A');
      close(olora.b.toNumbers(), STARTS.olora.b, 'B');
      close(olora.residual.toNumbers(), STARTS.olora.residual, 'residual');
      const pissa = pissaStart(weightOf(backend), options);
      close(pissa.a.toNumbers().map(Math.abs), STARTS.pissa.a.map(Math.abs), 'A');
      close(pissa.b.toNumbers().map(Math.abs), STARTS.pissa.b.map(Math.abs), 'B');
      close(pissa.residual.toNumbers(), STARTS.pissa.residual, 'residual');
    });
  },
);

onEachBackend(
  test,
  'a start leaves W as it is: residual + scaling · B A, either layout',
  (backend) => {
    for (const transposed of [false, true]) {
      for (const dtype of ['f32', 'bf16'] as const) {
        for (const start of [pissaStart, oloraStart]) {
          scope(() => {
            const weight = weightOf(backend, transposed, dtype);
            const options = { rank: 3, scaling: 0.7, transposed };
            const { a, b, residual } = start(weight, options);
            assert.equal(
              [a.shape, b.shape],
              [
                [3, IN],
                [OUT, 3],
              ],
            );
            assert.equal([residual.shape, residual.dtype], [weight.shape, dtype]);
            const delta = matrix(b).times(matrix(a));
            const whole = sumOf([
              [1, transposed ? matrix(residual).transposed() : matrix(residual)],
              [0.7, delta],
            ]);
            const base = transposed ? matrix(weight).transposed() : matrix(weight);
            const error = relative(whole, base);
            assert.ok(error < (dtype === 'f32' ? 1e-6 : 4e-3), `${start.name} ${error}`);
          });
        }
      }
    }
  },
);

onEachBackend(
  test,
  'PiSSA’s residual is the tail of W; the randomised start comes near',
  (backend) => {
    scope(() => {
      const weight = weightOf(backend);
      const whole = pissaStart(weight, { rank: 2, scaling: 2 }).residual;
      const quick = pissaStart(weight, { rank: 2, scaling: 2, iterations: 4 }).residual;
      assert.ok(relative(matrix(quick), matrix(whole)) < 1e-4);
    });
  },
);

onEachBackend(test, 'starts refuse what cannot be', (backend) => {
  scope(() => {
    const w = weightOf(backend);
    assert.throws(() => pissaStart(w, { rank: 5, scaling: 1 }), /\[pissa rank\] expected 1 to 4/);
    assert.throws(() => oloraStart(w, { rank: 2, scaling: 0 }), /\[olora scaling\]/);
    assert.throws(() => pissaStart(w, { rank: 2, scaling: 1, iterations: -1 }), /iterations/);
  });
});

test('the orthogonal start: B A = 0, neither is, and the seed decides', () => {
  const start = orthogonalStart(6, 11, 9, { seed: 1, stream: 2 });
  const a = Matrix.fromRows(start.a, 6, 11);
  const b = Matrix.fromRows(start.b, 9, 6);
  assert.ok(b.times(a).norm() < 1e-6 * a.norm() * b.norm());
  // A = Qᵀ N / 10 with N of 3 × 11 normal numbers: a norm of about √33 / 10.
  assert.ok(a.norm() > 0.3 && a.norm() < 0.9, `${a.norm()}`);
  assert.equal(orthogonalStart(6, 11, 9, { seed: 1, stream: 2 }), start);
  assert.not.equal(orthogonalStart(6, 11, 9, { seed: 2, stream: 2 }).a, start.a);
  assert.throws(() => orthogonalStart(3, 4, 4, { seed: 1, stream: 2 }), /an even number/);
});

test('a plain adapter from one that was trained beside a residual: twice the rank, same scaling', () => {
  const started = (seed: number): Adapter => {
    const made = randomAdapter(seed, 3, 6);
    return { ...made, config: { ...made.config, init_lora_weights: 'pissa' } };
  };
  const [trained, initial] = [started(1), started(2)];
  const plain = plainFromMutated(trained, initial);
  assert.equal(
    [plain.config.r, plain.config.lora_alpha, plain.config.init_lora_weights],
    [6, 12, true],
  );
  for (const path of trained.modules.keys()) {
    const wanted = sumOf([
      [1, deltaOf(trained, path)],
      [-1, deltaOf(initial, path)],
    ]);
    assert.ok(relative(deltaOf(plain, path), wanted) < 1e-12);
  }
  assert.throws(() => plainFromMutated(trained, randomAdapter(1, 2, 4)), /rank 3 and scaling 2/);
});

test.run();
