// time-limit: 300
// Recorded calls and training steps on the CUDA backend, run on the processor through the shim.
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { scope } from '../src/autograd/index.js';
import { tensor } from '../src/tensor/create.js';
import { type CudaBackend, loadCuda } from '../src/tensor/cuda.js';
import type { Recording } from '../src/tensor/recording.js';
import { Tensor } from '../src/tensor/tensor.js';
import type { BatchSource, TrainOptions } from '../src/train/trainer.js';
import { native, onGpu, reference } from './backends.js';
import { shimLibrary } from './cuda.js';
import { ReplayCounter } from './support/replays.js';
import { TinyRun } from './support/run.js';
import { TINY, type TinySettings, tinyBatch } from './support/tiny.js';
import { skipUnless } from './support.js';

const test = suite('cuda graphs');
const onCuda = skipUnless(test, native !== null, 'no native addon, and so no CUDA shim');
const onShim = skipUnless(test, native !== null && !onGpu, 'failures are played by the shim alone');
const shim = native && !onGpu ? shimLibrary() : '';
const open = (): CudaBackend => (onGpu ? loadCuda() : loadCuda(0, shim));

test.after.each(() => {
  delete process.env.LOWRANK_SHIM_FAIL;
  delete process.env.LOWRANK_SHIM_MEMORY;
});

const empty = (backend: CudaBackend, size: number) => Tensor.empty(backend, [size], 'f32');
const bytesOf = (...values: number[]) => new Uint8Array(Float32Array.from(values).buffer);

/** y = scale · x + 1 by way of memory that is freed, with x uploaded in the recording. */
function recordAffine(backend: CudaBackend, y: Tensor): Recording {
  const { recording } = backend.record(() =>
    scope(() => {
      const x = tensor([1, 2, 3], [3], { backend });
      const between = empty(backend, 3);
      backend.run('affine', [x, between], [2, 0]);
      backend.run('affine', [between, y], [1, 1]);
    }),
  );
  if (typeof recording === 'string') throw new Error(recording);
  return recording;
}

onCuda('a recording runs at once, and again with other inputs and attributes', () => {
  const backend = open();
  const y = empty(backend, 3);
  const recording = recordAffine(backend, y);
  assert.equal(y.toNumbers(), [3, 5, 7]);
  assert.equal(recording.inputs, [bytesOf(1, 2, 3)]);
  assert.ok(recording.replay([bytesOf(4, 5, 6)]));
  assert.equal(y.toNumbers(), [9, 11, 13]);
  const shift = { kernel: 'affine', attr: 1, by: 10 };
  assert.ok(recording.replay([bytesOf(1, 1, 1)], [shift]));
  assert.equal(y.toNumbers(), [23, 23, 23], 'each call of the kernel: 2x + 10, then + 11');
  assert.ok(recording.replay([bytesOf(1, 1, 1)]));
  assert.equal(y.toNumbers(), [3, 3, 3]);
  assert.throws(() => recording.replay([]), '[replay] expected inputs of 12 bytes, received none');
  assert.throws(() => recording.replay([bytesOf(1)]), 'expected inputs of 12 bytes, received 4');
  assert.throws(
    () => recording.replay([bytesOf(1, 2, 3)], [{ kernel: 'afine', attr: 0, by: 1 }]),
    'the name of a kernel',
  );
  recording.dispose();
  assert.not.ok(recording.replay([bytesOf(1, 2, 3)]));
  y.dispose();
  assert.is(backend.memory().total, 0);
  backend.trim();
  assert.is(backend.memory().pooled, 0);
});

onCuda('nobody else is given the memory of a recording, also not what it freed', () => {
  const backend = open();
  const y = empty(backend, 3);
  const recording = recordAffine(backend, y);
  const others = Array.from({ length: 20 }, (_, i) => tensor([i, i, i], [3], { backend }));
  assert.ok(recording.replay([bytesOf(4, 5, 6)]));
  assert.equal(
    others.map((t) => t.toNumbers()),
    others.map((_, i) => [i, i, i]),
  );
  assert.equal(y.toNumbers(), [9, 11, 13]);
  for (const t of others) t.dispose();
  recording.dispose();
  y.dispose();
});

onCuda('what was made while recording lives on after the recording is dropped', () => {
  const backend = open();
  const x = tensor([1, 2, 3], [3], { backend });
  const { result: made, recording } = backend.record(() => {
    const out = empty(backend, 3);
    backend.run('affine', [x, out], [2, 1]);
    return out;
  });
  (recording as Recording).dispose();
  const others = [1, 2, 3].map((v) => tensor([v, v, v], [3], { backend }));
  assert.equal(made.toNumbers(), [3, 5, 7]);
  for (const t of [made, x, ...others]) t.dispose();
  assert.is(backend.memory().total, 0);
});

onCuda('a recording whose memory was freed does nothing any more', () => {
  const backend = open();
  const x = tensor([1, 2, 3], [3], { backend });
  const y = empty(backend, 3);
  const { recording } = backend.record(() => backend.run('affine', [x, y], [2, 1]));
  x.dispose();
  assert.not.ok((recording as Recording).replay([]));
  assert.equal(y.toNumbers(), [3, 5, 7]);
  y.dispose();
  assert.is(backend.memory().total, 0);
});

onShim('what cannot be replayed is told, and has been done all the same', () => {
  const backend = open();
  const x = tensor([1, 2, 3], [3], { backend });
  const read = backend.record(() => x.toNumbers());
  assert.equal(read.result, [1, 2, 3]);
  assert.is(read.recording, 'a copy to the host within the step');
  for (const failure of ['capture', 'instantiate', 'launch=2']) {
    process.env.LOWRANK_SHIM_FAIL = failure;
    const y = empty(backend, 3);
    const { recording } = backend.record(() => backend.run('affine', [x, y], [2, 1]));
    delete process.env.LOWRANK_SHIM_FAIL;
    assert.type(recording, 'string', failure);
    assert.equal(y.toNumbers(), [3, 5, 7], failure);
    y.dispose();
  }
  assert.throws(() => backend.record(() => backend.run('affine', [x], [])), /\[affine\]/);
  assert.throws(() => backend.record(() => backend.record(() => 0)), 'a recording under way');
  x.dispose();
  assert.is(backend.memory().total, 0);
});

onShim('a graph that cannot be changed is made anew', () => {
  const backend = open();
  const y = empty(backend, 3);
  const recording = recordAffine(backend, y);
  process.env.LOWRANK_SHIM_FAIL = 'update';
  assert.ok(recording.replay([bytesOf(1, 1, 1)], [{ kernel: 'affine', attr: 1, by: 1 }]));
  assert.equal(y.toNumbers(), [5, 5, 5]);
  recording.dispose();
  y.dispose();
});

onShim('where memory is short, recordings give theirs up', () => {
  process.env.LOWRANK_SHIM_MEMORY = String(40 << 20);
  const backend = open();
  const held = empty(backend, 2_000_000);
  const x = tensor([1, 2, 3], [3], { backend });
  const y = empty(backend, 3);
  const { recording } = backend.record(() =>
    scope(() => {
      empty(backend, 5_000_000);
      backend.run('affine', [x, y], [2, 0]);
    }),
  );
  assert.ok((recording as Recording).replay([]));
  const big = empty(backend, 3_500_000);
  assert.not.ok((recording as Recording).replay([]));
  for (const t of [held, x, y, big]) t.dispose();
  backend.trim();
});

onShim('a backend without recordings says so', () => {
  assert.throws(() => native?.record(() => 0), '[beginRecord] expected the cuda backend');
});

/** A run's bits and events, and how many steps were replayed. */
async function runOf(
  settings: TinySettings,
  options: Partial<TrainOptions>,
  source: BatchSource,
  steps: number,
) {
  const backend = open();
  using counter = new ReplayCounter();
  using run = new TinyRun(backend, settings);
  const live = backend.memory().live;
  const events = await run.train(steps, options, source);
  assert.is(backend.memory().live.gradient, live.gradient);
  assert.is(backend.memory().live.activation, live.activation);
  const bits = run.bits();
  const plain = events.map(({ seconds: _, ...rest }) => rest);
  return { bits, events: plain, replays: counter.replays, backend };
}

const alike: BatchSource = {
  batch: (step, micro) => tinyBatch(7 + 100 * step + micro, [6, 4 + micro], TINY.vocab),
};

const SMALL: TinySettings = { ...TINY, layers: 1 };

const VARIANTS: [string, Partial<TinySettings>, Partial<TrainOptions>][] = [
  ['f32, with dropout', {}, {}],
  ['bf16, two micro-batches', { dtype: 'bf16', tied: true }, { accumulation: 2 }],
  ['checkpointing', {}, { gradientCheckpointing: true }],
];

for (const [name, settings, options] of VARIANTS) {
  onCuda(`replayed steps have the bits of eager ones: ${name}`, async () => {
    const shape = { ...SMALL, ...settings };
    const eager = await runOf(shape, options, alike, 6);
    const replayed = await runOf(shape, { ...options, graphs: true }, alike, 6);
    assert.is(eager.replays, 0);
    assert.is(replayed.replays, 4, 'all but the first two');
    assert.equal(replayed.events, eager.events);
    assert.equal(replayed.bits, eager.bits);
    assert.is(replayed.backend.memory().total, 0);
  });
}

onCuda('steps of other shapes run op by op, with the same bits', async () => {
  const mixed: BatchSource = {
    batch: (step) => tinyBatch(7 + 100 * step, [6, step === 4 ? 3 : 5], TINY.vocab),
  };
  const eager = await runOf(SMALL, {}, mixed, 9);
  const replayed = await runOf(SMALL, { graphs: true }, mixed, 9);
  assert.is(replayed.replays, 2, 'steps 2 and 3; then four alike are waited for');
  assert.equal(replayed.events, eager.events);
  assert.equal(replayed.bits, eager.bits);
});

onShim('a step without labels in between, and a failed capture, change nothing', async () => {
  const gaps: BatchSource = {
    batch: (step) => {
      const batch = tinyBatch(7 + 100 * step, [6, 5], TINY.vocab);
      if (step === 3) batch.labels.fill(-100);
      return batch;
    },
  };
  const eager = await runOf(SMALL, {}, gaps, 6);
  const replayed = await runOf(SMALL, { graphs: true }, gaps, 6);
  assert.ok(replayed.replays > 0);
  assert.equal(replayed.bits, eager.bits);
  const said: string[] = [];
  const { error } = console;
  console.error = (text: string) => said.push(text);
  process.env.LOWRANK_SHIM_FAIL = 'capture';
  try {
    const failed = await runOf(SMALL, { graphs: true }, gaps, 6);
    assert.is(failed.replays, 0);
    assert.equal(failed.bits, eager.bits);
  } finally {
    console.error = error;
  }
  assert.is(said.length, 1);
  assert.match(said[0] as string, 'steps are not replayed as a CUDA graph: [replay]');
});

test('elsewhere graphs change nothing', async () => {
  using plain = new TinyRun(reference);
  using asked = new TinyRun(reference);
  await plain.train(2);
  await asked.train(2, { graphs: true });
  assert.equal(asked.bits(), plain.bits());
});

test.run();
