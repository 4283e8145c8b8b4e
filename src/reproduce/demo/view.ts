/** A progress bar over steps. */
export interface Bar {
  step(shown: {
    readonly step: number;
    readonly loss: number;
    readonly tokensPerSecond: number;
    readonly secondsLeft: number;
  }): void;
  /** Prints a line above the bar. */
  note(line: string): void;
  end(): void;
}

/** Where a demo's words go. */
export interface DemoView {
  /** Columns of text. */
  readonly width: number;
  /** Whether escape codes for bold text are understood. */
  readonly styled: boolean;
  say(line: string): void;
  bar(total: number): Promise<Bar>;
}

/** Starts a section. */
export function heading(view: DemoView, text: string): void {
  view.say('');
  view.say(view.styled ? `\x1b[1m${text}\x1b[22m` : text);
}

const INDENT = '  ';

/** Prints prose in lines of the view's width. */
export function prose(view: DemoView, text: string, indent = INDENT): void {
  for (const paragraph of text.split(/\n+/)) {
    for (const line of wrapped(paragraph, view.width - indent.length)) view.say(indent + line);
  }
}

/** Text in lines of at most `width` characters, broken at spaces. */
export function wrapped(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.trim().split(/\s+/)) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  if (line !== '') lines.push(line);
  return lines;
}

/** Text cut to a width, with … at the end where something is missing. */
export function clipped(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, width - 1).trimEnd()}…`;
}

/**
 * Prints rows in aligned columns; the first row is the header.
 * @param align a letter a column: l for words, r for numbers
 */
export function table(view: DemoView, rows: readonly (readonly string[])[], align: string): void {
  const widths = [...align].map((_, i) => Math.max(...rows.map((r) => (r[i] ?? '').length)));
  rows.forEach((row, n) => {
    const cells = row.map((cell, i) =>
      align[i] === 'r' ? cell.padStart(widths[i] as number) : cell.padEnd(widths[i] as number),
    );
    const line = `${INDENT}${cells.join('   ').trimEnd()}`;
    view.say(n === 0 && view.styled ? `\x1b[2m${line}\x1b[22m` : line);
  });
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(1)}%`;
}

/** A perplexity, or another number of that size. */
export function decimal(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  return value < 1000 ? value.toFixed(2) : Math.round(value).toLocaleString('en-US');
}

export function count(n: number): string {
  return Math.round(n).toLocaleString('en-US');
}

/** Bytes in powers of 1000: `5.51 MB`. */
export function bytes(n: number): string {
  if (n < 1000) return `${n} B`;
  if (n < 1e6) return `${(n / 1e3).toFixed(1)} kB`;
  return `${(n / 1e6).toFixed(2)} MB`;
}

export function seconds(s: number): string {
  if (s < 1) return `${(1000 * s).toPrecision(3)} ms`;
  if (s < 60) return `${s.toFixed(1)} s`;
  return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}
