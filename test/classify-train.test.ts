// time-limit: 180
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { openCheckpoint } from '../src/io/checkpoint.js';
import { SafetensorsFile } from '../src/io/safetensors.js';
import { writeTokenFile } from '../src/io/token-file.js';
import { LoraAdapters, loadAdapter } from '../src/lora/index.js';
import { adapterHead, hasHead, headConfig, labelsOf } from '../src/models/head.js';
import { openModel } from '../src/models/load.js';
import { caughtByFinalizer } from '../src/tensor/lifetime.js';
import { getBackend } from '../src/tensor/registry.js';
import type { ClassifierEvaluation } from '../src/train/classify.js';
import {
  type DoneEvent,
  type FinetuneEvent,
  finetune,
  type StartEvent,
} from '../src/train/finetune.js';
import { pretrain } from '../src/train/pretrain.js';
import { encoderConfig, judgements, sentiments, writeEncoder } from './support/classifier.js';
import { events, inside } from './support/cli.js';
import { all, failure } from './support/finetune.js';
import { TINY_CONFIG, writeLines } from './support/model-dir.js';

const test = suite('classify-train');
const root = mkdtempSync(join(tmpdir(), 'lowrank-classify-'));
const at = (...parts: string[]) => join(root, ...parts);
test.after(() => rmSync(root, { recursive: true, force: true }));

const LABELS = ['negative', 'positive'];
writeEncoder(at('bert'), { type: 'bert' });
writeEncoder(at('roberta'), { type: 'roberta' });
writeEncoder(at('headed'), { type: 'roberta', labels: LABELS });
writeLines(at('train.jsonl'), sentiments(160));
writeLines(at('test.jsonl'), sentiments(60, 1000));
writeLines(at('pairs.jsonl'), judgements(40));

type Options = Parameters<typeof finetune>[0];

const settings = (model: string, out: string, more: Partial<Options> = {}): Options => ({
  modelDir: at(model),
  dataFile: at('train.jsonl'),
  out: at(out),
  lr: 0.02,
  steps: 4,
  batchSize: 16,
  ...more,
});

const startOf = (seen: FinetuneEvent[]) => seen[0] as StartEvent;
const doneOf = (seen: FinetuneEvent[]) => seen.at(-1) as DoneEvent;
const json = (...parts: string[]) => JSON.parse(readFileSync(at(...parts), 'utf8'));
const last = (text: string) => events(text).at(-1) as Record<string, unknown>;

for (const model of ['bert', 'roberta']) {
  test(`${model}: a masked model learns to classify from the command line`, async () => {
    const out = at(`cli-${model}`);
    const files = ['--model', at(model), '--data', at('train.jsonl'), '--eval', at('test.jsonl')];
    const how = ['--lr', '0.02', '--steps', '100', '--batch-size', '16', '--eval-every', '50'];
    const run = await inside('train', ...files, '--out', out, ...how);
    assert.is(run.code, 0, run.stderr);
    assert.match(run.stderr, 'A new head for 2 labels (negative, positive): single_label');
    assert.match(
      run.stderr,
      /evaluation at step 50: loss [\d.]+, accuracy [\d.]+, F1 [\d.]+, Matth/,
    );
    assert.match(run.stdout, /Try it: lowrank eval --model .* --data test\.jsonl/);
    const use = ['eval', '--model', at(model), '--adapter', out, '--data', at('test.jsonl')];
    const result = await inside(...use, '--json', '--predictions', at('said.jsonl'));
    assert.is(result.code, 0, result.stderr);
    const said = last(result.stdout) as unknown as ClassifierEvaluation;
    assert.ok((said.accuracy as number) > 0.9, `${said.accuracy}`);
    assert.ok((said.matthews as number) > 0.8 && (said.f1 as number) > 0.9);
    assert.is(said.records, 60);
    const after = run.stdout.match(/Eval after .*accuracy ([\d.]+)/)?.[1];
    assert.is(after, (said.accuracy as number).toFixed(4), 'the adapter that was saved is the one');
    const lines = readFileSync(at('said.jsonl'), 'utf8')
      .trimEnd()
      .split('\n')
      .map((l) => JSON.parse(l));
    const truths = sentiments(60, 1000).map((r) => r.label);
    const right = lines.filter((l, i) => l.line === i + 1 && l.label === truths[i]).length;
    assert.is(right / 60, said.accuracy, 'predictions come in the order of the records');
    assert.ok(lines.every((l) => Math.abs(l.scores[0] + l.scores[1] - 1) < 1e-9));
    assert.match((await inside(...use)).stdout, /^loss [\d.]+, accuracy .*\(60 records\) in /);
  });
}

test('the head that a classifier has is trained and saved whole, as by PEFT', async () => {
  await all(settings('headed', 'own', { lora: { modulesToSave: ['embeddings'] } }));
  const saved = json('own/adapter_config.json').modules_to_save;
  assert.equal(saved, ['roberta.embeddings', 'classifier']);
  await all(settings('headed', 'trainedhead'));
  assert.equal(json('trainedhead/adapter_config.json').modules_to_save, ['classifier']);
  const file = SafetensorsFile.open(at('trainedhead/adapter_model.safetensors'));
  const base = openCheckpoint(at('headed'));
  const backend = getBackend('reference');
  const ends = ['dense.weight', 'dense.bias', 'out_proj.weight', 'out_proj.bias'];
  for (const name of ends.map((end) => `classifier.${end}`)) {
    const was = base.loadTensor(name, { backend }).toNumbers();
    const now = file.load(`base_model.model.${name}`, { backend }).toNumbers();
    assert.is(now.length, was.length);
    assert.ok(
      now.some((v, i) => v !== was[i]),
      name,
    );
  }
});

test('an adapter with a new head says what it answers, and holds the head whole', async () => {
  const started = startOf(await all(settings('bert', 'head')));
  assert.equal([started.task, started.newHead, started.labels], ['classification', true, LABELS]);
  assert.equal(json('head/labels.json'), {
    num_labels: 2,
    id2label: { 0: 'negative', 1: 'positive' },
    label2id: { negative: 0, positive: 1 },
    problem_type: 'single_label_classification',
  });
  const config = json('head/adapter_config.json');
  assert.equal([config.modules_to_save, config.task_type], [['classifier'], 'SEQ_CLS']);
  const base = openCheckpoint(at('bert'));
  assert.is(hasHead(base), false);
  const head = adapterHead(at('head'), base);
  assert.equal(head?.labels, LABELS);
  using model = openModel(at('bert'), { task: 'classification', ...(head ? { head } : {}) });
  loadAdapter(new LoraAdapters(model), 'a', at('head'));
  assert.is(model.labelCount, 2);
  assert.is(model.problemType, 'single_label_classification');
  // Without labels.json, as PEFT writes adapters, the head's shape says how many there are.
  rmSync(at('head/labels.json'));
  assert.equal(adapterHead(at('head'), base)?.labels, ['LABEL_0', 'LABEL_1']);
});

test('a body without pooler: it is made new, and held whole as the head is', async () => {
  writeEncoder(at('no-pooler'), { type: 'bert', without: 'bert.pooler' });
  await all(settings('no-pooler', 'pooled'));
  assert.equal(json('pooled/adapter_config.json').modules_to_save, ['classifier', 'pooler']);
  const head = adapterHead(at('pooled'), openCheckpoint(at('no-pooler')));
  assert.ok(head);
  using model = openModel(at('no-pooler'), { head });
  loadAdapter(new LoraAdapters(model), 'a', at('pooled'));
});

test('a model with a head keeps its labels; --num-labels gives it another', async () => {
  const kept = startOf(await all(settings('headed', 'kept')));
  assert.equal([kept.newHead, kept.labels], [false, LABELS]);
  assert.not.ok(existsSync(at('kept/labels.json')));
  writeLines(at('stars.jsonl'), [
    { text: 'good film', label: 'five' },
    { text: 'bad film', label: 'one' },
    { text: 'the film', label: 'three' },
  ]);
  const stars = { dataFile: at('stars.jsonl') };
  const unknown = await failure(settings('headed', 'stars', stars));
  assert.match(unknown, /stars\.jsonl:1\] expected one of the model’s 2 labels, received "five"/);
  const fresh = startOf(await all(settings('headed', 'stars', { ...stars, numLabels: 3 })));
  assert.equal([fresh.newHead, fresh.labels], [true, ['five', 'one', 'three']]);
  const base = openCheckpoint(at('headed'));
  assert.is(adapterHead(at('kept'), base), undefined);
  assert.equal(adapterHead(at('stars'), base)?.labels, ['five', 'one', 'three']);
  const test = ['--model', at('headed'), '--adapter', at('stars'), '--data', at('stars.jsonl')];
  const result = await inside('eval', ...test, '--json');
  assert.is(result.code, 0, result.stderr);
  assert.is(last(result.stdout).records, 3);
});

test('regression and several labels, by the data or by --problem-type', async () => {
  const rows = sentiments(24).map((r, i) => ({ ...r, value: (i % 5) + 0.5 }));
  writeLines(
    at('values.jsonl'),
    rows.map((r) => ({ text: r.sentence, label: r.value })),
  );
  writeLines(
    at('lists.jsonl'),
    rows.map((r) => ({ text: r.sentence, label: [r.label] })),
  );
  writeLines(
    at('whole.jsonl'),
    rows.map((r, i) => ({ text: r.sentence, label: i % 5 })),
  );
  const run = async (file: string, model: string, more: Partial<Options> = {}) => {
    const files = { dataFile: at(file), evalFile: at(file), overwrite: true };
    const seen = await all(settings(model, 'kinds', { ...files, ...more }));
    return [startOf(seen), doneOf(seen).after as ClassifierEvaluation] as const;
  };
  const [values, scored] = await run('values.jsonl', 'bert');
  assert.equal([values.problemType, values.labels], ['regression', ['LABEL_0']]);
  assert.equal([typeof scored.pearson, scored.mse], ['number', scored.loss]);
  const [, several] = await run('lists.jsonl', 'roberta');
  assert.is(several.problemType, 'multi_label_classification');
  assert.type(several.macroF1, 'number');
  const [whole] = await run('whole.jsonl', 'roberta', { problemType: 'regression' });
  assert.equal([whole.problemType, whole.labels?.length], ['regression', 1]);
  const [classes] = await run('whole.jsonl', 'roberta');
  assert.equal([classes.problemType, classes.labels?.length], ['single_label_classification', 5]);
  // An override on a model with a head keeps the head.
  const [other] = await run('lists.jsonl', 'headed', { problemType: 'multi_label_classification' });
  assert.equal([other.newHead, other.labels], [false, LABELS]);
  assert.is(json('kinds/labels.json').problem_type, 'multi_label_classification');
  const wrong = await failure(
    settings('headed', 'kinds', { problemType: 'regression', overwrite: true }),
  );
  assert.match(wrong, /a list of 2 numbers \(the problem is regression\)/);
});

test('a stopped run goes on bit for bit; other labels do not', async () => {
  const dropout = { hidden_dropout_prob: 0.1 };
  writeEncoder(at('dropping'), { type: 'bert', more: dropout });
  const mine = { steps: 9, dataFile: at('pairs.jsonl'), batchSize: 7, lora: { dropout: 0.1 } };
  await all(settings('dropping', 'straight', mine));
  const aborter = new AbortController();
  const stopping = settings('dropping', 'stopped', { ...mine, signal: aborter.signal });
  for await (const event of finetune(stopping)) {
    if (event.type === 'step' && event.step === 4) aborter.abort();
  }
  const changed = { ...mine, resume: true, problemType: 'regression' as const };
  assert.match(
    await failure(settings('dropping', 'stopped', changed)),
    /settings of the run in it/,
  );
  await all(settings('dropping', 'stopped', { ...mine, resume: true }));
  const bytes = (out: string) => readFileSync(at(out, 'adapter_model.safetensors'));
  assert.equal(bytes('stopped'), bytes('straight'));
});

test('eval and generate free the models they load', async () => {
  const backend = getBackend('auto');
  const { handles } = backend.memory();
  const classify = ['eval', '--model', at('headed'), '--data', at('test.jsonl')];
  assert.is((await inside(...classify)).code, 0);
  const write = ['generate', '--model', 'assets/base', '--prompt', 'Call', '--max-new-tokens', '2'];
  assert.is((await inside(...write)).code, 0);
  assert.is(backend.memory().handles, handles);
});

test('--full writes a classifier with its labels; nothing is left behind', async () => {
  const backend = getBackend('auto');
  const before = backend.memory();
  await all(settings('roberta', 'tuned', { full: true, lr: 1e-3 }));
  await failure(settings('roberta', 'none', { evalFile: at('none.jsonl') }));
  await failure(settings('roberta', 'none', { lora: { targetModules: ['nothing'] } }));
  assert.is(backend.memory().handles, before.handles);
  assert.is(caughtByFinalizer(), 0);
  const tuned = openCheckpoint(at('tuned'));
  assert.is(hasHead(tuned), true);
  assert.equal(labelsOf(tuned.config), LABELS);
  assert.equal(tuned.config.architectures, ['RobertaForSequenceClassification']);
  assert.not.ok([...tuned.tensors.keys()].some((name) => name.startsWith('lm_head')));
  const result = await inside('eval', '--model', at('tuned'), '--data', at('test.jsonl'));
  assert.is(result.code, 0, result.stderr);
});

test('evaluation without labels writes predictions only', async () => {
  writeLines(at('blind.jsonl'), [{ sentence: 'good film', idx: 5 }, { sentence: 'bad' }]);
  const use = ['eval', '--model', at('headed'), '--data', at('blind.jsonl')];
  const refused = await inside(...use);
  assert.is(refused.code, 1);
  assert.match(refused.stderr, /"label", received none\. Give --predictions/);
  const result = await inside(...use, '--predictions', at('blind-said.jsonl'));
  assert.is(result.code, 0, result.stderr);
  assert.match(result.stdout, /^2 records; predictions in /);
  const [first, second] = readFileSync(at('blind-said.jsonl'), 'utf8').split('\n');
  assert.equal(
    [JSON.parse(first as string).idx, 'idx' in JSON.parse(second as string)],
    [5, false],
  );
});

test('what cannot be done says so', async () => {
  writeLines(at('half.jsonl'), [{ text: 'a', label: 'positive' }, { text: 'a' }]);
  const rows: [Options, RegExp][] = [
    [settings('bert', 'x', { dataFile: at('half.jsonl') }), /half\.jsonl:2\] expected "label"/],
    [settings('bert', 'x', { evalFile: at('half.jsonl') }), /half\.jsonl:2\] expected "label"/],
    [settings('bert', 'x', { numLabels: 0 }), /finetune numLabels/],
    [settings('bert', 'x', { numLabels: 3 }), /\[numLabels\] expected 3 labels, received 2/],
    [
      settings('bert', 'x', { problemType: 'regresion' as 'regression' }),
      /finetune problemType.*Did you mean regression/,
    ],
    [settings('bert', 'x', { seqLength: 25 }), /at most the model's 24 positions, received 25/],
  ];
  for (const [options, message] of rows) assert.match(await failure(options), message);
  assert.not.ok(existsSync(at('x')));
  const unheaded = await inside('eval', '--model', at('bert'), '--data', at('test.jsonl'));
  assert.match(unheaded.stderr, /expected a head for sequences, received none\. Train one/);
  const config = encoderConfig({ type: 'bert' });
  assert.throws(() => headConfig(config, { labels: ['a', 'a'] }), /each once, received a, a/);
  assert.throws(() => headConfig({ model_type: 'gpt5' }, { labels: ['a'] }), /"gpt5"/);
  assert.throws(() => labelsOf({ id2label: { 0: 'a', 2: 'b' } }), /a name for each of 0…1/);
  writeFileSync(at('kept/labels.json'), '{"problem_type":"odd"}');
  assert.throws(() => adapterHead(at('kept'), openCheckpoint(at('headed'))), /problem_type one of/);
});

test('pretraining gives up when ten steps in a row are not finite', async () => {
  writeTokenFile(at('ids.bin'), [Int32Array.from({ length: 400 }, (_, i) => (i * 7) % 50)]);
  const { handles } = getBackend('auto').memory();
  let error = '';
  let steps = 0;
  try {
    const run = pretrain({
      ...{ config: TINY_CONFIG, tokenizerDir: 'assets/base', trainFile: at('ids.bin') },
      ...{ heldOut: new Map(), out: at('wild'), steps: 60, batchSize: 2, accumulation: 1 },
      ...{ seqLength: 16, lr: 1e38, warmupSteps: 0, weightDecay: 0, seed: 1, evalEvery: 1000 },
      backend: getBackend('auto'),
    });
    for await (const event of run) if (event.type === 'step') steps++;
  } catch (e) {
    error = (e as Error).message;
  }
  assert.match(error, /none in 10 steps in a row .* Nothing was saved yet\. Try a smaller lr/);
  assert.ok(steps >= 10 && steps < 20, `${steps}`);
  assert.is(getBackend('auto').memory().handles, handles, 'all is freed');
});

test.run();
