// time-limit: 170
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { LoraAdapters, loadAdapter } from '../src/lora/index.js';
import { openModel } from '../src/models/load.js';
import type { DemoResults } from '../src/reproduce/demo/results.js';
import { requireChecks } from '../src/reproduce/demo/run.js';
import { getBackend } from '../src/tensor/registry.js';
import { candidates } from './backends.js';
import { inside } from './support/cli.js';
import { writeTinyModel } from './support/model-dir.js';
import { skipUnless } from './support.js';

const test = suite('demo');
const root = mkdtempSync(join(tmpdir(), 'lowrank-demo-test-'));
const model = join(root, 'model');
writeTinyModel(model);
test.after(() => rmSync(root, { recursive: true, force: true }));

const demo = (out: string, ...more: string[]) =>
  inside('demo', '--quick', '--model', model, '--out', join(root, out), ...more);

function resultsOf(out: string): DemoResults {
  return JSON.parse(readFileSync(join(root, out, 'results.json'), 'utf8'));
}

/** Every path of a value that is null, NaN or infinite (JSON writes these as null). */
function holes(value: unknown, path = ''): string[] {
  if (value === null || value === undefined) return [path];
  if (typeof value !== 'object') return [];
  return Object.entries(value).flatMap(([key, v]) => holes(v, `${path}.${key}`));
}

for (const { name, backend, reason } of candidates) {
  skipUnless(
    test,
    backend !== null,
    reason || `${name} is missing`,
  )(`runs on ${name}`, async () => {
    const { code, stdout, stderr } = await demo(name, '--backend', name, '--seed', '3');
    assert.is(code, 0, stderr);
    for (const words of [
      'A quick run',
      '1. A task',
      '2. A style',
      '3. The price',
      '4. The cost',
      '5. Merging',
      '6. Switching',
      '7. Checked',
      'report.html',
      'held-out accuracy',
    ]) {
      assert.ok(stdout.includes(words), `${words} in\n${stdout}`);
    }
    assert.not.match(stdout, /✗ [a-z]+ |NaN|undefined/);
    assert.not.ok(stdout.includes('\u001b'), 'escape codes without a terminal');
    assert.ok(
      stdout.split('\n').every((l) => l.length <= 110 || l.includes(root)),
      stdout,
    );
    checkResults(resultsOf(name), name);
    checkReport(readFileSync(join(root, name, 'report.html'), 'utf8'));
    checkAdapters(name);
  });
}

function checkResults(r: DemoResults, backend: string): void {
  assert.is(r.version, 1);
  assert.is(r.meaningful, false);
  assert.is(r.scale, 'quick');
  assert.is(r.seed, 3);
  assert.ok(r.machine.backend.startsWith(backend));
  // Null is meant only for the base among the price's rows, for a switch to none, and for a class
  // that was never mistaken.
  assert.equal(
    holes(r).filter((p) => !/^\.price\.0\.adapter$|^\.switching\.order\.|\.mistakenFor$/.test(p)),
    [],
  );
  assert.is(r.category.base.total, 30);
  assert.is(r.category.perClass.length, 15);
  assert.is(
    r.category.perClass.reduce((n, c) => n + c.adapter, 0),
    r.category.adapter.correct,
  );
  for (const { fit } of [r.category, r.style]) {
    assert.is(fit.losses.length, fit.steps);
    assert.equal(
      fit.measured.map((m) => m.step),
      [0, fit.steps],
    );
    assert.match(fit.sha256, /^[0-9a-f]{64}$/);
  }
  assert.equal(
    r.price.map((p) => p.adapter),
    [null, 'category', 'moby'],
  );
  const { lora, full } = r.cost;
  assert.is(lora.gradientBytes, 4 * lora.trainableParameters);
  assert.is(lora.optimizerBytes, 8 * lora.trainableParameters);
  assert.is(lora.frozenGradientBytes + lora.frozenOptimizerBytes, 0);
  assert.is(full.trainableParameters, r.base.parameters);
  assert.ok(lora.weightsFileBytes < full.weightsFileBytes);
  assert.is(lora.firstLoss, full.firstLoss, 'a new adapter is the base, on the same batch');
  assert.ok(r.switching.identical);
  assert.is(new Set(Object.values(r.switching.sha256)).size, 3);
  assert.ok(r.checks.length >= 7 && r.checks.every((c) => c.ok));
}

function checkReport(html: string): void {
  assert.match(html, /^<!doctype html>/);
  assert.not.match(html, /<(script|link|img|iframe)|url\(|@import|https?:/);
  assert.is(html.match(/<svg /g)?.length, 4);
  assert.is(html.match(/class="series line/g)?.length, 2);
  assert.ok(html.includes('prefers-color-scheme: dark'));
  assert.ok(html.includes('its figures mean nothing'));
  assert.not.match(html, /NaN|undefined|Infinity/);
  for (const tag of ['table', 'tr', 'td', 'div', 'p', 'svg', 'figure', 'blockquote']) {
    const open = html.match(new RegExp(`<${tag}[ >]`, 'g'))?.length;
    assert.is(open, html.match(new RegExp(`</${tag}>`, 'g'))?.length, tag);
  }
}

function checkAdapters(out: string): void {
  const base = openModel(model, { task: 'causal-lm', backend: getBackend('reference') });
  const adapters = new LoraAdapters(base);
  try {
    for (const name of ['category', 'moby']) {
      loadAdapter(adapters, name, join(root, out, name));
      assert.is(adapters.config(name).rank, 4);
    }
  } finally {
    base.dispose();
  }
}

test('the same seed writes the same adapters, another one others', async () => {
  const hashes: string[][] = [];
  for (const [out, ...more] of [
    ['first', '--seed', '5'],
    ['again', '--seed', '5', '--threads', '1'],
    ['other', '--seed', '6'],
  ] as const) {
    assert.is((await demo(out, ...more)).code, 0);
    const { category, style } = resultsOf(out);
    hashes.push([category.fit.sha256, style.fit.sha256]);
  }
  assert.equal(hashes[0], hashes[1]);
  assert.ok(hashes[0]?.every((h, i) => h !== hashes[2]?.[i]));
});

test('--json prints the results alone, on one line', async () => {
  const { code, stdout, stderr } = await demo('json', '--json');
  assert.is(code, 0);
  assert.is(stdout.trimEnd().split('\n').length, 1);
  assert.equal(JSON.parse(stdout), resultsOf('json'));
  assert.ok(stderr.includes('1. A task'));
});

test('a check that fails fails the demo, and says which and how', () => {
  const good = { name: 'frozen zeros', ok: true, detail: '0 bytes' };
  requireChecks([good]);
  const bad = { name: 'same bits', ok: false, detail: '3 differ' };
  assert.throws(() => requireChecks([good, bad]), /1 failed: same bits \(3 differ\)$/);
});

test('a model that is not there is an error that names it', async () => {
  const missing = join(root, 'nowhere');
  const { code, stderr } = await inside('demo', '--quick', '--model', missing, '--out', root);
  assert.is(code, 1);
  assert.ok(stderr.includes(missing), stderr);
  assert.not.ok(existsSync(join(root, 'report.html')));
});

test.run();
