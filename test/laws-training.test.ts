import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { TokenBatch } from '../src/models/causal-lm.js';
import type { Backend } from '../src/tensor/backend.js';
import { loadTrainingState, saveTrainingState } from '../src/train/state.js';
import { candidates } from './backends.js';
import { TinyRun } from './support/run.js';
import { withFolder } from './support/temp.js';
import { setFloats, snapshot, TINY, tinyBatch } from './support/tiny.js';
import { skipUnless } from './support.js';

/** Registers an asynchronous test for each backend. */
function onEach(name: string, body: (backend: Backend) => Promise<void>): void {
  for (const c of candidates) {
    const register = skipUnless(test, c.backend !== null, c.reason || `${c.name} is missing`);
    register(`${name} (${c.name})`, () => body(c.backend as Backend));
  }
}

const SETTINGS = { lr: 0.02, batchSize: 3 };

onEach('step k, save, resume is the straight run, bit for bit', async (backend) => {
  using straight = new TinyRun(backend);
  // The second step has no label, so that steps and updates differ.
  const skipping = (run: TinyRun) => ({
    batch: (step: number, micro: number) => {
      const b = run.source.batch(step, micro);
      if (step === 1) b.labels?.fill(-100);
      return b;
    },
  });
  const options = {
    accumulation: 2,
    schedule: 'cosine',
    warmupSteps: 2,
    maxGradNorm: 0.5,
  } as const;
  const events = await straight.train(9, options, skipping(straight));
  for (const k of [1, 4, 8]) {
    await withFolder(async (dir) => {
      const state = join(dir, 'state');
      const aborted = new AbortController();
      {
        using first = new TinyRun(backend);
        const source = {
          batch: (step: number, micro: number) => {
            if (step === k - 1) aborted.abort();
            return skipping(first).batch(step, micro);
          },
        };
        const signal = aborted.signal;
        const begun = await first.train(9, { ...options, signal }, source);
        assert.is(begun.length, k);
        saveTrainingState(state, first.adapters.tensors('a'), first.optimizer, SETTINGS);
      }
      using second = new TinyRun(backend);
      loadTrainingState(state, second.adapters.tensors('a'), second.optimizer, SETTINGS);
      assert.is(second.optimizer.step, k);
      const rest = await second.train(9, options, skipping(second));
      assert.equal(
        rest.map(({ seconds: _, ...e }) => e),
        events.slice(k).map(({ seconds: _, ...e }) => e),
      );
      assert.equal(second.bits(), straight.bits());
    });
  }
});

onEach(
  'a state of other settings, shapes or files is refused and changes nothing',
  async (backend) => {
    using run = new TinyRun(backend);
    await run.train(2);
    await withFolder(async (dir) => {
      const state = join(dir, 'state');
      const parameters = run.adapters.tensors('a');
      saveTrainingState(state, parameters, run.optimizer, SETTINGS);
      await run.train(3);
      const before = run.bits();
      const refused = (
        message: RegExp,
        load: () => void = () => loadTrainingState(state, parameters, run.optimizer, SETTINGS),
      ) => {
        assert.throws(load, message);
        assert.equal(run.bits(), before);
        assert.is(run.optimizer.step, 3);
      };
      refused(/lr 0.02 as in the run that was saved, received 0.5/, () =>
        loadTrainingState(state, parameters, run.optimizer, { ...SETTINGS, lr: 0.5 }),
      );
      using wider = new TinyRun(backend, TINY, { targetModules: ['all-linear'], rank: 4 });
      assert.throws(
        () => loadTrainingState(state, wider.adapters.tensors('a'), wider.optimizer, SETTINGS),
        /lora_A/,
      );
      using fewer = new TinyRun(backend, TINY, { targetModules: ['q_proj'], rank: 3 });
      const untouched = fewer.bits();
      assert.throws(
        () => loadTrainingState(state, fewer.adapters.tensors('a'), fewer.optimizer, SETTINGS),
        /resume/,
      );
      assert.equal(fewer.bits(), untouched);
      // A file cut short is found before anything is written.
      const file = join(state, 'state.safetensors');
      const whole = readFileSync(file);
      writeFileSync(file, whole.subarray(0, whole.length - 8));
      refused(/safetensors/);
      writeFileSync(file, whole);
      writeFileSync(join(state, 'state.json'), '{"step": 2}');
      refused(/resume/);
    });
  },
);

onEach('a batch without a label has loss 0 and takes no step', async (backend) => {
  using run = new TinyRun(backend);
  await run.train(2);
  const before = run.bits();
  const masked = (): TokenBatch => {
    const b = tinyBatch(3, [4, 6], TINY.vocab);
    b.labels.fill(-100);
    return b;
  };
  const [event] = await run.train(3, {}, { batch: masked });
  assert.is(event?.loss, 0);
  assert.is(event?.tokens, 0);
  assert.is(event?.gradNorm, 0);
  assert.is(event?.skipped, 'no label in the batch');
  assert.equal(run.bits(), before, 'weights and moments');
  // A row whose only label is its first has none to predict either.
  const one = masked();
  (one.labels as Int32Array)[0] = 1;
  const [again] = await run.train(4, {}, { batch: () => one });
  assert.is(again?.tokens, 0);
  assert.equal(run.bits(), before);
  assert.is(run.optimizer.step, 4);
  assert.is(run.optimizer.updates, 2);
});

onEach('a masked micro-batch beside a labelled one changes nothing', async (backend) => {
  const masked = tinyBatch(3, [4, 6], TINY.vocab);
  masked.labels.fill(-100);
  const config = { targetModules: ['qv'], rank: 2 };
  using alone = new TinyRun(backend, TINY, config);
  using beside = new TinyRun(backend, TINY, config);
  const batch = (step: number) => alone.source.batch(step, 0);
  const a = await alone.train(3, {}, { batch });
  const b = await beside.train(
    3,
    { accumulation: 2 },
    {
      batch: (step, micro) => (micro === 1 ? masked : batch(step)),
    },
  );
  assert.equal(beside.bits(), alone.bits());
  assert.equal(
    b.map((e) => e.loss),
    a.map((e) => e.loss),
  );
});

onEach('a batch that gives NaN or Inf changes no weight, and says so', async (backend) => {
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
    using run = new TinyRun(backend);
    await run.train(2);
    const frozen = snapshot(run.adapters.baseParameters());
    // One bad number in the embedding of token 5, which only the second batch has.
    const table = run.adapters.baseParameters().get('model.embed_tokens.weight');
    assert.ok(table);
    const good = Float32Array.from(table.toNumbers());
    const broken = Float32Array.from(good);
    broken[5 * TINY.hidden] = bad;
    const before = run.bits();
    const batch = tinyBatch(4, [5, 5], TINY.vocab);
    batch.inputIds[2] = 5;
    setFloats(table, broken);
    const [event] = await run.train(3, {}, { batch: () => batch });
    assert.match(event?.skipped ?? '', /not finite/);
    assert.not.ok(Number.isFinite(event?.gradNorm));
    assert.equal(run.bits(), before, 'weights and moments');
    for (const t of run.adapters.tensors('a').values()) assert.is(t.grad, null);
    setFloats(table, good);
    assert.equal(snapshot(run.adapters.baseParameters()), frozen);
    const [next] = await run.train(4);
    assert.is(next?.skipped, undefined, 'the next good batch trains on');
    assert.not.equal(run.bits(), before);
  }
});

onEach('a finite loss with gradients that are not changes no weight either', async (backend) => {
  using run = new TinyRun(backend, TINY, { targetModules: ['lm_head'], rank: 1 });
  // A = 0 hides the huge B from the loss; dA = s · (dy B)ᵀ x overflows.
  for (const [key, t] of run.adapters.tensors('a')) {
    setFloats(
      t,
      new Float32Array(t.size).map((_, i) => (key.includes('lora_B') ? 3e38 * (-1) ** i : 0)),
    );
  }
  const before = run.bits();
  const [event] = await run.train(1);
  assert.ok(Number.isFinite(event?.loss));
  assert.match(event?.skipped ?? '', /a gradient is not finite/);
  assert.equal(run.bits(), before);
});

onEach('a step that throws leaves no gradient for the next run', async (backend) => {
  const config = { targetModules: ['qv'], rank: 2 };
  using straight = new TinyRun(backend, TINY, config);
  await straight.train(3, { accumulation: 2 });
  using broken = new TinyRun(backend, TINY, config);
  const source = {
    batch: (step: number, micro: number) => {
      const b = broken.source.batch(step, micro);
      if (step === 1 && micro === 1) b.inputIds[0] = TINY.vocab;
      return b;
    },
  };
  let message = '';
  await broken.train(3, { accumulation: 2 }, source).catch((e: Error) => {
    message = e.message;
  });
  assert.match(message, /\[model\] expected token ids of 0…12, received 13/);
  await broken.train(3, { accumulation: 2 });
  assert.equal(broken.bits(), straight.bits());
});

onEach('leaving the loop early leaves a whole step, and training goes on', async (backend) => {
  using straight = new TinyRun(backend);
  await straight.train(4);
  using left = new TinyRun(backend);
  const { train } = await import('../src/train/trainer.js');
  const options = { steps: 4, lr: 0.02, seed: 11, schedule: 'constant' } as const;
  for await (const e of train(left.model, left.optimizer, left.source, options)) {
    if (e.step === 2) break;
  }
  await left.train(4);
  assert.equal(left.bits(), straight.bits());
});

test.run();
