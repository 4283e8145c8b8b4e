import type { LayerAnalysis } from '../lora/analysis/index.js';
import { chartSvg, escapeHtml } from '../reproduce/demo/report/chart.js';
import { htmlTable, paragraph } from '../reproduce/demo/report/sections.js';
import { STYLE_SHEET } from '../reproduce/demo/report/style.js';
import {
  type AnalysisPage,
  type Section,
  type SimilarityMap,
  sectionsOf,
  titleOf,
} from './analysis-charts.js';
import { alignOf, analysisRows } from './analysis-rows.js';
import { digitsText } from './table.js';

const STYLE = `
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; }
.maps figure { margin: 0; } .maps figcaption { font-size: .82rem; overflow-wrap: anywhere; }
.cell { fill: var(--a); } .frame { fill: var(--panel); stroke: var(--rule); }
.key { display: inline-block; width: 6rem; height: .7rem; vertical-align: middle; border: 1px solid var(--rule); background: linear-gradient(to right, var(--panel), var(--a)); }
.swatch { display: inline-block; width: 1.1rem; height: .2rem; vertical-align: middle; margin: 0 .25rem 0 .8rem; }
.swatch.a { background: var(--a); } .swatch.b { background: var(--b); }
`;

/** A line for what the two colours mean. */
function legend(a: string, b: string): string {
  return (
    `<p class="meta"><span class="swatch a"></span>${escapeHtml(a)}` +
    `<span class="swatch b"></span>${escapeHtml(b)}</p>`
  );
}

function mapFigure({ label, width, height, body }: SimilarityMap): string {
  const words = escapeHtml(label);
  return (
    `<figure><svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${words}">${body}</svg>` +
    `<figcaption>${words}</figcaption></figure>`
  );
}

function sectionHtml({ heading, plots, maps, mapsOf = 0 }: Section): string {
  const parts = plots.map(
    ({ text, legend: words, charts }) =>
      (text === undefined ? '' : paragraph(text)) +
      (words ? legend(...words) : '') +
      `<div class="pair">${charts.map(chartSvg).join('\n')}</div>`,
  );
  if (maps) {
    const chosen =
      mapsOf > maps.length ? `. ${maps.length} of ${mapsOf} layers, evenly chosen` : '';
    parts.push(
      '<p class="meta">Each map: i downwards, j to the right. 0 <span class="key"></span> 1' +
        `${chosen}</p><div class="maps">${maps.map(mapFigure).join('\n')}</div>`,
    );
  }
  return `<h2>${escapeHtml(heading)}</h2>${parts.join('')}`;
}

function tiles(layers: readonly LayerAnalysis[]): string {
  const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const tile = (value: string, text: string) =>
    `<div class="tile"><b>${escapeHtml(value)}</b><span>${escapeHtml(text)}</span></div>`;
  const similar = layers.flatMap((l) => l.similarity ?? []);
  const amplified = layers.flatMap((l) => l.amplification?.factor ?? []);
  const ranks = [...new Set(layers.map((l) => l.rank))].sort((a, b) => a - b);
  const rank = ranks.length === 1 ? `${ranks[0]}` : `${ranks[0]} … ${ranks.at(-1)}`;
  return [
    '<div class="tiles">',
    tile(`rank ${rank}`, `on ${layers.length} layer${layers.length === 1 ? '' : 's'}`),
    tile(digitsText(mean(layers.map((l) => l.spectrum.effectiveRank))), 'mean effective rank'),
    tile(
      digitsText(Math.hypot(...layers.map((l) => l.spectrum.norm))),
      '‖ΔW‖ of all layers together',
    ),
    ...(similar.length > 0
      ? [
          tile(
            digitsText(mean(similar.map((x) => x.whole))),
            `mean similarity φ; random ${digitsText(mean(similar.map((x) => x.random)))}`,
          ),
        ]
      : []),
    ...(amplified.length > 0
      ? [tile(`${digitsText(mean(amplified))}×`, 'mean amplification')]
      : []),
    '</div>',
  ].join('\n');
}

/** The analysis as one HTML page that needs no other file. */
export function analysisHtml(page: AnalysisPage): string {
  const { model, layers, notes } = page;
  const rows = analysisRows(layers);
  const title = titleOf(page);
  const sections = [
    ...sectionsOf(page).map(sectionHtml),
    `<h2>Layer by layer</h2>${htmlTable(rows, alignOf(rows))}`,
  ];
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)}: lowrank analyze</title>
<style>${STYLE_SHEET}${STYLE}</style>
</head>
<body>
<main>
<h1>${escapeHtml(title)}</h1>
${paragraph(`What the updates ΔW = alpha / rank · B A of its layers are${model === undefined ? '' : `, beside the base ${model}`}.`, 'meta')}
${notes.map((n) => paragraph(n, 'warning')).join('\n')}
${tiles(layers)}
${sections.join('\n')}
</main>
</body>
</html>
`;
}
