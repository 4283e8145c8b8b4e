// time-limit: 240
import { join } from 'node:path';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, scope } from '../src/autograd/index.js';
import { LoraAdapters, type LoraConfig } from '../src/lora/index.js';
import { type CausalLM, shiftedLabels, type TokenBatch } from '../src/models/causal-lm.js';
import { AdamW } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { loadTrainingState, saveTrainingState } from '../src/train/state.js';
import { type StepEvent, train } from '../src/train/trainer.js';
import { candidates, onEachBackend } from './backends.js';
import {
  type ArchitectureName,
  type Dtype,
  modelCases,
  randomModel,
  shake,
} from './support/random-configs.js';
import { withFolder } from './support/temp.js';
import { logitBytes, relativeDifference, sameBytes, TINY, tinyBatch } from './support/tiny.js';
import { skipUnless } from './support.js';

const LENGTHS = [5, 2, 7];

/** Row `b` of a batch by itself, without its padding. */
function rowOf(batch: Required<TokenBatch>, b: number): TokenBatch {
  const from = b * batch.length;
  const to = from + (LENGTHS[b] as number);
  return {
    inputIds: batch.inputIds.slice(from, to),
    labels: batch.labels.slice(from, to),
    batch: 1,
    length: to - from,
  };
}

onEachBackend(
  test,
  'any settings: a row answers the same bits alone, among neighbours and with padding',
  (backend) => {
    fc.assert(
      fc.property(modelCases(1), ({ name, dtype, seed, configs }) => {
        using model = randomModel(name, backend, dtype, seed);
        using adapters = new LoraAdapters(model);
        adapters.add('a', configs[0] as LoraConfig, seed);
        shake(adapters, 'a', seed);
        const batch = tinyBatch(seed, LENGTHS, TINY.vocab, 7 + (seed % 3));
        const all = logitBytes(model, batch);
        const position = 4 * TINY.vocab;
        LENGTHS.forEach((own, b) => {
          const from = b * batch.length * position;
          const alone = logitBytes(model, rowOf(batch, b));
          assert.ok(sameBytes(all.subarray(from, from + own * position), alone), `row ${b}`);
        });
      }),
      { numRuns: 60 },
    );
  },
);

/** The gradient of every trainable of the adapter after these batches, as of one. */
function gradients(model: CausalLM, adapters: LoraAdapters, batches: readonly TokenBatch[]) {
  adapters.setTrainable('a', false).setTrainable('a', true);
  const tokens = batches.reduce((n, b) => n + shiftedLabels(b).labels.length, 0);
  for (const b of batches) scope(() => backward(model.loss(b, tokens).loss));
  return [...adapters.tensors('a').values()].flatMap((t) => t.grad?.toNumbers() ?? [Number.NaN]);
}

onEachBackend(test, 'any settings: micro-batches are one token-weighted batch', (backend) => {
  fc.assert(
    fc.property(modelCases(1), ({ name, dtype, seed, configs }) => {
      using model = randomModel(name, backend, dtype, seed);
      using adapters = new LoraAdapters(model);
      adapters.add('a', configs[0] as LoraConfig, seed);
      shake(adapters, 'a', seed);
      const batch = tinyBatch(seed, LENGTHS, TINY.vocab);
      const whole = gradients(model, adapters, [batch]);
      const rows = LENGTHS.map((_, b) => rowOf(batch, b));
      const difference = relativeDifference(gradients(model, adapters, rows), whole);
      assert.ok(difference < 1e-4, `${difference}`);
    }),
    { numRuns: 60 },
  );
});

/** What a run is a function of. */
interface RunCase {
  readonly name: ArchitectureName;
  readonly dtype: Dtype;
  readonly seed: number;
  readonly config: LoraConfig;
}

/** A run of `train` on a random model, which can be left and gone on with. */
class Run {
  readonly model: CausalLM;
  readonly adapters: LoraAdapters;
  readonly optimizer: AdamW;

  constructor(
    backend: Backend,
    private readonly c: RunCase,
  ) {
    this.model = randomModel(c.name, backend, c.dtype, c.seed);
    this.adapters = new LoraAdapters(this.model).add('a', c.config, c.seed);
    this.optimizer = new AdamW([{ parameters: this.adapters.tensors('a') }], { lr: 0.02 });
  }

  /** Trains until step `until`; the schedule is that of five steps. */
  async train(until: number): Promise<Omit<StepEvent, 'seconds'>[]> {
    const out: Omit<StepEvent, 'seconds'>[] = [];
    const stop = new AbortController();
    const source = {
      batch: (step: number, micro: number) => {
        if (step === until - 1) stop.abort();
        return tinyBatch(this.c.seed + 10 * step + micro, [4, 2 + (step % 3)], TINY.vocab);
      },
    };
    const options = {
      steps: 5,
      lr: 0.02,
      seed: 7,
      schedule: 'cosine',
      warmupSteps: 1,
      accumulation: 2,
      maxGradNorm: 0.7,
      signal: stop.signal,
    } as const;
    for await (const e of train(this.model, this.optimizer, source, options)) {
      const { seconds: _, ...rest } = e;
      out.push(rest);
    }
    return out;
  }

  bits(): Map<string, string> {
    const all = [...this.adapters.tensors('a'), ...this.optimizer.state()];
    return new Map(all.map(([key, t]) => [key, Buffer.from(t.bytes()).toString('base64')]));
  }

  [Symbol.dispose](): void {
    this.optimizer.dispose();
    this.adapters.dispose();
    this.model.dispose();
  }
}

for (const { name: where, backend, reason } of candidates) {
  const register = skipUnless(test, backend !== null, reason || `${where} is missing`);
  register(`any settings: step k, save, resume is the straight run, bit for bit (${where})`, () =>
    fc.assert(
      fc.asyncProperty(
        modelCases(1),
        fc.constantFrom(0, 0.3),
        fc.integer({ min: 1, max: 4 }),
        async ({ name, dtype, seed, configs }, dropout, k) => {
          const c = { name, dtype, seed, config: { ...(configs[0] as LoraConfig), dropout } };
          using straight = new Run(backend as Backend, c);
          const events = await straight.train(5);
          await withFolder(async (dir) => {
            const state = join(dir, 'state');
            {
              using first = new Run(backend as Backend, c);
              assert.equal(await first.train(k), events.slice(0, k));
              saveTrainingState(state, first.adapters.tensors('a'), first.optimizer, {});
            }
            using second = new Run(backend as Backend, c);
            loadTrainingState(state, second.adapters.tensors('a'), second.optimizer, {});
            assert.equal(await second.train(5), events.slice(k));
            assert.equal(second.bits(), straight.bits());
          });
        },
      ),
      { numRuns: 25 },
    ),
  );
}

test.run();
