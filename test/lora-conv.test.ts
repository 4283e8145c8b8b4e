import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope, setTrainable } from '../src/autograd/index.js';
import { readAdapter } from '../src/lora/algebra/index.js';
import {
  LoraAdapters,
  type LoraConfig,
  type LoraConv,
  loadAdapter,
  saveAdapter,
} from '../src/lora/index.js';
import { Conv1d, Conv2d, Module } from '../src/nn/index.js';
import { conv1d, conv2d, mul, reshape, sum } from '../src/ops/index.js';
import { AdamW } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, reference } from './backends.js';
import { withFolder } from './support/temp.js';
import { randomize, relativeDifference, setFloats, snapshot } from './support/tiny.js';

const cases = fc
  .record({
    seed: fc.integer({ min: 0, max: 2 ** 30 }),
    batch: fc.integer({ min: 1, max: 3 }),
    groups: fc.integer({ min: 1, max: 3 }),
    inner: fc.integer({ min: 1, max: 4 }),
    outer: fc.integer({ min: 1, max: 4 }),
    size: fc.tuple(fc.integer({ min: 3, max: 7 }), fc.integer({ min: 3, max: 7 })),
    kernel: fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 3 })),
    stride: fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 3 })),
    padding: fc.tuple(fc.integer({ min: 0, max: 2 }), fc.integer({ min: 0, max: 2 })),
    dilation: fc.tuple(fc.integer({ min: 1, max: 2 }), fc.integer({ min: 1, max: 2 })),
    bias: fc.boolean(),
  })
  .filter((s) =>
    [0, 1].every((i) => s.size[i]! + 2 * s.padding[i]! >= s.dilation[i]! * (s.kernel[i]! - 1) + 1),
  );
type ConvCase = typeof cases extends fc.Arbitrary<infer T> ? T : never;

function random(backend: Backend, s: ConvCase, shape: number[], stream: number): Tensor {
  return tensor(normal({ seed: s.seed, stream }, numel(shape)), shape, { backend });
}

/** Seven loops; also the gradients of x, w and bias for the output's gradient `dy`. */
function loops(s: ConvCase, x: number[], w: number[], bias: number[], dy: (i: number) => number) {
  const [C, O] = [s.groups * s.inner, s.groups * s.outer];
  const [H, W] = s.size;
  const [kh, kw] = s.kernel;
  const [oh, ow] = [0, 1].map(
    (i) =>
      Math.floor(
        (s.size[i]! + 2 * s.padding[i]! - s.dilation[i]! * (s.kernel[i]! - 1) - 1) / s.stride[i]!,
      ) + 1,
  ) as [number, number];
  const y = new Array<number>(s.batch * O * oh * ow).fill(0);
  const [dx, dw, db] = [x, w, bias].map((v) => v.map(() => 0)) as [number[], number[], number[]];
  y.forEach((_, at) => {
    const [b, a] = [at % ow, Math.floor(at / ow) % oh];
    const o = Math.floor(at / (ow * oh)) % O;
    const n = Math.floor(at / (ow * oh * O));
    y[at] = bias[o] ?? 0;
    if (bias.length > 0) db[o]! += dy(at);
    for (let c = 0; c < s.inner; c++) {
      const channel = Math.floor(o / s.outer) * s.inner + c;
      for (let i = 0; i < kh; i++) {
        for (let j = 0; j < kw; j++) {
          const row = a * s.stride[0] - s.padding[0] + i * s.dilation[0];
          const column = b * s.stride[1] - s.padding[1] + j * s.dilation[1];
          if (row < 0 || row >= H || column < 0 || column >= W) continue;
          const [ix, iw] = [
            ((n * C + channel) * H + row) * W + column,
            ((o * s.inner + c) * kh + i) * kw + j,
          ];
          y[at]! += x[ix]! * w[iw]!;
          dx[ix]! += dy(at) * w[iw]!;
          dw[iw]! += dy(at) * x[ix]!;
        }
      }
    }
  });
  return { y, dx, dw, db };
}

onEachBackend(test, 'conv2d and its gradients are what seven loops give', (backend) => {
  fc.assert(
    fc.property(cases, (s) => {
      scope(() => {
        const [C, O] = [s.groups * s.inner, s.groups * s.outer];
        const x = random(backend, s, [s.batch, C, ...s.size], 1);
        const w = random(backend, s, [O, s.inner, ...s.kernel], 2);
        const bias = s.bias ? random(backend, s, [O], 3) : null;
        for (const t of [x, w, bias]) if (t) setTrainable(t, true);
        const { stride, padding, dilation, groups } = s;
        const y = conv2d(x, w, bias, { stride, padding, dilation, groups });
        const dy = random(backend, s, [...y.shape], 4);
        backward(y, dy);
        const g = dy.toNumbers();
        const want = loops(s, x.toNumbers(), w.toNumbers(), bias?.toNumbers() ?? [], (i) => g[i]!);
        assert.ok(relativeDifference(y.toNumbers(), want.y) < 1e-5);
        assert.ok(relativeDifference(x.grad?.toNumbers() ?? [], want.dx) < 1e-5);
        assert.ok(relativeDifference(w.grad?.toNumbers() ?? [], want.dw) < 1e-5);
        if (bias) assert.ok(relativeDifference(bias.grad?.toNumbers() ?? [], want.db) < 1e-5);
        for (const t of [x, w, bias]) t?.dispose();
      });
    }),
    { numRuns: 40 },
  );
});

onEachBackend(test, 'conv1d is conv2d along one dimension', (backend) => {
  fc.assert(
    fc.property(cases, (s) => {
      noGrad(() =>
        scope(() => {
          const [C, O] = [s.groups * s.inner, s.groups * s.outer];
          const [L, k] = [s.size[1], s.kernel[1]];
          const x = random(backend, s, [s.batch, C, L], 1);
          const w = random(backend, s, [O, s.inner, k], 2);
          const along = { stride: s.stride[1], padding: s.padding[1], dilation: s.dilation[1] };
          const y = conv1d(x, w, null, { ...along, groups: s.groups });
          const flat = { ...s, size: [1, L], kernel: [1, k], stride: [1, s.stride[1]] } as ConvCase;
          const one = { ...flat, padding: [0, s.padding[1]], dilation: [1, s.dilation[1]] };
          const want = loops(one as ConvCase, x.toNumbers(), w.toNumbers(), [], () => 0);
          assert.ok(relativeDifference(y.toNumbers(), want.y) < 1e-5);
        }),
      );
    }),
    { numRuns: 20 },
  );
});

test('convolutions that do not fit are errors', () => {
  scope(() => {
    const t = (...shape: number[]) =>
      tensor(new Float32Array(numel(shape)), shape, { backend: reference });
    assert.throws(
      () => conv2d(t(1, 3, 4, 4), t(2, 4, 1, 1)),
      /weight \[out, C \/ 1.*\[1, 3, 4, 4\]/,
    );
    assert.throws(() => conv2d(t(1, 4, 4, 4), t(3, 2, 1, 1), null, { groups: 2 }), /multiple of 2/);
    assert.throws(() => conv2d(t(1, 1, 2, 2), t(1, 1, 3, 3)), /kernel fits/);
    assert.throws(() => conv2d(t(1, 1, 2, 2), t(1, 1, 1, 1), null, { stride: 0 }), /conv stride/);
    assert.throws(
      () => conv2d(t(1, 1, 2, 2), t(1, 1, 1, 1), null, { padding: -1 }),
      /conv padding/,
    );
    assert.throws(() => conv1d(t(1, 1, 2, 2), t(1, 1, 1)), /conv1d.*\[N, C, L\]/);
    assert.is(sum(mul(conv1d(t(2, 1, 3), t(1, 1, 3)), t(2, 1, 1))).item(), 0);
  });
});

/** Two convolutions after each other, and a scale for the middle: a model to put adapters on. */
class Vision extends Module {
  constructor(
    readonly first: Conv2d,
    readonly second: Conv1d,
  ) {
    super();
  }

  /** x [N, 2, 5, 4] → [N, 3, ..] */
  forward(x: Tensor): Tensor {
    const y = this.first.forward(x);
    const [n, c] = y.shape as [number, number];
    return this.second.forward(reshape(y, [n, c, -1]));
  }
}

function vision(
  backend: Backend,
  dtype: 'f32' | 'bf16' = 'f32',
  [outer, groups]: readonly [outer: number, groups: number] = [3, 1],
): Vision {
  const make = (shape: number[], stream: number) =>
    tensor(
      normal({ seed: 5, stream }, numel(shape)).map((z) => 0.4 * z),
      shape,
      { backend, dtype },
    );
  const walk = { stride: [2, 1], padding: 1, dilation: [1, 2] };
  return new Vision(
    new Conv2d(make([4, 2 / groups, 3, 2], 1), make([4], 2), { ...walk, groups }),
    new Conv1d(make([outer, 4 / groups, 3], 3), null, { padding: 2, groups }),
  );
}

const CONFIGS: LoraConfig[] = [
  { targetModules: ['first', 'second'], rank: 2, alpha: 3 },
  { targetModules: ['first', 'second'], rank: 2, variant: 'dora' },
  { targetModules: ['first'], rank: 3, loraBias: true, bias: 'lora_only', scaling: 'rslora' },
  { targetModules: ['second'], rank: 4, init: 'orthogonal' },
  { targetModules: ['first'], rank: 1, init: 'gaussian' },
];

/** Of layers of two groups. */
const GROUPED: LoraConfig[] = [
  { targetModules: ['first', 'second'], rank: 2, alpha: 3 },
  { targetModules: ['first'], rank: 6, loraBias: true, bias: 'lora_only', scaling: 'rslora' },
  { targetModules: ['second'], rank: 4, init: 'gaussian' },
];

const TRAINED = [
  ...CONFIGS.map((config) => ({ config, sizes: [3, 1] as const })),
  ...GROUPED.map((config) => ({ config, sizes: [6, 2] as const })),
];

onEachBackend(
  test,
  'LoRA on convolutions: starts at the base, trains, merges, saves',
  (backend) => {
    const x = tensor(normal({ seed: 6, stream: 1 }, 80), [2, 2, 5, 4], { backend }).keep();
    for (const { config, sizes } of TRAINED) {
      using model = vision(backend, 'f32', sizes);
      using adapters = new LoraAdapters(model);
      const outputs = () => noGrad(() => scope(() => model.forward(x).toNumbers()));
      const base = outputs();
      const before = snapshot(adapters.baseParameters());
      adapters.add('a', config, 1);
      if (config.init === 'orthogonal') assert.ok(relativeDifference(outputs(), base) < 1e-5);
      else assert.equal(outputs(), base, 'bit for bit');
      const optimizer = new AdamW([{ parameters: adapters.tensors('a') }], { lr: 0.05 });
      for (let i = 0; i < 3; i++) {
        scope(() => {
          const y = model.forward(x);
          backward(sum(mul(y, y)));
          for (const [key, t] of adapters.tensors('a')) assert.ok(t.grad, key);
          optimizer.update();
          optimizer.zeroGrad();
        });
      }
      optimizer.dispose();
      const trained = outputs();
      assert.ok(relativeDifference(trained, base) > 1e-3);
      adapters.merge();
      assert.ok(relativeDifference(outputs(), trained) < 1e-5);
      adapters.unmerge();
      assert.equal(outputs(), trained);
      withFolder((dir) => {
        saveAdapter(adapters, 'a', dir);
        const json = JSON.parse(readFileSync(join(dir, 'adapter_config.json'), 'utf8'));
        assert.is(json.task_type, null, 'PEFT wraps a model without a task as it is');
        loadAdapter(adapters, 'b', dir);
        assert.equal(outputs(), trained);
        adapters.remove('b');
      });
      adapters.setActive(null);
      assert.equal(outputs(), base);
      assert.equal(snapshot(adapters.baseParameters()), before);
      adapters.setActive('a').fuse();
      assert.ok(relativeDifference(outputs(), trained) < 1e-5);
    }
    x.dispose();
  },
);

onEachBackend(test, 'a mixed batch of convolutions ≡ its rows one by one', (backend) => {
  using model = vision(backend, 'bf16');
  using adapters = new LoraAdapters(model);
  adapters.add('a', CONFIGS[0] as LoraConfig, 1).add('b', CONFIGS[1] as LoraConfig, 2);
  for (const n of ['a', 'b']) randomize(adapters, n, 3);
  const rows = ['b', null, 'a'];
  const values = normal({ seed: 6, stream: 1 }, 120);
  const run = (part: ArrayLike<number>, count: number) =>
    noGrad(() =>
      scope(() => model.forward(tensor(part, [count, 2, 5, 4], { backend })).toNumbers()),
    );
  const mixed = adapters.withRows(rows, () => run(values, 3));
  rows.forEach((name, i) => {
    adapters.setActive(name);
    const alone = run(values.slice(40 * i, 40 * (i + 1)), 1);
    const own = mixed.slice(alone.length * i, alone.length * (i + 1));
    assert.ok(relativeDifference(own, alone) < 1e-5, `${name}`);
  });
});

test('names and shapes are PEFT’s: A walks as the layer, B has one tap', () => {
  using model = vision(reference);
  using adapters = new LoraAdapters(model);
  adapters.add('a', CONFIGS[1] as LoraConfig, 1);
  const shapes = [...adapters.tensors('a')].map(([key, t]) => [
    key.replace('base_model.model.', ''),
    t.shape,
  ]);
  assert.equal(shapes, [
    ['first.lora_A.weight', [2, 2, 3, 2]],
    ['first.lora_B.weight', [4, 2, 1, 1]],
    ['first.lora_magnitude_vector', [1, 4, 1, 1]],
    ['second.lora_A.weight', [2, 4, 3]],
    ['second.lora_B.weight', [3, 2, 1]],
    ['second.lora_magnitude_vector', [1, 3, 1]],
  ]);
  assert.throws(() => adapters.add('b', { targetModules: ['all-linear'] }, 1), /all-linear/);
  const bad: [LoraConfig, RegExp][] = [
    [{ targetModules: ['second'], loraBias: true }, /a bias of second/],
    [{ targetModules: ['first'], init: 'pissa', rank: 1 }, /start from the weight of first/],
    [{ targetModules: ['first'], enableLora: { first: [true, false] } }, /dense layer of 2/],
  ];
  for (const [config, message] of bad) {
    assert.throws(() => adapters.add('b', config, 1).merge(), message);
    if (adapters.names().includes('b')) adapters.remove('b');
  }
});

test('of a grouped convolution A sees all channels and B its own group’s, as in PEFT', () => {
  // Two channels in two groups, one tap: y₀ = w₀ x₀, y₁ = w₁ x₁.
  const of = (values: number[], ...shape: number[]) =>
    tensor(values, shape, { backend: reference });
  using model = new Vision(
    new Conv2d(of([10, 20], 2, 1, 1, 1), null, { groups: 2 }),
    new Conv1d(of([1, 0, 0, 1], 2, 2, 1)),
  );
  using adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['first'], rank: 2, alpha: 2 }, 1);
  const [a, b] = [...adapters.tensors('a').values()] as [Tensor, Tensor];
  assert.equal(
    [a.shape, b.shape],
    [
      [2, 2, 1, 1],
      [2, 1, 1, 1],
    ],
  );
  setFloats(a, Float32Array.of(1, 2, 3, 4));
  setFloats(b, Float32Array.of(5, 6));
  const outputs = () =>
    noGrad(() => scope(() => model.forward(of([1, -1], 1, 2, 1, 1)).toNumbers()));
  // h = (1 − 2, 3 − 4); y = (10 + 5 h₀, −20 + 6 h₁).
  assert.equal(outputs(), [5, -26]);
  const [branch] = (model.first as unknown as LoraConv).branches.values();
  assert.equal(branch?.delta().toNumbers(), [5, 10, 18, 24]);
  adapters.merge();
  assert.equal(outputs(), [5, -26]);
  const merged = model.first as Conv2d;
  assert.is(merged.groups, 1);
  // ΔW = (5 · [1, 2]; 6 · [3, 4]) on the diagonal of (10, 20).
  assert.equal(merged.weight.toNumbers(), [15, 10, 18, 44]);
  adapters.unmerge();
  const [base] = adapters.baseParameters().values();
  assert.equal(base?.toNumbers(), [10, 20]);
  const merge = () => adapters.mergedSource(['a'])('first.weight', [2, 1, 1, 1]);
  assert.throws(merge, /convolutions of one group, received first of 2.*fuse\(\)/);
  const bad: [LoraConfig, RegExp][] = [
    [{ targetModules: ['first'], rank: 3 }, /multiple of the 2 groups of first, received 3/],
    [
      { targetModules: ['first'], rank: 2, variant: 'dora' },
      /dora\] expected a convolution of one/,
    ],
    [{ targetModules: ['first'], rank: 2, init: 'orthogonal' }, /orthogonal\] .*of one group/],
  ];
  for (const [config, message] of bad) assert.throws(() => adapters.add('b', config, 1), message);
  withFolder((dir) => {
    saveAdapter(adapters, 'a', dir);
    assert.throws(() => readAdapter(dir), /a convolution of one group, received 2/);
  });
});

test.run();
