import type { DemoResults } from '../results.js';
import { bytes, count, decimal, percent, seconds } from '../view.js';
import { escapeHtml } from './chart.js';
import {
  categorySection,
  costSection,
  mergeSection,
  paragraph,
  priceSection,
  styleSection,
  switchSection,
} from './sections.js';
import { STYLE_SHEET } from './style.js';

function tiles({ category, style, cost, switching }: DemoResults): string {
  const share = cost.lora.trainableParameters / cost.full.trainableParameters;
  const tile = (value: string, text: string) =>
    `<div class="tile"><b>${escapeHtml(value)}</b><span>${escapeHtml(text)}</span></div>`;
  return [
    '<div class="tiles">',
    tile(
      `${percent(category.base.accuracy)} → ${percent(category.adapter.accuracy)}`,
      `category of ${count(category.adapter.total)} held-out definitions`,
    ),
    tile(
      `${decimal(style.base.perplexity)} → ${decimal(style.adapter.perplexity)}`,
      'perplexity of held-out chapters of Moby Dick',
    ),
    tile(percent(share), `of the parameters trained; an adapter of ${bytes(category.fit.bytes)}`),
    tile(
      `${switching.medianMicroseconds.toFixed(1)} µs`,
      'to switch; the base’s outputs stay the same bits',
    ),
    '</div>',
  ].join('\n');
}

function warning({ scale, meaningful }: DemoResults): string {
  if (!meaningful) {
    return paragraph('A quick run of a few steps: its figures mean nothing.', 'warning');
  }
  if (scale !== 'reference') return '';
  return paragraph(
    'This ran on the reference backend (plain TypeScript) for a few steps only: the adapters ' +
      'learned little. With the native backend the same demo trains them properly.',
    'warning',
  );
}

function checks({ checks }: DemoResults): string {
  const items = checks.map(
    ({ ok, name, detail }) =>
      `<li${ok ? '' : ' class="failed"'}>${escapeHtml(name)}<span>${escapeHtml(detail)}</span></li>`,
  );
  return `<h2>Checked in this run</h2>\n<ul class="checks">${items.join('\n')}</ul>`;
}

function about({ base, machine, seed, started, seconds: time }: DemoResults): string {
  return paragraph(
    `Base ${base.folder}: ${count(base.parameters)} parameters, ${bytes(base.bytes)} in ` +
      `${base.dtype}${base.mapped ? ', memory-mapped' : ''}. ${machine.backend}; ` +
      `${machine.processor}; Node ${machine.node}. Seed ${seed}; ${seconds(time)}; ` +
      `${started.slice(0, 16).replace('T', ' ')} UTC.`,
    'meta',
  );
}

/** The whole report: one HTML page that needs no other file. */
export function reportHtml(results: DemoResults): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lowrank demo: two LoRA adapters beside one frozen model</title>
<style>${STYLE_SHEET}</style>
</head>
<body>
<main>
<h1>Two LoRA adapters beside one frozen model</h1>
${about(results)}
${warning(results)}
${tiles(results)}
${[
  categorySection(results.category),
  styleSection(results.style),
  priceSection(results),
  costSection(results),
  mergeSection(results),
  switchSection(results),
  checks(results),
].join('\n')}
<p class="meta">Adapters: <code>${escapeHtml(results.category.fit.folder)}</code>, <code>${escapeHtml(results.style.fit.folder)}</code> (PEFT’s layout). All figures: <code>results.json</code> beside this page. Definitions: WordNet 3.1, Princeton University.</p>
</main>
</body>
</html>
`;
}
