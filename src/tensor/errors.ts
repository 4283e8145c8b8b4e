import type { Shape } from './shape.js';

/**
 * An error in the project's form: `[where] expected …, received …. wayOut`.
 * @param where the op, function or setting at fault
 */
export function failure(where: string, expected: string, received: string, wayOut?: string): Error {
  return new Error(
    `[${where}] expected ${expected}, received ${received}${wayOut ? `. ${wayOut}` : ''}`,
  );
}

/** A shape as people read it: `[2, 3]`. */
export function shapeText(shape: Shape): string {
  return `[${shape.join(', ')}]`;
}

/** Levenshtein distance, for near misses of names. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      next.push(
        Math.min(
          (row[j] as number) + 1,
          (next[j - 1] as number) + 1,
          (row[j - 1] as number) + cost,
        ),
      );
    }
    row = next;
  }
  return row[b.length] as number;
}

/** The `count` candidates nearest to `name` by edit distance, nearest first, each once. */
export function nearest(name: string, candidates: Iterable<string>, count = 3): string[] {
  return [...new Set(candidates)]
    .map((c) => [distance(name.toLowerCase(), c.toLowerCase()), c] as const)
    .sort((x, y) => x[0] - y[0] || (x[1] < y[1] ? -1 : 1))
    .slice(0, count)
    .map(([, c]) => c);
}

/**
 * Throws unless every key of an object of settings is one of these.
 * @param where the function whose settings they are
 */
export function onlyKnown(where: string, settings: object, known: readonly string[]): void {
  for (const key of Object.keys(settings)) {
    if (known.includes(key)) continue;
    const plain = key.replaceAll('_', '');
    const longer = known.find((k) => k.toLowerCase().startsWith(plain.toLowerCase()));
    const near = longer ?? nearest(plain, known, 1).join('');
    throw failure(where, `settings of ${known.join(', ')}`, `"${key}"`, `Nearest: ${near}`);
  }
}
