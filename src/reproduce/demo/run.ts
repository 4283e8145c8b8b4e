import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { resolve } from 'node:path';
import { writeFileAtomic, writeJsonAtomic } from '../../io/files.js';
import type { Tensor } from '../../tensor/tensor.js';
import { categoryTest, runCategory } from './category.js';
import { runCost } from './cost.js';
import { dataFile, type Lab, openLab, parameterCount } from './lab.js';
import { runMerge } from './merge.js';
import type { DemoOptions } from './options.js';
import { runPrice } from './price.js';
import { reportHtml } from './report/page.js';
import type { Check, DemoResults } from './results.js';
import { runStyle } from './style.js';
import { runSwitching } from './switching.js';
import { bytes, count, type DemoView, heading, prose, seconds } from './view.js';

function labelsOf(): string[] {
  const json = JSON.parse(readFileSync(dataFile('wordnet-category-labels.json'), 'utf8'));
  return (json as { labels: string[] }).labels;
}

function baseOf({ model, options, backend, atStart }: Lab): DemoResults['base'] {
  const parameters: Tensor[] = [...model.namedParameters()].map(([, t]) => t);
  return {
    folder: options.modelDir,
    parameters: parameterCount(parameters),
    bytes: parameters.reduce((n, t) => n + t.byteLength, 0),
    dtype: parameters[0]?.dtype ?? 'none',
    mapped: backend.memory().mapped > 0,
    sha256: atStart.weights,
  };
}

const WHAT =
  'Trains two LoRA adapters beside one frozen language model, a task and a style, and measures ' +
  'what they bring and what they cost. Then it compares LoRA with full fine-tuning, merges, ' +
  'switches between the adapters, and writes a report.';

const SLOWER =
  'This runs on the reference backend (plain TypeScript), some fifty times slower than the ' +
  'native one. So that it still ends in about three minutes, it trains for fewer and smaller ' +
  'steps and measures on less: every check holds as well, but the adapters learn far less. ' +
  '`lowrank doctor` says what is missing for the native backend.';

const QUICK = 'A quick run: a few steps of everything. Its figures mean nothing.';

function introduce(lab: Lab, base: DemoResults['base']): void {
  const { view, scale, backend } = lab;
  view.say(view.styled ? '\x1b[1mlowrank demo\x1b[22m' : 'lowrank demo');
  view.say('');
  prose(view, WHAT);
  view.say('');
  view.say(
    `  base      ${base.folder}: ${count(base.parameters)} parameters, ` +
      `${bytes(base.bytes)} in ${base.dtype}${base.mapped ? ', memory-mapped' : ''}, all frozen`,
  );
  view.say(`  backend   ${backend.describe()}`);
  if (scale.name === 'full') view.say('  takes     about two minutes on two cores');
  else {
    view.say('');
    prose(view, scale.name === 'quick' ? QUICK : SLOWER);
  }
}

function conclude(lab: Lab, files: readonly string[], time: number): void {
  const { view, checks } = lab;
  heading(view, '7. Checked in this run');
  for (const { ok, name, detail } of checks) {
    view.say(`  ${ok ? '✓' : '✗'} ${name}`);
    view.say(`      ${detail}`);
  }
  heading(view, `Done in ${seconds(time)}. Written:`);
  for (const f of files) view.say(`  ${f}`);
}

/** @throws when a check failed, with what it found */
export function requireChecks(checks: readonly Check[]): void {
  const failed = checks.filter((c) => !c.ok);
  if (failed.length === 0) return;
  const list = failed.map((c) => `${c.name} (${c.detail})`).join('; ');
  throw new Error(`[demo] expected every check to hold, ${failed.length} failed: ${list}`);
}

/**
 * Runs the whole demo and writes adapters, report and results to `out`.
 * @throws after writing all of it, when a check fails
 */
export async function runDemo(options: DemoOptions, view: DemoView): Promise<DemoResults> {
  const started = new Date();
  const from = performance.now();
  const lab = openLab(options, view, labelsOf());
  try {
    const base = baseOf(lab);
    introduce(lab, base);
    const test = categoryTest(lab);
    const category = await runCategory(lab, test);
    const style = await runStyle(lab);
    const old = { accuracy: category.base.accuracy, style: style.base.loss };
    const price = runPrice(lab, test, old);
    const cost = await runCost(lab);
    const merge = runMerge(lab, style.fit.folder);
    const switching = runSwitching(lab);
    const time = (performance.now() - from) / 1000;
    const results: DemoResults = {
      version: 1,
      meaningful: lab.scale.name !== 'quick',
      scale: lab.scale.name,
      seed: options.seed,
      started: started.toISOString(),
      seconds: time,
      machine: {
        backend: lab.backend.describe(),
        processor: `${cpus().length} × ${cpus()[0]?.model ?? 'unknown'}`,
        node: process.version,
      },
      ...{ base, category, style, price, cost, merge, switching },
      checks: lab.checks,
    };
    const report = resolve(options.out, 'report.html');
    const json = resolve(options.out, 'results.json');
    writeJsonAtomic(json, results);
    writeFileAtomic(report, [Buffer.from(reportHtml(results))]);
    const folders = [category.fit.folder, style.fit.folder].map((f) => resolve(f));
    conclude(lab, [report, json, ...folders], time);
    requireChecks(lab.checks);
    return results;
  } finally {
    lab.model.dispose();
  }
}
