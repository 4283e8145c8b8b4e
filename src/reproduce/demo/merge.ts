import { join } from 'node:path';
import { noGrad, scope } from '../../autograd/index.js';
import { readJsonObject } from '../../io/files.js';
import { LoraAdapters, loadAdapter } from '../../lora/index.js';
import type { CausalLM, TokenBatch } from '../../models/causal-lm.js';
import { buildCausalLM, openModel } from '../../models/load.js';
import { evaluate } from '../../train/evaluate.js';
import { claim, type Lab, median, STYLE } from './lab.js';
import type { MergeResults, MergeRow } from './results.js';
import { count, decimal, heading, percent, prose, table } from './view.js';

/** Largest difference allowed between merged and adapter logits in f32, over the largest logit. */
const TOLERANCE = 1e-4;

function logits(model: CausalLM, batch: TokenBatch): Float32Array {
  return noGrad(() => scope(() => model.logits(batch).toArray())) as Float32Array;
}

/** Compares two models on a batch: largest difference, largest logit, equal choices. */
function compareLogits(a: CausalLM, b: CausalLM, batch: TokenBatch) {
  const x = logits(a, batch);
  const y = logits(b, batch);
  const V = a.vocabSize;
  let maxDifference = 0;
  let maxLogit = 0;
  let same = 0;
  for (let at = 0; at < x.length; at += V) {
    let [bestX, bestY] = [at, at];
    for (let i = at; i < at + V; i++) {
      const [u, v] = [x[i] as number, y[i] as number];
      // Math.max answers NaN for NaN, which no tolerance accepts.
      maxDifference = Math.max(maxDifference, Math.abs(u - v));
      maxLogit = Math.max(maxLogit, Math.abs(u));
      if (u > (x[bestX] as number)) bestX = i;
      if (v > (y[bestY] as number)) bestY = i;
    }
    if (bestX === bestY) same++;
  }
  return { maxDifference, maxLogit, sameChoice: same / (x.length / V) };
}

/** The merged model beside the adapter's, with the base stored in `dtype`. */
function compareMerged(
  lab: Lab,
  adapters: LoraAdapters,
  model: CausalLM,
  batch: TokenBatch,
): { row: Omit<MergeRow, 'dtype'>; merged: CausalLM } {
  adapters.setActive(STYLE);
  const config = readJsonObject(join(lab.options.modelDir, 'config.json'), 'config');
  const merged = buildCausalLM(config, adapters.mergedSource([STYLE]));
  const row = {
    ...compareLogits(model, merged, batch),
    adapterLoss: evaluate(model, lab.styleBatches).loss,
    mergedLoss: evaluate(merged, lab.styleBatches).loss,
  };
  return { row, merged };
}

/** Median seconds of a forward pass of each model, taken in turns. */
function passTimes(runs: readonly (() => CausalLM)[], batch: TokenBatch, passes: number): number[] {
  const times = runs.map(() => [] as number[]);
  for (let i = 0; i <= passes; i++) {
    runs.forEach((run, k) => {
      const model = run();
      const from = performance.now();
      noGrad(() => scope(() => model.logits(batch)));
      if (i > 0) (times[k] as number[]).push((performance.now() - from) / 1000);
    });
  }
  return times.map(median);
}

/** The first sequences of a batch. */
function firstRows(batch: TokenBatch, rows: number): TokenBatch {
  const size = Math.min(rows, batch.batch);
  const inputIds = batch.inputIds.slice(0, size * batch.length);
  return { inputIds, batch: size, length: batch.length };
}

/** Merges the style's adapter into the base, in f32 and as the base is stored. */
export function runMerge(lab: Lab, adapterDir: string): MergeResults {
  const { view, scale, backend, model, adapters, options } = lab;
  heading(view, '5. Merging: one plain model that knows nothing of LoRA');
  const batch = firstRows(lab.styleBatches[0] as TokenBatch, scale.merge.batchSize);
  const positions = batch.batch * batch.length;
  const wide = openModel(options.modelDir, { task: 'causal-lm', backend, dtype: 'f32' });
  const wideAdapters = new LoraAdapters(wide);
  const made: CausalLM[] = [wide];
  try {
    loadAdapter(wideAdapters, STYLE, adapterDir);
    const inF32 = compareMerged(lab, wideAdapters, wide, batch);
    made.push(inF32.merged);
    const stored = compareMerged(lab, adapters, model, batch);
    made.push(stored.merged);
    const use = (m: CausalLM, adapter: string | null) => () => {
      if (m === model) adapters.setActive(adapter);
      return m;
    };
    const runs = [use(model, null), use(model, STYLE), use(stored.merged, null)];
    const times = passTimes(runs, batch, scale.merge.passes);
    const [base, adapter, merged] = times.map((t) => positions / t) as [number, number, number];
    const dtype = model.namedParameters().next().value?.[1].dtype ?? 'f32';
    const results = {
      sequences: batch.batch,
      positions,
      rows: [
        { dtype: 'f32', ...inF32.row },
        { dtype, ...stored.row },
      ],
      speed: { base, adapter, merged },
    };
    const { maxDifference, maxLogit } = inF32.row;
    claim(
      lab,
      'merged in f32, the model answers as the adapter does',
      maxDifference <= TOLERANCE * maxLogit,
      `largest difference ${maxDifference.toExponential(1)} of logits up to ${maxLogit.toFixed(1)}`,
    );
    show(lab, results);
    return results;
  } finally {
    adapters.setActive(null);
    for (const m of made) m.dispose();
  }
}

/** The table's rows: storage, difference, equal choices, perplexities. */
export function mergeRows({ rows }: MergeResults): string[][] {
  return rows.map((r) => [
    r.dtype,
    r.maxDifference.toExponential(1),
    percent(r.sameChoice),
    decimal(Math.exp(r.adapterLoss)),
    decimal(Math.exp(r.mergedLoss)),
  ]);
}

/** Why the two rows differ. */
export function mergeText({ rows, positions }: MergeResults): string {
  const [wide, stored] = rows as readonly [MergeRow, MergeRow];
  if (stored.dtype === 'f32') return `Compared at ${count(positions)} held-out positions.`;
  return (
    `Compared at ${count(positions)} held-out positions, with logits up to ` +
    `${wide.maxLogit.toFixed(1)}. In f32 only the order of sums differs. A merged weight stored ` +
    `in ${stored.dtype} is rounded once more, which the adapter beside its base is not; the ` +
    'likeliest token seldom changes.'
  );
}

function show({ view }: Lab, results: MergeResults): void {
  const { speed } = results;
  table(
    view,
    [
      ['stored as', 'largest difference', 'same choice', 'ppl adapter', 'ppl merged'],
      ...mergeRows(results),
    ],
    'lrrrr',
  );
  prose(view, mergeText(results));
  view.say(
    `  forward pass, positions/s: base ${count(speed.base)}, with adapter ` +
      `${count(speed.adapter)}, merged ${count(speed.merged)}`,
  );
}
