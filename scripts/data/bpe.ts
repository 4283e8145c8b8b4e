/** Byte-level byte-pair encoding: the trainer and an encoder with a cache of words. */

/** GPT-2's split into words; Hugging Face's ByteLevel pre-tokenizer uses the same. */
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

export const END_OF_TEXT = '<|endoftext|>';
export const PAD = '<|pad|>';
/** Special tokens take the first ids, in this order. */
export const SPECIALS = [END_OF_TEXT, PAD];

/**
 * GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the other bytes for the
 * characters from U+0100 on.
 */
export function byteAlphabet(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable =
      (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
    return String.fromCharCode(printable ? byte : next++);
  });
}

/** A vocabulary in id order (specials, 256 bytes, merges) and its merges as pairs of ids. */
export interface Bpe {
  vocab: string[];
  merges: [number, number][];
}

/** The words that the merges may not cross, with their counts. */
export function countWords(texts: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const text of texts) {
    for (const word of text.match(WORDS) ?? []) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  return counts;
}

/** A binary heap of pairs, most frequent first; equal counts in order of the pair's ids. */
class PairHeap {
  private readonly items: { count: number; pair: number }[] = [];

  private before(i: number, j: number): boolean {
    const a = this.items[i]!;
    const b = this.items[j]!;
    return a.count > b.count || (a.count === b.count && a.pair < b.pair);
  }

  private swap(i: number, j: number): void {
    const held = this.items[i]!;
    this.items[i] = this.items[j]!;
    this.items[j] = held;
  }

  push(count: number, pair: number): void {
    let i = this.items.push({ count, pair }) - 1;
    while (i > 0 && this.before(i, (i - 1) >> 1)) {
      this.swap(i, (i - 1) >> 1);
      i = (i - 1) >> 1;
    }
  }

  pop(): { count: number; pair: number } | undefined {
    const top = this.items[0];
    const last = this.items.pop();
    if (top === undefined || last === undefined || this.items.length === 0) return top;
    this.items[0] = last;
    for (let i = 0; ; ) {
      let best = i;
      for (const child of [2 * i + 1, 2 * i + 2]) {
        if (child < this.items.length && this.before(child, best)) best = child;
      }
      if (best === i) return top;
      this.swap(i, best);
      i = best;
    }
  }
}

/** A pair of ids as one number; vocabularies are far smaller than 2^20. */
const pairKey = (left: number, right: number) => left * 0x100000 + right;

/** The first ids: specials, then the bytes in the order of their characters. */
function baseVocab(): { vocab: string[]; byteIds: number[] } {
  const alphabet = byteAlphabet();
  const vocab = [...SPECIALS, ...[...alphabet].sort()];
  return { vocab, byteIds: alphabet.map((char) => vocab.indexOf(char, SPECIALS.length)) };
}

/** Counts of adjacent pairs, and the words in which each occurs. */
class PairTable {
  readonly counts = new Map<number, number>();
  readonly where = new Map<number, Set<number>>();

  add(key: number, count: number, word: number): void {
    this.counts.set(key, (this.counts.get(key) ?? 0) + count);
    if (count < 0) return;
    const words = this.where.get(key);
    if (words) words.add(word);
    else this.where.set(key, new Set([word]));
  }
}

/**
 * Learns merges until the vocabulary has `size` entries. Deterministic: the most frequent pair is
 * merged first, and of equally frequent ones the one with the smaller ids.
 */
export function trainBpe(wordCounts: ReadonlyMap<string, number>, size: number): Bpe {
  const { vocab, byteIds } = baseVocab();
  if (!(size >= vocab.length)) {
    throw new Error(
      `[tokenizer] expected a vocabulary of at least ${vocab.length}, received ${size}`,
    );
  }
  const words: number[][] = [];
  const weights: number[] = [];
  const table = new PairTable();
  for (const [word, count] of wordCounts) {
    const ids = Array.from(Buffer.from(word), (byte) => byteIds[byte]!);
    for (let i = 1; i < ids.length; i++) {
      table.add(pairKey(ids[i - 1]!, ids[i]!), count, words.length);
    }
    words.push(ids);
    weights.push(count);
  }
  const heap = new PairHeap();
  for (const [key, count] of table.counts) heap.push(count, key);
  const merges: [number, number][] = [];
  while (vocab.length < size) {
    const top = heap.pop();
    if (top === undefined || top.count < 2) break;
    const count = table.counts.get(top.pair) ?? 0;
    if (count !== top.count) {
      // The entry was stale: the pair has lost occurrences since.
      if (count > 0) heap.push(count, top.pair);
      continue;
    }
    const left = Math.floor(top.pair / 0x100000);
    const right = top.pair % 0x100000;
    const merged = vocab.push(vocab[left]! + vocab[right]!) - 1;
    merges.push([left, right]);
    const touched = new Set<number>();
    for (const index of table.where.get(top.pair) ?? []) {
      const after = mergeCounting(
        words[index]!,
        left,
        right,
        merged,
        weights[index]!,
        index,
        table,
      );
      for (const key of after) touched.add(key);
    }
    table.counts.delete(top.pair);
    table.where.delete(top.pair);
    for (const key of touched) {
      const now = table.counts.get(key) ?? 0;
      if (now > 0) heap.push(now, key);
    }
  }
  return { vocab, merges };
}

/** Merges a pair inside one word and keeps the counts right; returns the pairs that gained. */
function mergeCounting(
  ids: number[],
  left: number,
  right: number,
  merged: number,
  weight: number,
  word: number,
  table: PairTable,
): number[] {
  const before = ids.slice();
  let out = 0;
  for (let i = 0; i < before.length; i++) {
    const hit = before[i] === left && before[i + 1] === right;
    ids[out++] = hit ? merged : before[i]!;
    if (hit) i++;
  }
  if (out === before.length) return [];
  ids.length = out;
  for (let i = 1; i < before.length; i++) {
    table.add(pairKey(before[i - 1]!, before[i]!), -weight, word);
  }
  const gained: number[] = [];
  for (let i = 1; i < out; i++) {
    const key = pairKey(ids[i - 1]!, ids[i]!);
    table.add(key, weight, word);
    if (ids[i - 1] === merged || ids[i] === merged) gained.push(key);
  }
  return gained;
}

/** Encodes text with a trained vocabulary. Special tokens in the text are plain text to it. */
export class BpeEncoder {
  private readonly byteIds = baseVocab().byteIds;
  private readonly ranks = new Map<number, number>();
  private readonly cache = new Map<string, number[]>();
  private readonly firstMerge = SPECIALS.length + 256;

  constructor(bpe: Bpe) {
    bpe.merges.forEach(([left, right], rank) => {
      this.ranks.set(pairKey(left, right), rank);
    });
  }

  /** The ids of `text`. */
  encode(text: string): number[] {
    const out: number[] = [];
    for (const word of text.match(WORDS) ?? []) {
      let ids = this.cache.get(word);
      if (ids === undefined) {
        ids = this.encodeWord(word);
        this.cache.set(word, ids);
      }
      for (const id of ids) out.push(id);
    }
    return out;
  }

  private encodeWord(word: string): number[] {
    let ids = Array.from(Buffer.from(word), (byte) => this.byteIds[byte]!);
    while (ids.length > 1) {
      let best = Number.POSITIVE_INFINITY;
      for (let i = 1; i < ids.length; i++) {
        const rank = this.ranks.get(pairKey(ids[i - 1]!, ids[i]!));
        if (rank !== undefined && rank < best) best = rank;
      }
      if (best === Number.POSITIVE_INFINITY) break;
      const next: number[] = [];
      for (let i = 0; i < ids.length; i++) {
        const right = ids[i + 1];
        const hit = right !== undefined && this.ranks.get(pairKey(ids[i]!, right)) === best;
        next.push(hit ? this.firstMerge + best : ids[i]!);
        if (hit) i++;
      }
      ids = next;
    }
    return ids;
  }
}
