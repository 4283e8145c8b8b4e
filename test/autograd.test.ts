import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, gradEnabled, noGrad, scope, setTrainable } from '../src/autograd/index.js';
import {
  add,
  addLowRank,
  affine,
  cast,
  crossEntropy,
  embedding,
  exp,
  gelu,
  linear,
  matmul,
  mul,
  relu,
  reshape,
  rmsNorm,
  scale,
  slice,
  softmax,
  sum,
  tanh,
  writeInto,
} from '../src/ops/index.js';
import { AdamW } from '../src/optim/adamw.js';
import type { Backend } from '../src/tensor/backend.js';
import { ones, tensor } from '../src/tensor/create.js';
import type { DType } from '../src/tensor/dtype.js';
import { caughtByFinalizer } from '../src/tensor/lifetime.js';
import { normal } from '../src/tensor/random.js';
import type { Shape } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { native, onEachBackend, onNative, reference } from './backends.js';

/** A tensor of fixed random numbers that lives until it is disposed. */
function random(backend: Backend, shape: Shape, stream = 0, dtype: DType = 'f32'): Tensor {
  const count = shape.reduce((n, d) => n * d, 1);
  return tensor(normal({ seed: 9, stream }, count), shape, { backend, dtype }).keep();
}

function trainable(backend: Backend, values: number[], shape?: Shape): Tensor {
  return setTrainable(tensor(values, shape, { backend }), true);
}

const gradOf = (t: Tensor) => (t.grad as Tensor).toNumbers();

/** Runs a test and checks that it leaves no buffer behind. */
function balanced(name: string, body: (backend: Backend) => void): void {
  onEachBackend(test, name, (backend) => {
    const before = backend.memory();
    scope(() => {
      body(backend);
    });
    const after = backend.memory();
    assert.is(after.handles, before.handles, 'buffers left behind');
    assert.equal(after.live, before.live);
  });
}

balanced('a second use of a tensor accumulates', (backend) => {
  const x = trainable(backend, [1, -2, 3]);
  backward(sum(add(mul(x, x), x)));
  assert.equal(gradOf(x), [3, -3, 7], 'd(x² + x) = 2x + 1');
  backward(sum(scale(x, 10)));
  assert.equal(gradOf(x), [13, 7, 17], 'a second loss adds to the gradient');
});

balanced('a shared subgraph gets one gradient from all its uses', (backend) => {
  const x = trainable(backend, [0.5, -1]);
  const shared = exp(x);
  const left = mul(shared, shared);
  const right = scale(shared, 3);
  backward(sum(add(mul(left, right), shared)));
  // y = 3e³ˣ + eˣ
  const want = [0.5, -1].map((v) => 9 * Math.exp(3 * v) + Math.exp(v));
  gradOf(x).forEach((g, i) => {
    assert.ok(Math.abs(g - (want[i] as number)) < 1e-4 * (want[i] as number));
  });
});

balanced('2⁴⁰ paths through 40 diamonds are walked once each node', (backend) => {
  const x = trainable(backend, [1]);
  let y: Tensor = x;
  for (let i = 0; i < 40; i++) y = scale(add(y, y), 0.5);
  backward(sum(y));
  assert.equal(gradOf(x), [1]);
});

balanced('one upstream gradient handed to two inputs is not shared', (backend) => {
  const a = trainable(backend, [1, 2]);
  const b = trainable(backend, [3, 4]);
  backward(sum(add(a, b)));
  backward(sum(scale(a, 5)));
  assert.equal(gradOf(a), [6, 6]);
  assert.equal(gradOf(b), [1, 1]);
  // The same inside the graph: a's own use comes after the two inner nodes were given one tensor.
  const c = trainable(backend, [1, 2]);
  const d = trainable(backend, [3, 4]);
  const inner = affine(c, 1, 0);
  const other = affine(d, 1, 0);
  const own = scale(inner, 5);
  backward(add(sum(add(inner, other)), sum(own)));
  assert.equal(gradOf(c), [6, 6]);
  assert.equal(gradOf(d), [1, 1]);
});

balanced('gradients of many uses are added, in place or not', (backend) => {
  const w = random(backend, [6, 6], 1);
  const ids = tensor([2, 0, 2], [3], { backend, dtype: 'i32' });
  const uses: ((x: Tensor) => Tensor)[] = [
    (x) => linear(x, w),
    (x) => linear(x, w, null, { transposed: true }),
    (x) => matmul(x, w, { transA: true }),
    (x) => matmul(w, x),
    (x) => matmul(x, x),
    (x) => addLowRank(w, x, w, w, { scale: 0.5 }),
    (x) => embedding(x, ids),
    (x) => slice(x, 1, 2, 5),
    (x) => slice(x, 1, 1, 3),
    (x) => x,
  ];
  const gradient = (losses: readonly ((x: Tensor) => Tensor)[], inside: boolean) => {
    const leaf = setTrainable(random(backend, [6, 6], 2), true);
    // A node in between, or the leaf itself.
    const x = inside ? scale(leaf, 1) : leaf;
    backward(losses.map((use) => sum(mul(use(x), use(x)))).reduce((a, b) => add(a, b)));
    const found = gradOf(leaf);
    leaf.dispose();
    return found;
  };
  const apart = uses.map((use) => gradient([use], false));
  const want = apart.reduce((a, b) => a.map((v, i) => v + (b[i] as number)));
  for (const inside of [false, true]) {
    gradient(uses, inside).forEach((g, i) => {
      assert.ok(
        Math.abs(g - (want[i] as number)) < 1e-4 * Math.max(1, Math.abs(want[i] as number)),
      );
    });
  }
  w.dispose();
});

balanced('a cheap output is computed again where a gradient reads it', (backend) => {
  const x = setTrainable(random(backend, [64, 32], 3), true);
  const w = setTrainable(random(backend, [16, 32], 4), true);
  const gain = ones([32], { backend });
  const start = backend.memory().live.activation;
  const y = scope(() => linear(reshape(gelu(rmsNorm(x, gain, 1e-6)), [64, 32]), w));
  // Of x and what follows from it only the result is new: the norm's and gelu's are not kept.
  assert.is(backend.memory().live.activation - start, 64 * 16 * 4);
  backward(sum(mul(y, y)));
  const grads = [gradOf(x), gradOf(w)];
  for (const t of [x, w]) setTrainable(setTrainable(t, false), true);
  // The same with everything kept: outputs that the graph knows under other names.
  const held = rmsNorm(x, gain, 1e-6);
  const inner = gelu(held);
  const again = linear(scale(inner, 1), w);
  backward(sum(mul(again, again)));
  assert.equal([gradOf(x), gradOf(w)], grads);
  w.dispose();
  x.dispose();
});

balanced('noGrad records nothing and ends with its function', (backend) => {
  const x = trainable(backend, [1]);
  const y = noGrad(() => {
    assert.not.ok(gradEnabled());
    return noGrad(() => exp(x));
  });
  assert.not.ok(y.requiresGrad);
  assert.throws(() =>
    noGrad(() => {
      throw new Error('inside');
    }),
  );
  assert.ok(gradEnabled());
  assert.ok(exp(x).requiresGrad);
});

balanced('only what leads to a trainable tensor is recorded', (backend) => {
  const x = tensor([1, 2, 3, 4], [2, 2], { backend });
  const frozen = setTrainable(tensor([1, 0, 0, 1], [2, 2], { backend }), false);
  const b = trainable(backend, [1, 1]);
  const below = gelu(linear(x, frozen));
  assert.not.ok(below.requiresGrad);
  const y = add(below, b);
  assert.ok(y.requiresGrad);
  backward(sum(y));
  assert.is(frozen.grad, null);
  assert.equal(gradOf(b), [2, 2]);
});

balanced('a frozen linear keeps no input, a trainable one does', (backend) => {
  const x = setTrainable(random(backend, [64, 32]), true);
  const w = setTrainable(random(backend, [32, 32], 1), false);
  const live = () => backend.memory().live.activation;
  const start = live();
  const h = linear(x, w);
  const y = linear(h, w);
  assert.is(live() - start, h.byteLength + y.byteLength);
  h.dispose();
  assert.is(live() - start, y.byteLength, 'nothing holds h');
  y.dispose();
  const trained = setTrainable(random(backend, [32, 32], 2), true);
  const h2 = linear(x, w);
  const y2 = linear(h2, trained);
  h2.dispose();
  assert.is(live() - start, 2 * y2.byteLength, 'dW reads h');
  y2.dispose();
  assert.is(live(), start, 'a graph that is let go frees what it saved');
  for (const t of [x, w, trained]) t.dispose();
});

balanced('gradients and moments are those of the trainable tensors, to the byte', (backend) => {
  const [inner, outer, rank] = [48, 40, 4];
  const before = backend.memory().live;
  const w = setTrainable(random(backend, [outer, inner], 1, 'bf16'), false);
  const a = setTrainable(random(backend, [rank, inner], 2), true);
  const b = setTrainable(random(backend, [outer, rank], 3), true);
  const optimizer = new AdamW(
    [
      {
        parameters: new Map([
          ['a', a],
          ['b', b],
        ]),
      },
    ],
    { lr: 0.01 },
  );
  const x = random(backend, [6, inner]);
  const heldBytes = a.byteLength + b.byteLength;
  for (let step = 0; step < 3; step++) {
    scope(() => {
      const y = add(linear(x, w), scale(linear(linear(x, a), b), 2));
      backward(sum(mul(y, y)));
    });
    const { live } = backend.memory();
    assert.is(live.gradient - before.gradient, heldBytes);
    optimizer.update();
    assert.is(backend.memory().live.optimizer - before.optimizer, 2 * heldBytes);
    assert.is(live.frozen - before.frozen, outer * inner * 2);
    assert.is(live.trainable - before.trainable, heldBytes);
    optimizer.zeroGrad();
    assert.is(backend.memory().live.gradient, before.gradient);
  }
  assert.is(w.grad, null);
  optimizer.dispose();
  for (const t of [w, a, b, x]) t.dispose();
});

balanced('backward frees what was saved as it passes', (backend) => {
  const x = setTrainable(random(backend, [128, 64]), true);
  const start = backend.memory().live.activation;
  const loss = scope(() => sum(tanh(exp(tanh(exp(tanh(x)))))));
  const kept = backend.memory().live.activation - start;
  assert.ok(kept >= 4 * x.byteLength, `${kept} bytes saved`);
  backend.resetPeak();
  const before = backend.memory().total;
  backward(loss);
  const rise = backend.memory().totalPeak - before;
  assert.ok(rise <= 4 * x.byteLength, `the walk added ${rise} bytes at its peak`);
  assert.is(backend.memory().live.activation - start, 4, 'only the loss is left');
  x.dispose();
});

balanced('misuse of backward is an error that says what to do', (backend) => {
  const x = trainable(backend, [1, 2]);
  const loss = sum(mul(x, x));
  assert.throws(
    () => backward(mul(x, x)),
    '[backward] expected a loss of one element, received [2]',
  );
  assert.throws(() => backward(sum(tensor([1], [1], { backend }))), 'Is every parameter frozen');
  assert.throws(
    () => backward(loss, ones([2], { backend })),
    'expected a gradient [], received [2]',
  );
  backward(loss);
  assert.throws(() => backward(loss), 'Compute the loss again before the second backward()');
  assert.equal(gradOf(x), [2, 4], 'the failed walk changed nothing');
  const gone = sum(x);
  gone.dispose();
  assert.throws(() => backward(gone), '[backward] expected a live tensor');
});

balanced('a walk into a part that was walked before is an error', (backend) => {
  const x = trainable(backend, [1, 2]);
  const shared = exp(x);
  backward(sum(mul(shared, shared)));
  assert.throws(() => backward(sum(scale(shared, 2))), 'a second walk');
});

balanced('a gradient may be given for a result of any shape', (backend) => {
  const x = trainable(backend, [1, 2, 3, 4], [2, 2]);
  backward(mul(x, x), tensor([1, 0, 0, 10], [2, 2], { backend }));
  assert.equal(gradOf(x), [2, 0, 0, 80]);
});

balanced('changing a saved tensor in place is an error', (backend) => {
  const x = trainable(backend, [1, 2]);
  const c = tensor([3, 4], [2], { backend });
  const loss = sum(mul(x, c));
  c.setBytes(new Uint8Array(8));
  assert.throws(() => backward(loss), 'changed in place since');
  const cache = tensor([3, 4], [2], { backend });
  const other = sum(mul(x, cache));
  writeInto(cache, tensor([5], [1], { backend }), [1]);
  assert.throws(() => backward(other), '[backward of mul] expected input 1 as it was');
  const unread = tensor([3, 4], [2], { backend });
  const sound = sum(add(x, unread));
  unread.setBytes(new Uint8Array(8));
  backward(sound);
  assert.equal(gradOf(x), [1, 1], 'a tensor that no gradient reads may change');
  assert.throws(() => writeInto(x, unread, [0]), '[write] expected a target outside the graph');
});

balanced('a chain of 10,000 ops is walked and let go without recursion', (backend) => {
  const x = trainable(backend, [1]);
  scope(() => {
    let y: Tensor = x;
    for (let i = 0; i < 10000; i++) y = affine(y, 1, 0.5);
    backward(sum(y));
    assert.equal(gradOf(x), [1]);
  });
  scope(() => {
    let y: Tensor = x;
    for (let i = 0; i < 10000; i++) y = affine(y, 1, 0.5);
  });
});

balanced('trainable and frozen: what may be, and what the books say', (backend) => {
  const start = backend.memory().live;
  const x = setTrainable(ones([4], { backend }), true);
  assert.is(backend.memory().live.trainable - start.trainable, 16);
  assert.is(setTrainable(x, true), x, 'again does nothing');
  backward(sum(x));
  assert.is(backend.memory().live.gradient - start.gradient, 16);
  setTrainable(x, false);
  assert.is(backend.memory().live.trainable, start.trainable);
  assert.is(backend.memory().live.gradient, start.gradient, 'freezing frees the gradient');
  assert.is(backend.memory().live.frozen - start.frozen, 16);
  const ids = tensor([1], [1], { backend, dtype: 'i32' });
  assert.throws(() => setTrainable(ids, true), '[setTrainable] expected floats, received i32');
  const y = exp(setTrainable(ones([1], { backend }), true));
  assert.throws(() => setTrainable(y, false), 'a result of the graph');
});

balanced('the gradient of a cast is the upstream one', (backend) => {
  const x = trainable(backend, [1.001, -2.3]);
  const upstream = tensor([3.3, 2], [2], { backend });
  backward(cast(x, 'bf16'), upstream);
  assert.equal(gradOf(x), upstream.toNumbers());
  assert.not.ok(cast(x, 'i32').requiresGrad, 'integers have no gradient');
});

balanced('scopes free what is made and not returned', (backend) => {
  const handles = () => backend.memory().handles;
  const start = handles();
  const made = scope(() => {
    const a = ones([2], { backend });
    const b = scope(() => {
      const c = exp(a);
      return { list: [add(c, a)], map: new Map([['m', mul(c, c)]]), text: 'x' };
    });
    assert.is(handles() - start, 3, 'c is gone with its scope');
    return b;
  });
  assert.is(handles() - start, 2);
  assert.ok((made.list[0] as Tensor).toNumbers().every(Number.isFinite));
  const kept = scope(() => {
    const t = ones([3], { backend }).keep();
    return () => t;
  });
  assert.is(handles() - start, 3, 'keep() outlives the scope');
  assert.equal(kept().toNumbers(), [1, 1, 1]);
  kept().dispose();
});

test('a tensor that nobody disposes is caught by the finalizer, and counted', async () => {
  const gc = exposedGc();
  const before = caughtByFinalizer();
  const { handles } = reference.memory();
  (() => {
    ones([5], { backend: reference });
  })();
  for (let i = 0; i < 20 && caughtByFinalizer() === before; i++) {
    gc();
    await setImmediate();
  }
  assert.is(caughtByFinalizer(), before + 1);
  assert.is(reference.memory().handles, handles);
});

balanced('an error inside a scope frees everything', (backend) => {
  const start = backend.memory().handles;
  const x = trainable(backend, [1, 2]);
  assert.throws(() =>
    scope(() => {
      const h = exp(x);
      return add(h, tensor([1, 2, 3], [3], { backend }));
    }),
  );
  assert.is(backend.memory().handles, start + 1);
  assert.throws(() => scope(async () => 1), '[scope] expected a function that returns its result');
  assert.throws(() =>
    embedding(tensor([1], [1, 1], { backend }), tensor([7], [1], { backend, dtype: 'i32' })),
  );
  x.dispose();
});

balanced('using disposes at the end of the block', (backend) => {
  const start = backend.memory().handles;
  {
    using x = ones([2], { backend });
    assert.is(x.size, 2);
    assert.is(backend.memory().handles, start + 1);
  }
  assert.is(backend.memory().handles, start);
});

onNative(test, 'tensors of two backends do not meet', (backend) => {
  scope(() => {
    const a = ones([2], { backend });
    const b = ones([2], { backend: reference });
    assert.throws(
      () => add(a, b),
      '[add] expected inputs on one backend (cpu), received reference',
    );
  });
});

/** V8's collector, without a flag on the command line. */
function exposedGc(): () => void {
  setFlagsFromString('--expose-gc');
  return runInNewContext('gc') as () => void;
}

/** A small language model's step: embedding, norm, two layers, loss, update. */
function trainingRun(backend: Backend) {
  const [V, C, N] = [11, 8, 6];
  const table = setTrainable(random(backend, [V, C], 1), false);
  const w1 = setTrainable(random(backend, [C, C], 2), true);
  const w2 = setTrainable(random(backend, [V, C], 3), true);
  const norm = setTrainable(ones([C], { backend }).keep(), false);
  const optimizer = new AdamW(
    [
      {
        parameters: new Map([
          ['1', w1],
          ['2', w2],
        ]),
      },
    ],
    { lr: 0.01 },
  );
  const ids = tensor([0, 1, 2, 3, 4, 5], [N], { backend, dtype: 'i32' }).keep();
  const labels = tensor([1, 2, 3, -100, 5, 6], [N], { backend, dtype: 'i32' }).keep();
  const step = () =>
    scope(() => {
      const h = rmsNorm(embedding(table, ids), norm, 1e-6);
      const mixed = matmul(softmax(reshape(h, [N, C])), relu(linear(h, w1)), { transA: true });
      const logits = linear(linear(h, mixed), w2);
      const loss = crossEntropy(logits, labels);
      backward(loss);
      optimizer.update();
      optimizer.zeroGrad();
      return loss.item();
    });
  const dispose = () => {
    optimizer.dispose();
    for (const t of [table, w1, w2, norm, ids, labels]) t.dispose();
  };
  return { step, dispose };
}

for (const backend of native ? [reference, native] : [reference]) {
  test(`1,000 training steps leave live bytes and handles constant (${backend.name})`, async () => {
    const gc = exposedGc();
    const start = backend.memory();
    const caught = caughtByFinalizer();
    const run = trainingRun(backend);
    const first = run.step();
    const { handles, live } = backend.memory();
    let last = first;
    for (let i = 0; i < 1000; i++) {
      last = run.step();
      if (backend.memory().handles !== handles) assert.unreachable(`handles in step ${i}`);
    }
    assert.equal(backend.memory().live, live);
    assert.ok(last < first / 2, `the loss fell from ${first} to ${last}`);
    for (let i = 0; i < 5; i++) {
      gc();
      await setImmediate();
    }
    assert.is(caughtByFinalizer(), caught, 'nothing for the finalizer');
    run.dispose();
    assert.is(backend.memory().handles, start.handles);
    assert.equal(backend.memory().live, start.live);
  });
}

test.run();
