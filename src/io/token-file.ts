import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { failure } from '../tensor/errors.js';
import { missingFile, writeFileAtomic } from './files.js';

/** Ids of one piece when writing. */
const PIECE = 2 ** 20;

function* encodeIds(sequences: Iterable<ArrayLike<number>>): Generator<Uint8Array> {
  for (const ids of sequences) {
    for (let from = 0; from < ids.length; from += PIECE) {
      const count = Math.min(PIECE, ids.length - from);
      const bytes = new Uint8Array(2 * count);
      const view = new DataView(bytes.buffer);
      for (let i = 0; i < count; i++) {
        const id = ids[from + i] as number;
        if (!Number.isInteger(id) || id < 0 || id > 0xffff) {
          throw failure('token file', 'ids of 0…65535 (16 bits each)', String(id));
        }
        view.setUint16(2 * i, id, true);
      }
      yield bytes;
    }
  }
}

/**
 * Writes sequences of token ids end to end as little-endian 16-bit numbers, atomically.
 * @throws on an id above 65535
 */
export function writeTokenFile(path: string, sequences: Iterable<ArrayLike<number>>): void {
  writeFileAtomic(path, encodeIds(sequences));
}

/** A file of little-endian 16-bit token ids, read a window at a time. */
export class TokenFile {
  /** Tokens in the file. */
  readonly count: number;
  /** Windows of length + 1 tokens, each beginning at the last token of the one before. */
  readonly windows: number;
  #fd: number | null;

  private constructor(
    readonly path: string,
    /** T, the positions of a window that are predicted from. */
    readonly length: number,
    fd: number,
    bytes: number,
  ) {
    this.#fd = fd;
    this.count = bytes / 2;
    this.windows = Math.floor((this.count - 1) / length);
  }

  /**
   * Opens a file for windows of `length` + 1 tokens.
   * @throws when it is missing, has an odd size, or holds less than one window
   */
  static open(path: string, length: number): TokenFile {
    if (!Number.isSafeInteger(length) || length < 1) {
      throw failure('TokenFile', 'a length of 1 or more', String(length));
    }
    let fd: number;
    try {
      fd = openSync(path, 'r');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') throw missingFile('token file', path);
      throw error;
    }
    const stats = fstatSync(fd);
    const bytes = stats.size;
    const place = `token file ${path}`;
    let problem: Error | undefined;
    if (!stats.isFile()) problem = failure(place, 'a file', 'something else');
    else if (bytes % 2 !== 0) problem = failure(place, 'an even number of bytes', String(bytes));
    else if (bytes / 2 < length + 1) {
      problem = failure(place, `at least ${length + 1} tokens`, `${bytes / 2}`);
    }
    if (!problem) return new TokenFile(path, length, fd, bytes);
    closeSync(fd);
    throw problem;
  }

  /** `count` tokens from `start`. */
  tokens(start: number, count: number): Int32Array {
    if (this.#fd === null) throw failure(`token file ${this.path}`, 'an open file', 'a closed one');
    const whole = Number.isSafeInteger(start) && Number.isSafeInteger(count);
    if (!whole || start < 0 || count < 0 || start + count > this.count) {
      const asked = `${count} from ${start}`;
      throw failure(`token file ${this.path}`, `tokens among 0…${this.count - 1}`, asked);
    }
    const bytes = new Uint8Array(2 * count);
    for (let at = 0; at < bytes.length; ) {
      const n = readSync(this.#fd, bytes, at, bytes.length - at, 2 * start + at);
      if (n === 0) throw failure(`token file ${this.path}`, `${this.count} tokens`, 'fewer now');
      at += n;
    }
    const view = new DataView(bytes.buffer);
    return Int32Array.from({ length: count }, (_, i) => view.getUint16(2 * i, true));
  }

  /**
   * Window `index` (0 … windows − 1): length + 1 tokens; the first T are the input, the last T what
   * they predict. Read the windows in order, or in that of a `BatchSampler` over `windows`.
   */
  window(index: number): Int32Array {
    if (!Number.isInteger(index) || index < 0 || index >= this.windows) {
      const rule = `a window of 0…${this.windows - 1}`;
      throw failure(`token file ${this.path}`, rule, String(index));
    }
    return this.tokens(index * this.length, this.length + 1);
  }

  close(): void {
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
