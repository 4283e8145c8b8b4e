import { noGrad, scope } from '../autograd/index.js';
import { takeRows } from './cache-rows.js';
import type { CausalLM, KvCache, TokenBatch } from './causal-lm.js';

/** One sequence that is being continued. */
export interface DecoderRow {
  /** Prompt and continuation so far. */
  readonly ids: readonly number[];
  /** Nothing is computed for it any more. */
  readonly done: boolean;
}

/** Places that a cache has beyond the prompt at first; it grows where more are needed. */
const FIRST_PLACES = 128;

/**
 * A model's next logits of several sequences of any lengths, step by step: with a cache of keys
 * and values, so that a step costs one position, as long as cached keys are what the whole
 * sequence would give.
 */
export class Decoder {
  #cache: KvCache | null = null;
  #useCache: boolean;
  /** Places of the prompts. */
  #width = 0;

  constructor(
    readonly model: CausalLM,
    useCache: boolean,
  ) {
    this.#useCache = useCache;
  }

  /**
   * Logits [rows · V] after the last token of each row. From the second call on, each row has one
   * token more than at the call before.
   */
  next(rows: readonly DecoderRow[]): Float32Array {
    const { model } = this;
    const longest = rows.reduce((n, { ids, done }) => Math.max(n, done ? 0 : ids.length), 0);
    // Past this length a cached key is no longer what the whole sequence would give.
    if (longest > model.cacheablePositions) {
      this.dispose();
      this.#useCache = false;
    }
    const fresh = this.#cache ? 1 : longest;
    if (this.#useCache) this.#makeRoom(rows.length, fresh);
    const input = paddedBatch(rows, fresh);
    return noGrad(() =>
      scope(() => model.lastLogits(input, this.#cache).toArray() as Float32Array),
    );
  }

  #makeRoom(rows: number, fresh: number): void {
    const old = this.#cache;
    if (!old) {
      this.#width = fresh;
      this.#cache = this.model.makeCache(rows, fresh + FIRST_PLACES);
    } else if (old.length + fresh > old.shape[1]) {
      this.#move(
        Int32Array.from({ length: rows }, (_, b) => b),
        2 * old.shape[1],
      );
    }
  }

  /**
   * Row b goes on from row `rows[b]`, which began with the same prompt; there may be more rows
   * than before.
   */
  reorder(rows: Int32Array): void {
    const cache = this.#cache;
    if (!cache) return;
    if (rows.length === cache.shape[0]) takeRows(cache, cache, rows, this.#width);
    else this.#move(rows, cache.shape[1]);
  }

  #move(rows: Int32Array, places: number): void {
    const old = this.#cache as KvCache;
    this.#cache = this.model.makeCache(rows.length, places);
    takeRows(this.#cache, old, rows);
    old.dispose();
  }

  dispose(): void {
    this.#cache?.dispose();
    this.#cache = null;
  }
}

/** The last `width` tokens of each row, padding before those that have fewer; nothing of the done. */
function paddedBatch(rows: readonly DecoderRow[], width: number): TokenBatch {
  const inputIds = new Int32Array(rows.length * width);
  const attentionMask = new Uint8Array(rows.length * width);
  rows.forEach(({ ids, done }, b) => {
    if (done) return;
    const last = ids.slice(-width);
    const at = (b + 1) * width - last.length;
    inputIds.set(last, at);
    attentionMask.fill(1, at, (b + 1) * width);
  });
  return { inputIds, attentionMask, batch: rows.length, length: width };
}
