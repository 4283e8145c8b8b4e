import type { LayerAnalysis, Similarity, Space } from '../lora/analysis/index.js';
import { type Chart, chartSvg, escapeHtml, type Series } from '../reproduce/demo/report/chart.js';
import { htmlTable, paragraph } from '../reproduce/demo/report/sections.js';
import { STYLE_SHEET } from '../reproduce/demo/report/style.js';
import { alignOf, analysisRows } from './analysis-rows.js';
import { digitsText } from './table.js';

/** What the page shows. */
export interface AnalysisPage {
  /** Names of the adapters and of the base, as they were given. */
  readonly name: string;
  readonly other?: string;
  readonly model?: string;
  readonly space: Space;
  readonly layers: readonly LayerAnalysis[];
  readonly notes: readonly string[];
}

/** Cells of a map at most, a side; beyond, every n-th number of directions is shown. */
const MAP_CELLS = 16;
/** Maps at most; beyond, blocks are left out evenly. */
const MAPS = 24;

const STYLE = `
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; }
.maps figure { margin: 0; } .maps figcaption { font-size: .82rem; overflow-wrap: anywhere; }
.cell { fill: var(--a); } .frame { fill: var(--panel); stroke: var(--rule); }
.key { display: inline-block; width: 6rem; height: .7rem; vertical-align: middle; border: 1px solid var(--rule); background: linear-gradient(to right, var(--panel), var(--a)); }
.swatch { display: inline-block; width: 1.1rem; height: .2rem; vertical-align: middle; margin: 0 .25rem 0 .8rem; }
.swatch.a { background: var(--a); } .swatch.b { background: var(--b); }
`;

/** The number of a layer's block and the layer's name in it. */
function placeOf(path: string): { block: number; name: string } {
  const found = /^.*?\.(\d+)\.(.+)$/.exec(path);
  return found ? { block: Number(found[1]), name: found[2] as string } : { block: 0, name: path };
}

/** Layers of one name through the blocks. */
function byName(layers: readonly LayerAnalysis[]): Map<string, LayerAnalysis[]> {
  const out = new Map<string, LayerAnalysis[]>();
  for (const layer of layers) {
    const { name } = placeOf(layer.path);
    out.set(name, [...(out.get(name) ?? []), layer]);
  }
  return out;
}

type Point = readonly [number, number];

function perBlock(
  layers: readonly LayerAnalysis[],
  value: (l: LayerAnalysis) => number | undefined,
): Point[] {
  return layers
    .map((l): Point => [placeOf(l.path).block, value(l) ?? Number.NaN])
    .sort((a, b) => a[0] - b[0]);
}

function pairs(charts: readonly string[]): string {
  return `<div class="pair">${charts.join('\n')}</div>`;
}

/** A line for what the two colours mean. */
function legend(a: string, b: string): string {
  return (
    `<p class="meta"><span class="swatch a"></span>${escapeHtml(a)}` +
    `<span class="swatch b"></span>${escapeHtml(b)}</p>`
  );
}

function spectraSection(groups: ReadonlyMap<string, LayerAnalysis[]>): string {
  const charts = [...groups].map(([name, layers]) => {
    const curve = (l: LayerAnalysis): Point[] => {
      const s = l.spectrum.singularValues;
      return s.map((x, i) => [i + 1, (s[0] as number) > 0 ? x / (s[0] as number) : 0]);
    };
    const faint: Series[] = layers.map((l) => ({
      points: curve(l),
      className: 'a',
      // Many lines are seen better as a haze.
      as: layers.length > 8 ? 'faint' : 'line',
    }));
    return chartSvg({
      title: name,
      xLabel: 'i',
      yLabel: 'sᵢ / s₁',
      yText: (v) => String(v),
      series: layers.length === 1 ? [{ ...(faint[0] as Series), as: 'dots' }] : faint,
    });
  });
  return (
    '<h2>Singular values of ΔW</h2>' +
    paragraph(
      'A line for each block, over its largest value. A line that falls at once tells that few ' +
        'directions carry the update, and that a smaller rank would do.',
    ) +
    pairs(charts)
  );
}

/** A chart for each name of the values by block, where there are several blocks. */
function blockCharts(
  groups: ReadonlyMap<string, LayerAnalysis[]>,
  rest: Pick<Chart, 'yLabel' | 'yText'>,
  a: (l: LayerAnalysis) => number | undefined,
  b?: (l: LayerAnalysis) => number | undefined,
): string {
  const charts = [...groups].map(([name, layers]) =>
    chartSvg({
      ...{ title: name, xLabel: 'block', ...rest },
      series: [
        { points: perBlock(layers, a), className: 'a', as: 'dots' },
        ...(b ? [{ points: perBlock(layers, b), className: 'b', as: 'dots' } as const] : []),
        // Draws nothing: the axis begins at 0, so that heights can be compared.
        {
          points: [[placeOf((layers[0] as LayerAnalysis).path).block, 0]],
          className: 'a',
          as: 'faint',
        },
      ],
    }),
  );
  return pairs(charts);
}

function rankSection(groups: ReadonlyMap<string, LayerAnalysis[]>): string {
  return (
    '<h2>Ranks that are used</h2>' +
    legend('effective rank', 'stable rank') +
    blockCharts(
      groups,
      { yLabel: 'rank', yText: (v) => String(v) },
      (l) => l.spectrum.effectiveRank,
      (l) => l.spectrum.stableRank,
    )
  );
}

function amplificationSection(groups: ReadonlyMap<string, LayerAnalysis[]>): string {
  return (
    '<h2>Amplification</h2>' +
    paragraph(
      '‖ΔW‖ over ‖Uᵀ W V‖, the part of the base’s weight in the directions of ΔW: by how much the ' +
        'adapter strengthens what the weight has there (Hu et al., section 7.3).',
    ) +
    blockCharts(
      groups,
      { yLabel: 'factor', yText: (v) => String(v) },
      (l) => l.amplification?.factor,
    ) +
    paragraph('And what the weight has in those directions:') +
    legend('‖Uᵀ W V‖ in the directions of ΔW', 'in random directions') +
    blockCharts(
      groups,
      { yLabel: 'norm', yText: (v) => String(v) },
      (l) => l.amplification?.projected,
      (l) => l.amplification?.random,
    )
  );
}

/** Numbers of directions 1 … count, at most MAP_CELLS of them, the last among them. */
function steps(count: number): number[] {
  const step = Math.ceil(count / MAP_CELLS);
  const out: number[] = [];
  for (let i = count; i >= 1; i -= step) out.unshift(i);
  return out;
}

/** φ(i, j) as a map: i downwards, j to the right, as in the paper's figure 3. */
function mapSvg(path: string, { phi, whole, random }: Similarity): string {
  const rows = steps(phi.length);
  const columns = steps(phi[0]?.length ?? 0);
  const [left, top, side] = [26, 8, 200];
  const size = side / Math.max(rows.length, columns.length);
  const round = (x: number) => Math.round(10 * x) / 10;
  const cells = rows.flatMap((i, r) =>
    columns.map((j, c) => {
      const value = phi[i - 1]?.[j - 1] as number;
      return (
        `<rect class="cell" x="${round(left + c * size)}" y="${round(top + r * size)}" ` +
        `width="${round(size)}" height="${round(size)}" fill-opacity="${value.toFixed(3)}">` +
        `<title>i ${i}, j ${j}: φ ${value.toFixed(3)}</title></rect>`
      );
    }),
  );
  const [width, height] = [round(columns.length * size), round(rows.length * size)];
  const text = (x: number, y: number, anchor: string, words: string) =>
    `<text x="${x}" y="${y}" text-anchor="${anchor}">${words}</text>`;
  const label = `${path}: φ ${digitsText(whole)}, random ${digitsText(random)}`;
  return (
    `<figure><svg viewBox="0 0 ${left + width + 12} ${top + height + 22}" role="img" ` +
    `aria-label="${escapeHtml(label)}">` +
    `<rect class="frame" x="${left}" y="${top}" width="${width}" height="${height}"/>` +
    cells.join('') +
    text(left - 6, top + size / 2 + 4, 'end', String(rows[0])) +
    text(left - 6, top + height - size / 2 + 4, 'end', String(rows.at(-1))) +
    text(left + size / 2, top + height + 16, 'middle', String(columns[0])) +
    text(left + width - size / 2, top + height + 16, 'middle', String(columns.at(-1))) +
    `</svg><figcaption>${escapeHtml(label)}</figcaption></figure>`
  );
}

/** At most `count` of a list, evenly, the first and the last among them. */
function evenly<T>(list: readonly T[], count: number): T[] {
  if (list.length <= count) return [...list];
  return Array.from(
    { length: count },
    (_, i) => list[Math.round((i * (list.length - 1)) / (count - 1))] as T,
  );
}

const SPACE_WORDS: Readonly<Record<Space, string>> = {
  A: 'the right singular directions of A',
  right: 'the right singular directions of ΔW',
  left: 'the left singular directions of ΔW',
};

function similaritySection(
  { layers, name, other, space }: AnalysisPage,
  groups: ReadonlyMap<string, LayerAnalysis[]>,
): string {
  const compared = layers.filter((l) => l.similarity);
  const shown = evenly(compared, MAPS);
  const left = compared.length - shown.length;
  return (
    '<h2>Similarity of directions</h2>' +
    paragraph(
      `φ(i, j): how much of the first i of ${SPACE_WORDS[space]} of ${name} lies within the first ` +
        `j of ${other ?? ''} (Hu et al., equation 4), 0 to 1. Random directions have max(i, j) / d ` +
        'in the mean.',
    ) +
    legend('φ of all directions', 'random') +
    blockCharts(
      groups,
      { yLabel: 'φ', yText: (v) => String(v) },
      (l) => l.similarity?.whole,
      (l) => l.similarity?.random,
    ) +
    `<p class="meta">Each map: i downwards, j to the right. 0 <span class="key"></span> 1` +
    `${left > 0 ? `. ${shown.length} of ${compared.length} layers, evenly chosen` : ''}</p>` +
    `<div class="maps">${shown.map((l) => mapSvg(l.path, l.similarity as Similarity)).join('\n')}</div>`
  );
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
  const { name, other, model, layers, notes } = page;
  const groups = byName(layers);
  const rows = analysisRows(layers);
  const title = other === undefined ? `Adapter ${name}` : `Adapters ${name} and ${other}`;
  const sections = [
    spectraSection(groups),
    rankSection(groups),
    layers.some((l) => l.similarity) ? similaritySection(page, groups) : '',
    layers.some((l) => l.amplification) ? amplificationSection(groups) : '',
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
