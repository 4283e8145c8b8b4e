import { noGrad, scope } from '../../autograd/index.js';
import type { DataRecord, Example } from '../../io/dataset.js';
import type { Tokenizer } from '../../io/tokenizer.js';
import type { CausalLM } from '../../models/causal-lm.js';
import { promptIds } from '../../models/text.js';
import { failure } from '../../tensor/errors.js';
import { makeExamples } from '../../train/data.js';
import type { BatchSource } from '../../train/trainer.js';
import { groupedBatches } from './batches.js';
import { fit } from './fit.js';
import { CATEGORY, type Lab, spread } from './lab.js';
import type { Accuracy, CategoryExample, CategoryResults, ClassRow } from './results.js';
import { clipped, count, heading, percent, prose, table } from './view.js';

/** Definitions of one pass; all of one length, so that none is padded. */
const BATCH = 64;
/** Batches among which examples are grouped by length. */
const WINDOW = 16;
const MAX_TOKENS = 128;
const EXAMPLES = 6;

/** Held-out definitions, and how a model is asked about them. */
export class CategoryTest {
  readonly truths: readonly number[];
  readonly #prompts: readonly number[][];
  /** Places in `prompts` by the prompt's length. */
  readonly #byLength: readonly number[][];
  readonly #firstTokens: readonly number[];

  constructor(
    readonly records: readonly DataRecord[],
    readonly labels: readonly string[],
    tokenizer: Tokenizer,
    maxPositions: number,
  ) {
    this.#firstTokens = labels.map(
      (l) => tokenizer.encode(` ${l}`, { addSpecialTokens: false })[0] as number,
    );
    if (new Set(this.#firstTokens).size < labels.length) {
      throw failure(
        'demo',
        'a tokenizer by which every label has a first token of its own',
        'labels that share one',
      );
    }
    this.truths = records.map((r) => labels.indexOf(completionOf(r).trim()));
    this.#prompts = records.map((r) => promptIds(tokenizer, promptOf(r)).slice(-maxPositions));
    const groups = new Map<number, number[]>();
    this.#prompts.forEach((p, i) => {
      groups.set(p.length, [...(groups.get(p.length) ?? []), i]);
    });
    this.#byLength = [...groups.values()];
  }

  /**
   * The label that the model finds likeliest for each definition: greedy decoding held to the
   * labels, which their first tokens decide since they all differ. Indices of labels.
   */
  answers(model: CausalLM): number[] {
    const out = new Array<number>(this.records.length).fill(-1);
    for (const group of this.#byLength) {
      for (let from = 0; from < group.length; from += BATCH) {
        const rows = group.slice(from, from + BATCH);
        const scores = this.#scores(model, rows);
        rows.forEach((row, i) => {
          out[row] = best(scores[i] as number[]);
        });
      }
    }
    return out;
  }

  /** Logits of the labels' first tokens after each of some prompts of one length. */
  #scores(model: CausalLM, rows: readonly number[]): number[][] {
    const prompts = rows.map((i) => this.#prompts[i] as number[]);
    const length = (prompts[0] as number[]).length;
    const batch = { inputIds: Int32Array.from(prompts.flat()), batch: rows.length, length };
    const logits = noGrad(() => scope(() => model.lastLogits(batch).toArray())) as Float32Array;
    return rows.map((_, i) =>
      this.#firstTokens.map((id) => logits[i * model.vocabSize + id] as number),
    );
  }

  accuracy(answers: readonly number[]): Accuracy {
    const correct = answers.filter((a, i) => a === this.truths[i]).length;
    return { correct, total: answers.length, accuracy: correct / answers.length };
  }
}

function best(scores: readonly number[]): number {
  return scores.reduce((b, s, i) => (s > (scores[b] as number) ? i : b), 0);
}

function promptOf(record: DataRecord): string {
  if (record.kind === 'completion') return record.prompt;
  throw failure('demo data', 'prompts and completions', 'text');
}

function completionOf(record: DataRecord): string {
  return record.kind === 'completion' ? record.completion : '';
}

/** The definition in a prompt. */
export function definitionOf(record: DataRecord): string {
  return promptOf(record)
    .replace(/^Definition: /, '')
    .replace(/\nCategory:$/, '');
}

/** The held-out definitions of this run. */
export function categoryTest(lab: Lab): CategoryTest {
  const { data, tokenizer, model, scale } = lab;
  const records = spread(data.categoryTest, scale.category.test);
  return new CategoryTest(records, data.labels, tokenizer, model.maxPositions);
}

function majority(test: CategoryTest): CategoryResults['majority'] {
  const totals = test.labels.map((_, k) => test.truths.filter((t) => t === k).length);
  const label = best(totals);
  const total = test.truths.length;
  const correct = totals[label] as number;
  return { label: test.labels[label] as string, correct, total, accuracy: correct / total };
}

function perClass(test: CategoryTest, base: number[], adapter: number[]): ClassRow[] {
  return test.labels.map((label, k) => {
    const rows = test.truths.flatMap((t, i) => (t === k ? [i] : []));
    const wrong = test.labels.map((_, j) =>
      j === k ? 0 : rows.filter((i) => adapter[i] === j).length,
    );
    const top = best(wrong);
    return {
      label,
      total: rows.length,
      base: rows.filter((i) => base[i] === k).length,
      adapter: rows.filter((i) => adapter[i] === k).length,
      mistakenFor: (wrong[top] as number) > 0 ? (test.labels[top] as string) : null,
    };
  });
}

function examplesOf(test: CategoryTest, base: number[], adapter: number[]): CategoryExample[] {
  const places = spread(
    test.records.map((_, i) => i),
    EXAMPLES,
  );
  const name = (k: number | undefined) => test.labels[k as number] as string;
  return places.map((i) => ({
    definition: definitionOf(test.records[i] as DataRecord),
    truth: name(test.truths[i]),
    base: name(base[i]),
    adapter: name(adapter[i]),
  }));
}

/** The training definitions of a run of so many steps, and their batches. */
export function categorySource(
  { data, tokenizer, model, options }: Lab,
  { steps, batchSize }: { readonly steps: number; readonly batchSize: number },
): { readonly examples: readonly Example[]; readonly source: BatchSource } {
  const records = spread(data.categoryTrain, steps * batchSize);
  const maxLength = Math.min(MAX_TOKENS, model.maxPositions);
  const { examples } = makeExamples(records, tokenizer, maxLength);
  const { seed } = options;
  const window = { batchSize, window: WINDOW, seed };
  return { examples, source: groupedBatches(examples, tokenizer.padId ?? 0, window) };
}

/** Trains and measures the task with a number: a definition's category. */
export async function runCategory(lab: Lab, test: CategoryTest): Promise<CategoryResults> {
  const { view, scale, data, model, adapters } = lab;
  const plan = scale.category;
  heading(view, '1. A task: from a WordNet definition to its category');
  prose(
    view,
    `${data.labels.length} classes; ${count(data.categoryTrain.length)} definitions to learn ` +
      `from, ${count(test.records.length)} others to measure. The model is asked for the next ` +
      'word after "Category:", and its likeliest label counts as its answer.',
  );
  const baseAnswers = test.answers(model);
  const base = test.accuracy(baseAnswers);
  view.say(`  the base alone: ${percent(base.accuracy)}`);
  const { examples, source } = categorySource(lab, plan);
  let answers = baseAnswers;
  const results = await fit(lab, {
    name: CATEGORY,
    plan,
    source,
    base: base.accuracy,
    measure: () => {
      answers = test.answers(model);
      return test.accuracy(answers).accuracy;
    },
    describe: (value) => `accuracy ${percent(value)}`,
  });
  adapters.setActive(null);
  const out = {
    fit: results,
    classes: data.labels.length,
    trainExamples: examples.length,
    base,
    adapter: test.accuracy(answers),
    majority: majority(test),
    perClass: perClass(test, baseAnswers, answers),
    examples: examplesOf(test, baseAnswers, answers),
  };
  show(lab, out);
  return out;
}

function show({ view }: Lab, r: CategoryResults): void {
  view.say('');
  const row = (name: string, a: Accuracy) => [
    name,
    percent(a.accuracy),
    `${count(a.correct)} of ${count(a.total)}`,
  ];
  table(
    view,
    [
      ['held-out accuracy', '', 'correct'],
      row(`always "${r.majority.label}"`, r.majority),
      row('base', r.base),
      row('base + adapter "category"', r.adapter),
    ],
    'lrr',
  );
  view.say('');
  const width = Math.max(24, view.width - 48);
  table(
    view,
    [
      ['definition', 'WordNet', 'base', 'adapter'],
      ...r.examples.map((e) => [
        clipped(e.definition, width),
        e.truth,
        e.base,
        `${e.adapter}${e.adapter === e.truth ? '' : ' ✗'}`,
      ]),
    ],
    'llll',
  );
}
