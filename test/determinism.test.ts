import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { saveAdapter } from '../src/lora/index.js';
import type { Backend } from '../src/tensor/backend.js';
import type { NativeBackend } from '../src/tensor/native.js';
import { candidates, native } from './backends.js';
import { TinyRun } from './support/run.js';
import { withFolder } from './support/temp.js';
import { TINY, type TinySettings, tinyBatch } from './support/tiny.js';
import { skipUnless } from './support.js';

/** Wide enough that every kernel has work for several threads. */
const WIDE: TinySettings = {
  ...TINY,
  hidden: 96,
  ffn: 168,
  heads: 6,
  keyValueHeads: 2,
  headSize: 16,
  vocab: 400,
};

/** Everything a run answers: events, adapter file, moments. */
interface Outcome {
  readonly losses: readonly number[];
  readonly norms: readonly number[];
  readonly file: Buffer;
  readonly bits: ReadonlyMap<string, Buffer>;
}

async function outcome(backend: Backend, settings: TinySettings, seed = 11): Promise<Outcome> {
  const config = { targetModules: ['all-linear'], rank: 8, dropout: 0.1 };
  using run = new TinyRun(backend, settings, config);
  const source = {
    batch: (step: number, micro: number) =>
      tinyBatch(100 * step + micro, [40, 7, 64, 33], settings.vocab),
  };
  const events = await run.train(3, { accumulation: 2, seed }, source);
  return withFolder((dir) => {
    saveAdapter(run.adapters, 'a', dir);
    return {
      losses: events.map((e) => e.loss),
      norms: events.map((e) => e.gradNorm),
      file: readFileSync(join(dir, 'adapter_model.safetensors')),
      bits: run.bits(),
    };
  });
}

for (const dtype of ['f32', 'bf16', 'f16'] as const) {
  const onNative = skipUnless(
    test,
    native !== null,
    candidates.find((c) => c.name === 'cpu')?.reason || 'cpu is missing',
  );
  onNative(
    `1, 2 and 3 threads: the same losses, norms, adapter file and moments, ${dtype}`,
    async () => {
      const backend = native as NativeBackend;
      const { threads } = backend.info();
      try {
        const outcomes: Outcome[] = [];
        for (const count of [1, 2, 3]) {
          backend.setThreads(count);
          assert.is(backend.info().threads, count);
          outcomes.push(await outcome(backend, { ...WIDE, dtype }));
        }
        const [one, ...more] = outcomes;
        for (const other of more) assert.equal(other, one);
      } finally {
        backend.setThreads(threads);
      }
    },
  );
}

for (const c of candidates) {
  const register = skipUnless(test, c.backend !== null, c.reason || `${c.name} is missing`);
  register(`the same seed gives the same run, another seed another (${c.name})`, async () => {
    const backend = c.backend as Backend;
    const settings = { ...WIDE, hidden: 24, ffn: 32, vocab: 40, headSize: 4 };
    const first = await outcome(backend, settings);
    assert.equal(await outcome(backend, settings), first);
    // Only the dropout masks differ: the start of A has the model's seed.
    const other = await outcome(backend, settings, 12);
    assert.not.ok(other.file.equals(first.file));
    const model = await outcome(backend, { ...settings, seed: 2 });
    assert.not.ok(model.file.equals(first.file));
  });
}

test.run();
