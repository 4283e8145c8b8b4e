// time-limit: 600
// Kernels that do in one pass what others do in several: the same bits, and nothing changed where
// nothing may.
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, scope, setTrainable } from '../src/autograd/index.js';
import { mul, sum } from '../src/ops/index.js';
import { AdamW, Clipping, clipFactor, gradientNorm, SGD } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { full, tensor } from '../src/tensor/create.js';
import type { DType } from '../src/tensor/dtype.js';
import { NativeBackend } from '../src/tensor/native.js';
import { normal } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { candidates, native, onGpu, onNative, reference } from './backends.js';
import { cudaShim } from './cuda.js';
import { TinyRun } from './support/run.js';
import { setFloats, TINY, tinyBatch } from './support/tiny.js';
import { skipUnless } from './support.js';

/** Registers a test for each backend, and for the CUDA kernels on the processor. */
function onEach(name: string, body: (backend: Backend) => void | Promise<void>): void {
  for (const c of candidates) {
    const register = skipUnless(test, c.backend !== null, c.reason || `${c.name} is missing`);
    register(`${name} (${c.name})`, () => body(c.backend as Backend));
  }
  const shim = skipUnless(test, native !== null && !onGpu, 'no native addon, or a GPU is there');
  shim(`${name} (the CUDA shim)`, () => body(cudaShim()));
}

const random = (backend: Backend, shape: Shape, stream: number, dtype: DType = 'f32') =>
  tensor(normal({ seed: 3, stream }, numel(shape)), shape, { backend, dtype });

const bytesOf = (tensors: readonly Tensor[]) => tensors.map((t) => Buffer.from(t.bytes()));

const number = (backend: Backend, value: number) => tensor([value], [1], { backend });

const INFINITE = Number.NEGATIVE_INFINITY;

/** Losses and gradients by the two calls and by the one. */
function bothWays(
  backend: Backend,
  values: ArrayLike<number>,
  labels: readonly number[],
  smoothing: number,
  factor: number,
): { two: Buffer[]; one: Buffer[] } {
  const shape = [labels.length, values.length / Math.max(1, labels.length)];
  const on = { backend };
  const y = tensor(labels, undefined, { backend, dtype: 'i32' });
  const [x, again] = [tensor(values, shape, on), tensor(values, shape, on)];
  const [losses, other] = [full([labels.length], 7, on), full([labels.length], 7, on)];
  backend.run('crossEntropy', [x, y, losses], [-1, smoothing]);
  backend.run('crossEntropy.grad', [x, y, full([labels.length], factor, on), x], [-1, smoothing]);
  backend.run('crossEntropy.withGrad', [y, other, again], [-1, smoothing, factor]);
  return { two: bytesOf([losses, x]), one: bytesOf([other, again]) };
}

onEach('a loss with its gradient has the bits of the two calls', (backend) => {
  for (const v of [1, 5, 31, 1024, 1025, 8193, 50257]) {
    const values = normal({ seed: 4, stream: v }, 4 * v).map((z) => 5 * z);
    for (const smoothing of [0, 0.1]) {
      const { two, one } = bothWays(backend, values, [v - 1, -1, 0, v >> 1], smoothing, 0.3);
      assert.equal(one, two, `${v}, smoothing ${smoothing}`);
    }
  }
  const special = [1, INFINITE, 2, 3e4, -3e4, 1, Number.NaN, 0, 1, -INFINITE, 0, 0];
  const { two, one } = bothWays(backend, special, [0, 1, 2, 0], 0, -2);
  assert.equal(one, two);
  assert.equal(bothWays(backend, [], [], 0, 1).one.map(String), ['', '']);
});

onNative(test, 'a loss with its gradient on each instruction set and any threads', (backend) => {
  const { isas, isa, threads } = backend.info();
  const values = normal({ seed: 5, stream: 1 }, 24 * 2049);
  const labels = Array.from({ length: 24 }, (_, i) => (i % 5 === 0 ? -1 : (i * 97) % 2049));
  try {
    for (const name of isas) {
      backend.setIsa(name);
      const bits = [1, 2, 3].map((n) => {
        backend.setThreads(n);
        const { two, one } = bothWays(backend, values, labels, 0.05, 1 / 7);
        assert.equal(one, two, name);
        return one;
      });
      assert.equal(bits[1], bits[0], name);
      assert.equal(bits[2], bits[0], name);
    }
  } finally {
    backend.setIsa(isa);
    backend.setThreads(threads);
  }
});

onEach('a label that is none is an error, and the logits stay', (backend) => {
  const x = random(backend, [3, 5], 1);
  const before = bytesOf([x]);
  const losses = full([3], 0, { backend });
  for (const bad of [5, -2]) {
    const labels = tensor([1, bad, 0], undefined, { backend, dtype: 'i32' });
    const run = () => {
      backend.run('crossEntropy.withGrad', [labels, losses, x], [-1, 0, 1]);
      losses.bytes();
    };
    assert.throws(run, (e: Error) => e.message.startsWith('[crossEntropy.withGrad] expected'));
    if (backend.name !== 'cuda') assert.equal(bytesOf([x]), before);
  }
});

/** Empty, single, odd, and longer than a part of work of one thread or block. */
const SHAPES: readonly Shape[] = [[0], [1], [3, 37], [16384], [5, 16385], [2, 5], [70001]];

onEach('sums of squares of many tensors are those of each', (backend) => {
  const all = Array.from({ length: 250 }, (_, i) =>
    random(backend, SHAPES[i < 14 ? i % 7 : 2] as Shape, i, i % 3 === 2 ? 'bf16' : 'f32'),
  );
  const together = Tensor.empty(backend, [all.length], 'f32');
  backend.run('sumSquares', [...all, together], []);
  const each = all.map((x) => {
    const y = Tensor.empty(backend, [1], 'f32');
    backend.run('sumSquares', [x, y], []);
    return y.item();
  });
  assert.equal(together.toNumbers(), each);
  const short = Tensor.empty(backend, [3], 'f32');
  assert.throws(() => backend.run('sumSquares', [...all, short], []), /\[sumSquares\] expected/);
  if (!(backend instanceof NativeBackend)) return;
  const { threads } = backend.info();
  for (const n of [1, 3]) {
    backend.setThreads(n);
    backend.run('sumSquares', [...all, together], []);
    assert.equal(together.toNumbers(), each);
  }
  backend.setThreads(threads);
});

onEach('the factor is that of the norm, and NaN where a number is not finite', (backend) => {
  const factorOf = (sums: readonly number[], numbers: readonly number[], maxNorm: number) => {
    const y = Tensor.empty(backend, [1], 'f32');
    const given = numbers.map((x) => number(backend, x));
    backend.run('clipFactor', [tensor(sums, undefined, { backend }), ...given, y], [maxNorm]);
    return y.item();
  };
  const many = Array.from(normal({ seed: 6, stream: 1 }, 300), (z) => Math.fround(z * z));
  for (const sums of [[9, 16, 144], [0], [], many]) {
    const norm = Math.sqrt(sums.reduce((n, s) => n + s, 0));
    for (const maxNorm of [1e-3, 1, norm, 1e9]) {
      const want = maxNorm > 0 ? clipFactor(norm, maxNorm) : 1;
      assert.is(factorOf(sums, [1, -2], maxNorm), Math.fround(want), `${norm}, ${maxNorm}`);
    }
    assert.is(factorOf(sums, [], 0), 1);
  }
  for (const bad of [Number.NaN, INFINITE, -INFINITE]) {
    assert.ok(Number.isNaN(factorOf([1, bad, 1], [], 1)));
    assert.ok(Number.isNaN(factorOf([1, 1], [0, bad, 0], 0)));
  }
  assert.throws(() => factorOf([1], [], -1), /\[clipFactor\] expected a largest norm/);
  assert.throws(() => factorOf([1], [], Number.NaN), /\[clipFactor\] expected a largest norm/);
});

const SETTINGS: readonly (readonly [string, number, readonly number[], number])[] = [
  ['adamw', 4, [0.01, 0.9, 0.99, 1e-6, 0.1, 3], 6],
  ['adamwEach', 4, [0.01, 0.9, 0.99, 1e-6, 0.1, 3], 6],
  ['sgd', 3, [0.1, 0.9, 0.01], 3],
];

onEach('a step by a factor that the backend has, or none where it is NaN', (backend) => {
  for (const [kernel, tensors, settings, at] of SETTINGS) {
    const state = () =>
      Array.from({ length: tensors }, (_, i) => {
        const values = normal({ seed: 8, stream: i }, 8195).map((z) => (i === 3 ? z * z : z));
        return tensor(values, undefined, { backend });
      });
    const attrs = (gradScale: number) => [
      ...settings.slice(0, at),
      gradScale,
      ...(kernel === 'sgd' ? [0] : []),
    ];
    const [known, given, untouched] = [state(), state(), state()];
    backend.run(kernel, known, attrs(Math.fround(0.3)));
    backend.run(kernel, [number(backend, 0.3), ...given], attrs(1));
    assert.equal(bytesOf(given), bytesOf(known), kernel);
    const before = bytesOf(untouched);
    backend.run(kernel, [number(backend, Number.NaN), ...untouched], attrs(1));
    assert.equal(bytesOf(untouched), before, kernel);
    const wide = [tensor([1, 1], undefined, { backend }), ...untouched];
    assert.throws(
      () => backend.run(kernel, wide, attrs(1)),
      /expected an? .*factor of one element/,
    );
  }
});

/** Parameters of five elements with random gradients. */
function withGradients(backend: Backend, count: number): Map<string, Tensor> {
  const entries = Array.from({ length: count }, (_, i) => {
    const p = setTrainable(random(backend, [5], i), true);
    scope(() => backward(sum(mul(p, random(backend, [5], 1000 + i)))));
    return [String(i), p] as const;
  });
  return new Map(entries);
}

onEach('clipping that the backend keeps is that of numbers', (backend) => {
  for (const count of [3, 300]) {
    const [mine, theirs] = [withGradients(backend, count), withGradients(backend, count)];
    const losses = Array.from({ length: count }, (_, i) => number(backend, i));
    const clipping = Clipping.of(mine.values(), 0.5, losses);
    assert.ok(clipping);
    const norm = gradientNorm(theirs.values());
    assert.is(clipping.norm(), norm);
    const factor = Math.fround(clipFactor(norm, 0.5));
    assert.is(clipping.factor.item(), factor);
    const optimizers = [mine, theirs].map((parameters) => new AdamW([{ parameters }], { lr: 0.1 }));
    optimizers[0]?.update(0.5, clipping.factor);
    optimizers[1]?.update(0.5, factor);
    assert.equal(bytesOf([...mine.values()]), bytesOf([...theirs.values()]));
    clipping.dispose();
    // The last of many losses counts as the first does.
    losses.push(number(backend, Number.NaN));
    const stopped = Clipping.of(mine.values(), 0.5, losses);
    assert.ok(Number.isNaN(stopped?.factor.item()));
    assert.is(stopped?.norm(), norm);
    stopped?.dispose();
    for (const o of optimizers) o.dispose();
  }
  assert.is(Clipping.of([random(backend, [2], 1)], 1), null, 'no gradient');
  const [p] = withGradients(backend, 1).values();
  assert.throws(() => Clipping.of([p as Tensor], -1), /\[clipping maxNorm\].*received -1/);
  if (backend === reference) return;
  const [other] = withGradients(reference, 1).values();
  const both = [p, other] as Tensor[];
  assert.throws(() => gradientNorm(both), /\[gradient norm\] expected gradients on one backend/);
  const elsewhere = [number(reference, 1)];
  assert.throws(() => Clipping.of([p as Tensor], 1, elsewhere), /\[clipping\] expected losses on/);
});

onEach('an update by NaN changes nothing, and is taken back', (backend) => {
  const nan = number(backend, Number.NaN);
  for (const make of [AdamW, SGD]) {
    const [tried, plain] = [withGradients(backend, 3), withGradients(backend, 3)];
    const [a, b] = [tried, plain].map((parameters) => new make([{ parameters }], { lr: 0.1 })) as [
      AdamW,
      AdamW,
    ];
    const before = bytesOf([...tried.values()]);
    a.update(1, nan);
    a.revoke();
    assert.equal(bytesOf([...tried.values()]), before);
    assert.equal([a.step, a.updates, a.state().size], [0, 0, 0]);
    for (const o of [a, b]) o.update();
    const state = [...a.state().values()];
    a.update(1, nan);
    a.revoke();
    assert.equal([a.step, a.updates], [1, 1]);
    assert.equal([...a.state().values()], state, 'moments that were there stay');
    for (const o of [a, b]) o.update(1, 0.5);
    assert.equal(
      bytesOf([...tried.values(), ...a.state().values()]),
      bytesOf([...plain.values(), ...b.state().values()]),
    );
    const two = tensor([1, 1], undefined, { backend });
    assert.throws(() => a.update(1, two), /update\] expected a gradScale of one f32 element/);
    if (backend !== reference) {
      const elsewhere = number(reference, 1);
      assert.throws(() => a.update(1, elsewhere), /expected parameters on reference/);
    }
    assert.equal([a.step, a.updates], [2, 2], 'an update that throws counts nothing');
    a.dispose();
    b.dispose();
  }
});

onEach('a step that is not finite changes no weight, found before or after it', async (backend) => {
  using run = new TinyRun(backend);
  await run.train(1);
  const before = run.bits();
  const head = run.adapters.baseParameters().get('lm_head.weight') as Tensor;
  const good = Float32Array.from(head.toNumbers());
  setFloats(
    head,
    Float32Array.from(good, (v, i) => (i === 7 ? Number.NaN : v)),
  );
  const [event] = await run.train(2);
  assert.is(event?.skipped, 'the loss or a gradient is not finite');
  assert.equal(run.bits(), before);
  assert.equal([run.optimizer.step, run.optimizer.updates], [2, 1]);
  setFloats(head, good);
  const [next] = await run.train(3);
  assert.ok((next?.gradNorm as number) > 0 && next?.skipped === undefined);
  assert.equal([run.optimizer.step, run.optimizer.updates], [3, 2]);
});

onEach('a step whose labels are wrong changes no weight and is not counted', async (backend) => {
  using run = new TinyRun(backend);
  await run.train(1);
  const before = run.bits();
  const batch = tinyBatch(4, [5, 5], TINY.vocab);
  batch.labels[3] = TINY.vocab;
  // A GPU finds it only when the update is already on its way.
  let message = '';
  await run.train(2, {}, { batch: () => batch }).catch((e: Error) => {
    message = e.message;
  });
  assert.match(message, /^\[crossEntropy.withGrad\] expected labels/);
  assert.equal(run.bits(), before, 'weights and moments');
  assert.equal([run.optimizer.step, run.optimizer.updates], [1, 1]);
  await run.train(2);
  assert.not.equal(run.bits(), before);
});

test.run();
