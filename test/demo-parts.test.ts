import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import type { Example } from '../src/io/dataset.js';
import { openTokenizer } from '../src/io/tokenizer.js';
import { groupedBatches } from '../src/reproduce/demo/batches.js';
import { CategoryTest } from '../src/reproduce/demo/category.js';
import { median, spread } from '../src/reproduce/demo/lab.js';
import { chartSvg, escapeHtml, smoothed, ticks } from '../src/reproduce/demo/report/chart.js';
import { clipped, table, wrapped } from '../src/reproduce/demo/view.js';

const test = suite('demo parts');

const example = (id: number, length: number): Example => ({
  ids: new Int32Array(length).fill(id),
  labels: new Int32Array(length).fill(id),
});

test('grouped batches hold every example once a pass, alike in length, by step alone', () => {
  const examples = Array.from({ length: 48 }, (_, i) => example(i, 2 + ((7 * i) % 31)));
  const options = { batchSize: 4, window: 3, seed: 9 };
  const source = groupedBatches(examples, 0, options);
  assert.is(source.stepsPerEpoch, 12);
  const firsts = (step: number, from = source) => {
    const { inputIds, batch, length } = from.batch(step, 0) as ReturnType<typeof source.batch>;
    return Array.from({ length: batch }, (_, row) => inputIds[row * length] as number);
  };
  const pass = Array.from({ length: 12 }, (_, step) => firsts(step)).flat();
  assert.equal(
    [...pass].sort((a, b) => a - b),
    examples.map((_, i) => i),
  );
  assert.equal(firsts(7), firsts(7, groupedBatches(examples, 0, options)));
  assert.not.equal(firsts(0), firsts(12));
  const padding = (from: typeof source) => {
    let places = 0;
    for (let step = 0; step < 12; step++) {
      const { inputIds, attentionMask } = from.batch(step, 0);
      places += inputIds.length - (attentionMask ?? []).filter((m) => m === 1).length;
    }
    return places;
  };
  assert.ok(padding(source) < padding(groupedBatches(examples, 0, { ...options, window: 1 })) / 2);
  assert.is(groupedBatches(examples.slice(0, 5), 0, options).stepsPerEpoch, 1);
});

test('labels that begin with the same token are refused, for the first decides', () => {
  const tokenizer = openTokenizer('assets/base');
  const make = (labels: string[]) => new CategoryTest([], labels, tokenizer, 64);
  assert.throws(() => make(['animal', 'animal']), /a first token of its own/);
  assert.is(make(['animal', 'plant']).labels.length, 2);
});

test('ticks are round numbers around the values', () => {
  assert.equal(ticks(0, 560), [0, 200, 400, 600]);
  assert.equal(ticks(54.2, 78.3), [50, 55, 60, 65, 70, 75, 80]);
  assert.equal(ticks(0.18, 0.81), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  for (const [low, high] of [
    [3, 3],
    [0, 0],
    [-2, 5],
    [1e-9, 2e-9],
  ] as const) {
    const all = ticks(low, high);
    assert.ok((all[0] as number) <= low && (all.at(-1) as number) >= high, `${all}`);
    assert.ok(all.length >= 2 && all.length < 12, `${all}`);
  }
});

test('a chart leaves out what is not finite and escapes its words', () => {
  const svg = chartSvg({
    title: 'a < b & "c"',
    xLabel: 'step',
    yLabel: 'loss',
    yText: String,
    series: [
      {
        points: [
          [0, 1],
          [1, Number.NaN],
          [2, 3],
        ],
        className: 'a',
        as: 'line',
      },
    ],
  });
  assert.not.match(svg, /NaN/);
  assert.ok(svg.includes('a &lt; b &amp; &quot;c&quot;'));
  assert.is(svg.match(/class="series line a" d="M[\d.]+ [\d.]+L[\d.]+ [\d.]+"/g)?.length, 1);
  const empty = chartSvg({ title: '', xLabel: '', yLabel: '', yText: String, series: [] });
  assert.not.match(empty, /NaN|Infinity/);
  assert.is(escapeHtml('<script>'), '&lt;script&gt;');
});

test('means, medians and samples of lists', () => {
  assert.equal(smoothed([2, 4, 6, 8], 2), [2, 3, 5, 7]);
  assert.is(median([3, 1, 2]), 2);
  assert.is(median([4, 1, 2, 3]), 2.5);
  assert.equal(spread([0, 1, 2, 3, 4, 5], 3), [0, 2, 4]);
  assert.equal(spread([0, 1], 3), [0, 1]);
});

test('text is wrapped, clipped and aligned', () => {
  assert.equal(wrapped('one two  three', 7), ['one two', 'three']);
  assert.equal(wrapped('indivisible', 4), ['indivisible']);
  assert.is(clipped('four words of text', 10), 'four word…');
  const lines: string[] = [];
  const view = {
    width: 80,
    styled: false,
    say: (line: string) => lines.push(line),
    bar: () => Promise.reject(new Error('unused')),
  };
  table(
    view,
    [
      ['', 'n'],
      ['a', '5'],
      ['bcd', '1,000'],
    ],
    'lr',
  );
  assert.equal(lines, ['            n', '  a         5', '  bcd   1,000']);
});

test.run();
