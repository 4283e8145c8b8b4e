/** The public library: models loaded by directory, their inputs, adapters, merging, generation. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import {
  AdamW,
  backward,
  CausalLM,
  type FinetuneOptions,
  type ForwardInput,
  finetune,
  generate,
  generateText,
  loadModel,
  loadTokenizer,
  mergeAdapters,
  openModel,
  type PretrainedModel,
  type SequenceClassifier,
  scope,
  type TrainOptions,
  train,
  trainingData,
} from '../src/index.js';
import { SafetensorsFile, writeSafetensors } from '../src/io/safetensors.js';
import { buildModel } from '../src/models/load.js';
import { saveModel } from '../src/models/save.js';
import { caughtByFinalizer } from '../src/tensor/lifetime.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, reference } from './backends.js';
import { writeTinyModel } from './support/model-dir.js';
import { withFolder } from './support/temp.js';
import { randomize, relativeDifference, TINY, tinyModel, tinySource } from './support/tiny.js';

const IDS = [
  [3, 1, 4, 1, 5],
  [9, 2, 6, 5, 3],
];
const MASK = [
  [1, 1, 1, 1, 1],
  [1, 1, 1, 0, 0],
];
const LORA = { rank: 2, targetModules: ['q_proj', 'v_proj'] };
const CLASSIFIER = {
  model_type: 'bert',
  hidden_size: 8,
  num_attention_heads: 2,
  num_hidden_layers: 1,
  intermediate_size: 12,
  vocab_size: 13,
  max_position_embeddings: 14,
  pad_token_id: 0,
  id2label: { 0: 'a', 1: 'b', 2: 'c' },
};

const classifier = (change: object = {}) =>
  buildModel({ ...CLASSIFIER, ...change }, tinySource(TINY, reference)) as SequenceClassifier;

/** The numbers of the logits, without leaving a tensor behind. */
function logits(model: PretrainedModel, input: ForwardInput = { inputIds: IDS }): number[] {
  return scope(() => model.forward(input).logits.toNumbers());
}

async function collect<T>(steps: AsyncIterable<T>): Promise<T[]> {
  const out: T[] = [];
  for await (const step of steps) out.push(step);
  return out;
}

async function rejects(promise: Promise<unknown>, message: RegExp): Promise<void> {
  const error = await promise.then(
    () => assert.unreachable(`nothing thrown; expected ${message}`),
    (e: Error) => e,
  );
  assert.match((error as Error).message, message);
}

onEachBackend(test, 'forward: rows, flat lists and typed arrays answer the same', (backend) => {
  using model = tinyModel(TINY, backend);
  const labels = [
    [3, 1, 4, 1, 5],
    [-100, 2, 6, -100, -100],
  ];
  const flat = {
    inputIds: IDS.flat(),
    attentionMask: MASK.flat(),
    labels: Int32Array.from(labels.flat()),
  };
  const inputs: ForwardInput[] = [
    { inputIds: IDS, attentionMask: MASK, labels },
    { ...flat, batch: 2 },
    { ...flat, length: 5 },
    {
      inputIds: Int32Array.from(flat.inputIds),
      attentionMask: Uint8Array.from(flat.attentionMask),
      labels: flat.labels,
      batch: 2,
      length: 5,
    },
  ];
  scope(() => {
    const answers = inputs.map((input) => model.forward(input));
    for (const { logits, loss } of answers) {
      assert.equal(logits.shape, [2, 5, TINY.vocab]);
      assert.equal(logits.bytes(), answers[0]?.logits.bytes());
      assert.is(loss?.item(), answers[0]?.loss?.item());
    }
    const batch = inputs[3] as Required<Parameters<CausalLM['loss']>[0]>;
    const { loss } = model.loss(batch);
    assert.ok(Math.abs((answers[0]?.loss?.item() ?? 0) - loss.item()) < 1e-6);
    assert.is(model.forward({ inputIds: IDS }).loss, null);
    // One flat list with neither batch nor length is one sequence.
    assert.equal(model.forward({ inputIds: IDS[0] as number[] }).logits.shape, [1, 5, TINY.vocab]);
    const none = model.forward({ inputIds: IDS, labels: IDS.map((r) => r.map(() => -100)) });
    assert.is(none.loss?.item(), 0);
  });
});

test('forward says which field is wrong and how', () => {
  using model = tinyModel(TINY, reference);
  const wrong: [object, RegExp][] = [
    [{ inputIds: [[1, 2], [3]] }, /rows of one length, received 2, 1\. Pad the shorter/],
    [{ inputIds: [] }, /at least one token/],
    [{ inputIds: [[]] }, /at least one token, received \[1, 0\]/],
    [{ inputIds: 'a text' }, /token ids, received a text\. Tokenizer\.encode/],
    [{ inputIds: [1, 2, 3], batch: 2 }, /batch × length ids, received 3 for 2/],
    [{ inputIds: IDS, batch: 2 }, /batch and length only beside flat/],
    [{ inputIds: [[1, 2.5]] }, /forward inputIds\] expected whole numbers.*received 2\.5 at 1/],
    [{ inputIds: [[1, 99]] }, /token ids of 0…12, received 99/],
    [
      { inputIds: IDS, attentionMask: [[1, 1]] },
      /attentionMask\] expected \[2, 5\] values.*rows of 2/,
    ],
    [{ inputIds: IDS, attentionMask: IDS }, /attentionMask\] expected 0 or 1, received 3/],
    [{ inputIds: IDS, labels: [1, 2] }, /labels\] expected \[2, 5\] values, received 2 values/],
    [
      { inputIds: [[1, 2]], labels: [[1, 13]] },
      /labels\] expected ids of 0…12, or −100, received 13/,
    ],
    [{ inputIds: IDS, tokenTypeIds: IDS }, /no tokenTypeIds for a causal model/],
    [{ input_ids: IDS }, /\[forward\].*received "input_ids"\. Nearest: inputIds/],
    [{ inputIds: IDS, attention_mask: MASK }, /"attention_mask"\. Nearest: attentionMask/],
  ];
  for (const [input, message] of wrong) {
    assert.throws(() => model.forward(input as ForwardInput), message);
  }
});

test('a classifier takes classes, several labels and values; it does not generate', () => {
  using model = classifier();
  scope(() => {
    const { logits, loss } = model.forward({ inputIds: IDS, attentionMask: MASK, labels: [2, 0] });
    assert.equal(logits.shape, [2, 3]);
    const rows = model.predict({ inputIds: IDS, attentionMask: MASK });
    const expected = [2, 0].map((label, b) => {
      const row = rows[b] as number[];
      return Math.log(row.reduce((n, x) => n + Math.exp(x), 0)) - (row[label] as number);
    });
    const mean = (expected[0] as number) / 2 + (expected[1] as number) / 2;
    assert.ok(Math.abs((loss as Tensor).item() - mean) < 1e-5);
    const several = model.forward({
      inputIds: IDS,
      labels: [
        [1, 0, 1],
        [0, 0, 1],
      ],
    });
    assert.ok((several.loss as Tensor).item() > 0);
  });
  assert.throws(() => model.forward({ inputIds: IDS, labels: [3, 0] }), /classes of 0…2, or −100/);
  assert.throws(() => model.forward({ inputIds: IDS, labels: [1] }), /\[2, 1\] values, received 1/);
  const general: PretrainedModel = model;
  assert.throws(() => general.generate([1]), /predicts the next token, received a classifier/);
  using regression = classifier({ problem_type: 'regression', id2label: { 0: 'score' } });
  scope(() => {
    const input = { inputIds: IDS, labels: [0.5, -1] };
    const [a, b] = regression.predict(input).flat() as [number, number];
    const loss = regression.forward(input).loss as Tensor;
    assert.ok(Math.abs(loss.item() - ((a - 0.5) ** 2 + (b + 1) ** 2) / 2) < 1e-5);
  });
});

onEachBackend(test, 'forward, backward and AdamW train an adapter and nothing else', (backend) => {
  const caught = caughtByFinalizer();
  using model = tinyModel(TINY, backend);
  const base = logits(model);
  model.addAdapter('new', LORA, { seed: 3 });
  assert.equal(logits(model), base);
  const parameters = model.trainableParameters();
  assert.is(parameters.size, 8);
  const { total, trainable } = model.parameterCount();
  const sizes = [...parameters.values()].reduce((n, t) => n + t.size, 0);
  assert.is(trainable, sizes);
  assert.is(
    total - trainable,
    [...model.adapters.baseParameters().values()].reduce((n, t) => n + t.size, 0),
  );
  const optimizer = new AdamW([{ parameters }], { lr: 0.05 });
  const losses = Array.from({ length: 8 }, () =>
    scope(() => {
      const loss = model.forward({ inputIds: IDS, labels: IDS }).loss as Tensor;
      backward(loss);
      optimizer.update();
      optimizer.zeroGrad();
      return loss.item();
    }),
  );
  assert.ok((losses[7] as number) < 0.9 * (losses[0] as number), losses.join(' '));
  assert.not.equal(logits(model), base);
  assert.equal(logits(model.setAdapter(null)), base);
  optimizer.dispose();
  assert.is(caughtByFinalizer(), caught);
});

test('adapters by name: add, switch, save, load, delete', async () => {
  await withFolder(async (dir) => {
    using model = tinyModel(TINY, reference);
    const base = logits(model);
    assert.equal(model.activeAdapters, []);
    assert.throws(() => model.saveAdapter(dir), /saveAdapter\] expected an active adapter/);
    model.setAdapter(null).addAdapter('a', LORA);
    randomize(model.adapters, 'a', 5);
    const tuned = logits(model);
    model.saveAdapter(join(dir, 'a'));
    await model.loadAdapter(join(dir, 'a'));
    assert.equal(model.adapters.names(), ['a', 'default']);
    assert.equal(model.activeAdapters, ['default']);
    assert.equal(logits(model), tuned);
    assert.is(model.trainableParameters().size, 0);
    await model.loadAdapter(join(dir, 'a'), { name: 'more', trainable: true });
    assert.is(model.trainableParameters().size, 8);
    assert.equal(logits(model.setAdapter(null)), base);
    assert.throws(() => model.saveAdapter(dir), /Name one of a, default, more/);
    assert.throws(() => model.setAdapter('defualt'), /"defualt"\. There are: default/);
    model.deleteAdapter('a').deleteAdapter('default').setAdapter('more');
    assert.equal(model.adapters.names(), ['more']);
    assert.equal(logits(model), tuned);
    await rejects(model.loadAdapter(join(dir, 'none'), { offline: true }), /none/);
    const misspelt = { trainabel: true } as object;
    await rejects(model.loadAdapter(join(dir, 'a'), misspelt), /"trainabel"\. Nearest: trainable/);
    const config = { ...LORA, rnak: 4 } as typeof LORA;
    assert.throws(() => model.addAdapter('b', config), /"rnak"\. Nearest: rank/);
  });
});

onEachBackend(test, 'merge gives a plain model that shares what no adapter changed', (backend) => {
  for (const first of ['merged', 'model'] as const) {
    const model = tinyModel(TINY, backend);
    assert.throws(() => model.merge(), /merge\] expected an active adapter, received none\. Add/);
    model.addAdapter('a', LORA);
    randomize(model.adapters, 'a', 7);
    const tuned = logits(model);
    const merged = model.merge();
    assert.instance(merged, model.constructor);
    assert.equal(merged.activeAdapters, []);
    assert.ok(relativeDifference(logits(merged), tuned) < 1e-5);
    const own = model.adapters.baseParameters();
    const shared = [...merged.parameters()].filter(([n, t]) => own.get(n)?.storage === t.storage);
    assert.is(shared.length, own.size - 4);
    const half = model.merge({ a: 0.5 });
    assert.not.equal(logits(half), logits(merged));
    half.dispose();
    const [gone, left] = first === 'merged' ? [merged, model] : [model, merged];
    gone.dispose();
    assert.ok(relativeDifference(logits(left), tuned) < 1e-5);
    left.dispose();
  }
});

test('a merged model is saved, and loads as itself', () => {
  withFolder((dir) => {
    writeTinyModel(join(dir, 'base'));
    using model = openModel(join(dir, 'base'), { task: 'causal-lm', dtype: 'f32' });
    model.addAdapter('a', { targetModules: ['all-linear'] });
    randomize(model.adapters, 'a', 2);
    assert.throws(() => model.save(join(dir, 'x')), /no active adapter.*merge\(\)\.save/);
    using merged = model.merge();
    merged.save(join(dir, 'merged'));
    using again = openModel(join(dir, 'merged'));
    assert.equal(logits(again), logits(merged));
    model.setAdapter(null).save(join(dir, 'plain'), { dtype: 'bf16' });
    using plain = openModel(join(dir, 'plain'), { dtype: 'f32' });
    assert.equal(logits(plain), logits(model));
    using built = tinyModel(TINY, reference);
    assert.throws(() => built.save(dir), /loaded from a directory/);
    assert.throws(() => merged.save(dir, { dtyp: 'f16' } as object), /Nearest: dtype/);
  });
});

test('merging unties a head where only the table changes, as PEFT has it', () => {
  withFolder((dir) => {
    writeTinyModel(join(dir, 'base'));
    using model = openModel(join(dir, 'base'), { dtype: 'f32' });
    model.addAdapter('lora', { targetModules: ['embed_tokens', 'q_proj'] });
    randomize(model.adapters, 'lora', 2);
    const tuned = logits(model);
    using merged = model.merge();
    assert.ok(merged.parameters().has('lm_head.weight'));
    assert.ok(relativeDifference(logits(merged), tuned) < 1e-5);
    merged.save(join(dir, 'merged'));
    using again = openModel(join(dir, 'merged'));
    assert.equal(logits(again), logits(merged));
    const rows = { targetModules: ['q_proj'], trainableTokens: [3, 9] };
    model.addAdapter('rows', rows);
    randomize(model.adapters, 'rows', 3);
    const trained = logits(model);
    using other = model.merge();
    assert.not.ok(other.parameters().has('lm_head.weight'));
    assert.ok(relativeDifference(logits(other), trained) < 1e-5);
    assert.throws(() => model.merge(['lora', 'rows']), /one kind of change to the tied/);
  });
});

test('several adapters are active at once, trained and merged together', () => {
  using model = tinyModel(TINY, reference);
  model.addAdapter('a', LORA).addAdapter('b', { ...LORA, rank: 3 });
  for (const [i, name] of ['a', 'b'].entries()) randomize(model.adapters, name, i);
  const alone = logits(model);
  model.setAdapter(['a', 'b']);
  const both = logits(model);
  assert.not.equal(both, alone);
  assert.is(model.trainableParameters().size, 16);
  assert.throws(() => model.saveAdapter('x'), /the name of one adapter, received a, b/);
  using merged = model.merge();
  assert.ok(relativeDifference(logits(merged), both) < 1e-5);
});

test('loadModel and loadTokenizer: by directory, typed by task, misuse', async () => {
  await withFolder(async (dir) => {
    writeTinyModel(dir);
    using model = await loadModel(dir, { backend: 'reference', dtype: 'f32' });
    assert.instance(model, CausalLM);
    using causal: CausalLM = await loadModel(dir, { task: 'causal-lm' });
    assert.is(causal.origin?.name, dir);
    assert.equal(causal.origin?.eosIds, [0]);
    const tokenizer = await loadTokenizer(dir);
    assert.is(tokenizer.decode(tokenizer.encode('the whale')), 'the whale');
    await rejects(
      loadModel(dir, { task: 'classification' }),
      /classifier.*received one that predicts/,
    );
    await rejects(loadModel(dir, { dtpye: 'f32' } as object), /"dtpye"\. Nearest: dtype/);
    await rejects(loadModel(dir, { dtype: 'float16' as 'f16' }), /dtype.*float16/);
    await rejects(loadModel(dir, { backend: 'gpu' }), /gpu/);
    await rejects(loadTokenizer(dir, { ofline: true } as object), /"ofline"\. Nearest: offline/);
    await rejects(loadModel(join(dir, 'none'), { offline: true }), /none/);
    await rejects(loadModel('org/none', { offline: true, cacheDir: dir }), /org\/none/);
    writeFileSync(join(dir, 'config.json'), '{');
    await rejects(loadModel(dir), /config\.json/);
  });
});

test('a classifier is loaded by its task, with a new head', async () => {
  await withFolder(async (dir) => {
    using model = classifier();
    saveModel(dir, { tensors: model.parameters(), config: CLASSIFIER, tokenizerDir: dir });
    using own: SequenceClassifier = await loadModel(dir, { task: 'classification' });
    assert.is(own.labelCount, 3);
    const head = { labels: ['no', 'yes'], seed: 1 };
    using other = await loadModel(dir, { task: 'classification', head });
    assert.is(other.labelCount, 2);
    other.addAdapter('a', { targetModules: ['query', 'value'] });
    other.saveAdapter(join(dir, 'adapter'));
    using again = await loadModel(dir, { task: 'classification', head: { ...head, seed: 9 } });
    await again.loadAdapter(join(dir, 'adapter'));
    assert.equal(logits(again), logits(other));
  });
});

test('settings of training and merging that are misspelt are refused', async () => {
  const dir = 'assets/base';
  const tuning = { modelDir: dir, dataFile: 'none', out: 'none', rnk: 8 } as FinetuneOptions;
  await rejects(finetune(tuning).next(), /\[finetune\].*received "rnk"/);
  const lora = { modelDir: dir, dataFile: 'assets/data/moby-dick-heldout.jsonl', out: 'none' };
  const wrong = { ...lora, lora: { dropuot: 0.1 } as object };
  await rejects(finetune(wrong).next(), /"dropuot"\. Nearest: dropout/);
  using model = tinyModel(TINY, reference);
  model.addAdapter('a', LORA);
  using optimizer = new AdamW([{ parameters: model.trainableParameters() }], { lr: 1e-3 });
  const source = { batch: () => assert.unreachable('trained') as never };
  const loop = { steps: 1, lr: 1e-3, seed: 0, warmup: 3 } as TrainOptions;
  await rejects(train(model, optimizer, source, loop).next(), /"warmup"\. Nearest: warmupSteps/);
  const tokenizer = await loadTokenizer(dir);
  const data = { seqLength: 8, batchsize: 2, batchSize: 2, seed: 0 };
  assert.throws(() => trainingData([], tokenizer, data), /"batchsize"\. Nearest: batchSize/);
  const merge = { modelDir: dir, adapters: ['x'], out: 'x', dtyp: 'f16' };
  assert.throws(() => mergeAdapters(merge), /"dtyp"\. Nearest: dtype/);
});

test('generate: ids and text, as an async iterator that ends at eos and on abort', async () => {
  await withFolder(async (dir) => {
    writeTinyModel(dir);
    using model = await loadModel(dir, { task: 'causal-lm' });
    const tokenizer = await loadTokenizer(dir);
    const ids = tokenizer.encode('the whale');
    const sampling = { temperature: 1, seed: 4, maxNewTokens: 6 };
    const made = await collect(model.generate(ids, sampling));
    assert.is(made.length, 6);
    assert.equal(await collect(model.generate(Int32Array.from(ids), sampling)), made);
    const text = await collect(model.generate('the whale', { ...sampling, tokenizer }));
    assert.is(text.join(''), tokenizer.decode(made));
    const short = await collect(model.generate(ids, { ...sampling, stopIds: [made[2] as number] }));
    assert.equal(short, made.slice(0, made.indexOf(made[2] as number)));
    // By default at the directory's own eos.
    if (model.origin) model.origin = { ...model.origin, eosIds: [made[1] as number] };
    assert.is(
      (await collect(model.generate(ids, sampling))).length,
      made.indexOf(made[1] as number),
    );
  });
});

test('generate lets timers run, ends on abort, and frees its cache on break', async () => {
  using model = tinyModel(TINY, reference);
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 0);
  const made = await collect(
    model.generate([1, 2], { maxNewTokens: 60, signal: controller.signal }),
  );
  assert.ok(made.length < 60, `${made.length} tokens`);
  const live = reference.memory().live;
  for await (const _ of model.generate([1, 2], { maxNewTokens: 60 })) break;
  assert.equal(reference.memory().live, live);
  assert.throws(() => model.generate('text', {} as never), /a tokenizer beside a prompt of text/);
  assert.throws(() => model.generate([], {}), /a prompt of 1…63 tokens/);
  assert.throws(() => model.generate([1.5]), /generate prompt\] expected whole numbers/);
  assert.throws(() => model.generate([1], { topp: 1 } as object), /"topp"\. Nearest: topP/);
});

test('a beam search lets other work run between its steps, and ends on abort', async () => {
  await withFolder(async (dir) => {
    writeTinyModel(dir);
    using model = await loadModel(dir, { task: 'causal-lm' });
    const tokenizer = await loadTokenizer(dir);
    const beams = { numBeams: 3, maxNewTokens: 12, stopIds: [] };
    const wanted = [...generate(model, [5, 6], beams)];
    assert.is(wanted.length, 12);
    let turns = 0;
    let going = true;
    const turn = () => {
      turns++;
      if (going) setImmediate(turn);
    };
    setImmediate(turn);
    const made = await collect(model.generate([5, 6], beams));
    assert.ok(turns >= 24, `${turns} turns of the event loop for 12 steps and 12 tokens`);
    assert.equal(made, wanted);
    const before = turns;
    const text = await collect(model.generate('the whale', { ...beams, tokenizer }));
    assert.ok(turns - before >= 12, `${turns - before} turns`);
    assert.is(text.join(''), generateText(model, tokenizer, 'the whale', beams));
    going = false;
    // The best that there is so far comes when the search is called off.
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 0);
    const called = { ...beams, maxNewTokens: 80, signal: controller.signal };
    const some = await collect(model.generate([5, 6], called));
    assert.ok(some.length > 0 && some.length < 80, `${some.length} tokens`);
    const { backend } = model;
    const { live } = backend.memory();
    const left = model.generate([5, 6], beams);
    await left.next();
    await left.return(undefined as never);
    assert.equal(backend.memory().live, live);
  });
});

test('encodeBatch pads texts and pairs for forward', async () => {
  const tokenizer = await loadTokenizer('assets/base');
  const batch = tokenizer.encodeBatch(['the whale', 'a much longer text of the sea'], { padTo: 9 });
  assert.is(batch.batch, 2);
  assert.is(batch.inputIds.length, 2 * batch.length);
  assert.ok(batch.length >= 9);
  const first = tokenizer.encode('the whale');
  assert.equal(Array.from(batch.inputIds.subarray(0, first.length)), first);
  assert.is(
    batch.attentionMask.subarray(0, batch.length).reduce((n, m) => n + m, 0),
    first.length,
  );
  assert.is(tokenizer.encodeBatch(['the whale is a fish'], { maxLength: 3 }).length, 3);
  assert.throws(() => tokenizer.encodeBatch([]), /encodeBatch\] expected texts/);
  assert.throws(() => tokenizer.encodeBatch(['a'], { maxlen: 3 } as object), /Nearest: maxLength/);
});

onEachBackend(test, 'a model stored as doubles computes as its f32 copy does', (backend) =>
  withFolder((dir) => {
    writeTinyModel(dir);
    const path = join(dir, 'model.safetensors');
    const file = SafetensorsFile.open(path);
    const ids = { inputIds: IDS };
    using plain = openModel(dir, { backend, dtype: 'f32' });
    const expected = scope(() => plain.forward(ids).logits.toNumbers());
    const doubles = new Map(
      [...file.tensors.keys()].map((name) => [
        name,
        file.load(name, { backend: reference, dtype: 'f64' }),
      ]),
    );
    writeSafetensors(path, doubles);
    for (const t of doubles.values()) t.dispose();
    using model = openModel(dir, { backend });
    assert.equal(
      scope(() => model.forward(ids).logits.toNumbers()),
      expected,
    );
  }),
);

test.run();
