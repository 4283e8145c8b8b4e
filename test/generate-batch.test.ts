import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import type { CausalLM } from '../src/models/causal-lm.js';
import { generate, generateBatch } from '../src/models/generate.js';
import { buildCausalLM, modelTypes } from '../src/models/load.js';
import { onEachBackend, reference } from './backends.js';
import { relativeDifference, TINY, tinyConfig, tinySource } from './support/tiny.js';

const LLAMA = tinyConfig(TINY);
const QWEN = { ...LLAMA, use_sliding_window: true, sliding_window: 3, max_window_layers: 1 };
const CONFIGS: Record<string, Record<string, unknown>> = {
  llama: LLAMA,
  'llama, linear': { ...LLAMA, rope_scaling: { type: 'linear', factor: 2 } },
  'llama, llama3': {
    ...LLAMA,
    rope_scaling: {
      rope_type: 'llama3',
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 16,
    },
  },
  'llama, biases, tied': {
    ...LLAMA,
    attention_bias: true,
    mlp_bias: true,
    tie_word_embeddings: true,
  },
  'llama, yarn': { ...LLAMA, rope_scaling: { type: 'yarn', factor: 4 } },
  'llama, dynamic': {
    ...LLAMA,
    max_position_embeddings: 9,
    rope_scaling: { type: 'dynamic', factor: 4 },
  },
  mistral: { ...LLAMA, model_type: 'mistral', sliding_window: 4 },
  qwen2: { ...QWEN, model_type: 'qwen2' },
  qwen3: { ...QWEN, model_type: 'qwen3' },
  gpt2: { model_type: 'gpt2', n_embd: 8, n_head: 2, n_layer: 2, n_positions: 20, vocab_size: 13 },
};
const PROMPTS = [[3, 1, 4, 1, 5, 9], [2], [7, 1, 8]];

function logitsOfLast(model: CausalLM, ids: readonly number[]): number[] {
  const batch = { inputIds: Int32Array.from(ids), batch: 1, length: ids.length };
  return noGrad(() => scope(() => model.lastLogits(batch).toNumbers()));
}

test('every architecture that continues text is among them', () => {
  const tried = new Set(Object.values(CONFIGS).map((c) => String(c.model_type)));
  const classifiers = ['bert', 'roberta'];
  assert.equal(
    modelTypes().filter((type) => !tried.has(type)),
    classifiers,
  );
});

for (const [name, config] of Object.entries(CONFIGS)) {
  onEachBackend(test, `${name}: a batch of unequal prompts, cached, is each alone`, (backend) => {
    using model = buildCausalLM(config, tinySource(TINY, backend));
    // Dynamic RoPE stretches by the longest row of a batch, as transformers does.
    const maxNewTokens = name === 'llama, dynamic' ? 3 : 8;
    const together = generateBatch(model, PROMPTS, { maxNewTokens });
    const whole = PROMPTS.map((p) => [...generate(model, p, { maxNewTokens, useCache: false })]);
    assert.equal(together, whole);
    assert.equal(generateBatch(model, PROMPTS, { maxNewTokens, useCache: false }), whole);
  });

  onEachBackend(test, `${name}: logits of left-padded cached steps`, (backend) => {
    using model = buildCausalLM(config, tinySource(TINY, backend));
    using cache = model.makeCache(2, 8);
    const [a, b] = [
      [3, 1, 4, 1, 5, 9, 2, 6],
      [5, 3, 5, 8, 9],
    ] as const;
    const steps = [
      { ids: [3, 1, 4, 1, 0, 0, 0, 5], mask: [1, 1, 1, 1, 0, 0, 0, 1] },
      { ids: [5, 3], mask: [1, 1] },
      { ids: [9, 5], mask: [1, 1] },
      { ids: [2, 8], mask: [1, 1] },
      { ids: [6, 9], mask: [1, 1] },
    ];
    steps.forEach(({ ids, mask }, i) => {
      const input = {
        inputIds: Int32Array.from(ids),
        attentionMask: Uint8Array.from(mask),
        batch: 2,
        length: ids.length / 2,
      };
      const got = noGrad(() => scope(() => model.lastLogits(input, cache).toNumbers()));
      const want = [a.slice(0, 4 + i), b.slice(0, 1 + i)].flatMap((x) => logitsOfLast(model, x));
      assert.ok(relativeDifference(got, want) < 1e-4, `step ${i}`);
    });
  });
}

test('dynamic RoPE: beyond the original length the cache is left, and the result the same', () => {
  using model = buildCausalLM(
    CONFIGS['llama, dynamic'] as object as never,
    tinySource(TINY, reference),
  );
  const options = { maxNewTokens: 12 };
  const cached = [...generate(model, [3, 1, 4], options)];
  assert.is(cached.length, 12);
  assert.equal(cached, [...generate(model, [3, 1, 4], { ...options, useCache: false })]);
});

test('rows end on their own: stop ids, positions; sampling; no prompts', () => {
  using model = buildCausalLM(CONFIGS.gpt2 as object as never, tinySource(TINY, reference));
  const free = generateBatch(model, PROMPTS, { maxNewTokens: 40 });
  assert.equal(
    free.map((r, b) => r.length + (PROMPTS[b]?.length ?? 0)),
    [20, 20, 20],
  );
  const stop = free[1]?.[2] as number;
  const stopped = generateBatch(model, PROMPTS, { maxNewTokens: 40, stopIds: [stop] });
  free.forEach((row, b) => {
    const at = row.indexOf(stop);
    assert.equal(stopped[b], at < 0 ? row : row.slice(0, at));
  });
  const sampled = { maxNewTokens: 6, temperature: 1, seed: 4 };
  const twins = generateBatch(
    model,
    [
      [3, 1],
      [3, 1],
    ],
    sampled,
  );
  assert.not.equal(twins[0], twins[1]);
  assert.equal(twins[0], [...generate(model, [3, 1], sampled)]);
  assert.equal(generateBatch(model, [], sampled), []);
  assert.throws(() => generateBatch(model, [[1], []], sampled), /a prompt of 1…19 tokens/);
});

test.run();
