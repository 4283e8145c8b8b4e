import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { readConfig } from '../src/models/config.js';
import { llamaConfig } from '../src/models/llama-config.js';
import { type RopeFrequencies, readRope } from '../src/models/rope.js';
import { TINY, tinyConfig } from './support/tiny.js';

const BASE = tinyConfig(TINY);

function ropeOf(json: Record<string, unknown>, dim = 8, positions = 64): RopeFrequencies {
  return readRope(readConfig(json, 'test'), dim, positions);
}

const near = (a: Float32Array, b: readonly number[]) =>
  assert.ok(
    a.length === b.length && b.every((x, i) => Math.abs((a[i] as number) - x) <= 2e-6 * x),
    `${a} against ${b}`,
  );

test('rope: the frequencies that transformers 5.18 computes for theta 10000 and 8 channels', () => {
  near(ropeOf({}).frequencies(9), [1, 0.1, 0.01, 0.001]);
  near(
    ropeOf({ rope_scaling: { type: 'linear', factor: 4 } }).frequencies(9),
    [0.25, 0.025, 0.0025, 0.00025],
  );
  const llama3 = {
    rope_type: 'llama3',
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 128,
  };
  // Waves of 6, 63, 628, 6283: kept, mixed with weight (128/62.8 − 1)/3, stretched, stretched.
  const weight = (128 / (20 * Math.PI) - 1) / 3;
  near(ropeOf({ rope_scaling: llama3 }).frequencies(9), [
    1,
    ((1 - weight) * 0.1) / 8 + weight * 0.1,
    0.00125,
    0.000125,
  ]);
});

test('rope: both spellings say the same; the length counts for dynamic only', () => {
  const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 16 };
  const old = ropeOf({ rope_theta: 500, rope_scaling: yarn });
  const fresh = ropeOf({ rope_parameters: { ...yarn, rope_theta: 500 } });
  near(old.frequencies(9), Array.from(fresh.frequencies(900)));
  assert.is(old.factor, 0.1 * Math.log(4) + 1);
  assert.is(ropeOf({ rope_scaling: { ...yarn, attention_factor: 2 } }).factor, 2);
  const dynamic = ropeOf({ rope_scaling: { type: 'dynamic', factor: 2 } });
  near(dynamic.frequencies(64), [1, 0.1, 0.01, 0.001]);
  const base = 10000 * 3 ** (8 / 6);
  near(
    dynamic.frequencies(128),
    [0, 1, 2, 3].map((i) => base ** (-i / 4)),
  );
  assert.is(dynamic.fixedUpTo, 64);
  assert.is(
    llamaConfig({ ...BASE, rope_scaling: { type: 'dynamic', factor: 2 } }).maxPositions,
    128,
  );
});

test('windows of Mistral and Qwen', () => {
  const windows = (change: object) => llamaConfig({ ...BASE, ...change }).windows;
  assert.equal(windows({ sliding_window: 3 }), [0, 0], 'Llama has none');
  assert.equal(windows({ model_type: 'mistral' }), [4096, 4096]);
  assert.equal(windows({ model_type: 'mistral', sliding_window: null }), [0, 0]);
  assert.equal(windows({ model_type: 'mistral', sliding_window: 5 }), [5, 5]);
  const qwen = { model_type: 'qwen2', sliding_window: 5, max_window_layers: 1 };
  assert.equal(windows(qwen), [0, 0], 'not in use');
  assert.equal(windows({ ...qwen, use_sliding_window: true }), [0, 5]);
  const types = ['sliding_attention', 'full_attention'];
  assert.equal(windows({ ...qwen, use_sliding_window: true, layer_types: types }), [5, 0]);
  assert.throws(() => windows({ ...qwen, layer_types: types }), /layer_types/);
  assert.throws(() => windows({ ...qwen, layer_types: ['full_attention'] }), /layer_types/);
  assert.throws(
    () => windows({ model_type: 'mistral', sliding_window: 0 }),
    /sliding_window.*received 0/,
  );
});

test('biases, norms and head sizes of the members', () => {
  const of = (change: object) => {
    const c = llamaConfig({ ...BASE, head_dim: undefined, ...change });
    return [c.queryBias, c.outputBias, c.mlpBias, c.headNorms, c.headSize];
  };
  assert.equal(of({ attention_bias: true, mlp_bias: true }), [true, true, true, false, 4]);
  assert.equal(of({ model_type: 'mistral' }), [false, false, false, false, 4]);
  assert.equal(of({ model_type: 'qwen2' }), [true, false, false, false, 4]);
  assert.equal(of({ model_type: 'qwen3' }), [false, false, false, true, 128]);
});

test.run();
