import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, scope, setTrainable } from '../src/autograd/index.js';
import { readJsonObject, writeJsonAtomic } from '../src/io/files.js';
import { LoraAdapters, loadAdapter, saveAdapter } from '../src/lora/index.js';
import { ACTIVATION_NAMES, readActivation } from '../src/models/activations.js';
import { type SequenceBatch, SequenceClassifier } from '../src/models/classifier.js';
import { readConfig } from '../src/models/config.js';
import { buildModel } from '../src/models/load.js';
import { normalCdf, sum } from '../src/ops/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { onEachBackend, reference } from './backends.js';
import { withFolder } from './support/temp.js';
import {
  randomize,
  relativeDifference,
  TINY,
  tinyBatch,
  tinyConfig,
  tinySource,
} from './support/tiny.js';

const LLAMA = {
  ...tinyConfig(TINY),
  architectures: ['LlamaForSequenceClassification'],
  pad_token_id: 0,
  id2label: { 0: 'a', 1: 'b', 2: 'c' },
};

const GPT2 = {
  model_type: 'gpt2',
  architectures: ['GPT2ForSequenceClassification'],
  n_embd: 8,
  n_head: 2,
  n_layer: 2,
  n_positions: 16,
  vocab_size: 13,
  pad_token_id: 0,
  num_labels: 3,
  embd_pdrop: 0,
  attn_pdrop: 0,
  resid_pdrop: 0,
};

function make(backend: Backend, config: Record<string, unknown>): SequenceClassifier {
  const model = buildModel(config, tinySource(TINY, backend));
  assert.instance(model, SequenceClassifier);
  return model as SequenceClassifier;
}

/** Sequences without the padding's id, padded on the right with it. */
function batchOf(lengths: readonly number[], padTo = 0): SequenceBatch {
  const { labels: _, ...batch } = tinyBatch(5, lengths, 12, padTo);
  return {
    ...batch,
    inputIds: batch.inputIds.map((id, i) => (batch.attentionMask[i] ? id + 1 : 0)),
  };
}

onEachBackend(
  test,
  'a causal scorer answers by the last token, whatever stands beside',
  (backend) => {
    for (const config of [LLAMA, GPT2]) {
      using model = make(backend, config);
      assert.is(model.labelCount, 3);
      const both = model.predict(batchOf([6, 3], 9));
      const [first] = model.predict(batchOf([6]));
      assert.ok(relativeDifference(both[0] as number[], first as number[]) < 1e-5);
      // One token more is another last token.
      assert.ok(relativeDifference(model.predict(batchOf([5])).flat(), first as number[]) > 1e-3);
    }
  },
);

test('the last token is found by the padding’s id, as in transformers', () => {
  using model = make(reference, LLAMA);
  const batch = batchOf([5]);
  const short = batchOf([4]);
  const inputIds = batch.inputIds.slice();
  inputIds[4] = 0;
  // The mask still counts the place, the id does not.
  assert.equal(model.predict({ ...batch, inputIds }), model.predict(short));
});

test('several sequences without a pad_token_id, and token types, are refused', () => {
  const { pad_token_id: _, ...plain } = LLAMA;
  using model = make(reference, plain);
  model.predict(batchOf([5]));
  assert.throws(() => model.predict(batchOf([5, 4])), /pad_token_id in config\.json.*several/);
  const batch = batchOf([5]);
  const tokenTypeIds = new Int32Array(5).fill(1);
  assert.throws(() => model.predict({ ...batch, tokenTypeIds }), /no token types/);
});

onEachBackend(test, 'its head is trained and saved whole, and merges', (backend) => {
  for (const config of [LLAMA, GPT2]) {
    using model = make(backend, config);
    const batch = { ...batchOf([6, 3]), labels: Int32Array.of(2, 0) };
    const base = model.predict(batch);
    using adapters = new LoraAdapters(model);
    const gpt2 = config === GPT2;
    adapters.add('a', { rank: 2, targetModules: [gpt2 ? 'c_attn' : 'q_proj', 'all-linear'] }, 1);
    const keys = [...adapters.tensors('a').keys()].filter((k) => k.includes('.score'));
    assert.equal(keys, ['base_model.model.score.weight']);
    assert.equal(model.predict(batch), base);
    scope(() => backward(model.loss(batch).loss));
    for (const [key, t] of adapters.tensors('a')) assert.ok(t.grad, key);
    randomize(adapters, 'a', 3);
    const changed = model.predict(batch);
    using merged = buildModel(config, adapters.mergedSource(['a']));
    const plain = (merged as SequenceClassifier).predict(batch);
    assert.ok(relativeDifference(plain.flat(), changed.flat()) < 1e-4);
  }
});

test('adapter files: names inside a whole module, the flag of mixed layers, starts without a way', () => {
  using model = make(reference, LLAMA);
  const user = new LoraAdapters(model);
  assert.throws(
    () => user.add('a', { rank: 1, targetModules: ['q_proj', 'score'] }, 1),
    /targetModules.*"score", which matches none/,
  );
  user.add('a', { rank: 1, targetModules: ['q_proj'] }, 1);
  withFolder((dir) => {
    saveAdapter(user, 'a', dir);
    const path = `${dir}/adapter_config.json`;
    const written = readJsonObject(path);
    assert.is(written.fan_in_fan_out, false);
    const peft = { ...written, target_modules: ['q_proj', 'score'], init_lora_weights: false };
    writeJsonAtomic(path, peft);
    loadAdapter(user, 'b', dir);
    saveAdapter(user, 'b', dir);
    assert.equal(readJsonObject(path), peft);
  });
  user.dispose();
  const free = { ...GPT2, architectures: ['GPT2LMHeadModel'], tie_word_embeddings: false };
  using gpt2 = buildModel(free, tinySource(TINY, reference));
  using adapters = new LoraAdapters(gpt2);
  for (const [name, targets, flag] of [
    ['conv', ['c_attn'], true],
    ['both', ['c_attn', 'lm_head'], false],
  ] as const) {
    adapters.add(name, { rank: 1, targetModules: targets }, 1);
    withFolder((dir) => {
      saveAdapter(adapters, name, dir);
      assert.is(readJsonObject(`${dir}/adapter_config.json`).fan_in_fan_out, flag, name);
    });
  }
});

/** ½·(1 + erf(x/√2)) by Simpson's rule on the density. */
function distribution(x: number): number {
  const steps = 400;
  const h = Math.min(12, Math.max(-12, x)) / steps;
  let sum = 0;
  for (let i = 0; i <= steps; i++) {
    const weight = i === 0 || i === steps ? 1 : i % 2 === 1 ? 4 : 2;
    sum += weight * Math.exp(-((i * h) ** 2) / 2);
  }
  return 0.5 + (sum * h) / 3 / Math.sqrt(2 * Math.PI);
}

/** What each activation that is composed here should be; the others are ops of their own. */
const FORMULAS: Readonly<Record<string, (x: number) => number>> = {
  hardswish: (x) => (x * Math.min(6, Math.max(0, x + 3))) / 6,
  laplace: (x) => distribution((x - 707107 / 1e6) / 0.282095),
  leaky_relu: (x) => (x > 0 ? x : 0.01 * x),
  linear: (x) => x,
  mish: (x) => x * Math.tanh(Math.log1p(Math.exp(x))),
  quick_gelu: (x) => x / (1 + Math.exp(-1.702 * x)),
  relu2: (x) => Math.max(0, x) ** 2,
  relu6: (x) => Math.min(6, Math.max(0, x)),
  gelu_10: (x) => Math.min(10, x > 5 ? x : Number.NaN),
};

onEachBackend(test, 'activations by their formulas, and their slopes', (backend) => {
  const xs = [-7.5, -3.2, -1.1, -0.3, 0.2, 0.9, 2.4, 5.5, 8.1, 12.25];
  assert.ok(Object.keys(FORMULAS).every((name) => ACTIVATION_NAMES.includes(name)));
  for (const [name, formula] of Object.entries(FORMULAS)) {
    const act = readActivation(readConfig({ act: name }, 'test'), 'act', 'gelu');
    scope(() => {
      const x = setTrainable(tensor(xs, [xs.length], { backend }), true);
      const y = act(x);
      const values = y.toNumbers();
      backward(sum(y));
      const slopes = x.grad?.toNumbers() ?? [];
      xs.forEach((v, i) => {
        const want = formula(v);
        if (Number.isNaN(want)) return;
        assert.ok(
          Math.abs((values[i] as number) - want) < 1e-5 * (1 + Math.abs(want)),
          `${name}(${v})`,
        );
        const slope = (formula(v + 1e-4) - formula(v - 1e-4)) / 2e-4;
        assert.ok(Math.abs((slopes[i] as number) - slope) < 1e-3, `slope of ${name} at ${v}`);
      });
    });
  }
});

onEachBackend(test, 'the normal distribution, at its middle and far out', (backend) => {
  scope(() => {
    const x = setTrainable(tensor([0, -1e-20, -40, 40, 1], [5], { backend }), true);
    const y = normalCdf(x);
    // Φ(1) = 0.8413447…
    const wanted = [0.5, 0.5, 0, 1, 0.841344746];
    y.toNumbers().forEach((v, i) => {
      assert.ok(Math.abs(v - (wanted[i] as number)) < 1e-7, `${v}`);
    });
    backward(sum(y));
    const density = (v: number) => Math.exp(-(v ** 2) / 2) / Math.sqrt(2 * Math.PI);
    const slopes = x.grad?.toNumbers() ?? [];
    [0, 0, -40, 40, 1].forEach((v, i) => {
      assert.ok(Math.abs((slopes[i] as number) - density(v)) < 1e-7, `slope ${slopes[i]} at ${v}`);
    });
  });
});

test.run();
