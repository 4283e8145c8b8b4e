/**
 * Rows in aligned columns, as lines; the first row is the header.
 * @param align a letter a column: l for words, r for numbers
 */
export function tableLines(rows: readonly (readonly string[])[], align: string): string[] {
  const widths = [...align].map((_, i) => Math.max(...rows.map((r) => (r[i] ?? '').length)));
  return rows.map((row) =>
    row
      .map((cell, i) => {
        const width = widths[i] as number;
        return align[i] === 'r' ? cell.padStart(width) : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd(),
  );
}

/** A number with `digits` that count; very small and very large ones with an exponent. */
export function digitsText(x: number | null, digits = 3): string {
  if (x === null) return '–';
  if (x === 0) return '0';
  const size = Math.abs(x);
  if (size < 1e-3 || size >= 1e5) return x.toExponential(digits - 1);
  return x.toPrecision(digits).replace(/^(-?\d+)\.?0*$/, '$1');
}
