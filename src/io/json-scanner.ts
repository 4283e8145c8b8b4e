import { failure } from '../tensor/errors.js';

/** A name in quotes for messages, escaped and cut to a readable length. */
export function quoted(name: string): string {
  const text = JSON.stringify(name);
  return text.length <= 100 ? text : `${text.slice(0, 96)}…"`;
}

const NUMBER = /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const ATOM = /true|false|null|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
/** Levels of a value that is passed over; no file that is read here has more than a few. */
const MAX_DEPTH = 64;
const ESCAPES: Record<string, string> = {
  '"': '"',
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
};

/**
 * Reads JSON by what is expected next, and hides nothing that JSON.parse would (names given twice,
 * `2.0` for 2, integers that a double cannot hold).
 */
export class JsonScanner {
  #at = 0;

  constructor(
    readonly text: string,
    /** Where we are, for messages; the reader may add to it while inside a part. */
    public place: string,
    /** What the text is, for messages: `the header`. */
    readonly whole: string,
  ) {}

  fail(expected: string, received: string): Error {
    return failure(this.place, expected, received);
  }

  /** What stands at the cursor, for messages. */
  #here(): string {
    const c = this.text[this.#at];
    const where = `at character ${this.#at} of ${this.whole}`;
    if (c === undefined) return `the end of ${this.whole}`;
    if (c === '"') return `a string ${where}`;
    if (c === '{') return `an object ${where}`;
    if (c === '[') return `an array ${where}`;
    const word = /[-+.\w]+/y;
    word.lastIndex = this.#at;
    return `${word.exec(this.text)?.[0].slice(0, 40) ?? JSON.stringify(c)} ${where}`;
  }

  space(): void {
    for (;;) {
      const c = this.text.charCodeAt(this.#at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return;
      this.#at++;
    }
  }

  /** Takes `c` if it is next. */
  take(c: string): boolean {
    this.space();
    if (this.text[this.#at] !== c) return false;
    this.#at++;
    return true;
  }

  need(c: string, what: string): void {
    if (!this.take(c)) throw this.fail(`${what}`, this.#here());
  }

  end(): void {
    this.space();
    if (this.#at < this.text.length) {
      throw this.fail(`only spaces after ${this.whole} object`, this.#here());
    }
  }

  string(what: string): string {
    this.space();
    if (this.text[this.#at] !== '"') throw this.fail(what, this.#here());
    const start = ++this.#at;
    let out = '';
    let from = start;
    for (;;) {
      const c = this.text.charCodeAt(this.#at);
      if (Number.isNaN(c))
        throw this.fail(`${what} with its closing quote`, `the end of ${this.whole}`);
      if (c < 0x20) {
        throw this.fail(
          `${what} without raw control characters`,
          `U+${c.toString(16).padStart(4, '0').toUpperCase()} at character ${this.#at}`,
        );
      }
      if (c === 0x22) {
        out += this.text.slice(from, this.#at++);
        return out;
      }
      if (c === 0x5c) {
        out += this.text.slice(from, this.#at) + this.#escape(what);
        from = this.#at;
      } else this.#at++;
    }
  }

  #escape(what: string): string {
    const start = this.#at;
    const kind = this.text[start + 1] ?? '';
    this.#at += 2;
    const simple = Object.hasOwn(ESCAPES, kind) ? ESCAPES[kind] : undefined;
    if (simple !== undefined) return simple;
    const first = kind === 'u' ? this.#hex() : undefined;
    if (first === undefined) {
      throw this.fail(`${what} with valid escapes`, quoted(this.text.slice(start, start + 6)));
    }
    if (first < 0xd800 || first > 0xdfff) return String.fromCharCode(first);
    let second: number | undefined;
    if (first < 0xdc00 && this.text.startsWith('\\u', this.#at)) {
      this.#at += 2;
      second = this.#hex();
    }
    if (second === undefined || second < 0xdc00 || second > 0xdfff) {
      throw this.fail(
        `${what} whose surrogates come in pairs`,
        `the escape ${this.text.slice(start, start + 6)} alone`,
      );
    }
    return String.fromCharCode(first, second);
  }

  #hex(): number | undefined {
    const digits = this.text.slice(this.#at, this.#at + 4);
    if (!/^[0-9a-fA-F]{4}$/.test(digits)) return undefined;
    this.#at += 4;
    return Number.parseInt(digits, 16);
  }

  /** A whole number of 0 or more, in plain digits, that a double holds exactly. */
  integer(what: string): number {
    this.space();
    NUMBER.lastIndex = this.#at;
    const text = NUMBER.exec(this.text)?.[0];
    if (text === undefined) throw this.fail(`${what} to be a whole number`, this.#here());
    const shown = text.length > 40 ? `${text.slice(0, 40)}…` : text;
    if (text.startsWith('-')) throw this.fail(`${what} of 0 or more`, shown);
    if (!/^\d+$/.test(text)) {
      throw this.fail(`${what} in digits alone, without fraction or exponent`, shown);
    }
    if (text.length > 1 && text.startsWith('0')) {
      throw this.fail(`${what} without leading zeros`, shown);
    }
    const value = Number(text);
    if (!Number.isSafeInteger(value)) throw this.fail(`${what} of at most 2^53 - 1`, shown);
    this.#at += text.length;
    return value;
  }

  /** An array of whole numbers. */
  integers(what: string): number[] {
    this.need('[', `${what} to be an array`);
    const out: number[] = [];
    if (this.take(']')) return out;
    do out.push(this.integer(`each number of ${what}`));
    while (this.take(','));
    this.need(']', `"," or "]" in ${what}`);
    return out;
  }

  /** The members of an object, each name once; `member` reads the value. */
  object(what: string, member: (name: string) => void, nameWhat: string): void {
    this.need('{', `${what} to be an object`);
    if (this.take('}')) return;
    const seen = new Set<string>();
    do {
      const name = this.string(nameWhat);
      if (seen.has(name)) throw this.fail(`each ${nameWhat} once`, `${quoted(name)} twice`);
      seen.add(name);
      this.need(':', `":" after ${quoted(name)}`);
      member(name);
    } while (this.take(','));
    this.need('}', `"," or "}" in ${what}`);
  }

  /** Passes any JSON value, in whose objects each name stands once. @param what for messages */
  pass(what: string, depth = 0): void {
    if (depth > MAX_DEPTH) throw this.fail(`${what} of at most ${MAX_DEPTH} levels`, 'more');
    this.space();
    const c = this.text[this.#at];
    if (c === '"') this.string(what);
    else if (c === '{') this.object(what, (name) => this.pass(name, depth + 1), `name in ${what}`);
    else if (c === '[') this.#passArray(what, depth);
    else {
      ATOM.lastIndex = this.#at;
      const atom = ATOM.exec(this.text)?.[0];
      if (atom === undefined) throw this.fail(`${what} to be JSON`, this.#here());
      this.#at += atom.length;
    }
  }

  #passArray(what: string, depth: number): void {
    this.need('[', `${what} to be an array`);
    if (this.take(']')) return;
    do this.pass(what, depth + 1);
    while (this.take(','));
    this.need(']', `"," or "]" in ${what}`);
  }
}
