/** A line or a row of dots of a chart; points are [x, y]. */
export interface Series {
  readonly points: readonly (readonly [number, number])[];
  /** CSS class that gives the colour. */
  readonly className: string;
  /** faint and line draw lines; dots draws marks with a line between. */
  readonly as: 'faint' | 'line' | 'dots';
}

/** A chart of one or more series over one pair of axes. */
export interface Chart {
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  readonly series: readonly Series[];
  /** Text of a tick of the y axis. */
  readonly yText: (y: number) => string;
}

const WIDTH = 480;
const HEIGHT = 270;
const MARGIN = { left: 50, right: 14, top: 30, bottom: 42 };
const TICKS = 5;

export function escapeHtml(text: string): string {
  const entities: Record<string, string> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
  };
  return text.replace(/[&<>"]/g, (c) => entities[c] as string);
}

/** Round numbers from at most `low` to at least `high`, about `TICKS` steps apart. */
export function ticks(low: number, high: number): number[] {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 2.5, 5, 10].find((f) => f * power >= rough * 0.999) as number) * power;
  const from = Math.floor(low / step + 1e-9);
  const to = Math.max(from + 1, Math.ceil(high / step - 1e-9));
  return Array.from({ length: to - from + 1 }, (_, i) =>
    Number(((from + i) * step).toPrecision(12)),
  );
}

/** Means over the last `window` values, one for each value. */
export function smoothed(values: readonly number[], window: number): number[] {
  let sum = 0;
  return values.map((v, i) => {
    sum += v - (i >= window ? (values[i - window] as number) : 0);
    return sum / Math.min(window, i + 1);
  });
}

/** What an SVG element of a chart holds, without its title, and its size. */
export function chartBody({ xLabel, yLabel, series, yText }: Omit<Chart, 'title'>): {
  readonly width: number;
  readonly height: number;
  readonly body: string;
} {
  const points = series.flatMap((s) => s.points).filter(([x, y]) => Number.isFinite(x + y));
  const range = (axis: 0 | 1): [number, number] => {
    const values = points.map((p) => p[axis]);
    return points.length > 0 ? [Math.min(...values), Math.max(...values)] : [0, 1];
  };
  const [x0, x1] = range(0);
  const yTicks = ticks(...range(1));
  const scaler = (low: number, high: number, from: number, to: number) => (v: number) =>
    Math.round(10 * (from + ((v - low) / (high - low || 1)) * (to - from))) / 10;
  const [left, right] = [MARGIN.left, WIDTH - MARGIN.right];
  const [top, bottom] = [MARGIN.top, HEIGHT - MARGIN.bottom];
  const x = scaler(x0, x1, left, right);
  const y = scaler(yTicks[0] as number, yTicks.at(-1) as number, bottom, top);
  const xTicks = ticks(x0, x1).filter((t) => t >= x0 && t <= x1);
  const grid = [
    ...yTicks.map(
      (t) =>
        `<path class="grid" d="M${left} ${y(t)}H${right}"/>` +
        `<text class="tick" x="${left - 8}" y="${y(t) + 4}" text-anchor="end">${escapeHtml(yText(t))}</text>`,
    ),
    ...xTicks.map(
      (t) => `<text class="tick" x="${x(t)}" y="${bottom + 18}" text-anchor="middle">${t}</text>`,
    ),
    `<path class="axis" d="M${left} ${bottom}H${right}"/>`,
    `<text class="label" x="${right}" y="${HEIGHT - 6}" text-anchor="end">${escapeHtml(xLabel)}</text>`,
    `<text class="label" x="${left - 42}" y="14">${escapeHtml(yLabel)}</text>`,
  ];
  const lines = series.map((s) => seriesSvg(s, x, y));
  return { width: WIDTH, height: HEIGHT, body: grid.join('') + lines.join('') };
}

/** A chart as inline SVG that takes its colours from the page's style. */
export function chartSvg(chart: Chart): string {
  const title = escapeHtml(chart.title);
  const { width, height, body } = chartBody(chart);
  return (
    `<figure><figcaption>${title}</figcaption>` +
    `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${title}">${body}</svg></figure>`
  );
}

type Scaler = (value: number) => number;

function seriesSvg({ points, className, as }: Series, x: Scaler, y: Scaler): string {
  const seen = points.filter(([px, py]) => Number.isFinite(px + py));
  if (seen.length === 0) return '';
  const path = seen.map(([px, py], i) => `${i === 0 ? 'M' : 'L'}${x(px)} ${y(py)}`).join('');
  const line = `<path class="series ${as} ${className}" d="${path}"/>`;
  if (as !== 'dots') return line;
  const mark = ([px, py]: readonly [number, number]) =>
    `<circle class="mark ${className}" cx="${x(px)}" cy="${y(py)}" r="3.5"/>`;
  return line + seen.map(mark).join('');
}
