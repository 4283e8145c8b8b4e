import { chartBody, escapeHtml } from '../reproduce/demo/report/chart.js';
import {
  type AnalysisPage,
  type Plots,
  type SimilarityMap,
  sectionsOf,
  titleOf,
} from './analysis-charts.js';

// Plain colours: programs other than browsers know no variables.
const STYLE = `
text { font-family: system-ui, "Liberation Sans", sans-serif; font-size: 12.5px; fill: #5a6472; }
.title { font-size: 24px; font-weight: 600; fill: #1b1f24; }
.heading { font-size: 18px; font-weight: 600; fill: #1b1f24; }
.caption { font-size: 14px; } .small { font-size: 11px; }
.grid { stroke: #d9dde3; fill: none; } .axis { stroke: #5a6472; fill: none; }
.series { fill: none; stroke-width: 2; stroke-linejoin: round; }
.series.faint { stroke-width: 1; opacity: .3; }
.series.dots { stroke-width: 1.5; stroke-dasharray: 4 4; }
.a { stroke: #0b62c4; } .b { stroke: #b3540e; }
.mark.a { fill: #0b62c4; } .mark.b { fill: #b3540e; }
.cell { fill: #0b62c4; } .frame { fill: #f5f6f8; stroke: #d9dde3; }
`;

const WIDTH = 1040;
const MARGIN = 32;
const GAP = 24;

/** What stands in the picture so far, and where it ends. */
class Page {
  readonly #parts: string[] = [];
  #y = MARGIN;

  line(text: string, className: string, height: number): void {
    this.#y += height;
    this.#parts.push(
      `<text class="${className}" x="${MARGIN}" y="${this.#y}">${escapeHtml(text)}</text>`,
    );
  }

  space(height: number): void {
    this.#y += height;
  }

  legend([a, b]: readonly [string, string]): void {
    this.#y += 22;
    const middle = MARGIN + (WIDTH - 2 * MARGIN) / 2;
    [a, b].forEach((text, i) => {
      const x = i === 0 ? MARGIN : middle;
      this.#parts.push(
        `<path class="series ${i === 0 ? 'a' : 'b'}" d="M${x} ${this.#y - 4}h18"/>` +
          `<text x="${x + 26}" y="${this.#y}">${escapeHtml(text)}</text>`,
      );
    });
  }

  /** Pictures side by side, scaled to so many columns. @param caption height of the words above */
  grid(
    items: readonly { words: readonly string[]; width: number; height: number; body: string }[],
    columns: number,
    className: string,
  ): void {
    const side = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns;
    for (let from = 0; from < items.length; from += columns) {
      const row = items.slice(from, from + columns);
      const words = Math.max(...row.map((item) => item.words.length));
      const top = this.#y + 16 * words + 10;
      let height = 0;
      row.forEach(({ words: lines, width, height: own, body }, i) => {
        const x = MARGIN + i * (side + GAP);
        const tall = (side * own) / width;
        height = Math.max(height, tall);
        lines.forEach((text, k) => {
          const y = this.#y + 16 * (k + 1);
          this.#parts.push(
            `<text class="${className}" x="${x}" y="${y}">${escapeHtml(text)}</text>`,
          );
        });
        this.#parts.push(
          `<svg x="${x}" y="${top}" width="${side}" height="${tall}" ` +
            `viewBox="0 0 ${width} ${own}">${body}</svg>`,
        );
      });
      this.#y = top + height + 12;
    }
  }

  svg(title: string): string {
    const height = Math.ceil(this.#y + MARGIN);
    return `<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img">
<title>${escapeHtml(title)}: lowrank analyze</title>
<style>${STYLE}</style>
<rect width="${WIDTH}" height="${height}" fill="#ffffff"/>
${this.#parts.join('\n')}
</svg>
`;
  }
}

/** Words in lines of at most so many characters. */
function wrapped(text: string, most: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + word.length < most)
      lines.push(`${lines.pop()} ${word}`);
    else lines.push(word);
  }
  return lines;
}

function addPlots(page: Page, { text, legend, charts }: Plots): void {
  if (text !== undefined) for (const line of wrapped(text, 118)) page.line(line, 'caption', 20);
  if (legend) page.legend(legend);
  page.space(14);
  const items = charts.map((chart) => ({ words: [chart.title], ...chartBody(chart) }));
  page.grid(items, 2, 'caption');
}

function addMaps(page: Page, maps: readonly SimilarityMap[], of: number): void {
  const chosen = of > maps.length ? ` ${maps.length} of ${of} layers, evenly chosen.` : '';
  page.line(`Each map: i downwards, j to the right; 0 is pale, 1 is dark.${chosen}`, 'caption', 20);
  page.space(10);
  const items = maps.map(({ label, ...map }) => ({ words: wrapped(label, 38), ...map }));
  page.grid(items, 4, 'small');
}

/** The plots of an analysis as one SVG picture that needs no other file. */
export function analysisSvg(analysis: AnalysisPage): string {
  const page = new Page();
  const title = titleOf(analysis);
  for (const line of wrapped(title, 76)) page.line(line, 'title', 30);
  for (const note of analysis.notes) {
    for (const line of wrapped(note, 118)) page.line(line, 'caption', 20);
  }
  for (const { heading, plots, maps, mapsOf = 0 } of sectionsOf(analysis)) {
    page.space(24);
    page.line(heading, 'heading', 24);
    for (const one of plots) addPlots(page, one);
    if (maps) addMaps(page, maps, mapsOf);
  }
  return page.svg(title);
}
