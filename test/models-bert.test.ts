import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope } from '../src/autograd/index.js';
import { readJsonObject } from '../src/io/files.js';
import { LoraAdapters, loadAdapter, saveAdapter } from '../src/lora/index.js';
import { bertConfig, bertTensorName } from '../src/models/bert-config.js';
import { type SequenceBatch, SequenceClassifier } from '../src/models/classifier.js';
import { buildCausalLM, buildModel } from '../src/models/load.js';
import { withTraining } from '../src/nn/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { onEachBackend, reference } from './backends.js';
import { withFolder } from './support/temp.js';
import { randomize, relativeDifference, TINY, tinyBatch, tinySource } from './support/tiny.js';

const CONFIG = {
  model_type: 'roberta',
  hidden_size: 8,
  num_attention_heads: 2,
  num_hidden_layers: 2,
  intermediate_size: 12,
  vocab_size: 13,
  max_position_embeddings: 14,
  type_vocab_size: 2,
  pad_token_id: 1,
  hidden_dropout_prob: 0,
  attention_probs_dropout_prob: 0,
  id2label: { 0: 'a', 1: 'b', 2: 'c' },
};
const BERT = { ...CONFIG, model_type: 'bert', pad_token_id: 0 };

function make(backend: Backend, config: Record<string, unknown> = CONFIG): SequenceClassifier {
  const model = buildModel(config, tinySource(TINY, backend));
  assert.instance(model, SequenceClassifier);
  return model as SequenceClassifier;
}

/** Two sequences whose padding has the padding's id. */
function batchOf(lengths: readonly number[], padTo = 0): SequenceBatch {
  const { labels: _, ...batch } = tinyBatch(3, lengths, 11, padTo);
  const inputIds = batch.inputIds.map((id, i) => (batch.attentionMask[i] ? id + 2 : 1));
  return { ...batch, inputIds };
}

test('config.json: defaults, labels, and what is refused', () => {
  assert.is(bertConfig(CONFIG).labelCount, 3);
  assert.is(bertConfig({ model_type: 'bert' }).labelCount, 2);
  assert.is(bertConfig({ model_type: 'bert' }).classifierDropout, 0.1);
  const wrong: [object, RegExp][] = [
    [{ position_embedding_type: 'relative_key' }, /position_embedding_type.*"relative_key"/],
    [{ is_decoder: true }, /is_decoder/],
    [{ problem_type: 'ranking' }, /problem_type.*"ranking"/],
    [{ hidden_act: 'prelu' }, /hidden_act.*"prelu"/],
    [{ architectures: ['RobertaForMaskedLM'] }, /architectures.*ForSequenceClassification/],
    [{ num_attention_heads: 3 }, /multiple of num_attention_heads/],
  ];
  for (const [change, message] of wrong) {
    assert.throws(() => bertConfig({ ...CONFIG, ...change }), message);
  }
  assert.is(bertTensorName('roberta.embeddings.position_ids', CONFIG), null);
  assert.is(bertTensorName('roberta.pooler.dense.weight', CONFIG), null);
  assert.is(bertTensorName('bert.pooler.dense.weight', BERT), 'bert.pooler.dense.weight');
  assert.is(bertTensorName('bert.x.LayerNorm.gamma', BERT), 'bert.x.LayerNorm.weight');
  assert.throws(
    () => buildCausalLM(CONFIG, tinySource(TINY, reference)),
    /one that predicts the next token, received a classifier of sequences \(roberta\)/,
  );
});

onEachBackend(test, 'a row depends neither on its neighbours nor on padding', (backend) => {
  for (const config of [CONFIG, BERT]) {
    using model = make(backend, config);
    const both = model.predict(batchOf([5, 3], 9));
    const [first] = model.predict(batchOf([5]));
    assert.ok(relativeDifference(both[0] as number[], first as number[]) < 1e-5);
    assert.not.equal(both[1], both[0]);
  }
});

test('positions: RoBERTa has room for two less than its table; token types count', () => {
  using roberta = make(reference);
  using bert = make(reference, BERT);
  assert.is(roberta.maxPositions, 12);
  assert.is(bert.maxPositions, 14);
  const long = batchOf([13]);
  assert.throws(() => roberta.predict(long), /at most 12 positions, received 13/);
  const plain = bert.predict(long);
  const tokenTypeIds = new Int32Array(13).fill(1);
  assert.not.equal(bert.predict({ ...long, tokenTypeIds }), plain);
  assert.throws(
    () => bert.predict({ ...long, tokenTypeIds: tokenTypeIds.fill(2) }),
    /token types of 0…1, received 2/,
  );
});

onEachBackend(test, 'losses by the kind of problem are what their formulas say', (backend) => {
  using model = make(backend);
  const batch = batchOf([5, 3]);
  const scores = model.predict(batch);
  const loss = (labels: Int32Array | Float32Array, m = model) =>
    scope(() => m.loss({ ...batch, labels }).loss.item());
  const logSum = (row: number[]) => Math.log(row.reduce((n, x) => n + Math.exp(x), 0));
  const near = (a: number, b: number) => assert.ok(Math.abs(a - b) < 1e-5, `${a}, ${b}`);
  const nll = (b: number, c: number) => logSum(scores[b] ?? []) - (scores[b]?.[c] ?? 0);
  near(loss(Int32Array.of(2, 0)), (nll(0, 2) + nll(1, 0)) / 2);
  near(loss(Int32Array.of(2, -100)), nll(0, 2));
  const targets = [1, 0, 1, 0.25, 1, 0];
  const flat = scores.flat();
  const bce = flat.map((x, i) => Math.log1p(Math.exp(x)) - x * (targets[i] as number));
  near(loss(Float32Array.from(targets)), bce.reduce((n, x) => n + x, 0) / 6);
  using regression = make(backend, { ...CONFIG, problem_type: 'regression' });
  const squares = flat.map((x, i) => (x - (targets[i] as number)) ** 2);
  near(loss(Float32Array.from(targets), regression), squares.reduce((n, x) => n + x, 0) / 6);
  assert.throws(() => loss(Int32Array.of(1)), /labels \[2\] for single_label_classification/);
});

onEachBackend(
  test,
  'the head is trained and saved whole; without adapter the base is exact',
  (backend) => {
    const before = backend.memory().handles;
    for (const config of [CONFIG, BERT]) {
      using model = make(backend, config);
      const batch = { ...batchOf([5, 3]), labels: Int32Array.of(2, 0) };
      const base = model.predict(batch);
      using adapters = new LoraAdapters(model);
      adapters.add('a', { rank: 2, targetModules: ['query', 'dense'] }, 1);
      assert.equal(model.predict(batch), base, 'starts at the base');
      const keys = [...adapters.tensors('a').keys()].filter((k) => k.includes('.classifier'));
      assert.is(keys.length, config === BERT ? 2 : 4, keys.join());
      scope(() => backward(model.loss(batch).loss));
      for (const key of keys) assert.ok(adapters.tensors('a').get(key)?.grad, key);
      randomize(adapters, 'a', 7);
      const changed = model.predict(batch);
      assert.not.equal(changed, base);
      adapters.setActive(null);
      assert.equal(model.predict(batch), base);
      adapters.setActive('a');
      using merged = buildModel(config, adapters.mergedSource(['a']));
      const plain = (merged as SequenceClassifier).predict(batch);
      assert.ok(relativeDifference(plain.flat(), changed.flat()) < 1e-4);
      withFolder((dir) => {
        saveAdapter(adapters, 'a', dir);
        const written = readJsonObject(`${dir}/adapter_config.json`);
        assert.equal(written.modules_to_save, ['classifier', 'score']);
        assert.is(written.task_type, 'SEQ_CLS');
        adapters.remove('a');
        assert.equal(model.predict(batch), base);
        loadAdapter(adapters, 'again', dir);
        assert.equal(model.predict(batch), changed);
      });
    }
    assert.is(backend.memory().handles, before, 'all is freed');
  },
);

test('a model disposed with its adapter active frees the base and the copies', () => {
  const before = reference.memory().handles;
  const model = make(reference);
  new LoraAdapters(model).add('a', { rank: 1, targetModules: ['query'] }, 1);
  model.dispose();
  assert.is(reference.memory().handles, before);
});

test('modulesToSave: a name that matches nothing is an error that names the nearest', () => {
  using model = make(reference);
  using adapters = new LoraAdapters(model);
  const add = (modulesToSave: unknown) => () =>
    adapters.add('a', { targetModules: ['query'], modulesToSave: modulesToSave as string[] }, 1);
  assert.throws(add(['clasifier']), /modulesToSave.*"clasifier".*classifier/);
  assert.throws(add('classifier'), /modulesToSave.*a list of names/);
  assert.equal(adapters.names(), []);
});

test('dropout is on while training only, at each of its places', () => {
  const batch = batchOf([5, 3]);
  const training = (m: SequenceClassifier) =>
    withTraining({ seed: 3, step: 1 }, () => noGrad(() => m.predict(batch)));
  for (const config of [CONFIG, BERT]) {
    using plain = make(reference, config);
    for (const place of [
      'hidden_dropout_prob',
      'attention_probs_dropout_prob',
      'classifier_dropout',
    ]) {
      using model = make(reference, { ...config, [place]: 0.4 });
      assert.equal(model.predict(batch), plain.predict(batch));
      assert.not.equal(training(model), training(plain), place);
      assert.equal(training(model), training(model));
    }
  }
});

test.run();
