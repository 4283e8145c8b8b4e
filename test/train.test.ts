import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, scope } from '../src/autograd/index.js';
import type { TokenBatch } from '../src/models/causal-lm.js';
import type { Backend } from '../src/tensor/backend.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { evaluate } from '../src/train/evaluate.js';
import type { StepEvent, TrainOptions } from '../src/train/trainer.js';
import { candidates, onEachBackend, reference } from './backends.js';
import { TinyRun } from './support/run.js';
import { relativeDifference, snapshot, TINY, tinyBatch } from './support/tiny.js';
import { skipUnless } from './support.js';

/** Registers an asynchronous test for each backend. */
function onEach(name: string, body: (backend: Backend) => Promise<void>): void {
  for (const c of candidates) {
    const register = skipUnless(test, c.backend !== null, c.reason || `${c.name} is missing`);
    register(`${name} (${c.name})`, () => body(c.backend as Backend));
  }
}

const PLAIN = { targetModules: ['all-linear'], rank: 4 };

onEach('a run learns its batch: the loss falls below half of the base’s', async (backend) => {
  using run = new TinyRun(backend, TINY, PLAIN, 0.05);
  const batch = tinyBatch(1, [6, 5], TINY.vocab);
  const frozen = snapshot(run.adapters.baseParameters());
  const base = evaluate(run.model, [batch]);
  const events = await run.train(60, {}, { batch: () => batch });
  assert.ok(Math.abs((events[0]?.loss as number) - base.loss) < 1e-6, 'starts at the base');
  const after = evaluate(run.model, [batch]);
  assert.ok(after.loss < base.loss / 2, `${base.loss} → ${after.loss}`);
  assert.equal(snapshot(run.adapters.baseParameters()), frozen);
});

onEach('events say what each step did', async (backend) => {
  using run = new TinyRun(backend, TINY, PLAIN);
  const options = {
    schedule: 'linear',
    warmupSteps: 2,
    lrFloor: 0.1,
    lr: 0.3,
    accumulation: 2,
  } as const;
  const events = await run.train(5, options);
  assert.equal(
    events.map((e) => e.step),
    [1, 2, 3, 4, 5],
  );
  const rates = events.map((e) => Number(e.lr.toFixed(9)));
  assert.equal(rates, [0.15, 0.3, 0.3, 0.21, 0.12]);
  for (const [i, e] of events.entries()) {
    const batches = [0, 1].map((m) => run.source.batch(i, m));
    const positions = batches.reduce((n, b) => n + b.batch * b.length, 0);
    const tokens = batches.reduce(
      (n, b) =>
        n + Array.from(b.labels ?? []).filter((l, at) => l !== -100 && at % b.length > 0).length,
      0,
    );
    assert.is(e.type, 'step');
    assert.is(e.positions, positions);
    assert.is(e.tokens, tokens);
    assert.ok(e.gradNorm > 0 && e.seconds >= 0 && e.loss > 0);
    assert.is('skipped' in e, false);
  }
});

onEach('the first step is hand-made: gradients, norm, clipping, update', async (backend) => {
  using run = new TinyRun(backend, TINY, PLAIN);
  using hand = new TinyRun(backend, TINY, PLAIN);
  const batch = tinyBatch(1, [6, 5], TINY.vocab);
  const maxGradNorm = 1e-3;
  const [event] = await run.train(1, { maxGradNorm }, { batch: () => batch });
  scope(() => backward(hand.model.loss(batch).loss));
  const tensors = [...hand.adapters.tensors('a').values()];
  const norm = Math.sqrt(
    tensors.reduce((n, t) => n + (t.grad?.toNumbers() ?? []).reduce((m, g) => m + g * g, 0), 0),
  );
  assert.ok(Math.abs((event?.gradNorm as number) / norm - 1) < 1e-6);
  assert.ok(norm > maxGradNorm);
  // The backend keeps the factor as f32.
  hand.optimizer.update(1, Math.fround(maxGradNorm / ((event?.gradNorm as number) + 1e-6)));
  assert.equal(run.bits(), hand.bits());
  // maxGradNorm 0 is no clipping.
  using unclipped = new TinyRun(backend, TINY, PLAIN);
  using plain = new TinyRun(backend, TINY, PLAIN);
  await unclipped.train(1, { maxGradNorm: 0 }, { batch: () => batch });
  scope(() => backward(plain.model.loss(batch).loss));
  plain.optimizer.update();
  assert.equal(unclipped.bits(), plain.bits());
});

onEach('micro-batches of unequal weight train as one batch', async (backend) => {
  const lengths = [9, 2, 5];
  const whole = tinyBatch(1, lengths, TINY.vocab);
  const rows = lengths.map((own, b) => {
    const from = b * whole.length;
    const cut = <T extends Int32Array>(a: T) => a.slice(from, from + own);
    return { inputIds: cut(whole.inputIds), labels: cut(whole.labels), batch: 1, length: own };
  });
  using one = new TinyRun(backend, TINY, PLAIN);
  using three = new TinyRun(backend, TINY, PLAIN);
  const options = { maxGradNorm: 0.1 };
  const a = await one.train(4, options, { batch: () => whole });
  const b = await three.train(
    4,
    { ...options, accumulation: 3 },
    { batch: (_, micro) => rows[micro] as TokenBatch },
  );
  for (const [i, e] of b.entries()) {
    const other = a[i] as StepEvent;
    assert.is(e.tokens, other.tokens);
    assert.ok(Math.abs(e.loss / other.loss - 1) < 1e-4, `loss ${i}`);
    assert.ok(Math.abs(e.gradNorm / other.gradNorm - 1) < 1e-3, `norm ${i}`);
  }
  for (const [key, t] of three.adapters.tensors('a')) {
    const other = one.adapters.tensors('a').get(key) as Tensor;
    assert.ok(relativeDifference(t.toNumbers(), other.toNumbers()) < 1e-2, key);
  }
});

onEach('an aborted signal ends the run after a whole step', async (backend) => {
  using run = new TinyRun(backend, TINY, PLAIN);
  const before = run.bits();
  assert.equal(await run.train(3, { signal: AbortSignal.abort() }), []);
  assert.equal(run.bits(), before);
  assert.is(run.optimizer.step, 0);
});

onEach('a run that is done does nothing more', async (backend) => {
  using run = new TinyRun(backend, TINY, PLAIN);
  assert.is((await run.train(2)).length, 2);
  const before = run.bits();
  assert.equal(await run.train(2), []);
  assert.equal(run.bits(), before);
});

test('settings out of range', async () => {
  using run = new TinyRun(reference, TINY, PLAIN);
  const wrong: [Partial<TrainOptions>, RegExp][] = [
    [{ steps: 0 }, /\[train steps\] expected a whole number of 1 or more, received 0/],
    [{ steps: 1.5 }, /\[train steps\].*1\.5/],
    [{ accumulation: 0 }, /\[train accumulation\].*0/],
    [{ schedule: 'cosin' as never }, /\[schedule\].*"cosin"/],
    [{ maxGradNorm: -1 }, /\[train maxGradNorm\].*-1/],
    [{ maxGradNorm: Number.NaN }, /\[train maxGradNorm\].*NaN/],
    [{ warmupSteps: -1 }, /\[train warmupSteps\].*-1/],
    [{ lrFloor: 2 }, /\[train lrFloor\].*2/],
    [{ seed: -1 }, /\[train seed\].*-1/],
    [{ seed: 0.5 }, /\[train seed\].*0\.5/],
  ];
  const before = run.bits();
  for (const [change, message] of wrong) {
    let text = '';
    await run.train(3, change).catch((e: Error) => {
      text = e.message;
    });
    assert.match(text, message);
  }
  assert.equal(run.bits(), before);
  assert.is(run.optimizer.step, 0);
});

test('training what is not active, or was frozen since, is an error that says so', async () => {
  using run = new TinyRun(reference, TINY, PLAIN);
  const message = async () => {
    let text = '';
    await run.train(1).catch((e: Error) => {
      text = e.message;
    });
    return text;
  };
  run.adapters.setActive(null);
  assert.match(await message(), /\[backward\] expected a loss computed from a trainable tensor/);
  run.adapters.setActive('a').setTrainable('a', false);
  assert.match(await message(), /\[backward\].*Is every parameter frozen/);
  run.adapters.setTrainable('a', true);
  assert.is(await message(), '');
});

onEachBackend(
  test,
  'evaluation: token-weighted over batches, without gradient or dropout',
  (backend) => {
    using run = new TinyRun(backend);
    const { model } = run;
    const batches = [tinyBatch(1, [6, 2], TINY.vocab), tinyBatch(2, [9], TINY.vocab)];
    const whole = evaluate(model, batches);
    const parts = batches.map((b) => evaluate(model, [b]));
    assert.is(whole.tokens, 5 + 1 + 8);
    const sum = parts.reduce((n, p) => n + p.loss * p.tokens, 0);
    assert.ok(Math.abs(whole.loss - sum / whole.tokens) < 1e-6);
    assert.ok(Math.abs(whole.perplexity - Math.exp(whole.loss)) < 1e-9);
    for (const t of run.adapters.tensors('a').values()) assert.is(t.grad, null);
    assert.equal(evaluate(model, batches), whole);
    const { handles } = backend.memory();
    evaluate(model, batches);
    assert.is(backend.memory().handles, handles);
    const none = evaluate(model, []);
    assert.is(none.tokens, 0);
    assert.ok(Number.isNaN(none.loss));
  },
);

test.run();
