// time-limit: 120
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { PURPOSES } from '../src/tensor/backend.js';
import { getBackend } from '../src/tensor/registry.js';
import { dryRun } from '../src/train/dry-run.js';
import { type DoneEvent, finetune } from '../src/train/finetune.js';
import { candidates } from './backends.js';
import { events, inside } from './support/cli.js';
import { pairs, writeLines, writeWorkspace } from './support/model-dir.js';
import { skipUnless } from './support.js';

const test = suite('dry run');
const root = mkdtempSync(join(tmpdir(), 'lowrank-dry-'));
const at = (...parts: string[]) => join(root, ...parts);
writeWorkspace(root);
// Of every length, so that batches differ.
const uneven = pairs(24).map((p, i) => ({ ...p, prompt: `${'so '.repeat(i % 20)}${p.prompt}` }));
writeLines(at('uneven.jsonl'), uneven);
test.after(() => rmSync(root, { recursive: true, force: true }));

type Options = Parameters<typeof finetune>[0];

const settings = (out: string, more: Partial<Options> = {}): Options => ({
  modelDir: at('model'),
  dataFile: at('uneven.jsonl'),
  out: at(out),
  steps: 6,
  batchSize: 4,
  ...more,
});

async function taken(options: Options): Promise<DoneEvent['memory']> {
  let done: DoneEvent | undefined;
  for await (const event of finetune(options)) if (event.type === 'done') done = event;
  return (done as DoneEvent).memory;
}

const CASES: Readonly<Record<string, Partial<Options>>> = {
  lora: { lora: { rank: 4, targetModules: ['all-linear'] } },
  'lora, one step': { lora: { rank: 4 }, steps: 1 },
  full: { full: true },
  'full, accumulated': { full: true, accumulation: 3, steps: 3 },
  checkpointed: { lora: { rank: 4 }, gradientCheckpointing: true },
};

for (const c of candidates) {
  const register = skipUnless(test, c.backend !== null, c.reason || `${c.name} is missing`);
  for (const [name, more] of Object.entries(CASES)) {
    register(`${name}: within 5% of what the run takes, by purpose (${c.name})`, async () => {
      const options = settings(`${c.name}-${name}`, { ...more, backend: c.name });
      const before = getBackend(c.name).memory().handles;
      const { memory, largestBatch, residentBytes } = await dryRun(options);
      assert.is(getBackend(c.name).memory().handles, before);
      assert.not.ok(existsSync(options.out), 'nothing is written');
      const real = await taken(options);
      for (const purpose of PURPOSES) {
        const [told, was] = [memory.peak[purpose], real.peak[purpose]];
        assert.ok(Math.abs(told - was) <= 0.05 * was, `${purpose}: ${told}, then ${was}`);
      }
      const { totalPeak } = real;
      assert.ok(Math.abs(memory.totalPeak - totalPeak) <= 0.05 * totalPeak, 'all together');
      assert.ok(largestBatch.batch === 4 && largestBatch.length > 20, JSON.stringify(largestBatch));
      assert.ok(residentBytes > totalPeak);
    });
  }
}

test('a dry run of a folder that may be overwritten leaves it, and a finished run is refused', async () => {
  const options = settings('done', { steps: 2 });
  await taken(options);
  const files = readdirSync(at('done'));
  const record = readFileSync(at('done', 'training.json'), 'utf8');
  await dryRun({ ...options, overwrite: true, steps: 5 });
  assert.equal(readdirSync(at('done')), files);
  assert.is(readFileSync(at('done', 'training.json'), 'utf8'), record);
  try {
    await dryRun({ ...options, resume: true });
    assert.unreachable();
  } catch (error) {
    assert.match((error as Error).message, '[dry run] expected steps to do');
  }
});

test('train --dry-run tells the bytes by purpose, as text and as JSON', async () => {
  const files = ['--model', at('model'), '--data', at('uneven.jsonl'), '--out', at('cli')];
  const { code, stdout, stderr } = await inside('train', ...files, '--dry-run');
  assert.is(code, 0, stderr);
  for (const purpose of PURPOSES) assert.match(stdout, new RegExp(`^${purpose} +[\\d.]+ .?B`, 'm'));
  assert.match(stdout, /^at once +[\d.]+ MB/m);
  assert.match(stdout, 'Nothing was trained or written.');
  const json = await inside('train', ...files, '--dry-run', '--json');
  const [event] = events(json.stdout) as [Record<string, unknown>];
  assert.is(event.type, 'dry-run');
  assert.equal(Object.keys((event.memory as { peak: object }).peak), [...PURPOSES]);
  assert.not.ok(existsSync(at('cli')));
});

test.run();
