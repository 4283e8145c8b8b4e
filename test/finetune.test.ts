// time-limit: 120
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { LoraAdapters, loadAdapter } from '../src/lora/index.js';
import { openModel } from '../src/models/load.js';
import { numberToBf16 } from '../src/tensor/dtype.js';
import { caughtByFinalizer } from '../src/tensor/lifetime.js';
import { getBackend } from '../src/tensor/registry.js';
import { type DoneEvent, type FinetuneEvent, finetune } from '../src/train/finetune.js';
import { candidates } from './backends.js';
import { all, failure } from './support/finetune.js';
import { writeLines, writeTinyModel, writeWorkspace } from './support/model-dir.js';
import { skipUnless } from './support.js';

const test = suite('finetune');
const root = mkdtempSync(join(tmpdir(), 'lowrank-finetune-'));
const at = (...parts: string[]) => join(root, ...parts);
writeWorkspace(root);
test.after(() => rmSync(root, { recursive: true, force: true }));

type Options = Parameters<typeof finetune>[0];

const settings = (out: string, more: Partial<Options> = {}): Options => ({
  modelDir: at('model'),
  dataFile: at('train.jsonl'),
  out: at(out),
  lr: 0.02,
  steps: 4,
  ...more,
});

for (const c of candidates) {
  const register = skipUnless(test, c.backend !== null, c.reason || `${c.name} is missing`);
  register(
    `frozen bytes, gradients and optimizer are as LoRA's formula says (${c.name})`,
    async () => {
      const lora = { rank: 4, targetModules: ['q_proj', 'down_proj'] };
      const events = await all(settings(`books-${c.name}`, { backend: c.name, lora }));
      const { memory, after } = events.at(-1) as DoneEvent;
      // r · (in + out) of q_proj [16, 16] and down_proj [16, 24].
      const parameters = 4 * (16 + 16 + 24 + 16);
      const [start] = events;
      assert.is(start?.type === 'start' && start.trainableParameters, parameters);
      assert.is(memory.peak.trainable, 4 * parameters);
      assert.is(memory.peak.gradient, 4 * parameters);
      assert.is(memory.peak.optimizer, 8 * parameters);
      assert.is(memory.live.activation, 0);
      assert.is(memory.live.gradient, 0);
      assert.is(after, undefined);
    },
  );
}

test('a head that is tied to its table is adapted as a tensor of its own, and loads so', async () => {
  for (const [i, lora] of [
    { rank: 2, targetModules: ['lm_head'] },
    { rank: 2, targetModules: '.*lm_head' },
    { rank: 2, targetModules: ['q_proj'], modulesToSave: ['lm_head'] },
  ].entries()) {
    const out = `head-${i}`;
    await all(settings(out, { steps: 1, lora }));
    using model = openModel(at('model'), { backend: getBackend('auto'), untied: true });
    using adapters = new LoraAdapters(model);
    loadAdapter(adapters, 'a', at(out));
    assert.ok([...adapters.tensors('a').keys()].some((k) => k.includes('lm_head')));
  }
});

test('a run leaves no buffer behind, finished, left early, or failed', async () => {
  const backend = getBackend('auto');
  const before = backend.memory();
  await all(settings('tidy', { steps: 3, evalFile: at('eval.jsonl') }));
  assert.is(backend.memory().handles, before.handles);
  for await (const event of finetune(settings('early'))) if (event.type === 'step') break;
  assert.not.ok(existsSync(at('early')));
  await failure(settings('failed', { lora: { targetModules: ['nothing'] } }));
  await failure(settings('failed', { evalFile: at('none.jsonl') }));
  await all(settings('full', { full: true, steps: 2 }));
  assert.is(backend.memory().handles, before.handles);
  assert.is(backend.memory().total, before.total);
  assert.is(caughtByFinalizer(), 0);
});

test('epochs become steps: the last, smaller batch counts', async () => {
  const stepsOf = async (more: Partial<Options>) => {
    const { steps: _, ...rest } = settings('epochs', { overwrite: true, ...more });
    return (await all(rest)).filter((e) => e.type === 'step').length;
  };
  assert.is(await stepsOf({ batchSize: 5 }), 5);
  assert.is(await stepsOf({ batchSize: 5, epochs: 2, accumulation: 3 }), 4);
  assert.is(await stepsOf({ batchSize: 24, epochs: 0.1 }), 1);
});

test('texts are packed into full sequences', async () => {
  const [start] = await all(settings('text', { dataFile: at('text.jsonl'), seqLength: 32 }));
  assert.ok(start?.type === 'start');
  const { tokens, targets, examples } = start;
  assert.is(examples, Math.ceil(tokens / 32));
  assert.is(targets, tokens - examples);
  assert.is(start.truncatedExamples, 0);
});

test('an aborted run is saved after the step under way and says so', async () => {
  const aborter = new AbortController();
  const events: FinetuneEvent[] = [];
  for await (const event of finetune(settings('abort', { steps: 9, signal: aborter.signal }))) {
    events.push(event);
    if (event.type === 'step' && event.step === 2) aborter.abort();
  }
  assert.equal(
    events.map((e) => e.type),
    ['start', 'step', 'step', 'saved', 'done'],
  );
  const done = events.at(-1) as DoneEvent;
  assert.is(done.stopped, true);
  assert.is(done.step, 2);
  assert.ok(existsSync(at('abort/state/state.json')));
  const record = JSON.parse(readFileSync(at('abort/training.json'), 'utf8'));
  assert.is(record.step, 2);
  assert.is(record.steps, 9);
});

test('another base model, other data or another method do not go on', async () => {
  const aborter = new AbortController();
  const mine = { steps: 5, signal: aborter.signal };
  for await (const event of finetune(settings('mixed', mine))) {
    if (event.type === 'step') aborter.abort();
  }
  writeTinyModel(at('other-model'), 2);
  const resume = { steps: 5, resume: true };
  const model = settings('mixed', { ...resume, modelDir: at('other-model') });
  assert.match(await failure(model), /settings of the run in it: model /);
  const data = settings('mixed', { ...resume, dataFile: at('text.jsonl') });
  assert.match(await failure(data), /settings of the run in it: data /);
  assert.match(await failure(settings('mixed', { ...resume, full: true })), /method "lora"/);
  rmSync(at('mixed/state'), { recursive: true });
  assert.match(await failure(settings('mixed', resume)), /state\.json/);
});

test('a loss that stays not finite ends the run, and says what was kept', async () => {
  const message = await failure(settings('overflow', { lr: 1e38, steps: 40, warmupSteps: 0 }));
  assert.match(message, /expected a finite loss and gradients, received none in 10 steps in a row/);
  assert.match(message, 'The weights of the last good step are in');
  using model = openModel(at('model'), { task: 'causal-lm' });
  loadAdapter(new LoraAdapters(model), 'a', at('overflow'));

  writeTinyModel(at('nan-model'));
  const file = at('nan-model/model.safetensors');
  const bytes = readFileSync(file);
  bytes.writeUInt16LE(numberToBf16(Number.NaN), bytes.length - 2);
  writeFileSync(file, bytes);
  const events: FinetuneEvent[] = [];
  let error = '';
  try {
    const options = settings('nan', { modelDir: at('nan-model'), steps: 40 });
    for await (const event of finetune(options)) events.push(event);
  } catch (e) {
    error = (e as Error).message;
  }
  assert.match(error, 'Nothing was saved, as no step had changed a weight');
  assert.is(events.filter((e) => e.type === 'step').length, 10);
  assert.ok(
    events.every((e) => e.type !== 'step' || e.skipped === 'the loss or a gradient is not finite'),
  );
  assert.not.ok(existsSync(at('nan')));
});

test('nothing to learn, and settings out of range, are errors that name them', async () => {
  const nothing = writeLines(at('one.jsonl'), [{ prompt: '', completion: 'a' }]);
  // Without an end-of-text token the one token has nothing before it to be predicted from.
  writeTinyModel(at('no-eos'));
  const tokenizer = JSON.parse(readFileSync(at('no-eos/tokenizer_config.json'), 'utf8'));
  tokenizer.eos_token = null;
  writeFileSync(at('no-eos/tokenizer_config.json'), JSON.stringify(tokenizer));
  const config = JSON.parse(readFileSync(at('no-eos/config.json'), 'utf8'));
  config.eos_token_id = null;
  writeFileSync(at('no-eos/config.json'), JSON.stringify(config));
  const without = settings('z', { modelDir: at('no-eos'), dataFile: nothing });
  assert.match(await failure(without), /expected something to learn/);
  const rows: [Partial<Options>, RegExp][] = [
    [{ steps: 0 }, /finetune steps\] expected a whole number of 1 or more, received 0/],
    [{ steps: 1.5 }, /finetune steps/],
    [{ epochs: 2 }, /expected steps or epochs, received both/],
    [{ lr: 0 }, /finetune lr/],
    [{ lr: Number.NaN }, /finetune lr/],
    [{ batchSize: 0 }, /finetune batchSize/],
    [{ accumulation: -1 }, /finetune accumulation/],
    [{ seqLength: 1 }, /finetune seqLength/],
    [{ seqLength: 1000 }, /seqLength\] expected at most the model's 96 positions/],
    [{ warmupSteps: -1 }, /finetune warmupSteps/],
    [{ weightDecay: -1 }, /finetune weightDecay/],
    [{ maxGradNorm: Number.NaN }, /finetune maxGradNorm/],
    [{ seed: -1 }, /finetune seed/],
    [{ threads: 0 }, /finetune threads/],
    [{ schedule: 'cosin' as 'cosine' }, /Did you mean cosine/],
    [{ full: true, lora: {} }, /expected full or lora, received both/],
    [{ evalEvery: 2 }, /an evalFile to evaluate on/],
    [{ backend: 'gpu' }, /backend/],
    [{ lora: { rank: 0 } }, /lora rank/],
    [{ lora: { dropout: 1 } }, /lora dropout/],
    [{ lora: { targetModules: [] } }, /lora targetModules/],
    [{ out: at('model') }, /another folder than the model/],
  ];
  for (const [more, message] of rows) {
    assert.match(await failure(settings('z', more)), message, JSON.stringify(more));
  }
  assert.not.ok(existsSync(at('z')));
});

test.run();
