import { failure, onlyKnown } from '../tensor/errors.js';
import {
  BEAM_SETTINGS,
  type BeamOptions,
  type BeamPrompt,
  beamSteps,
  checkBeams,
  type EndReason,
  type Hypothesis,
} from './beam.js';
import type { CausalLM } from './causal-lm.js';
import { Decoder } from './decoder.js';
import {
  checkSampling,
  checkWhole,
  chooseToken,
  SAMPLING_SETTINGS,
  type SamplingOptions,
} from './sampling.js';

export type { SamplingOptions } from './sampling.js';

/** Settings of {@link generate}. */
export interface GenerateOptions extends SamplingOptions, BeamOptions {
  /** The most tokens to make. */
  readonly maxNewTokens: number;
  /** Ids at which to stop; they are not answered. */
  readonly stopIds?: readonly number[];
  /** Asked after every token with the new ids so far; true ends there, that token included. */
  readonly stopWhen?: (newIds: readonly number[]) => boolean;
  /** False computes every token from the whole sequence again, for checking. Default true. */
  readonly useCache?: boolean;
  /** Ends after the token at hand; a beam search then answers the best it has. */
  readonly signal?: AbortSignal;
}

/** How a continuation ended. */
export interface Ended {
  readonly reason: EndReason;
  /** Of a beam search: see {@link Hypothesis}; else null. */
  readonly score: number | null;
}

const SETTINGS: readonly string[] = [
  ...SAMPLING_SETTINGS,
  ...BEAM_SETTINGS,
  ...['maxNewTokens', 'stopIds', 'stopWhen', 'useCache', 'signal'],
];

/** @throws on a setting that is misspelt, out of range, or that does nothing beside the others */
function checkOptions(options: GenerateOptions): void {
  onlyKnown('generate', options, SETTINGS);
  checkWhole('maxNewTokens', options.maxNewTokens, 1);
  for (const id of options.stopIds ?? []) checkWhole('stopIds', id, 0);
  checkBeams(options);
  checkSampling(options);
}

/** One row of a batch that is being continued. */
interface Row extends BeamPrompt {
  readonly ids: number[];
  readonly prompt: number;
  done: boolean;
  reason: EndReason;
}

function rowsOf(
  model: CausalLM,
  prompts: readonly (readonly number[])[],
  { maxNewTokens }: GenerateOptions,
): Row[] {
  return prompts.map((ids) => {
    if (ids.length === 0 || ids.length >= model.maxPositions) {
      const expected = `a prompt of 1…${model.maxPositions - 1} tokens`;
      throw failure('generate', expected, `${ids.length}`);
    }
    const room = model.maxPositions - ids.length;
    const full = maxNewTokens <= room ? 'length' : 'positions';
    const most = Math.min(maxNewTokens, room);
    return { ids: [...ids], prompt: ids.length, most, full, done: false, reason: 'aborted' };
  });
}

/** Adds a token to a row; answers it where it is not the end. */
function extendRow(row: Row, id: number, { stopIds = [], stopWhen }: GenerateOptions) {
  const end = (reason: EndReason) => {
    row.done = true;
    row.reason = reason;
  };
  if (stopIds.includes(id)) {
    end('eos');
    return null;
  }
  row.ids.push(id);
  if (stopWhen?.(row.ids.slice(row.prompt))) end('stop');
  else if (row.ids.length - row.prompt >= row.most) end(row.full);
  return id;
}

/** Continues rows together; each step answers one id a row, null for a row that has ended. */
function* continueRows(
  model: CausalLM,
  rows: readonly Row[],
  options: GenerateOptions,
): Generator<(number | null)[]> {
  const decoder = new Decoder(model, options.useCache ?? true);
  const V = model.vocabSize;
  try {
    for (let count = 0; rows.some((r) => !r.done) && !options.signal?.aborted; count++) {
      const logits = decoder.next(rows);
      yield rows.map((row, b) => {
        if (row.done) return null;
        const own = logits.subarray(b * V, (b + 1) * V);
        return extendRow(row, chooseToken(own, row.ids, options, count, b), options);
      });
    }
  } finally {
    decoder.dispose();
  }
}

function searchRows(model: CausalLM, rows: readonly Row[], options: GenerateOptions) {
  const stopIds = [...new Set(options.stopIds)];
  return beamSteps(model, rows, { ...options, stopIds, useCache: options.useCache ?? true });
}

/**
 * Steps between which other work may run, without those that have no token (null) to show.
 */
export function* withoutPauses<T, R>(steps: Generator<T | null, R>): Generator<T, R> {
  let ended = false;
  try {
    for (;;) {
      const step = steps.next();
      if (step.done) {
        ended = true;
        return step.value;
      }
      if (step.value !== null) yield step.value;
    }
  } finally {
    // Frees the cache where this one is left before its end.
    if (!ended) steps.return(undefined as R);
  }
}

function* oneByOne(model: CausalLM, row: Row, options: GenerateOptions): Generator<number, Ended> {
  for (const [id] of continueRows(model, [row], options)) {
    if (id !== null && id !== undefined) yield id;
  }
  return { reason: row.reason, score: null };
}

function* ofBestBeam(
  model: CausalLM,
  row: Row,
  options: GenerateOptions,
): Generator<number | null, Ended> {
  const search = searchRows(model, [row], options);
  let found: Hypothesis[][] = [];
  try {
    for (;;) {
      const step = search.next();
      if (step.done) {
        found = step.value;
        break;
      }
      yield null;
    }
  } finally {
    search.return([]);
  }
  const { ids, score, reason } = (found[0] as Hypothesis[])[0] as Hypothesis;
  yield* ids;
  return { reason, score };
}

function runToEnd<T>(steps: Generator<unknown, T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/**
 * Continues a prompt token by token: with a key-value cache, so that each token costs one position.
 * Ends at a stop id, where `stopWhen` says so, at `maxNewTokens`, or when the model's positions are
 * full. With `numBeams` above 1 the tokens of the best beam come when the search is over.
 * @param prompt ids, at least one and fewer than the model's positions
 * @returns the new ids as they are made; the generator returns how it ended
 * @throws at once on a setting that is misspelt, out of range or idle, or a prompt without room
 */
export function generate(
  model: CausalLM,
  prompt: readonly number[],
  options: GenerateOptions,
): Generator<number, Ended> {
  return withoutPauses(generateSteps(model, prompt, options));
}

/**
 * The same, with a null for every step of a beam search, which has no token before its end: a
 * caller may let other work run there.
 */
export function generateSteps(
  model: CausalLM,
  prompt: readonly number[],
  options: GenerateOptions,
): Generator<number | null, Ended> {
  checkOptions(options);
  const [row] = rowsOf(model, [prompt], options) as [Row];
  const beams = (options.numBeams ?? 1) > 1;
  return beams ? ofBestBeam(model, row, options) : oneByOne(model, row, options);
}

/**
 * Continues several prompts, of any lengths, together; each as {@link generate} would alone (when
 * sampling, each row draws its own random numbers). Answers the new ids, a list a prompt.
 * @throws as {@link generate}
 */
export function generateBatch(
  model: CausalLM,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions,
): number[][] {
  checkOptions(options);
  const rows = rowsOf(model, prompts, options);
  if ((options.numBeams ?? 1) > 1) {
    return runToEnd(searchRows(model, rows, options)).map(([best]) => (best as Hypothesis).ids);
  }
  runToEnd(continueRows(model, rows, options));
  return rows.map((row) => row.ids.slice(row.prompt));
}

/**
 * Beam search on several prompts, of any lengths, together; as transformers does it, each prompt
 * as it would be alone. Answers for each at most `numBeams` continuations, the best first.
 * @throws as {@link generate}, and when `numBeams` is not above 1
 */
export function beamSearch(
  model: CausalLM,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions & { readonly numBeams: number },
): Hypothesis[][] {
  checkOptions(options);
  if (options.numBeams < 2) {
    throw failure('beamSearch numBeams', '2 or more', String(options.numBeams));
  }
  return runToEnd(searchRows(model, rowsOf(model, prompts, options), options));
}
