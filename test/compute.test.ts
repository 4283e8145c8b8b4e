// time-limit: 120
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { setCompute } from '../src/models/compute.js';
import { openModel } from '../src/models/load.js';
import type { Compute } from '../src/tensor/backend.js';
import { type FinetuneOptions, finetune } from '../src/train/finetune.js';
import { onNative } from './backends.js';
import { events, inside } from './support/cli.js';
import { writeWorkspace } from './support/model-dir.js';

const test = suite('compute');
const root = mkdtempSync(join(tmpdir(), 'lowrank-compute-'));
const at = (...parts: string[]) => join(root, ...parts);
writeWorkspace(root);
test.after(() => rmSync(root, { recursive: true, force: true }));

const near = (a: number, b: number) => Math.abs(a - b) < 0.02 * Math.abs(b);

async function losses(options: Partial<FinetuneOptions> & { out: string }): Promise<number[]> {
  const all: number[] = [];
  const files = { modelDir: at('model'), dataFile: at('train.jsonl') };
  const run = finetune({ ...files, steps: 3, batchSize: 4, backend: 'cpu', ...options });
  for await (const event of run) {
    if (event.type === 'start' && options.compute) assert.match(event.backend, 'products in bf16');
    if (event.type === 'step') all.push(event.loss);
  }
  return all;
}

async function refused(run: Promise<unknown>, expected: RegExp): Promise<void> {
  let message = 'nothing';
  await run.catch((error: Error) => {
    message = error.message;
  });
  assert.match(message, expected);
}

onNative(
  test,
  'a run in bf16 rounds a little, is recorded, and leaves the backend exact',
  async (b) => {
    const exact = await losses({ out: at('exact') });
    const rounded = await losses({ out: at('bf16'), compute: 'bf16' });
    assert.is.not(rounded[0], exact[0]);
    rounded.forEach((loss, i) => {
      assert.ok(near(loss, exact[i] as number), `step ${i + 1}: ${loss}, exactly ${exact[i]}`);
    });
    assert.is(b.compute, 'exact');
    const record = (name: string) => JSON.parse(readFileSync(at(name, 'training.json'), 'utf8'));
    assert.is(record('bf16').settings.compute, 'bf16');
    assert.not.ok('compute' in record('exact').settings);
    // Arithmetic is a setting of a run: it does not go on in another.
    const again = { out: at('bf16'), resume: true };
    await refused(
      losses(again),
      /\[out .*\] expected the settings of the run in it: compute "bf16"/,
    );
  },
);

onNative(test, 'a run that would not round is refused, and leaves the backend exact', async (b) => {
  const full = losses({ out: at('full'), full: true, compute: 'bf16' });
  await refused(full, /\[compute bf16\] expected weights stored in bf16, received weights in f32/);
  assert.is(b.compute, 'exact');
  const wrong = losses({ out: at('wrong'), compute: 'bf61' as Compute });
  await refused(wrong, /\[compute\] expected one of exact, bf16, received "bf61"\. Nearest: bf16/);
});

onNative(test, 'setCompute sets the arithmetic of a model, and back', (backend) => {
  using model = openModel(at('model'), { task: 'causal-lm', backend });
  const batch = {
    inputIds: Int32Array.from({ length: 12 }, (_, i) => 7 * i),
    batch: 1,
    length: 12,
  };
  const logits = () => {
    using out = model.forward(batch).logits;
    return out.toNumbers();
  };
  const exact = logits();
  const restore = setCompute(model, 'bf16');
  assert.is(backend.compute, 'bf16');
  const rounded = logits();
  restore();
  assert.is(backend.compute, 'exact');
  assert.equal(logits(), exact);
  assert.not.equal(rounded, exact);
});

test('the reference backend has exact arithmetic only', () => {
  using model = openModel(at('model'), { backend: 'reference' });
  setCompute(model, 'exact')();
  assert.throws(
    () => setCompute(model, 'bf16'),
    /\[setCompute\] expected exact on the reference backend, received bf16/,
  );
});

onNative(test, 'eval, generate and train take --compute', async (backend) => {
  const files = ['--model', at('model'), '--data', at('eval.jsonl'), '--json'];
  const loss = async (...how: string[]) => {
    const { code, stdout, stderr } = await inside('eval', ...files, ...how);
    assert.is(code, 0, stderr);
    return events(stdout).at(-1)?.loss as number;
  };
  const exact = await loss();
  const rounded = await loss('--compute', 'bf16');
  assert.is.not(rounded, exact);
  assert.ok(near(rounded, exact));
  // Without the option it is exact again, whatever ran before in this process.
  assert.is(await loss(), exact);
  const prompt = ['generate', '--model', at('model'), '--prompt', 'Call', '--max-new-tokens', '2'];
  assert.is((await inside(...prompt, '--compute', 'bf16')).code, 0);
  const none = await inside(...prompt, '--compute', 'bf16', '--backend', 'reference');
  assert.is(none.code, 1);
  assert.match(none.stderr, 'expected exact on the reference backend, received bf16');
  const typo = await inside(...prompt, '--compute', 'bf61');
  assert.is(typo.code, 2);
  assert.match(typo.stderr, 'Did you mean bf16?');
  const run = ['--model', at('model'), '--data', at('train.jsonl'), '--out', at('cli')];
  const trained = await inside('train', ...run, '--steps', '1', '--compute', 'bf16');
  assert.is(trained.code, 0, trained.stderr);
  assert.match(trained.stderr, 'products in bf16');
  backend.setCompute('exact');
});

onNative(test, 'a base is stored as --dtype says', async () => {
  const run = ['--model', at('model'), '--data', at('train.jsonl'), '--steps', '1'];
  const to = (name: string, ...how: string[]) => inside('train', ...run, '--out', at(name), ...how);
  const wide = await to('wide', '--dtype', 'f32', '--compute', 'bf16');
  assert.is(wide.code, 1);
  assert.match(wide.stderr, 'expected weights stored in bf16, received weights in f32');
  const told = await to('told', '--dtype', 'f16');
  assert.is(told.code, 0, told.stderr);
  const record = JSON.parse(readFileSync(at('told', 'training.json'), 'utf8'));
  assert.is(record.settings.dtype, 'f16');
  assert.is((await to('both', '--full', '--dtype', 'bf16')).code, 2);
  assert.match((await to('typo', '--dtype', 'bf61')).stderr, 'Did you mean bf16?');
  const files = ['eval', '--model', at('model'), '--data', at('eval.jsonl'), '--compute', 'bf16'];
  assert.match((await inside(...files, '--dtype', 'f32')).stderr, 'received weights in f32');
  const full = losses({ out: at('refused'), full: true, dtype: 'bf16' });
  await refused(full, /\[finetune dtype\] expected none with full/);
});

test.run();
