import { failure } from '../tensor/errors.js';

/** @throws on what is not a list of strings with something in them */
export function checkStops(stops: readonly string[]): void {
  const fine = Array.isArray(stops) && stops.every((s) => typeof s === 'string' && s !== '');
  if (!fine) throw failure('generate stop', 'a list of strings, none empty', JSON.stringify(stops));
}

/**
 * Looks for stop strings in text that comes in pieces, however it is cut into pieces, and holds
 * back what may turn out to be the beginning of one.
 */
export class StopScanner {
  readonly #stops: readonly string[];
  readonly #longest: number;
  #held = '';
  #found: string | null = null;

  /** @throws on an empty stop string */
  constructor(stops: readonly string[]) {
    checkStops(stops);
    this.#stops = stops;
    this.#longest = stops.reduce((n, s) => Math.max(n, s.length), 0);
  }

  /** The stop string that was found; null as long as there was none. */
  get found(): string | null {
    return this.#found;
  }

  /** Adds a piece; answers the text that is certain: neither a stop string nor the start of one. */
  push(piece: string): string {
    if (this.#found !== null) return '';
    const text = this.#held + piece;
    // The one that is complete first; of several that end together the longest.
    let [start, end] = [0, Infinity];
    for (const stop of this.#stops) {
      const at = text.indexOf(stop);
      const until = at + stop.length;
      if (at < 0 || until > end || (until === end && at >= start)) continue;
      [start, end] = [at, until];
      this.#found = stop;
    }
    const sure = this.#found === null ? text.length - this.#open(text) : start;
    this.#held = this.#found === null ? text.slice(sure) : '';
    return text.slice(0, sure);
  }

  /** Length of the longest end of a text that begins a stop string. */
  #open(text: string): number {
    for (let n = Math.min(text.length, this.#longest - 1); n > 0; n--) {
      const end = text.slice(-n);
      if (this.#stops.some((stop) => stop.length > n && stop.startsWith(end))) return n;
    }
    return 0;
  }

  /** What is still held back, when nothing more comes. */
  end(): string {
    const rest = this.#held;
    this.#held = '';
    return rest;
  }
}
