import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { Backend } from '../src/tensor/backend.js';
import { full, ones, tensor, zeros } from '../src/tensor/create.js';
import { DTYPES, type DType } from '../src/tensor/dtype.js';
import { normal, uniform } from '../src/tensor/random.js';
import { erf, normalCdf, sigmoid } from '../src/tensor/reference/special.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, reference } from './backends.js';
import { expectClose } from './op-cases.js';

// What the op table does not reach: kernels that no op calls, the edges of number, and misuse.

/** Runs a kernel with inputs and one new f32 output of a shape. */
function call(
  backend: Backend,
  kernel: string,
  inputs: readonly Tensor[],
  shape: Shape,
  attrs: readonly number[] = [],
  dtype: DType = 'f32',
): Tensor {
  const y = Tensor.empty(backend, shape, dtype);
  backend.run(kernel, [...inputs, y], attrs);
  return y;
}

const random = (backend: Backend, shape: Shape, stream: number) =>
  tensor(normal({ seed: 2, stream }, numel(shape)), shape, { backend });

test('erf to double precision', () => {
  // As the C library's erf has them.
  const known: [number, number][] = [
    [0, 0],
    [1e-8, 1.1283791670955126e-8],
    [0.1, 0.1124629160182849],
    [0.5, 0.5204998778130465],
    [1, 0.8427007929497149],
    [1.5, 0.9661051464753108],
    [1.99, 0.995111413199617],
    [2, 0.9953222650189527],
    [3, 0.9999779095030014],
    [5, 0.9999999999984626],
    [7, 1],
  ];
  for (const [x, want] of known) {
    assert.ok(Math.abs(erf(x) - want) <= 1e-15, `erf(${x}) = ${erf(x)}`);
    assert.is(erf(-x), -erf(x));
  }
  assert.ok(Number.isNaN(erf(Number.NaN)));
  assert.is(erf(Number.POSITIVE_INFINITY), 1);
  // Where the two formulas meet they agree, and the derivative is 2/√π·e^(−x²).
  for (const x of [-3, -2, -1.2, 0.3, 1.9999999, 2, 2.5]) {
    const slope = (erf(x + 1e-5) - erf(x - 1e-5)) / 2e-5;
    const want = (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x);
    assert.ok(Math.abs(slope - want) < 1e-9, `slope at ${x}`);
  }
  // Φ keeps its digits in the left tail: Φ(−10) and Φ(−37).
  assert.ok(Math.abs(normalCdf(-10) / 7.619853024160593e-24 - 1) < 1e-12);
  assert.ok(Math.abs(normalCdf(-37) / 5.725571222525139e-300 - 1) < 1e-10);
  assert.is(normalCdf(40), 1);
  assert.is(sigmoid(-800), 0);
  assert.is(sigmoid(800), 1);
});

onEachBackend(test, 'adamw takes PyTorch’s steps', (backend) => {
  const n = 67;
  const [lr, beta1, beta2, eps, decay, gradScale] = [0.01, 0.9, 0.99, 1e-6, 0.1, 0.5];
  const p = random(backend, [n], 1);
  const m = zeros([n], { backend });
  const v = zeros([n], { backend });
  const want = p.toNumbers().map((value) => ({ p: value, m: 0, v: 0 }));
  for (let step = 1; step <= 5; step++) {
    const g = random(backend, [n], 10 + step);
    backend.run('adamw', [g, p, m, v], [lr, beta1, beta2, eps, decay, step, gradScale]);
    g.toNumbers().forEach((raw, i) => {
      const w = want[i] as (typeof want)[number];
      const grad = raw * gradScale;
      w.p -= lr * decay * w.p;
      w.m = beta1 * w.m + (1 - beta1) * grad;
      w.v = beta2 * w.v + (1 - beta2) * grad ** 2;
      const mHat = w.m / (1 - beta1 ** step);
      const vHat = w.v / (1 - beta2 ** step);
      w.p -= (lr * mHat) / (Math.sqrt(vHat) + eps);
    });
  }
  expectClose(
    p.toNumbers(),
    want.map((w) => w.p),
    1e-6,
    'p',
  );
  expectClose(
    m.toNumbers(),
    want.map((w) => w.m),
    1e-6,
    'm',
  );
  expectClose(
    v.toNumbers(),
    want.map((w) => w.v),
    1e-6,
    'v',
  );
});

onEachBackend(test, 'sgd with momentum and weight decay takes PyTorch’s steps', (backend) => {
  const n = 67;
  const [lr, momentum, decay, gradScale] = [0.1, 0.9, 0.01, 2];
  const p = random(backend, [n], 1);
  const m = full([n], Number.NaN, { backend });
  const want = p.toNumbers().map((value) => ({ p: value, m: 0 }));
  for (let step = 0; step < 4; step++) {
    const g = random(backend, [n], 20 + step);
    backend.run('sgd', [g, p, m], [lr, momentum, decay, gradScale, step === 0 ? 1 : 0]);
    g.toNumbers().forEach((raw, i) => {
      const w = want[i] as (typeof want)[number];
      const grad = raw * gradScale + decay * w.p;
      w.m = step === 0 ? grad : momentum * w.m + grad;
      w.p -= lr * w.m;
    });
  }
  expectClose(
    p.toNumbers(),
    want.map((w) => w.p),
    1e-6,
    'p',
  );
  expectClose(
    m.toNumbers(),
    want.map((w) => w.m),
    1e-6,
    'm',
  );
});

onEachBackend(test, 'sumSquares accumulates in f64 and shows NaN and infinity', (backend) => {
  const squares = (x: Tensor) => call(backend, 'sumSquares', [x], [1]).item();
  // 2²⁴ + 100,000 ones: an f32 sum that begins with 2²⁴ would stay there.
  const x = tensor([4096, ...new Array<number>(100000).fill(1)], undefined, { backend });
  assert.is(squares(x), 2 ** 24 + 100000);
  assert.is(
    squares(tensor([3, Number.NEGATIVE_INFINITY], undefined, { backend })),
    Number.POSITIVE_INFINITY,
  );
  assert.ok(Number.isNaN(squares(tensor([3, Number.NaN, 1], undefined, { backend }))));
  assert.is(squares(zeros([0], { backend })), 0);
  assert.is(squares(tensor([3, 4], undefined, { backend, dtype: 'bf16' })), 25);
});

onEachBackend(test, 'accumulate, copy, write and fill', (backend) => {
  const on = { backend };
  const x = random(backend, [7, 5], 1);
  const y = random(backend, [7, 5], 2);
  const sums = x.toNumbers().map((v, i) => Math.fround(v + (y.toNumbers()[i] as number)));
  backend.run('accumulate', [x, y], []);
  assert.equal(y.toNumbers(), sums);
  for (const dtype of DTYPES) {
    if (dtype === 'f64' && backend !== reference) continue;
    const values = dtype === 'bool' ? [1, 0, 1, 1, 0, 1] : [1, 2, 3, 4, 5, 6];
    const from = tensor(values, [2, 3], { ...on, dtype });
    assert.equal(call(backend, 'copy', [from], [3, 2], [], dtype).toNumbers(), values, dtype);
    assert.equal(
      call(backend, 'slice', [from], [1, 2], [1, 1], dtype).toNumbers(),
      values.slice(4),
    );
    const both = call(backend, 'concat', [from, from], [2, 6], [1], dtype).toNumbers();
    const [a, b] = [values.slice(0, 3), values.slice(3)];
    assert.equal(both, [...a, ...a, ...b, ...b], dtype);
    const into = Tensor.empty(backend, [3, 4], dtype);
    backend.run('fill', [into], [1]);
    backend.run('write', [from, into], [1, 1]);
    assert.equal(into.toNumbers(), [1, 1, 1, 1, 1, ...a, 1, ...b], dtype);
  }
});

onEachBackend(test, 'NaN wins in maximum, minimum, max, argmax and relu', (backend) => {
  const { NaN: nan } = Number;
  const a = tensor([nan, 1, nan, 2], undefined, { backend });
  const b = tensor([1, nan, nan, 3], undefined, { backend });
  for (const [kernel, last] of [
    ['maximum', 3],
    ['minimum', 2],
  ] as const) {
    assert.equal(call(backend, kernel, [a, b], [4]).toNumbers(), [nan, nan, nan, last], kernel);
  }
  const x = tensor([1, nan, 5, nan, 7, 7, -1, 7, -3, -2, -2, -9], [3, 4], { backend });
  const y = Tensor.empty(backend, [3], 'f32');
  const index = Tensor.empty(backend, [3], 'i32');
  backend.run('max', [x, y, index], [1]);
  assert.equal(y.toNumbers(), [nan, 7, -2]);
  assert.equal(index.toNumbers(), [1, 0, 1], 'the first of several');
  assert.equal(call(backend, 'argmax', [x], [3], [1], 'i32').toNumbers(), [1, 0, 1]);
  assert.equal(call(backend, 'relu', [a], [4]).toNumbers(), [nan, 1, nan, 2]);
});

onEachBackend(test, 'softmax and cross-entropy hold at large numbers', (backend) => {
  const far = tensor([1000, 0, -1000, Number.NEGATIVE_INFINITY], [1, 4], { backend });
  assert.equal(call(backend, 'softmax', [far], [1, 4]).toNumbers(), [1, 0, 0, 0]);
  assert.equal(call(backend, 'logSoftmax', [far], [1, 4]).toNumbers(), [
    0,
    -1000,
    -2000,
    Number.NEGATIVE_INFINITY,
  ]);
  const logits = tensor([1e4, -1e4, 0, -3e4, -3e4, -3e4], [2, 3], { backend });
  const labels = tensor([1, 0], undefined, { backend, dtype: 'i32' });
  const loss = call(backend, 'crossEntropy', [logits, labels], [2], [-100, 0]);
  expectClose(loss.toNumbers(), [2e4, Math.log(3)], 1e-6, 'loss');
  const d = ones([2], { backend });
  const grad = call(backend, 'crossEntropy.grad', [logits, labels, d], [2, 3], [-100, 0]);
  expectClose(grad.toNumbers(), [1, -1, 0, -2 / 3, 1 / 3, 1 / 3], 1e-6, 'gradient');
});

onEachBackend(
  test,
  'an attention that sees no key is 0, its log-sum −∞, its gradients 0',
  (backend) => {
    const shape = [1, 3, 1, 4];
    const [q, k, v, dy] = [1, 2, 3, 4].map((s) => random(backend, shape, s)) as Tensor[] &
      [Tensor, Tensor, Tensor, Tensor];
    const mask = tensor([0, 1, 1], [1, 3], { backend, dtype: 'u8' });
    const attrs = [1, 1, 0.5, 0, -1];
    const y = Tensor.empty(backend, shape, 'f32');
    const lse = Tensor.empty(backend, [1, 1, 3], 'f32');
    backend.run('attention', [q, k, v, mask, y, lse], attrs);
    assert.equal(
      y.toNumbers().slice(0, 4),
      [0, 0, 0, 0],
      'query 0 may see key 0 only, which is hidden',
    );
    assert.equal(y.toNumbers().slice(4, 8), v.toNumbers().slice(4, 8), 'query 1 sees key 1 only');
    assert.is(lse.toNumbers()[0], Number.NEGATIVE_INFINITY);
    const grads = [q, k, v].map(() => Tensor.empty(backend, shape, 'f32'));
    backend.run('attention.grad', [q, k, v, mask, y, lse, dy, ...grads], attrs);
    const [dq, dk, dv] = grads.map((t) => t.toNumbers()) as [number[], number[], number[]];
    for (const d of [dq, dk, dv]) {
      assert.ok(d.every(Number.isFinite));
      assert.equal(d.slice(0, 4), [0, 0, 0, 0]);
    }
  },
);

onEachBackend(test, 'what is hidden from attention does not reach it, be it NaN', (backend) => {
  const [B, T, S, D] = [1, 2, 5, 4];
  const q = random(backend, [B, T, 1, D], 1);
  const k = random(backend, [B, S, 1, D], 2);
  const v = random(backend, [B, S, 1, D], 3);
  const run = (keys: Tensor, values: Tensor) => {
    const y = Tensor.empty(backend, [B, T, 1, D], 'f32');
    const lse = Tensor.empty(backend, [B, 1, T], 'f32');
    backend.run('attention', [q, keys, values, y, lse], [0, 1, 0.5, 0, 3]);
    return y.toNumbers();
  };
  const clean = run(k, v);
  const dirty = (t: Tensor) => {
    const values = t.toNumbers().map((value, i) => (i >= 3 * D ? Number.NaN : value));
    return tensor(values, t.shape, { backend });
  };
  assert.equal(run(dirty(k), dirty(v)), clean, 'keys at and after keyLength');
});

onEachBackend(test, 'dropout keeps what the uniform numbers say', (backend) => {
  const n = 100003;
  const y = call(backend, 'dropout', [ones([n], { backend })], [n], [0.25, 11, 12, 13]).toNumbers();
  const u = uniform({ seed: 11, stream: 12, step: 13 }, n);
  y.forEach((value, i) => {
    const want = (u[i] as number) >= 0.25 ? Math.fround(1 / 0.75) : 0;
    if (value !== want) assert.unreachable(`element ${i} is ${value}, not ${want}`);
  });
  const edge = u[17] as number;
  const again = call(backend, 'dropout', [ones([n], { backend })], [n], [edge, 11, 12, 13]);
  assert.ok((again.toNumbers()[17] as number) > 0, 'u = p is kept');
});

onEachBackend(test, 'sums do not lose what f32 can hold', (backend) => {
  const n = 1 << 20;
  const x = full([n], 0.1, { backend });
  const total = call(backend, 'sum', [x], [], [0]).item();
  assert.ok(Math.abs(total / (n * Math.fround(0.1)) - 1) < 1e-5, `${total}`);
});

onEachBackend(test, 'wrong labels, ids and indices are named', (backend) => {
  const table = ones([5, 2], { backend });
  const ints = (values: number[], shape?: number[]) =>
    tensor(values, shape, { backend, dtype: 'i32' });
  for (const id of [5, -1, 2 ** 31 - 1]) {
    const lookUp = () => call(backend, 'embedding', [table, ints([0, id])], [2, 2]);
    assert.throws(
      lookUp,
      (e: Error) => /^\[embedding\].*4/.test(e.message) && e.message.includes(`${id}`),
    );
    const spread = () =>
      call(backend, 'embedding.grad', [ints([0, id]), ones([2, 2], { backend })], [5, 2]);
    assert.throws(spread, '[embedding.grad]');
    const loss = () =>
      call(backend, 'crossEntropy', [table, ints([0, 1, id, 0, 0])], [5], [-100, 0]);
    assert.throws(
      loss,
      (e: Error) => /^\[crossEntropy\].*/.test(e.message) && e.message.includes(`${id}`),
    );
    assert.throws(
      () => call(backend, 'gather', [table, ints([0, id], [1, 2])], [1, 2], [0]),
      '[gather]',
    );
    const back = () =>
      call(backend, 'gather.grad', [ints([0, id], [1, 2]), ones([1, 2], { backend })], [5, 2], [0]);
    assert.throws(back, '[gather.grad]');
  }
});

onEachBackend(test, 'gradients added in place are those apart, added', (backend) => {
  const sumOf = (a: Tensor, b: Tensor) => {
    const other = b.toNumbers();
    return a.toNumbers().map((v, k) => v + (other[k] as number));
  };
  const checkSlice = (whole: Shape, part: Shape, starts: readonly number[]) => {
    const [dy, dx] = [random(backend, part, 1), random(backend, whole, 2)];
    const want = sumOf(dx, call(backend, 'slice.grad', [dy], whole, starts));
    backend.run('slice.gradAdd', [dy, dx], starts);
    expectClose(dx.toNumbers(), want, 1e-6, `slice ${part} of ${whole}`);
  };
  checkSlice([5, 7], [3, 4], [1, 2]);
  checkSlice([3, 130, 71], [2, 129, 33], [1, 1, 38]);
  checkSlice([4], [0], [4]);
  checkSlice([], [], []);
  const ids = tensor([4, 0, 4, 1, 1, 4], [2, 3], { backend, dtype: 'i32' });
  const [dy, table] = [random(backend, [2, 3, 67], 3), random(backend, [5, 67], 4)];
  const want = sumOf(table, call(backend, 'embedding.grad', [ids, dy], [5, 67]));
  backend.run('embedding.gradAdd', [ids, dy, table], []);
  expectClose(table.toNumbers(), want, 1e-6, 'embedding');
  const outside = tensor([5], [1], { backend, dtype: 'i32' });
  const row = ones([1, 67], { backend });
  assert.throws(() => backend.run('embedding.gradAdd', [outside, row, table], []), '5');
  const beyond = () => backend.run('slice.gradAdd', [ones([3, 4], { backend }), table], [3, 0]);
  assert.throws(beyond, '[slice.gradAdd]');
});

/** The kernels that docs/kernels.md lists. */
const NAMES = [...reference.kernels];

onEachBackend(test, 'every kernel refuses calls without tensors, and with too many', (backend) => {
  for (const name of NAMES) {
    const starts = `[${name}] expected`;
    assert.throws(() => backend.run(name, [], []), starts);
    const many = Array.from({ length: 14 }, () => ones([2, 2], { backend }));
    if (name !== 'concat') assert.throws(() => backend.run(name, many, []), starts);
  }
});

test.run();
