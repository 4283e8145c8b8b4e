import { failure } from '../tensor/errors.js';
import { shuffled, streamOf } from '../tensor/random.js';

export interface SamplerOptions {
  /** Items of a batch; the last one of an epoch may be smaller. */
  readonly batchSize: number;
  /** Default 0. */
  readonly seed?: number;
  /** A new order each epoch; false for the given order. Default true. */
  readonly shuffle?: boolean;
  /** Leave out a smaller last batch. Default false. */
  readonly dropLast?: boolean;
}

const STREAM = streamOf('batch-sampler');

/**
 * Which items make up which batch. Every batch is found from its number alone (the order of an epoch
 * is drawn from seed and epoch), so that a resumed run goes on exactly where it stopped.
 */
export class BatchSampler {
  readonly batchesPerEpoch: number;
  readonly #batchSize: number;
  readonly #seed: number;
  readonly #shuffle: boolean;
  #order: Int32Array | undefined;
  #orderEpoch = -1;

  /** @param count number of items, at least 1 */
  constructor(
    readonly count: number,
    options: SamplerOptions,
  ) {
    const { batchSize, seed = 0, shuffle = true, dropLast = false } = options;
    if (!Number.isSafeInteger(count) || count < 1) {
      throw failure('BatchSampler', 'at least one item', String(count));
    }
    if (!Number.isSafeInteger(batchSize) || batchSize < 1) {
      throw failure('batchSize', 'a whole number of 1 or more', String(batchSize));
    }
    if (!Number.isSafeInteger(seed) || seed < 0) {
      throw failure('seed', 'a whole number of 0…2^53 - 1', String(seed));
    }
    const batches = count / batchSize;
    this.batchesPerEpoch = dropLast ? Math.floor(batches) : Math.ceil(batches);
    if (this.batchesPerEpoch === 0) {
      throw failure(
        'dropLast',
        `at least one whole batch of ${batchSize}`,
        `${count} items`,
        'Give a smaller batch size or keep the last batch',
      );
    }
    this.#batchSize = batchSize;
    this.#seed = seed;
    this.#shuffle = shuffle;
  }

  /** Items of batch `index` (0 … batchesPerEpoch − 1) of an epoch (from 0). */
  batch(epoch: number, index: number): Int32Array {
    if (!Number.isInteger(index) || index < 0 || index >= this.batchesPerEpoch) {
      throw failure('batch', `an index of 0…${this.batchesPerEpoch - 1}`, String(index));
    }
    const from = index * this.#batchSize;
    return this.#epochOrder(epoch).slice(from, from + this.#batchSize);
  }

  /** Items of the batch of a step counted over all epochs, from 0. */
  at(step: number): Int32Array {
    if (!Number.isSafeInteger(step) || step < 0) {
      throw failure('step', 'a whole number of 0 or more', String(step));
    }
    return this.batch(Math.floor(step / this.batchesPerEpoch), step % this.batchesPerEpoch);
  }

  #epochOrder(epoch: number): Int32Array {
    if (!Number.isSafeInteger(epoch) || epoch < 0 || epoch >= 2 ** 32) {
      throw failure('epoch', 'a whole number of 0…2^32 - 1', String(epoch));
    }
    if (this.#order && (this.#orderEpoch === epoch || !this.#shuffle)) return this.#order;
    this.#order = this.#shuffle
      ? shuffled({ seed: this.#seed, stream: STREAM, step: epoch }, this.count)
      : Int32Array.from({ length: this.count }, (_, i) => i);
    this.#orderEpoch = epoch;
    return this.#order;
  }
}

/** How a {@link LengthSampler} groups. */
export interface LengthSamplerOptions {
  /** Items of a batch; the last one of an epoch's last window may be smaller. */
  readonly batchSize: number;
  /** Batches of a window; fewer where there are not so many. */
  readonly window: number;
  /** Default 0. */
  readonly seed?: number;
  /** Leave out a smaller last window. Default false. */
  readonly dropLast?: boolean;
}

// The name is the demo's, whose published figures follow from it.
const GROUPS = streamOf('demo-length-groups');

/**
 * Batches of items that are alike in length, so that little of a batch is padding: shuffled windows
 * of several batches are sorted by length and cut, and a window's batches come in random order. As
 * with {@link BatchSampler} every batch is found from its number alone, and every item is in one
 * batch of an epoch.
 */
export class LengthSampler {
  readonly batchesPerEpoch: number;
  /** Batches of a full window. */
  readonly window: number;
  readonly #windows: BatchSampler;
  readonly #batchSize: number;
  readonly #seed: number;

  /** @param lengths of the items, at least one */
  constructor(
    readonly lengths: readonly number[],
    options: LengthSamplerOptions,
  ) {
    const { batchSize, seed = 0, dropLast = false } = options;
    if (!Number.isSafeInteger(options.window) || options.window < 1) {
      throw failure('window', 'a whole number of 1 or more', String(options.window));
    }
    const window = Math.max(1, Math.min(options.window, Math.floor(lengths.length / batchSize)));
    this.window = window;
    this.#windows = new BatchSampler(lengths.length, {
      batchSize: batchSize * window,
      seed,
      dropLast,
    });
    this.#batchSize = batchSize;
    this.#seed = seed;
    const counted = dropLast ? this.#windows.batchesPerEpoch * batchSize * window : lengths.length;
    this.batchesPerEpoch = Math.ceil(counted / batchSize);
  }

  /** Items of the batch of a step counted over all epochs, from 0. */
  at(step: number): Int32Array {
    if (!Number.isSafeInteger(step) || step < 0) {
      throw failure('step', 'a whole number of 0 or more', String(step));
    }
    const epoch = Math.floor(step / this.batchesPerEpoch);
    const inEpoch = step % this.batchesPerEpoch;
    const number = epoch * this.#windows.batchesPerEpoch + Math.floor(inEpoch / this.window);
    const items = Array.from(this.#windows.at(number));
    items.sort((a, b) => (this.lengths[a] as number) - (this.lengths[b] as number));
    const batches = Math.ceil(items.length / this.#batchSize);
    const order = shuffled({ seed: this.#seed, stream: GROUPS, step: number }, batches);
    const from = (order[inEpoch % this.window] as number) * this.#batchSize;
    return Int32Array.from(items.slice(from, from + this.#batchSize));
  }
}
