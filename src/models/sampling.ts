import { failure } from '../tensor/errors.js';
import { uniform } from '../tensor/random.js';

/** How the next token is chosen. */
export interface SamplingOptions {
  /** Divides the scores before they become probabilities; 0: always the likeliest. Default 0. */
  readonly temperature?: number;
  /** Only the k likeliest, and those as likely as the last of them; 0 for all. Default 0. */
  readonly topK?: number;
  /** Only the likeliest whose probabilities sum to this, after topK. Default 1. */
  readonly topP?: number;
  /**
   * Divides the positive and multiplies the negative scores of the tokens in prompt and
   * continuation (CTRL, Keskar et al., 2019). Default 1.
   */
  readonly repetitionPenalty?: number;
  /** No n tokens may follow each other twice, those of the prompt included; 0: they may. Default 0. */
  readonly noRepeatNgramSize?: number;
  /** Of the choice, where there is a temperature. Default 0. */
  readonly seed?: number;
}

/** The names of {@link SamplingOptions}. */
export const SAMPLING_SETTINGS: readonly string[] = Object.keys({
  temperature: true,
  topK: true,
  topP: true,
  repetitionPenalty: true,
  noRepeatNgramSize: true,
  seed: true,
} satisfies Record<keyof SamplingOptions, true>);

const GENERATE_STREAM = 0x67656e;

/** Throws unless a setting is a whole number of at least `least`. */
export function checkWhole(name: string, value: number, least: number): void {
  if (Number.isSafeInteger(value) && value >= least) return;
  throw failure(`generate ${name}`, `a whole number of ${least} or more`, String(value));
}

/** @throws on a setting that is out of range, or that does nothing beside the others */
export function checkSampling(options: SamplingOptions): void {
  const { temperature = 0, topK = 0, topP = 1, seed } = options;
  const { repetitionPenalty = 1, noRepeatNgramSize = 0 } = options;
  const check = (name: string, ok: boolean, expected: string, value: unknown) => {
    if (!ok) throw failure(`generate ${name}`, expected, String(value));
  };
  check('temperature', temperature >= 0 && temperature < Infinity, '0 or more', temperature);
  check('topP', topP > 0 && topP <= 1, '0 < p ≤ 1', topP);
  const fine = repetitionPenalty > 0 && repetitionPenalty < Infinity;
  check('repetitionPenalty', fine, 'more than 0', repetitionPenalty);
  checkWhole('topK', topK, 0);
  checkWhole('noRepeatNgramSize', noRepeatNgramSize, 0);
  checkWhole('seed', seed ?? 0, 0);
  if (temperature > 0) return;
  const idle = { topK: topK > 0, topP: topP < 1, seed: seed !== undefined };
  for (const [name, given] of Object.entries(idle)) {
    if (!given) continue;
    const wayOut = 'Without one the likeliest token is taken';
    throw failure(`generate ${name}`, 'a temperature above 0 beside it', 'none', wayOut);
  }
}

/** Rules out each token that would end n tokens that are in `ids` already. */
function banRepeats(scores: Float64Array, ids: readonly number[], n: number): void {
  const tail = ids.length - n + 1;
  for (let at = 0; at < tail; at++) {
    let same = true;
    for (let i = 0; same && i < n - 1; i++) same = ids[at + i] === ids[tail + i];
    if (same) scores[ids[at + n - 1] as number] = -Infinity;
  }
}

/**
 * Applies the repetition penalty, then the ban of repeated n-grams, in place; the order is that of
 * transformers.
 * @param scores logits or log-probabilities [V]
 * @param ids prompt and continuation
 */
export function penalize(
  scores: Float64Array,
  ids: readonly number[],
  { repetitionPenalty: penalty = 1, noRepeatNgramSize: n = 0 }: SamplingOptions,
): void {
  if (penalty !== 1) {
    for (const id of new Set(ids)) {
      const s = scores[id] as number;
      scores[id] = s < 0 ? s * penalty : s / penalty;
    }
  }
  if (n > 0) banRepeats(scores, ids, n);
}

/** The place of the largest score, the first of equals. @throws when none is finite */
export function likeliest(scores: Float64Array): number {
  let best = 0;
  for (let i = 0; i < scores.length; i++) {
    const s = scores[i] as number;
    if (Number.isNaN(s)) throw failure('generate', 'finite logits', 'NaN');
    if (s > (scores[best] as number)) best = i;
  }
  const top = scores[best] as number;
  if (Number.isFinite(top)) return best;
  throw failure(
    'generate',
    'a finite score of some token',
    top === -Infinity ? 'none: every token is ruled out' : String(top),
    top === -Infinity ? 'A larger noRepeatNgramSize leaves more' : undefined,
  );
}

/**
 * The token that a uniform number in [0, 1) falls on, the likelier ones first.
 * @param scores [V], penalties applied
 */
export function pick(
  scores: Float64Array,
  { temperature = 1, topK = 0, topP = 1 }: SamplingOptions,
  u: number,
): number {
  const top = scores[likeliest(scores)] as number;
  const weights = scores.map((s) => Math.exp((s - top) / temperature));
  const V = weights.length;
  const sorted = weights.slice().sort();
  const ranked = (rank: number) => sorted[V - 1 - rank] as number;
  let size = topK > 0 ? Math.min(topK, V) : V;
  while (size < V && ranked(size) === ranked(size - 1)) size++;
  let total = 0;
  for (let r = 0; r < size; r++) total += ranked(r);
  if (topP < 1) {
    const most = topP * total;
    total = 0;
    let kept = 0;
    while (kept < size && (kept === 0 || total < most)) total += ranked(kept++);
    size = kept;
  }
  // What is ruled out may not be reached by rounding.
  while (size > 1 && ranked(size - 1) === 0) size--;
  let rank = 0;
  for (let left = u * total; rank < size - 1; rank++) {
    left -= ranked(rank);
    if (left < 0) break;
  }
  // Of equals the one with the smaller id has the smaller rank.
  let before = 0;
  while (before < rank && ranked(rank - before - 1) === ranked(rank)) before++;
  let id = weights.indexOf(ranked(rank));
  for (; before > 0; before--) id = weights.indexOf(ranked(rank), id + 1);
  return id;
}

/**
 * The next token's id.
 * @param logits [V] of the last position
 * @param ids prompt and continuation so far
 * @param count addresses its random number, together with `row`
 */
export function chooseToken(
  logits: Float32Array,
  ids: readonly number[],
  options: SamplingOptions,
  count: number,
  row = 0,
): number {
  const { temperature = 0, seed = 0 } = options;
  const scores = Float64Array.from(logits);
  penalize(scores, ids, options);
  if (temperature === 0) return likeliest(scores);
  const u = uniform({ seed, stream: GENERATE_STREAM + row }, 1, count)[0] as number;
  return pick(scores, options, u);
}
