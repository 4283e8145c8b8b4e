import { setImmediate } from 'node:timers/promises';
import { scope } from '../autograd/index.js';
import { LoraEmbedding, LoraLinear } from '../lora/layer.js';
import { Embedding, Linear, type Module } from '../nn/index.js';
import { crossEntropy, embedding, headLoss, reshape, scale } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import { tensor, zeros } from '../tensor/create.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { type GenerateOptions, generateSteps } from './generate.js';
import {
  type FlatInput,
  type ForwardInput,
  type ForwardOutput,
  flatValues,
  wholeNumbers,
} from './inputs.js';
import {
  type IdOptions,
  PretrainedModel,
  type Prompt,
  type TextPromptOptions,
  type TextStream,
  type TokenPrompt,
  type TokenStream,
} from './pretrained.js';
import { type TextOptions, textPieces } from './text.js';

/** Token ids of several sequences, padded to one length; row-major [B, T]. */
export interface TokenBatch {
  readonly inputIds: Int32Array;
  /** 1 where a token counts, 0 at padding; default all 1. */
  readonly attentionMask?: Uint8Array;
  /** The id each position should have been predicted as, −100 where it does not count. */
  readonly labels?: Int32Array;
  readonly batch: number;
  readonly length: number;
}

/** A loss and how many labels it is over. */
export interface LossResult {
  /** One element, in nats; 0 when no label counts. */
  readonly loss: Tensor;
  readonly tokens: number;
}

/** The keys and values of the positions computed so far, one pair of buffers a layer. */
export class KvCache {
  readonly keys: Tensor[] = [];
  readonly values: Tensor[] = [];
  /** Places filled so far, padding among them. */
  length = 0;
  /** [B, most places]: 1 where a place holds a token that counts. */
  readonly mask: Uint8Array;
  /** Tokens that count so far, by row. */
  readonly counts: Int32Array;

  /** @param shape [B, most places, key heads, head size] */
  constructor(
    backend: Backend,
    layers: number,
    readonly shape: readonly [number, number, number, number],
  ) {
    this.mask = new Uint8Array(shape[0] * shape[1]);
    this.counts = new Int32Array(shape[0]);
    for (let i = 0; i < layers; i++) {
      this.keys.push(zeros(shape, { backend }).keep());
      this.values.push(zeros(shape, { backend }).keep());
    }
  }

  /** Whether a place filled so far is padding. */
  get padded(): boolean {
    return this.counts.some((n) => n < this.length);
  }

  /**
   * Notes which of the next T places count. Padding belongs before a row's first token, or after
   * its last: a token that counts may not follow a gap, which would be in the way of windows.
   */
  extend({ attentionMask, batch: B, length: T }: TokenBatch): void {
    const [rows, places] = this.shape;
    if (rows !== B) throw failure('model', `${rows} rows, as the cache has`, `${B}`);
    if (this.length + T > places) {
      throw failure('model', `at most ${places} positions`, `${this.length + T}`);
    }
    for (let b = 0; b < B; b++) {
      for (let t = 0; t < T; t++) {
        if (attentionMask?.[b * T + t] === 0) continue;
        const at = b * places + this.length + t;
        if ((this.counts[b] as number) > 0 && this.mask[at - 1] === 0) {
          throw failure(
            'model',
            'padding before the tokens where a cache is used',
            'padding between',
          );
        }
        this.mask[at] = 1;
        (this.counts[b] as number)++;
      }
    }
    this.length += T;
  }

  dispose(): void {
    for (const t of [...this.keys, ...this.values]) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** What the body of a model is given. */
export interface BodyInput {
  /** i32 [B, T]. */
  readonly ids: Tensor;
  /** i32 [B, T], counted from 0 over the tokens that count. */
  readonly positions: Tensor;
  /** Positions of the longest row. */
  readonly longest: number;
  /** u8 [B, S] over the keys of cache and input; none where every key counts. */
  readonly mask: Tensor | null;
  /** Holds the places before these; `length` is their number. */
  readonly cache: KvCache | null;
}

/**
 * The place of each token of a batch among those of its row that count, from `past` of the row on;
 * padding has the place of the token before it, or 0.
 */
export function countedPositions(batch: TokenBatch, past?: Int32Array): Int32Array {
  const { attentionMask, batch: B, length: T } = batch;
  const out = new Int32Array(B * T);
  for (let b = 0; b < B; b++) {
    let count = past?.[b] ?? 0;
    for (let t = 0; t < T; t++) {
      if (attentionMask?.[b * T + t] !== 0) count++;
      out[b * T + t] = Math.max(0, count - 1);
    }
  }
  return out;
}

const DEFAULT_NEW_TOKENS = 100;

/** A model that predicts the next token: a body that answers hidden states, and a head. */
export abstract class CausalLM extends PretrainedModel {
  readonly peftTask = 'CAUSAL_LM';

  /** Hidden states [B, T, C] after the last norm. */
  protected abstract body(input: BodyInput): Tensor;
  /** Logits [.., V] of hidden states [.., C]. */
  protected abstract head(hidden: Tensor): Tensor;
  /** The weight [V, C] that the head multiplies by, where it does nothing else; else null. */
  protected abstract headWeight(): Tensor | null;
  /** A cache for `batch` sequences of at most `positions` positions. */
  abstract makeCache(batch: number, positions: number): KvCache;

  /** The most positions that a pass without a cache takes. */
  get positionLimit(): number {
    return this.maxPositions;
  }

  /** Sequences up to this length may use a cache: in longer ones all earlier keys change. */
  get cacheablePositions(): number {
    return this.maxPositions;
  }

  /** The batch's hidden states [B, T, C]; with a cache, of the positions after those it holds. */
  hidden(batch: TokenBatch, cache: KvCache | null = null): Tensor {
    const { batch: B, length: T } = batch;
    checkBatch(batch, this.vocabSize);
    const positions = countedPositions(batch, cache?.counts);
    const longest = positions.reduce((n, p) => Math.max(n, p), 0) + 1;
    const most = cache ? this.cacheablePositions : this.positionLimit;
    if (longest > most) throw failure('model', `at most ${most} positions`, `${longest}`);
    const { backend } = this;
    const past = cache?.length ?? 0;
    cache?.extend(batch);
    const mask = this.#keyMask(batch, cache);
    try {
      // The body finds the cache as it was before these positions.
      if (cache) cache.length = past;
      return this.body({
        ids: tensor(batch.inputIds, [B, T], { backend, dtype: 'i32' }),
        positions: tensor(positions, [B, T], { backend, dtype: 'i32' }),
        longest,
        mask,
        cache,
      });
    } finally {
      if (cache) cache.length = past + T;
    }
  }

  #keyMask(batch: TokenBatch, cache: KvCache | null): Tensor | null {
    const { backend } = this;
    if (cache) {
      const [B, places] = cache.shape;
      if (!cache.padded) return null;
      return tensor(cache.mask, [B, places], { backend, dtype: 'u8' });
    }
    const { attentionMask, batch: B, length: T } = batch;
    if (!attentionMask?.includes(0)) return null;
    return tensor(attentionMask, [B, T], { backend, dtype: 'u8' });
  }

  /** Logits [B, T, V] of every position. */
  logits(batch: TokenBatch): Tensor {
    return scope(() => this.head(this.hidden(batch)));
  }

  /** Logits [B, V] of the last position only. */
  lastLogits(batch: TokenBatch, cache: KvCache | null = null): Tensor {
    return scope(() => {
      const { batch: B, length: T } = batch;
      const rows = Int32Array.from({ length: B }, (_, b) => b * T + T - 1);
      return this.head(pickRows(this.hidden(batch, cache), rows));
    });
  }

  /**
   * The loss of predicting each labelled token from those before it: summed over the labels and
   * divided by `denominator`, by default their number, so that it is a mean. Only positions with a
   * label pass the head.
   */
  loss(batch: TokenBatch, denominator?: number): LossResult {
    checkBatch(batch, this.vocabSize);
    const { rows, labels } = shiftedLabels(batch);
    const tokens = rows.length;
    const { backend } = this;
    const loss = scope(() => {
      if (tokens === 0) return zeros([], { backend });
      const picked = pickRows(this.hidden(batch), rows);
      const targets = tensor(labels, [tokens], { backend, dtype: 'i32' });
      const factor = 1 / Math.max(1, denominator ?? tokens);
      const weight = this.headWeight();
      if (weight) return headLoss(picked, weight, targets, { factor });
      return scale(crossEntropy(this.head(picked), targets, { reduction: 'sum' }), factor);
    });
    return { loss, tokens };
  }

  protected override outputs(input: FlatInput): ForwardOutput {
    const { labels, tokenTypeIds, ...rest } = input;
    if (tokenTypeIds) throw failure('forward', 'no tokenTypeIds for a causal model', 'some');
    if (labels === undefined) return { logits: this.logits(rest), loss: null };
    const { batch: B, length: T } = input;
    const targets = shiftLeft(tokenLabels(labels, input), B, T, this.vocabSize);
    return scope(() => {
      const logits = this.logits(rest);
      const { backend } = this;
      const ids = tensor(targets.ids, [B * T], { backend, dtype: 'i32' });
      const flat = reshape(logits, [B * T, this.vocabSize]);
      const sum = crossEntropy(flat, ids, { reduction: 'sum' });
      return { logits, loss: scale(sum, 1 / Math.max(1, targets.count)) };
    });
  }

  override generate(prompt: Prompt, options: TextPromptOptions): TextStream;
  override generate(prompt: TokenPrompt, options?: IdOptions): TokenStream;
  override generate(
    prompt: Prompt,
    options: IdOptions | TextPromptOptions = {},
  ): TokenStream | TextStream {
    const start =
      typeof prompt === 'string' ? prompt : Array.from(wholeNumbers('generate prompt', prompt));
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    const { tokenizer, ...rest } = Object.fromEntries(given) as Partial<GenerateOptions> &
      Partial<TextPromptOptions>;
    if (tokenizer) return unhurried(textPieces(this, tokenizer, start, rest as TextOptions));
    if (typeof start === 'string') {
      const wayOut = 'Or encode the text first: generate(tokenizer.encode(text))';
      throw failure('generate', 'a tokenizer beside a prompt of text', 'none', wayOut);
    }
    const defaults = { maxNewTokens: DEFAULT_NEW_TOKENS, stopIds: this.origin?.eosIds ?? [] };
    const settings = { ...defaults, ...(rest as Partial<GenerateOptions>) };
    return unhurried(generateSteps(this, start, settings));
  }
}

/** Steps of a generation, between which other work runs, also where they have nothing to show. */
async function* unhurried<T, R>(steps: Generator<T | null, R>): AsyncGenerator<T, R, undefined> {
  try {
    for (;;) {
      const step = steps.next();
      if (step.done) return step.value;
      if (step.value !== null) yield step.value;
      await setImmediate();
    }
  } finally {
    // Frees the cache where this one is left before its end.
    steps.return(undefined as R);
  }
}

/**
 * The weight of a head that is a plain layer without a bias, or tied to a plain table; null where
 * an adapter in use has a part in it.
 * @param table of a tied head
 */
export function plainHead(head: Module | null, embedding: Module, table: Tensor): Tensor | null {
  if (head) {
    const idle = head instanceof LoraLinear && head.active.length === 0 && !head.rows;
    const plain = idle ? head.base : head;
    return plain instanceof Linear && plain.constructor === Linear && !plain.bias
      ? plain.weight
      : null;
  }
  // Of what adapters do to an embedding only rows trained for tokens change a tied head.
  const apart =
    embedding instanceof LoraEmbedding &&
    (embedding.rows ?? embedding.active).every(
      (name) => name === null || !embedding.branches.get(name)?.headChange,
    );
  const plain = apart ? embedding.base : embedding;
  return plain.constructor === Embedding ? table : null;
}

/** A causal model's labels [B, T] as they are given to `forward`. */
function tokenLabels(values: NonNullable<ForwardInput['labels']>, input: FlatInput): Int32Array {
  const where = 'forward labels';
  return wholeNumbers(where, flatValues(where, values, [input.batch, input.length]));
}

/** Rows of hidden states [B, T, C] by their place in [B·T], as [rows, C]. */
function pickRows(hidden: Tensor, rows: Int32Array): Tensor {
  const width = hidden.shape.at(-1) as number;
  const flat = reshape(hidden, [-1, width]);
  if (rows.length === flat.shape[0]) return flat;
  return embedding(flat, tensor(rows, [rows.length], { backend: hidden.backend, dtype: 'i32' }));
}

/** The places that predict a labelled token, and the labels: position t answers label t + 1. */
export function shiftedLabels(batch: TokenBatch): { rows: Int32Array; labels: Int32Array } {
  const { labels, batch: B, length: T } = batch;
  if (!labels) throw failure('loss', 'a batch with labels', 'none');
  const rows = new Int32Array(B * T);
  const values = new Int32Array(B * T);
  let count = 0;
  for (let b = 0; b < B; b++) {
    for (let at = b * T; at + 1 < (b + 1) * T; at++) {
      const label = labels[at + 1] as number;
      if (label === -100) continue;
      rows[count] = at;
      values[count++] = label;
    }
  }
  return { rows: rows.slice(0, count), labels: values.slice(0, count) };
}

/** What each position is to predict: the label after it, −100 at the end; and how many count. */
function shiftLeft(labels: Int32Array, B: number, T: number, vocabSize: number) {
  const wrong = labels.find((l) => l !== -100 && (l < 0 || l >= vocabSize));
  if (wrong !== undefined) {
    throw failure('forward labels', `ids of 0…${vocabSize - 1}, or −100`, String(wrong));
  }
  const ids = new Int32Array(B * T).fill(-100);
  for (let b = 0; b < B; b++) ids.set(labels.subarray(b * T + 1, (b + 1) * T), b * T);
  return { ids, count: ids.reduce((n, l) => n + (l === -100 ? 0 : 1), 0) };
}

function checkBatch(batch: TokenBatch, vocabSize: number): void {
  const { inputIds, attentionMask, labels, batch: B, length: T } = batch;
  const lengths = [inputIds, attentionMask, labels].filter((a) => a !== undefined);
  if (B < 1 || T < 1 || lengths.some((a) => a.length !== B * T)) {
    throw failure(
      'model',
      `arrays of ${shapeText([B, T])}, both at least 1`,
      lengths.map((a) => a.length).join(', '),
    );
  }
  for (let i = 0; i < inputIds.length; i++) {
    const id = inputIds[i] as number;
    if (id < 0 || id >= vocabSize) {
      throw failure(
        'model',
        `token ids of 0…${vocabSize - 1}`,
        String(id),
        'Is it this model’s tokenizer?',
      );
    }
  }
}
