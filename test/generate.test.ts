// time-limit: 240
import { readFileSync } from 'node:fs';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { beamSteps } from '../src/models/beam.js';
import {
  beamSearch,
  type GenerateOptions,
  generate,
  generateBatch,
} from '../src/models/generate.js';
import { buildCausalLM, openModel } from '../src/models/load.js';
import { penalize, pick, type SamplingOptions } from '../src/models/sampling.js';
import { onEachBackend, reference } from './backends.js';
import { TINY, tinyConfig, tinyModel, tinySource } from './support/tiny.js';

/** How transformers names the settings. */
interface TheirOptions {
  readonly num_beams?: number;
  readonly max_new_tokens?: number;
  readonly eos_token_id?: number[];
  readonly length_penalty?: number;
  readonly early_stopping?: boolean | 'never';
  readonly no_repeat_ngram_size?: number;
  readonly repetition_penalty?: number;
  readonly temperature?: number;
  readonly top_k?: number;
  readonly top_p?: number;
}

/** What make.py wrote. */
interface Expected {
  readonly prompts: number[][];
  readonly logits: number[];
  readonly search: {
    readonly model: string;
    readonly options: TheirOptions;
    readonly results: { readonly ids: number[]; readonly score: number | null }[][];
  }[];
  readonly sampling: {
    readonly options: TheirOptions;
    readonly ids: number[];
    readonly probabilities: number[];
  }[];
}

const ROOT = 'test/generate';
const EXPECTED = JSON.parse(readFileSync(`${ROOT}/expected.json`, 'utf8')) as Expected;

const NAMES = {
  num_beams: 'numBeams',
  max_new_tokens: 'maxNewTokens',
  eos_token_id: 'stopIds',
  length_penalty: 'lengthPenalty',
  early_stopping: 'earlyStopping',
  no_repeat_ngram_size: 'noRepeatNgramSize',
  repetition_penalty: 'repetitionPenalty',
  temperature: 'temperature',
  top_k: 'topK',
  top_p: 'topP',
} as const satisfies Record<keyof TheirOptions, string>;

function ours(options: TheirOptions): GenerateOptions & { numBeams: number } {
  const entries = Object.entries(options).map(([k, v]) => [NAMES[k as keyof TheirOptions], v]);
  return Object.fromEntries(entries);
}

const MODELS = [...new Set(EXPECTED.search.map((s) => s.model))];
const open = (name: string, backend = reference) =>
  openModel(`${ROOT}/models/${name}`, { task: 'causal-lm', backend });

for (const name of MODELS) {
  onEachBackend(test, `${name}: beams and penalties as transformers has them`, (backend) => {
    using model = open(name, backend);
    const { prompts } = EXPECTED;
    for (const { options, results } of EXPECTED.search.filter((s) => s.model === name)) {
      const settings = ours(options);
      const { stopIds = [], numBeams } = settings;
      const label = JSON.stringify(options);
      // Theirs end with the stop id.
      const plain = results.map((r) =>
        r.map(({ ids }) => (stopIds.includes(ids.at(-1) as number) ? ids.slice(0, -1) : ids)),
      );
      const best = plain.map((r) => r[0] as number[]);
      assert.equal(generateBatch(model, prompts, settings), best, label);
      assert.equal([...generate(model, prompts[1] as number[], settings)], best[1], label);
      if (numBeams === 1) continue;
      const found = beamSearch(model, prompts, settings);
      assert.equal(
        found.map((r) => r.map(({ ids }) => ids)),
        plain,
        label,
      );
      results.forEach((r, i) => {
        r.forEach(({ ids, score }, j) => {
          const got = found[i]?.[j];
          // Theirs are sums in f32.
          const off = Math.abs((got?.score ?? 0) - (score as number));
          assert.ok(off < 2e-6 * (10 + Math.abs(score as number)), `${label} ${i} ${j}: ${off}`);
          assert.is(got?.reason, stopIds.includes(ids.at(-1) as number) ? 'eos' : 'length');
        });
      });
    }
  });
}

test('what transformers expects covers ends at eos, at the length, and of both', () => {
  const ends = EXPECTED.search.flatMap(({ options, results }) =>
    results.flat().map(({ ids }) => options.eos_token_id?.includes(ids.at(-1) as number) ?? false),
  );
  assert.ok(ends.filter((eos) => eos).length > 100);
  assert.ok(ends.filter((eos) => !eos).length > 100);
});

test('the choice among tokens has the probabilities that transformers gives them', () => {
  const draws = 10_000;
  for (const { options, ids, probabilities } of EXPECTED.sampling) {
    const settings: SamplingOptions = ours(options);
    const scores = Float64Array.from(EXPECTED.logits);
    penalize(scores, ids, settings);
    const counts = probabilities.map(() => 0);
    for (let i = 0; i < draws; i++) {
      const id = pick(scores, settings, (i + 0.5) / draws);
      (counts[id] as number)++;
    }
    probabilities.forEach((p, id) => {
      const share = (counts[id] as number) / draws;
      const label = `${JSON.stringify(options)} ${ids}: token ${id}, ${share} of ${p}`;
      assert.ok(Math.abs(share - p) < 1.5 / draws, label);
      assert.is(share > 0, p > 0, label);
    });
  }
});

const LLAMA = tinyConfig(TINY);
const CACHED: Record<string, Record<string, unknown>> = {
  llama: LLAMA,
  'llama, dynamic': {
    ...LLAMA,
    max_position_embeddings: 9,
    rope_scaling: { type: 'dynamic', factor: 4 },
  },
  mistral: { ...LLAMA, model_type: 'mistral', sliding_window: 3 },
  qwen3: { ...LLAMA, model_type: 'qwen3' },
  gpt2: { model_type: 'gpt2', n_embd: 8, n_head: 2, n_layer: 2, n_positions: 14, vocab_size: 13 },
};
const PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [7, 1, 8]];
const BEAMS = { maxNewTokens: 10, numBeams: 4, stopIds: [6], noRepeatNgramSize: 3 } as const;

for (const [name, config] of Object.entries(CACHED)) {
  onEachBackend(
    test,
    `${name}: beams with a cache, in a batch, are each alone without`,
    (backend) => {
      using model = buildCausalLM(config, tinySource(TINY, backend));
      const alone = PROMPTS.map((p) => beamSearch(model, [p], { ...BEAMS, useCache: false })[0]);
      const single = PROMPTS.map((p) => beamSearch(model, [p], BEAMS)[0]);
      const same = (got: typeof alone, want: typeof alone) => {
        assert.equal(
          got.map((r) => r?.map(({ ids, reason }) => [ids, reason])),
          want.map((r) => r?.map(({ ids, reason }) => [ids, reason])),
        );
        got.forEach((r, i) => {
          r?.forEach(({ score }, j) => {
            assert.ok(Math.abs(score - (want[i]?.[j]?.score ?? 0)) < 1e-4);
          });
        });
      };
      same(single, alone);
      // Dynamic RoPE stretches by the longest row of a batch.
      if (name !== 'llama, dynamic') same(beamSearch(model, PROMPTS, BEAMS), alone);
      if (name === 'gpt2') assert.ok(alone[0]?.some((h) => h.reason === 'positions'));
    },
  );
}

onEachBackend(test, 'a cache that grows gives what the whole sequence gives', (backend) => {
  const config = { ...LLAMA, max_position_embeddings: 400 };
  using model = buildCausalLM(config, tinySource(TINY, backend));
  const options = { maxNewTokens: 150, noRepeatNgramSize: 3 };
  const prompts = [[3, 1], [5]];
  const cached = generateBatch(model, prompts, options);
  assert.equal(
    cached.map((r) => r.length),
    [150, 150],
  );
  const again = [...(prompts[0] as number[]), ...(cached[0] as number[]).slice(0, 140)];
  const rest = [...generate(model, again, { ...options, maxNewTokens: 10, useCache: false })];
  assert.equal(rest, cached[0]?.slice(140));
});

/** Runs a generator to its end. */
function drain<T, R>(steps: Generator<T, R>): { values: T[]; end: R } {
  const values: T[] = [];
  for (;;) {
    const step = steps.next();
    if (step.done) return { values, end: step.value };
    values.push(step.value);
  }
}

test('a generation says how it ended', () => {
  using model = tinyModel(TINY, reference);
  const run = (options: GenerateOptions, prompt = [3, 1]) =>
    drain(generate(model, prompt, options));
  const free = run({ maxNewTokens: 6 });
  assert.equal(free.end, { reason: 'length', score: null });
  const third = free.values[2] as number;
  const stopped = run({ maxNewTokens: 6, stopIds: [third] });
  assert.is(stopped.end.reason, 'eos');
  assert.equal(stopped.values, free.values.slice(0, free.values.indexOf(third)));
  const asked: number[][] = [];
  const stopWhen = (ids: readonly number[]) => asked.push([...ids]) === 3;
  const when = run({ maxNewTokens: 6, stopWhen });
  assert.is(when.end.reason, 'stop');
  assert.equal(when.values, free.values.slice(0, 3));
  assert.equal(asked.at(-1), when.values);
  assert.is(run({ maxNewTokens: 70 }).end.reason, 'positions');
  const controller = new AbortController();
  const steps = generate(model, [3], { maxNewTokens: 6, signal: controller.signal });
  steps.next();
  controller.abort();
  assert.equal(drain(steps), { values: [], end: { reason: 'aborted', score: null } });
  const beams = run({ maxNewTokens: 5, numBeams: 3 });
  assert.is(beams.end.reason, 'length');
  assert.ok((beams.end.score as number) < 0);
});

test('beams end where stopWhen says so, and answer the best so far when they are aborted', () => {
  using model = tinyModel(TINY, reference);
  const options = { maxNewTokens: 8, numBeams: 3, lengthPenalty: 0 };
  const [free = []] = beamSearch(model, [[3, 1]], options);
  const token = free[0]?.ids[1] as number;
  const stopWhen = (ids: readonly number[]) => ids.at(-1) === token;
  const [stopped = []] = beamSearch(model, [[3, 1]], { ...options, stopWhen });
  assert.ok(stopped.some((h) => h.reason === 'stop'));
  for (const { ids, reason } of stopped) {
    const at = ids.indexOf(token);
    assert.is(at, reason === 'stop' ? ids.length - 1 : -1);
  }
  const aborted = generate(model, [3, 1], { ...options, signal: AbortSignal.abort() });
  assert.equal(drain(aborted), { values: [], end: { reason: 'aborted', score: 0 } });
  const controller = new AbortController();
  const prompt = { ids: [3, 1], most: 8, full: 'length' } as const;
  const settings = { ...options, stopIds: [], useCache: true, signal: controller.signal };
  const steps = beamSteps(model, [prompt], settings);
  steps.next();
  steps.next();
  controller.abort();
  const { end } = drain(steps);
  assert.equal(
    end[0]?.map(({ ids, reason }) => [ids.length, reason]),
    [2, 2, 2].map((n) => [n, 'aborted']),
  );
});

test('what is ruled out is never taken', () => {
  using model = tinyModel(TINY, reference);
  const options = { noRepeatNgramSize: 1, maxNewTokens: 12 };
  const all = (ids: readonly number[]) => new Set([4, ...ids]).size;
  assert.is(all([...generate(model, [4], options)]), 13);
  for (let seed = 0; seed < 5; seed++) {
    assert.is(all([...generate(model, [4], { ...options, temperature: 9, seed })]), 13);
  }
  const more = { ...options, maxNewTokens: 13 };
  const nothing = /\[generate\] expected .*ruled out/;
  assert.throws(() => [...generate(model, [4], more)], nothing);
  assert.throws(() => [...generate(model, [4], { ...more, temperature: 1 })], nothing);
  assert.throws(() => beamSearch(model, [[4]], { ...more, numBeams: 2 }), nothing);
});

test('a setting that is misspelt, out of range or idle is an error at once', () => {
  using model = tinyModel(TINY, reference);
  const rows: [object, RegExp][] = [
    [{ maxNewTokens: 0 }, /maxNewTokens\] expected a whole number of 1 or more, received 0/],
    [{ maxNewTokens: undefined }, /maxNewTokens/],
    [{ temperature: -1 }, /temperature\] expected 0 or more, received -1/],
    [{ temperature: Number.NaN }, /temperature/],
    [{ temperature: 1, topK: 1.5 }, /topK\] expected a whole number of 0/],
    [{ temperature: 1, topP: 0 }, /topP\] expected 0 < p ≤ 1, received 0/],
    [{ temperature: 1, topP: 1.1 }, /topP/],
    [{ temperature: 1, seed: -1 }, /seed/],
    [{ repetitionPenalty: 0 }, /repetitionPenalty\] expected more than 0/],
    [{ noRepeatNgramSize: -2 }, /noRepeatNgramSize/],
    [{ stopIds: [1.5] }, /stopIds/],
    [{ numBeams: 0 }, /numBeams\] expected a whole number of 1/],
    [{ numBeams: 2, lengthPenalty: Number.NaN }, /lengthPenalty\] expected a finite number/],
    [{ numBeams: 2, earlyStopping: 'always' }, /earlyStopping\] expected true, false or "never"/],
    [{ topK: 5 }, /topK\] expected a temperature above 0 beside it, received none/],
    [{ topP: 0.9 }, /topP\] expected a temperature/],
    [{ seed: 1 }, /seed\] expected a temperature/],
    [{ lengthPenalty: 0.9 }, /lengthPenalty\] expected numBeams above 1 beside it, received 1/],
    [{ earlyStopping: true }, /earlyStopping\] expected numBeams/],
    [{ numBeams: 2, temperature: 0.5 }, /temperature\] expected none beside numBeams/],
    [{ numBeams: 2, topK: 3 }, /topK\] expected a temperature/],
    [{ num_beams: 2 }, /"num_beams"\. Nearest: numBeams/],
    [{ numBeams: 2, stopIds: Array.from({ length: 13 }, (_, i) => i) }, /stopIds\] expected fewer/],
  ];
  for (const [options, message] of rows) {
    const settings = { maxNewTokens: 4, ...options } as GenerateOptions;
    assert.throws(() => generateBatch(model, [[1]], settings), message, JSON.stringify(options));
    if (!('stopIds' in options)) assert.throws(() => generate(model, [1], settings), message);
  }
  assert.throws(() => generate(model, [], { maxNewTokens: 1 }), /a prompt of 1…63 tokens/);
  const one = { maxNewTokens: 1, numBeams: 1 };
  assert.throws(() => beamSearch(model, [[1]], one), /numBeams\] expected 2 or more/);
  // Values that say nothing are no mistake.
  const neutral = { maxNewTokens: 1, topK: 0, topP: 1, lengthPenalty: 1, earlyStopping: false };
  assert.is([...generate(model, [1], neutral)].length, 1);
  assert.equal(beamSearch(model, [], { maxNewTokens: 1, numBeams: 2 }), []);
});

test.run();
