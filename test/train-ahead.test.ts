// time-limit: 300
// Training that begins a step before the figures of the one before are read.
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { type CudaBackend, loadCuda } from '../src/tensor/cuda.js';
import { Deferred } from '../src/tensor/deferred.js';
import type { BatchSource, StepEvent, TrainOptions } from '../src/train/trainer.js';
import { train } from '../src/train/trainer.js';
import { native, onEachBackend, onGpu, reference } from './backends.js';
import { shimLibrary } from './cuda.js';
import { TinyRun } from './support/run.js';
import { TINY, tinyBatch } from './support/tiny.js';
import { skipUnless } from './support.js';

const onCuda = skipUnless(test, native !== null, 'no native addon, and so no CUDA shim');
const onShim = skipUnless(test, native !== null && !onGpu, 'failures are played by the shim alone');
const shim = native && !onGpu ? shimLibrary() : '';
const open = (): CudaBackend => (onGpu ? loadCuda() : loadCuda(0, shim));

test.after.each(() => {
  delete process.env.LOWRANK_SHIM_FAIL;
});

const SMALL = { ...TINY, layers: 1 };

/** Batches of one shape. Step 3 has no labels. */
const alike: BatchSource = {
  batch: (step, micro) => {
    const batch = tinyBatch(7 + 100 * step + micro, [6, 5], TINY.vocab);
    if (step === 3) batch.labels.fill(-100);
    return batch;
  },
};

type Bits = Map<string, Buffer>;

async function runOf(
  backend: Backend,
  options: Partial<TrainOptions>,
  look: (run: TinyRun, event: StepEvent) => void = () => {},
): Promise<{ events: Omit<StepEvent, 'seconds'>[]; bits: Bits; counts: number[] }> {
  using run = new TinyRun(backend, SMALL);
  const settings = { steps: 8, lr: 0.02, seed: 11, schedule: 'constant', ...options } as const;
  const events = [];
  for await (const event of train(run.model, run.optimizer, alike, settings)) {
    look(run, event);
    const { seconds, ...rest } = event;
    assert.ok(seconds >= 0);
    events.push(rest);
  }
  return { events, bits: run.bits(), counts: [run.optimizer.step, run.optimizer.updates] };
}

onEachBackend(test, 'the same events and bits as step by step', async (backend) => {
  const options = { accumulation: 2, maxGradNorm: 0.5 };
  const plain = await runOf(backend, options);
  assert.is(plain.events.length, 8);
  assert.match(plain.events[3]?.skipped as string, 'no label');
  const seen: number[] = [];
  const ahead = await runOf(backend, { ...options, ahead: true }, (run, event) => {
    seen.push(run.optimizer.step - event.step);
  });
  assert.equal(ahead, plain);
  assert.equal(seen, [0, 1, 1, 0, 1, 1, 1, 0], 'how far the model is ahead of the event');
});

onEachBackend(
  test,
  'after a step that may not be left the model is as it says',
  async (backend) => {
    const looked: Bits[] = [];
    const look = (run: TinyRun, { step }: StepEvent) => {
      if (step === 3 || step === 6) looked.push(run.bits());
    };
    await runOf(backend, {}, look);
    await runOf(backend, { ahead: (step) => step % 3 !== 0 }, look);
    assert.equal(looked.slice(2), looked.slice(0, 2));
  },
);

/** A model whose loss is infinite at one step: a weight of the base is, while it is computed. */
async function broken(backend: Backend, at: number, options: Partial<TrainOptions>) {
  using run = new TinyRun(backend, SMALL);
  const [name, weight] = [...run.model.namedParameters()].find(([, t]) => !t.requiresGrad) as [
    string,
    import('../src/tensor/tensor.js').Tensor,
  ];
  assert.ok(name);
  const good = weight.bytes();
  const bad = new Uint8Array(new Float32Array(weight.size).fill(Number.NaN).buffer);
  const source: BatchSource = {
    batch: (step, micro) => alike.batch(step, micro),
  };
  let asked = 0;
  const model = {
    loss: (...args: Parameters<typeof run.model.loss>) => {
      asked++;
      weight.setBytes(run.optimizer.step === at ? bad : good);
      return run.model.loss(...args);
    },
  };
  const settings = { steps: 7, lr: 0.02, seed: 11, schedule: 'constant', ...options } as const;
  const events: unknown[] = [];
  for await (const event of train(model, run.optimizer, source, settings)) {
    const { seconds: _, ...rest } = event;
    events.push({ ...rest, loss: String(event.loss), gradNorm: String(event.gradNorm) });
  }
  weight.setBytes(good);
  const { step, updates } = run.optimizer;
  return { events, bits: run.bits(), counts: [step, updates], asked };
}

onEachBackend(
  test,
  'a step that is not finite changes nothing, and the one begun since is begun again',
  async (backend) => {
    for (const at of [0, 1, 5, 6]) {
      const plain = await broken(backend, at, {});
      const ahead = await broken(backend, at, { ahead: true });
      assert.match(JSON.stringify(plain.events[at]), 'not finite');
      assert.equal(plain.counts, [7, 5]);
      assert.equal({ ...ahead, asked: 0 }, { ...plain, asked: 0 }, `at ${at}`);
      assert.is(ahead.asked - plain.asked, at === 1 || at === 5 ? 1 : 0, 'begun again');
    }
  },
);

onEachBackend(test, 'the run ends after a whole step: left early, or aborted', async (backend) => {
  using left = new TinyRun(backend, SMALL);
  const settings = { steps: 8, lr: 0.02, seed: 11, schedule: 'constant', ahead: true } as const;
  for await (const { step } of train(left.model, left.optimizer, alike, settings)) {
    if (step === 2) break;
  }
  assert.is(left.optimizer.step, 3, 'the one that was begun is done');
  using other = new TinyRun(backend, SMALL);
  const controller = new AbortController();
  let last = 0;
  const { signal } = controller;
  for await (const { step } of train(other.model, other.optimizer, alike, {
    ...settings,
    signal,
  })) {
    last = step;
    if (step === 2) controller.abort();
  }
  assert.is(last, other.optimizer.step, 'and is told of');
  assert.equal(other.bits(), left.bits());
});

onCuda('graphs ahead have the bits of eager steps', async () => {
  const plain = await runOf(open(), {});
  const ahead = await runOf(open(), { graphs: true, ahead: true });
  assert.equal(ahead, plain);
});

test('values are those of when they were asked for', () => {
  for (const backend of [reference, ...(native ? [native, open()] : [])]) {
    const t = tensor([1, 2, 3], [3], { backend });
    const later = new Deferred(t);
    t.setBytes(new Uint8Array(new Float32Array([4, 5, 6]).buffer));
    const after = new Deferred(t);
    t.dispose();
    assert.equal([...after.values()], [4, 5, 6], backend.name);
    assert.equal([...later.values()], [1, 2, 3], backend.name);
    assert.is(later.values(), later.values());
    const ids = tensor([1], [1], { backend, dtype: 'i32' });
    assert.throws(() => new Deferred(ids), '[Deferred] expected a tensor of f32, received i32');
    ids.dispose();
  }
});

onShim('a read later waits for nothing but its own copy; what cannot be had is told', () => {
  const backend = open();
  const t = tensor([1, 2, 3], [3], { backend });
  process.env.LOWRANK_SHIM_FAIL = 'sync';
  assert.equal([...new Deferred(t).values()], [1, 2, 3], 'no wait for the stream');
  assert.throws(() => t.toNumbers(), '[read] expected CUDA to succeed');
  const given = new Deferred(t);
  given.dispose();
  assert.throws(() => given.values(), '[Deferred] expected values that were not given up');
  for (const failure of ['host:1', 'event:1']) {
    process.env.LOWRANK_SHIM_FAIL = failure;
    const many = Array.from({ length: 40 }, () => new Deferred(t));
    for (const d of many) assert.equal([...d.values()], [1, 2, 3], failure);
  }
  process.env.LOWRANK_SHIM_FAIL = 'copy';
  assert.throws(() => new Deferred(t), '[readLater] expected CUDA to succeed');
  delete process.env.LOWRANK_SHIM_FAIL;
  t.dispose();
  assert.is(backend.memory().total, 0);
});

test.run();
