import type { LayerAnalysis, Similarity, Space } from '../lora/analysis/index.js';
import type { Chart, Series } from '../reproduce/demo/report/chart.js';
import { digitsText } from './table.js';

/** What a report shows. */
export interface AnalysisPage {
  /** Names of the adapters and of the base, as they were given. */
  readonly name: string;
  readonly other?: string;
  readonly model?: string;
  readonly space: Space;
  readonly layers: readonly LayerAnalysis[];
  readonly notes: readonly string[];
}

/** Charts with what is to be said of them. */
export interface Plots {
  readonly text?: string;
  /** What the two colours mean. */
  readonly legend?: readonly [a: string, b: string];
  readonly charts: readonly Chart[];
}

/** φ of one layer as a map. */
export interface SimilarityMap {
  readonly label: string;
  readonly width: number;
  readonly height: number;
  readonly body: string;
}

/** A section of a report. */
export interface Section {
  readonly heading: string;
  readonly plots: readonly Plots[];
  readonly maps?: readonly SimilarityMap[];
  /** Layers that could have a map. */
  readonly mapsOf?: number;
}

/** Cells of a map at most, a side; beyond, every n-th number of directions is shown. */
const MAP_CELLS = 16;
/** Maps at most; beyond, blocks are left out evenly. */
const MAPS = 24;

type Groups = ReadonlyMap<string, readonly LayerAnalysis[]>;
type Value = (l: LayerAnalysis) => number | undefined;

export function titleOf({ name, other }: AnalysisPage): string {
  return other === undefined ? `Adapter ${name}` : `Adapters ${name} and ${other}`;
}

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

function perBlock(layers: readonly LayerAnalysis[], value: Value): Point[] {
  return layers
    .map((l): Point => [placeOf(l.path).block, value(l) ?? Number.NaN])
    .sort((a, b) => a[0] - b[0]);
}

function spectra(groups: Groups): Section {
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
    return {
      title: name,
      xLabel: 'i',
      yLabel: 'sᵢ / s₁',
      yText: (v: number) => String(v),
      series: layers.length === 1 ? [{ ...(faint[0] as Series), as: 'dots' as const }] : faint,
    };
  });
  const text =
    'A line for each block, over its largest value. A line that falls at once tells that few ' +
    'directions carry the update, and that a smaller rank would do.';
  return { heading: 'Singular values of ΔW', plots: [{ text, charts }] };
}

/** A chart for each name of the values by block. */
function blockCharts(groups: Groups, yLabel: string, a: Value, b?: Value): Chart[] {
  return [...groups].map(([title, layers]) => ({
    ...{ title, xLabel: 'block', yLabel, yText: (v: number) => String(v) },
    series: [
      { points: perBlock(layers, a), className: 'a', as: 'dots' as const },
      ...(b ? [{ points: perBlock(layers, b), className: 'b', as: 'dots' as const }] : []),
      // Draws nothing: the axis begins at 0, so that heights can be compared.
      {
        points: [[placeOf((layers[0] as LayerAnalysis).path).block, 0]] as const,
        className: 'a',
        as: 'faint' as const,
      },
    ],
  }));
}

function ranks(groups: Groups): Section {
  const charts = blockCharts(
    groups,
    'rank',
    (l) => l.spectrum.effectiveRank,
    (l) => l.spectrum.stableRank,
  );
  const legend = ['effective rank', 'stable rank'] as const;
  return { heading: 'Ranks that are used', plots: [{ legend, charts }] };
}

function amplification(groups: Groups): Section {
  const factor = blockCharts(groups, 'factor', (l) => l.amplification?.factor);
  const norms = blockCharts(
    groups,
    'norm',
    (l) => l.amplification?.projected,
    (l) => l.amplification?.random,
  );
  return {
    heading: 'Amplification',
    plots: [
      {
        text:
          '‖ΔW‖ over ‖Uᵀ W V‖, the part of the base’s weight in the directions of ΔW: by how much the ' +
          'adapter strengthens what the weight has there (Hu et al., section 7.3).',
        charts: factor,
      },
      {
        text: 'And what the weight has in those directions:',
        legend: ['‖Uᵀ W V‖ in the directions of ΔW', 'in random directions'],
        charts: norms,
      },
    ],
  };
}

/** Numbers of directions 1 … count, at most MAP_CELLS of them, the last among them. */
function steps(count: number): number[] {
  const step = Math.ceil(count / MAP_CELLS);
  const out: number[] = [];
  for (let i = count; i >= 1; i -= step) out.unshift(i);
  return out;
}

/** φ(i, j) as a map: i downwards, j to the right, as in the paper's figure 3. */
function mapOf(path: string, { phi, whole, random }: Similarity): SimilarityMap {
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
  return {
    label,
    width: left + width + 12,
    height: top + height + 22,
    body:
      `<rect class="frame" x="${left}" y="${top}" width="${width}" height="${height}"/>` +
      cells.join('') +
      text(left - 6, top + size / 2 + 4, 'end', String(rows[0])) +
      text(left - 6, top + height - size / 2 + 4, 'end', String(rows.at(-1))) +
      text(left + size / 2, top + height + 16, 'middle', String(columns[0])) +
      text(left + width - size / 2, top + height + 16, 'middle', String(columns.at(-1))),
  };
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

function similarity({ layers, name, other, space }: AnalysisPage, groups: Groups): Section {
  const compared = layers.filter((l) => l.similarity);
  const charts = blockCharts(
    groups,
    'φ',
    (l) => l.similarity?.whole,
    (l) => l.similarity?.random,
  );
  const text =
    `φ(i, j): how much of the first i of ${SPACE_WORDS[space]} of ${name} lies within the first ` +
    `j of ${other ?? ''} (Hu et al., equation 4), 0 to 1. Random directions have max(i, j) / d ` +
    'in the mean.';
  return {
    heading: 'Similarity of directions',
    plots: [{ text, legend: ['φ of all directions', 'random'], charts }],
    maps: evenly(compared, MAPS).map((l) => mapOf(l.path, l.similarity as Similarity)),
    mapsOf: compared.length,
  };
}

/** Everything of a report that is plotted. */
export function sectionsOf(page: AnalysisPage): Section[] {
  const { layers } = page;
  const groups = byName(layers);
  return [
    spectra(groups),
    ranks(groups),
    ...(layers.some((l) => l.similarity) ? [similarity(page, groups)] : []),
    ...(layers.some((l) => l.amplification) ? [amplification(groups)] : []),
  ];
}
