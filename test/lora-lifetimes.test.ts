// time-limit: 240
import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, scope, setTrainable } from '../src/autograd/index.js';
import { AdamW } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { caughtByFinalizer } from '../src/tensor/lifetime.js';
import { candidates, onEachBackend } from './backends.js';
import { TinyRun } from './support/run.js';
import { TINY, tinyBatch, tinyModel } from './support/tiny.js';
import { skipUnless } from './support.js';

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;

/** Collects garbage and lets the finalizers run: they need a macrotask. */
async function collect(): Promise<void> {
  for (let i = 0; i < 3; i++) {
    gc();
    await setImmediate();
  }
}

/** Bytes held by purpose and the number of buffers. */
function held(backend: Backend) {
  const { live, handles } = backend.memory();
  return { ...live, handles };
}

for (const c of candidates) {
  const register = skipUnless(test, c.backend !== null, c.reason || `${c.name} is missing`);
  register(`1,000 steps hold the same bytes and buffers throughout (${c.name})`, async () => {
    const backend = c.backend as Backend;
    const start = held(backend);
    {
      using run = new TinyRun(backend, { ...TINY, layers: 1 });
      await run.train(3);
      await collect();
      const caught = caughtByFinalizer();
      const after3 = held(backend);
      for (let steps = 250; steps <= 1000; steps += 250) {
        await run.train(steps);
        assert.equal(held(backend), after3, `after ${steps} steps`);
      }
      await collect();
      assert.is(caughtByFinalizer(), caught);
      assert.is(caughtByFinalizer(), 0);
    }
    assert.equal(held(backend), start, 'nothing is left');
  });
}

onEachBackend(
  test,
  'memory: frozen tensors cost no gradient and no moment, LoRA by the formula',
  (backend) => {
    const start = held(backend);
    using run = new TinyRun(
      backend,
      { ...TINY, dtype: 'bf16' },
      { targetModules: ['qv', 'mlp.down_proj'], rank: 5 },
    );
    const { hidden, ffn, heads, keyValueHeads, headSize, layers } = TINY;
    const outputs = [heads * headSize, keyValueHeads * headSize, hidden];
    const inputs = [hidden, hidden, ffn];
    const trainables = layers * outputs.reduce((n, o, i) => n + 5 * (o + (inputs[i] as number)), 0);
    const parameters = [...run.adapters.baseParameters().values()].reduce((n, p) => n + p.size, 0);
    const grown = () => {
      const now = held(backend);
      return Object.fromEntries(
        Object.entries(now).map(([k, v]) => [k, v - start[k as keyof typeof start]]),
      );
    };
    const invFreq = (headSize / 2) * 4;
    assert.is(grown().frozen, 2 * parameters + invFreq, 'two bytes a frozen parameter');
    assert.is(grown().trainable, 4 * trainables);
    assert.is(grown().gradient, 0);
    assert.is(grown().optimizer, 0);
    const batch = run.source.batch(0, 0);
    scope(() => {
      const { loss } = run.model.loss(batch);
      assert.ok((grown().activation as number) > 1000, 'the graph holds activations');
      backward(loss);
      assert.is(grown().activation, loss.byteLength, 'the walk freed what the graph had kept');
    });
    assert.is(grown().gradient, 4 * trainables);
    assert.is(grown().activation, 0);
    for (const [name, p] of run.adapters.baseParameters()) {
      assert.is(p.grad, null, name);
      assert.is(p.requiresGrad, false, name);
    }
    run.optimizer.update();
    assert.is(grown().optimizer, 8 * trainables);
    run.optimizer.zeroGrad();
    assert.is(grown().gradient, 0);
    assert.is(grown().frozen, 2 * parameters + invFreq);
    assert.is(grown().workspace, 0);
  },
);

onEachBackend(test, 'full training holds gradient and moments of every parameter', (backend) => {
  const start = held(backend);
  const loaded = tinyModel(TINY, backend);
  for (const [, p] of loaded.namedParameters()) setTrainable(p, true);
  const all = new Map(loaded.namedParameters());
  const count = [...all.values()].reduce((n, p) => n + p.size, 0);
  using optimizer = new AdamW([{ parameters: all }], { lr: 1e-3 });
  scope(() => backward(loaded.loss(tinyBatch(1, [5, 4], TINY.vocab)).loss));
  assert.is(held(backend).gradient - start.gradient, 4 * count);
  optimizer.update();
  assert.is(held(backend).optimizer - start.optimizer, 8 * count);
  loaded.dispose();
  optimizer.dispose();
  assert.equal(held(backend), start);
});

/** Bytes of activations that the graph of one loss holds. */
function savedBytes(backend: Backend, targets: string[], dropout = 0): number {
  using run = new TinyRun(
    backend,
    { ...TINY, layers: 3 },
    { targetModules: targets, rank: 2, dropout },
  );
  const batch = tinyBatch(5, [7, 9], TINY.vocab);
  const before = held(backend).activation;
  return scope(() => {
    const { loss } = run.model.loss(batch);
    return held(backend).activation - before - loss.byteLength;
  });
}

onEachBackend(test, 'layers below the first trainable one keep nothing', (backend) => {
  const last = (n: number) => [`layers.${n}.self_attn.q_proj`];
  const [top, middle, bottom] = [2, 1, 0].map((n) => savedBytes(backend, last(n))) as [
    number,
    number,
    number,
  ];
  assert.ok(top > 0);
  assert.ok(middle > top && bottom > middle, `${top}, ${middle}, ${bottom}`);
  assert.is(bottom - middle, middle - top, 'each layer above costs the same');
  // A deeper model costs no more where its additional layers lie below.
  // The head's branch keeps its x for dA and the r-wide product for dB, the loss logits and labels.
  const rows = 6 + 8;
  const { hidden, vocab } = TINY;
  assert.is(savedBytes(backend, ['lm_head']), 4 * rows * (hidden + 2 + vocab + 1));
});

test.run();
