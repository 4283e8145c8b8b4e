import { noGrad, scope } from '../autograd/index.js';
import { failure } from '../tensor/errors.js';
import { uniform } from '../tensor/random.js';
import type { CausalLM, TokenBatch } from './causal-lm.js';

/** How the next token is chosen. */
export interface SamplingOptions {
  /** 0: always the likeliest (greedy). Default 0. */
  readonly temperature?: number;
  /** Only the k likeliest; 0 for all. Default 0. */
  readonly topK?: number;
  /** Only the likeliest whose probabilities sum to this. Default 1. */
  readonly topP?: number;
  /** Divides the positive and multiplies the negative logits of tokens already seen. Default 1. */
  readonly repetitionPenalty?: number;
  /** Default 0. */
  readonly seed?: number;
}

/** Settings of {@link generate}. */
export interface GenerateOptions extends SamplingOptions {
  /** The most tokens to make. */
  readonly maxNewTokens: number;
  /** Ids at which to stop; they are not answered. */
  readonly stopIds?: readonly number[];
  /** False computes every token from the whole sequence again, for checking. Default true. */
  readonly useCache?: boolean;
  readonly signal?: AbortSignal;
}

const GENERATE_STREAM = 0x67656e;

function checkSampling(options: GenerateOptions): void {
  const { temperature = 0, topK = 0, topP = 1, repetitionPenalty = 1, maxNewTokens } = options;
  const bad = (name: string, expected: string, value: number) =>
    failure(`generate ${name}`, expected, String(value));
  if (!(temperature >= 0 && temperature < Infinity)) {
    throw bad('temperature', '0 or more', temperature);
  }
  if (!Number.isInteger(topK) || topK < 0) throw bad('topK', 'a whole number of 0 or more', topK);
  if (!(topP > 0 && topP <= 1)) throw bad('topP', '0 < p ≤ 1', topP);
  if (!(repetitionPenalty > 0)) throw bad('repetitionPenalty', 'more than 0', repetitionPenalty);
  if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1) {
    throw bad('maxNewTokens', 'a whole number of 1 or more', maxNewTokens);
  }
}

/** The next token's id from the logits [V] of the last position; `count` and `row` address its random number. */
export function chooseToken(
  logits: Float32Array,
  seen: Iterable<number>,
  options: SamplingOptions,
  count: number,
  row = 0,
): number {
  const { temperature = 0, topK = 0, topP = 1, repetitionPenalty = 1, seed = 0 } = options;
  const scores = Float64Array.from(logits);
  if (repetitionPenalty !== 1) {
    for (const id of new Set(seen)) {
      const s = scores[id] as number;
      scores[id] = s > 0 ? s / repetitionPenalty : s * repetitionPenalty;
    }
  }
  const best = scores.reduce((b, s, i) => (s > (scores[b] as number) ? i : b), 0);
  if (!Number.isFinite(scores[best] as number)) {
    throw failure('generate', 'finite logits', String(scores[best]));
  }
  if (temperature === 0) return best;
  const top = scores[best] as number;
  const order = Array.from(scores, (s, i) => ({ i, p: Math.exp((s - top) / temperature) }));
  order.sort((a, b) => b.p - a.p || a.i - b.i);
  const kept = topK > 0 ? order.slice(0, topK) : order;
  const total = kept.reduce((n, { p }) => n + p, 0);
  let mass = 0;
  let size = 0;
  while (size < kept.length && (size === 0 || mass < topP * total)) {
    mass += (kept[size++] as { p: number }).p;
  }
  let u = (uniform({ seed, stream: GENERATE_STREAM + row }, 1, count)[0] as number) * mass;
  for (let i = 0; i < size; i++) {
    u -= (kept[i] as { p: number }).p;
    if (u < 0) return (kept[i] as { i: number }).i;
  }
  return (kept[size - 1] as { i: number }).i;
}

/** One row of a batch that is being continued. */
interface Row {
  readonly ids: number[];
  /** Length at which it ends. */
  readonly most: number;
  done: boolean;
}

function rowsOf(model: CausalLM, prompts: readonly (readonly number[])[], maxNew: number): Row[] {
  return prompts.map((prompt) => {
    if (prompt.length === 0 || prompt.length >= model.maxPositions) {
      const expected = `a prompt of 1…${model.maxPositions - 1} tokens`;
      throw failure('generate', expected, `${prompt.length}`);
    }
    const most = Math.min(prompt.length + maxNew, model.maxPositions);
    return { ids: [...prompt], most, done: false };
  });
}

/** The last `width` tokens of each row, padding before those that have fewer; nothing of the done. */
function paddedBatch(rows: readonly Row[], width: number): TokenBatch {
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

/** Continues prompts together; each step answers one id a row, null for a row that has ended. */
function* continueRows(
  model: CausalLM,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions,
): Generator<(number | null)[]> {
  checkSampling(options);
  const { maxNewTokens, stopIds = [], useCache = true, signal } = options;
  const rows = rowsOf(model, prompts, maxNewTokens);
  const longest = () => rows.reduce((n, { ids, done }) => Math.max(n, done ? 0 : ids.length), 0);
  const width = longest();
  let cache = useCache && width > 0 ? model.makeCache(rows.length, width + maxNewTokens) : null;
  try {
    for (let count = 0; rows.some((r) => !r.done) && !signal?.aborted; count++) {
      // Past this length a cached key is no longer what the whole sequence would give.
      if (cache && longest() > model.cacheablePositions) {
        cache.dispose();
        cache = null;
      }
      const fresh = cache && count > 0 ? 1 : longest();
      const input = paddedBatch(rows, fresh);
      const logits = noGrad(() =>
        scope(() => model.lastLogits(input, cache).toArray() as Float32Array),
      );
      const V = model.vocabSize;
      yield rows.map((row, b) => {
        if (row.done) return null;
        const own = logits.subarray(b * V, (b + 1) * V);
        const id = chooseToken(own, row.ids, options, count, b);
        row.done = stopIds.includes(id);
        if (row.done) return null;
        row.ids.push(id);
        row.done = row.ids.length >= row.most;
        return id;
      });
    }
  } finally {
    cache?.dispose();
  }
}

/**
 * Continues a prompt token by token: with a key-value cache, so that each token costs one position.
 * Ends at a stop id, at `maxNewTokens`, or when the model's positions are full.
 * @param prompt ids, at least one and fewer than the model's positions
 */
export function* generate(
  model: CausalLM,
  prompt: readonly number[],
  options: GenerateOptions,
): Generator<number> {
  for (const [id] of continueRows(model, [prompt], options)) {
    if (id !== null && id !== undefined) yield id;
  }
}

/**
 * Continues several prompts, of any lengths, together; each as {@link generate} would alone (when
 * sampling, each row draws its own random numbers). Answers the new ids, a list a prompt.
 */
export function generateBatch(
  model: CausalLM,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions,
): number[][] {
  const out: number[][] = prompts.map(() => []);
  for (const step of continueRows(model, prompts, options)) {
    step.forEach((id, b) => {
      if (id !== null) out[b]?.push(id);
    });
  }
  return out;
}
