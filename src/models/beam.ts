import { failure } from '../tensor/errors.js';
import type { CausalLM } from './causal-lm.js';
import { Decoder } from './decoder.js';
import { checkWhole, penalize, type SamplingOptions } from './sampling.js';

/** How beam search goes. */
export interface BeamOptions {
  /** Continuations that are followed at once; 1 for no beam search. Default 1. */
  readonly numBeams?: number;
  /**
   * A continuation of n tokens, the stop id among them, scores its log-probability over n to this
   * power: above 0 favours longer ones. Default 1.
   */
  readonly lengthPenalty?: number;
  /**
   * When to stop. False: once the best open beam, at its present length, would not enter the
   * `numBeams` complete ones; true: once there are that many; 'never': once no open beam could
   * enter at any length. As in transformers. Default false.
   */
  readonly earlyStopping?: boolean | 'never';
}

/** The names of {@link BeamOptions}. */
export const BEAM_SETTINGS: readonly string[] = Object.keys({
  numBeams: true,
  lengthPenalty: true,
  earlyStopping: true,
} satisfies Record<keyof BeamOptions, true>);

/** Why a continuation ended: at a stop id, where `stopWhen` said so, with its tokens or the model's
 * positions used up, or by the signal. */
export type EndReason = 'eos' | 'stop' | 'length' | 'positions' | 'aborted';

/** A continuation that beam search found. */
export interface Hypothesis {
  /** The new ids, without the stop id. */
  readonly ids: number[];
  /** Its log-probability, in nats, over its length to the power of `lengthPenalty`. */
  readonly score: number;
  readonly reason: EndReason;
}

/** A prompt, and how far it may go. */
export interface BeamPrompt {
  readonly ids: readonly number[];
  /** Most new tokens. */
  readonly most: number;
  /** Why it ends after as many. */
  readonly full: 'length' | 'positions';
}

/** What {@link beamSteps} is given. */
export interface BeamSettings extends BeamOptions, SamplingOptions {
  readonly stopIds: readonly number[];
  readonly stopWhen?: ((ids: readonly number[]) => boolean) | undefined;
  readonly useCache: boolean;
  readonly signal?: AbortSignal | undefined;
}

/** @throws on a setting that is out of range, or that does nothing beside the others */
export function checkBeams(options: BeamOptions & SamplingOptions): void {
  const { numBeams = 1, lengthPenalty = 1, earlyStopping = false, temperature = 0 } = options;
  checkWhole('numBeams', numBeams, 1);
  if (!Number.isFinite(lengthPenalty)) {
    throw failure('generate lengthPenalty', 'a finite number', String(lengthPenalty));
  }
  if (typeof earlyStopping !== 'boolean' && earlyStopping !== 'never') {
    throw failure('generate earlyStopping', 'true, false or "never"', String(earlyStopping));
  }
  if (numBeams > 1) {
    if (temperature === 0) return;
    const wayOut = 'Beam search takes the likeliest; sample without beams';
    throw failure('generate temperature', 'none beside numBeams', String(temperature), wayOut);
  }
  const idle = { lengthPenalty: lengthPenalty !== 1, earlyStopping: earlyStopping !== false };
  for (const [name, given] of Object.entries(idle)) {
    if (given) throw failure(`generate ${name}`, 'numBeams above 1 beside it', String(numBeams));
  }
}

/** A continuation that may go on. */
interface Beam {
  /** Prompt and new ids. */
  readonly ids: number[];
  /** Log-probability of the new ids. */
  readonly score: number;
  /** The row of the beams before that it goes on from. */
  readonly from: number;
}

/** One of the best continuations by one token, of all the beams of a prompt. */
interface Candidate extends Beam {
  readonly reason: EndReason | null;
}

/**
 * Far below any score. It keeps equal beams out at the first step, and ended candidates out of the
 * open beams.
 */
const OUT = -1e9;

/** The beams of one prompt. The steps are those of transformers 5, whose results it has. */
class PromptBeams {
  beams: Beam[];
  done: boolean;
  /** Complete ones, the best first; at most as many as there are beams. */
  readonly complete: Hypothesis[] = [];
  readonly #settings: BeamSettings;
  readonly #numBeams: number;

  constructor(
    readonly prompt: BeamPrompt,
    settings: BeamSettings,
  ) {
    this.#settings = settings;
    this.#numBeams = settings.numBeams ?? 1;
    this.beams = Array.from({ length: this.#numBeams }, (_, from) => ({
      ids: [...prompt.ids],
      score: from === 0 ? 0 : OUT,
      from,
    }));
    this.done = prompt.most === 0;
  }

  /** Goes one token on. @param logits [beams · V] */
  step(logits: Float32Array): void {
    const { lengthPenalty = 1, earlyStopping = false } = this.#settings;
    const n = this.#numBeams;
    const candidates = this.#candidates(logits);
    const open = candidates
      .map((c) => (c.reason ? { ...c, score: c.score + OUT } : c))
      .sort((a, b) => b.score - a.score);
    this.beams = open.slice(0, n);
    const length = this.#newTokens();
    const isFull = () => this.complete.length === n;
    if (!(earlyStopping === true && isFull())) {
      // Only what is among the best may end; the others are there to go on if those all end.
      for (const c of candidates.slice(0, n)) if (c.reason) this.#end(c, c.reason, length);
    }
    const reach = earlyStopping === 'never' && lengthPenalty > 0 ? this.prompt.most : length;
    const best = (this.beams[0] as Beam).score / reach ** lengthPenalty;
    const worst = isFull() ? (this.complete.at(-1) as Hypothesis).score : OUT;
    this.done =
      !(best > worst) ||
      (earlyStopping === true && isFull()) ||
      candidates.every((c) => c.reason !== null);
  }

  /** New tokens of each beam. */
  #newTokens(): number {
    return (this.beams[0] as Beam).ids.length - this.prompt.ids.length;
  }

  #end(c: Candidate, reason: EndReason, length: number): void {
    const score = c.score / length ** (this.#settings.lengthPenalty ?? 1);
    if (!(score > OUT)) return;
    const ids = c.ids.slice(this.prompt.ids.length, reason === 'eos' ? -1 : undefined);
    this.complete.push({ ids, score, reason });
    this.complete.sort((a, b) => b.score - a.score);
    this.complete.length = Math.min(this.complete.length, this.#numBeams);
  }

  /** As many of the best as leave enough to go on where every stop id is among them. */
  #candidates(logits: Float32Array): Candidate[] {
    const { stopIds } = this.#settings;
    const V = logits.length / this.#numBeams;
    const count = Math.max(2, 1 + stopIds.length) * this.#numBeams;
    if (count > logits.length) {
      throw failure('generate stopIds', `fewer than the ${V} tokens there are`, `${stopIds}`);
    }
    const best = new Best(count);
    this.beams.forEach(({ ids, score }, b) => {
      const scores = logSoftmax(logits.subarray(b * V, (b + 1) * V));
      penalize(scores, ids, this.#settings);
      for (let id = 0; id < V; id++) best.offer(score + (scores[id] as number), b * V + id);
    });
    return best.places.map((place, i) => {
      const from = Math.floor(place / V);
      const ids = [...(this.beams[from] as Beam).ids, place % V];
      return { ids, score: best.scores[i] as number, from, reason: this.#reason(ids) };
    });
  }

  #reason(ids: readonly number[]): EndReason | null {
    const { stopIds, stopWhen } = this.#settings;
    const { prompt } = this;
    if (stopIds.includes(ids.at(-1) as number)) return 'eos';
    if (stopWhen?.(ids.slice(prompt.ids.length))) return 'stop';
    return ids.length - prompt.ids.length >= prompt.most ? prompt.full : null;
  }

  /** The complete ones, the best first; where it was stopped before there is one, the open ones. */
  results(): Hypothesis[] {
    if (this.complete.length > 0) return this.complete;
    const length = this.#newTokens();
    const reason = length === this.prompt.most ? this.prompt.full : 'aborted';
    const open = this.beams.filter(({ score }) => score > OUT / 2);
    if (open.length === 0) {
      const wayOut = 'A larger noRepeatNgramSize leaves more';
      throw failure('generate', 'a continuation', 'none: every token is ruled out', wayOut);
    }
    return open.map(({ ids, score }) => ({
      ids: ids.slice(this.prompt.ids.length),
      score: score / Math.max(1, length) ** (this.#settings.lengthPenalty ?? 1),
      reason,
    }));
  }
}

/** The largest of many scores, in order; of equals those that came first. */
class Best {
  readonly scores: number[] = [];
  readonly places: number[] = [];

  constructor(readonly count: number) {}

  offer(score: number, place: number): void {
    const { scores, places, count } = this;
    if (scores.length === count && !(score > (scores[count - 1] as number))) return;
    let at = Math.min(scores.length, count - 1);
    for (; at > 0 && score > (scores[at - 1] as number); at--) {
      scores[at] = scores[at - 1] as number;
      places[at] = places[at - 1] as number;
    }
    scores[at] = score;
    places[at] = place;
  }
}

/** log softmax of one row [V]. @throws where there is no finite score or a NaN */
function logSoftmax(logits: Float32Array): Float64Array {
  let top = -Infinity;
  for (const v of logits) top = Math.max(top, v);
  let sum = 0;
  for (const v of logits) sum += Math.exp(v - top);
  const shift = top + Math.log(sum);
  if (!Number.isFinite(shift)) throw failure('generate', 'finite logits', String(shift));
  return Float64Array.from(logits, (v) => v - shift);
}

/**
 * Beam search on several prompts at once, each as it would be alone; yields after each step, so
 * that a caller may let other work run, and returns for each prompt at most `numBeams`
 * continuations, the best first.
 */
export function* beamSteps(
  model: CausalLM,
  prompts: readonly BeamPrompt[],
  settings: BeamSettings,
): Generator<void, Hypothesis[][]> {
  const items = prompts.map((prompt) => new PromptBeams(prompt, settings));
  const n = settings.numBeams ?? 1;
  const V = model.vocabSize;
  const decoder = new Decoder(model, settings.useCache);
  try {
    for (let first = true; items.some((item) => !item.done); first = false) {
      if (settings.signal?.aborted) break;
      // The beams of a prompt are all the same at first.
      const rows = items.flatMap(({ beams, done }) =>
        (first ? beams.slice(0, 1) : beams).map(({ ids }) => ({ ids, done })),
      );
      const logits = decoder.next(rows);
      items.forEach((item, i) => {
        if (item.done) return;
        if (first) item.step(repeated(logits.subarray(i * V, (i + 1) * V), n));
        else item.step(logits.subarray(i * n * V, (i + 1) * n * V));
      });
      const from = items.flatMap(({ beams, done }, i) =>
        beams.map((beam, b) => (first ? i : i * n + (done ? b : beam.from))),
      );
      decoder.reorder(Int32Array.from(from));
      yield;
    }
    return items.map((item) => item.results());
  } finally {
    decoder.dispose();
  }
}

function repeated(row: Float32Array, times: number): Float32Array {
  const out = new Float32Array(times * row.length);
  for (let i = 0; i < times; i++) out.set(row, i * row.length);
  return out;
}
