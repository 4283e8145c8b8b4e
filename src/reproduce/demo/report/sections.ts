import { costRows } from '../cost.js';
import { mergeRows, mergeText } from '../merge.js';
import { priceText } from '../price.js';
import type { CategoryResults, DemoResults, FitResults, StyleResults } from '../results.js';
import { count, decimal, percent, seconds } from '../view.js';
import { type Chart, chartSvg, escapeHtml, smoothed } from './chart.js';

/** Steps over which the drawn training loss is averaged. */
const SMOOTH = 20;

/** A table; the first row is the header. `align` has a letter a column: l or r. */
export function htmlTable(rows: readonly (readonly string[])[], align: string): string {
  const cell = (tag: string, text: string, i: number) =>
    `<${tag}${align[i] === 'r' ? ' class="n"' : ''}>${text}</${tag}>`;
  const [head, ...body] = rows.map((row) => row.map(escapeHtml));
  const line = (row: readonly string[], tag: string) =>
    `<tr>${row.map((text, i) => cell(tag, text, i)).join('')}</tr>`;
  return (
    `<div class="scroll"><table><thead>${line(head ?? [], 'th')}</thead>` +
    `<tbody>${body.map((row) => line(row, 'td')).join('\n')}</tbody></table></div>`
  );
}

export function paragraph(text: string, className = ''): string {
  return `<p${className === '' ? '' : ` class="${className}"`}>${escapeHtml(text)}</p>`;
}

function lossChart({ losses }: FitResults, className: string): string {
  const at = (values: readonly number[]) => values.map((v, i) => [i + 1, v] as const);
  const mean = smoothed(losses, SMOOTH);
  return chartSvg({
    title: `Training loss (mean of ${SMOOTH} steps; faint: each)`,
    xLabel: 'step',
    yLabel: 'nats a token',
    yText: (v) => String(v),
    series: [
      { points: at(losses), className, as: 'faint' },
      { points: at(mean), className, as: 'line' },
    ],
  });
}

function measureChart(
  { measured }: FitResults,
  rest: Omit<Chart, 'series' | 'xLabel'>,
  className: string,
): string {
  const points = measured.map(({ step, value }) => [step, value] as const);
  return chartSvg({
    ...rest,
    xLabel: 'step',
    series: [{ points, className, as: 'dots' }],
  });
}

function howTrained(fit: FitResults): string {
  return paragraph(
    `LoRA of rank ${fit.rank}, alpha ${fit.alpha}, on ${fit.targetModules.join(', ')}: ` +
      `${count(fit.trainableParameters)} trainable parameters. ${fit.steps} steps of ` +
      `${fit.batchSize} sequences, AdamW at a peak rate of ${fit.lr}; ${count(fit.tokens)} tokens ` +
      `in ${seconds(fit.seconds)}.`,
    'meta',
  );
}

export function categorySection(r: CategoryResults): string {
  const answer = (text: string, truth: string) =>
    `<td class="${text === truth ? 'right' : 'wrong'}">${escapeHtml(text)}</td>`;
  const examples = r.examples.map(
    (e) =>
      `<tr><td>${escapeHtml(e.definition)}</td><td>${escapeHtml(e.truth)}</td>` +
      `${answer(e.base, e.truth)}${answer(e.adapter, e.truth)}</tr>`,
  );
  const share = (n: number, total: number) => (total === 0 ? '–' : percent(n / total));
  return [
    '<h2>A task: from a WordNet definition to its category</h2>',
    paragraph(
      `${r.classes} classes. The model reads “Definition: … Category:” and its likeliest label ` +
        'counts as its answer (greedy decoding held to the labels; their first tokens all differ ' +
        'and decide). The measured definitions belong to synsets that neither the base nor the ' +
        'adapter was trained on.',
    ),
    htmlTable(
      [
        ['held-out accuracy', '', 'correct'],
        [
          `always “${r.majority.label}”`,
          percent(r.majority.accuracy),
          `${r.majority.correct} of ${r.majority.total}`,
        ],
        ['base', percent(r.base.accuracy), `${r.base.correct} of ${r.base.total}`],
        [
          'base + adapter “category”',
          percent(r.adapter.accuracy),
          `${r.adapter.correct} of ${r.adapter.total}`,
        ],
      ],
      'lrr',
    ),
    '<div class="pair">',
    lossChart(r.fit, 'a'),
    measureChart(
      r.fit,
      { title: 'Held-out accuracy', yLabel: 'accuracy', yText: (v) => `${Math.round(100 * v)}%` },
      'a',
    ),
    '</div>',
    howTrained(r.fit),
    '<h3>Some held-out definitions</h3>',
    '<div class="scroll"><table><thead><tr><th>definition</th><th>WordNet</th><th>base</th><th>adapter</th></tr></thead>',
    `<tbody>${examples.join('\n')}</tbody></table></div>`,
    '<h3>By class</h3>',
    htmlTable(
      [
        ['class', 'held out', 'base', 'adapter', 'most often mistaken for'],
        ...r.perClass.map((c) => [
          c.label,
          count(c.total),
          share(c.base, c.total),
          share(c.adapter, c.total),
          c.mistakenFor ?? '–',
        ]),
      ],
      'lrrrl',
    ),
  ].join('\n');
}

export function styleSection(r: StyleResults): string {
  const { sample } = r;
  const quote = (name: string, text: string) =>
    `<blockquote><header>${escapeHtml(name)}</header><em>${escapeHtml(sample.prompt)}</em>${escapeHtml(text)}</blockquote>`;
  return [
    '<h2>A style: Moby Dick</h2>',
    paragraph(
      `Measured on ${r.heldOutChunks} chunks (${count(r.base.tokens)} tokens) of chapters that ` +
        'are not trained on. The base and its tokenizer have never seen the book.',
    ),
    htmlTable(
      [
        ['held-out chapters', 'perplexity', 'nats a token'],
        ['base', decimal(r.base.perplexity), r.base.loss.toFixed(3)],
        ['base + adapter “moby”', decimal(r.adapter.perplexity), r.adapter.loss.toFixed(3)],
      ],
      'lrr',
    ),
    '<div class="pair">',
    lossChart(r.fit, 'b'),
    measureChart(
      r.fit,
      { title: 'Held-out perplexity', yLabel: 'perplexity', yText: (v) => String(v) },
      'b',
    ),
    '</div>',
    howTrained(r.fit),
    paragraph(
      `Both continue the same words with the same seed (temperature ${sample.temperature}, top-p ${sample.topP}). ` +
        'A model this small gives the sound of a text, not its sense.',
    ),
    `<div class="pair">${quote('base', sample.base)}${quote('base + adapter “moby”', sample.adapter)}</div>`,
  ].join('\n');
}

export function priceSection({ price }: DemoResults): string {
  return [
    '<h2>The price: what an adapter does to everything else</h2>',
    htmlTable(
      [
        ['', 'category accuracy', 'Moby Dick, perplexity', 'definitions as text, perplexity'],
        ...price.map((r) => [
          r.adapter === null ? 'base' : `base + “${r.adapter}”`,
          percent(r.accuracy.accuracy),
          decimal(r.style.perplexity),
          decimal(r.definitions.perplexity),
        ]),
      ],
      'lrrr',
    ),
    paragraph(priceText(price)),
  ].join('\n');
}

export function costSection({ cost }: DemoResults): string {
  const { lora, full, batchSize } = cost;
  return [
    '<h2>The cost: LoRA beside full fine-tuning</h2>',
    paragraph(
      `The same base, trained both ways for ${lora.steps} steps in turns on the same batches of ` +
        `${batchSize} definitions. Bytes come from the allocator’s own books, each way above ` +
        'what was held before it began, and from files really written; times are medians of one ' +
        'run on this machine. Peaks are those of the first step, of ' +
        `${count(lora.positions)} positions.`,
    ),
    htmlTable([['', 'LoRA', 'full', 'LoRA is'], ...costRows(cost)], 'lrrr'),
    paragraph(
      `Loss on those batches, first to last step: LoRA ${lora.firstLoss.toFixed(3)} → ` +
        `${lora.lastLoss.toFixed(3)}, full ${full.firstLoss.toFixed(3)} → ${full.lastLoss.toFixed(3)}. ` +
        'The larger the model, the smaller LoRA’s share: its matrices grow with the width, the ' +
        'frozen ones with its square.',
    ),
  ].join('\n');
}

export function mergeSection({ merge }: DemoResults): string {
  const { speed } = merge;
  return [
    '<h2>Merging: one plain model that knows nothing of LoRA</h2>',
    htmlTable(
      [
        [
          'base stored as',
          'largest difference of logits',
          'same likeliest token',
          'perplexity, adapter',
          'perplexity, merged',
        ],
        ...mergeRows(merge),
      ],
      'lrrrr',
    ),
    paragraph(mergeText(merge)),
    htmlTable(
      [
        ['forward pass', 'positions a second'],
        ['base', count(speed.base)],
        ['base + adapter “moby”', count(speed.adapter)],
        ['merged', count(speed.merged)],
      ],
      'lr',
    ),
  ].join('\n');
}

export function switchSection({ switching }: DemoResults): string {
  const order = switching.order.map((a) => a ?? 'none').join(' → ');
  return [
    '<h2>Switching: A → B → none, bit for bit</h2>',
    paragraph(
      `${order}: each gives the same bits every time${switching.identical ? '' : ' — NOT in this run'}. ` +
        `A switch takes ${switching.medianMicroseconds.toFixed(1)} µs (median of ${count(switching.switches)}).`,
    ),
    htmlTable(
      [
        ['active', 'SHA-256 of all logits of a held-out batch'],
        ...Object.entries(switching.sha256).map(([name, hash]) => [name, `${hash.slice(0, 40)}…`]),
      ],
      'll',
    ),
  ].join('\n');
}
