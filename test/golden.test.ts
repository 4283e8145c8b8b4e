import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { SafetensorsFile } from '../src/io/safetensors.js';
import { onEachBackend, reference } from './backends.js';
import { type CaseReport, runCase } from './golden/case.js';
import { adapterDifferences, Comparison } from './golden/compare.js';
import { skipUnless } from './support.js';

/** Cases kept beside the project, too large to be carried by it. */
const SHARED = fileURLToPath(new URL('../../shared/golden', import.meta.url));
const SHARED_CASES = ['gpt2-c_attn', 'llama-all-linear', 'llama-qv-tied-bf16', 'roberta-cls'];

/** Small cases that test/golden/make.py makes again. */
const OWN = fileURLToPath(new URL('golden/cases', import.meta.url));

/** Registers a case on each backend: every figure within its tolerance, and nothing left over. */
function holds(dir: string, name: string): void {
  onEachBackend(test, `golden ${name}`, (backend) => {
    const before = backend.memory();
    const report = runCase(`${dir}/${name}`, backend);
    const wrong = report.figures.filter((f) => !f.ok);
    assert.equal([...report.problems, ...wrong], []);
    assert.is(report.ok && report.savedEqual, true);
    assert.ok(report.figures.length > 10, `${report.figures.length} figures`);
    assert.ok(report.figures.some((f) => f.name === 'merged_logits_after'));
    const after = backend.memory();
    assert.is(after.handles, before.handles, 'live buffers');
    assert.is(after.total, before.total, 'live bytes');
  });
}

const own = readdirSync(OWN).sort();

test('the project carries its own golden cases', () => {
  assert.equal(own, [
    'bert-pairs',
    'gpt2-all-f16-shards',
    'gpt2-dora-biases-bf16',
    'llama-gqa-bias-tied',
    'llama-mlp-bf16',
    'llama-score-regression',
    'llama-table-rslora-patterns',
    'llama-tokens-whole-tied',
    'mistral-window-llama3',
    'qwen3-window-yarn',
    'roberta-multi-label',
  ]);
});

for (const name of own) holds(OWN, name);

if (existsSync(SHARED)) for (const name of SHARED_CASES) holds(SHARED, name);
else {
  for (const name of SHARED_CASES) {
    skipUnless(
      test,
      false,
      'the folder ../shared/golden is not beside the project',
    )(name, () => {});
  }
}

/** A copy of one of our cases, in which `change` may break something, run on the reference. */
function runChanged(change: (dir: string) => void): CaseReport {
  const root = mkdtempSync(join(tmpdir(), 'lowrank-golden-test-'));
  try {
    const dir = join(root, 'changed');
    cpSync(join(OWN, 'llama-mlp-bf16'), dir, { recursive: true });
    change(dir);
    return runCase(dir, reference);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

function editJson(path: string, edit: (json: Record<string, unknown>) => void): void {
  const json = JSON.parse(readFileSync(path, 'utf8'));
  edit(json);
  writeFileSync(path, JSON.stringify(json));
}

/** Overwrites one f32 of a tensor of a safetensors file. */
function pokeFloat(path: string, tensor: string, value: number): void {
  const { byteOffset } = SafetensorsFile.open(path).entry(tensor);
  const bytes = readFileSync(path);
  bytes.writeFloatLE(value, byteOffset);
  writeFileSync(path, bytes);
}

const failed = (r: CaseReport) => r.figures.filter((f) => !f.ok).map((f) => f.name);

test('a case fails on one wrong element, and on NaN', () => {
  const key = 'base_model.model.model.layers.1.mlp.down_proj.lora_B.weight';
  for (const value of [0.5, Number.NaN]) {
    const report = runChanged((dir) =>
      pokeFloat(join(dir, 'expected.safetensors'), `grad.${key}`, value),
    );
    assert.is(report.ok, false);
    assert.equal(failed(report), [`grad.${key}`]);
  }
});

test('a case fails where another adapter, alpha or base was used', () => {
  const key = 'base_model.model.model.layers.0.mlp.down_proj.lora_A.weight';
  const file = 'adapter/adapter_model.safetensors';
  assert.ok(failed(runChanged((dir) => pokeFloat(join(dir, file), key, 3))).includes('logits'));
  const alpha = runChanged((dir) =>
    editJson(join(dir, 'adapter_after/adapter_config.json'), (c) => {
      c.lora_alpha = 3;
    }),
  );
  assert.ok(failed(alpha).includes('merged_logits_after'));
  const base = runChanged((dir) =>
    editJson(join(dir, 'config.json'), (c) => {
      c.rope_parameters = { rope_type: 'default', rope_theta: 10 };
    }),
  );
  assert.ok(failed(base).includes('base_logits'));
});

test('an unknown task and an unsupported architecture are problems', () => {
  const task = runChanged((dir) =>
    editJson(join(dir, 'case.json'), (c) => {
      c.task = 'SEQ_CLS';
    }),
  );
  assert.is(task.ok, false);
  assert.match(task.problems.join(), /CAUSAL_LM, received SEQ_CLS/);
  const type = runChanged((dir) =>
    editJson(join(dir, 'config.json'), (c) => {
      c.model_type = 'mamba';
    }),
  );
  assert.is(type.ok, false);
  assert.match(type.problems.join(), /"mamba"/);
});

test('differences of saved adapters are found: keys, values, settings', () => {
  const from = join(OWN, 'llama-mlp-bf16');
  assert.equal(adapterDifferences(join(from, 'adapter'), join(from, 'adapter')), []);
  const values = adapterDifferences(join(from, 'adapter'), join(from, 'adapter_after'));
  assert.is(values.length, 8);
  const other = adapterDifferences(
    join(from, 'adapter'),
    join(OWN, 'llama-gqa-bias-tied', 'adapter'),
  );
  assert.ok(other.some((d) => d.includes('missing')) && other.some((d) => d.includes('surplus')));
  assert.ok(other.some((d) => d.includes('lora_alpha: expected 2, received 6')));
});

test('wrong losses, parameters and logits after the steps are not taken for rounding', () => {
  const key = 'base_model.model.model.layers.1.mlp.down_proj.lora_B.weight';
  for (const [name, value, figure] of [
    ['step_losses', 3.7, 'step_losses'],
    [`after.${key}`, 0.35, `after.${key}`],
    ['logits_after', 0.5, 'trained logits_after'],
  ] as const) {
    const report = runChanged((dir) => pokeFloat(join(dir, 'expected.safetensors'), name, value));
    assert.is(report.ok, false);
    assert.ok(failed(report).includes(figure), `${name}: ${failed(report)}`);
    const found = report.figures.find((f) => f.name === figure);
    assert.ok((found?.sensitivity ?? 1) < 1e-4, `${name}: ${found?.sensitivity}`);
  }
});

test('a gradient that is nothing but rounding is compared with the others', () => {
  const dir = join(OWN, 'llama-mlp-bf16');
  const comparison = new Comparison(dir);
  const name = 'grad.base_model.model.model.layers.0.mlp.down_proj.lora_A.weight';
  const values = comparison.expected(name);
  const largest = comparison.largest(name);
  const other = values.map((v) => v + largest / 2);
  comparison.compare(name, other, 1e-3);
  comparison.compare(name, other, 1e-3, { scale: 1000 * largest });
  assert.equal(
    comparison.figures.map((f) => f.ok),
    [false, true],
  );
});

test('frequencies of RoPE are rounded only where a case was made so', () => {
  assert.equal(runCase(join(OWN, 'llama-mlp-bf16'), reference).notes, []);
  const dir = join(SHARED, 'llama-qv-tied-bf16');
  if (!existsSync(dir)) return;
  const { notes, figures } = runCase(dir, reference);
  assert.match(
    notes.join(),
    /frequencies rounded to bf16.*with exact ones base_logits differ by 2/,
  );
  assert.ok((figures[0]?.absolute ?? 1) < 1e-5);
});

test('what a directory lacks is named', () => {
  const report = runChanged((dir) => {
    rmSync(join(dir, 'case.json'));
    rmSync(join(dir, 'adapter_after'), { recursive: true });
  });
  assert.is(report.ok, false);
  assert.is(report.savedEqual, null);
  assert.match(
    report.problems.join(),
    /none of the name case\.json, adapter_after\/adapter_config\.json, adapter_after\/adapter_model/,
  );
});

/** What `npm run golden` prints and how it ends. */
function golden(...args: string[]) {
  const script = fileURLToPath(new URL('golden/run.ts', import.meta.url));
  return spawnSync(process.execPath, ['--import', 'tsx', script, ...args], { encoding: 'utf8' });
}

test('npm run golden prints JSON lines and ends with 1 when a case fails', () => {
  const cases = [join(OWN, 'llama-mlp-bf16'), join(OWN, 'none')];
  const { status, stdout } = golden(...cases, '--backend', 'reference', '--json');
  assert.is(status, 1);
  const [good, bad] = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  assert.is(good.case, 'llama-mlp-bf16');
  assert.is(good.ok, true);
  assert.is(good.savedEqual, true);
  assert.ok(good.figures.step_losses.relative < 1e-5);
  assert.is(bad.ok, false);
  assert.match(bad.problems.join(), /expected a directory .*none, received nothing there/);
});

test('npm run golden prints text, takes a folder of cases, and refuses a wrong command line', () => {
  const { status, stdout } = golden(join(OWN, 'bert-pairs'), '--backend', 'reference');
  assert.is(status, 0, stdout);
  assert.match(stdout, /^ok {3}bert-pairs \(reference\)\n/);
  assert.match(stdout, /gradients \(worst of 10\) .* within 1\.0e-3\n/);
  assert.match(stdout, /saved adapter: equal to PEFT’s\n1 held, 0 failed\n$/);
  for (const [args, message] of [
    [[], /case directories.*received none/],
    [['--backend', 'gpu', OWN], /backend.*"?gpu/],
    [['--jsn', OWN], /--jsn/],
  ] as const) {
    const { status: code, stderr } = golden(...args);
    assert.is(code, 2);
    assert.match(stderr, message);
  }
});

test.run();
