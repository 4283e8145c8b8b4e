import type { Tokenizer } from '../io/tokenizer.js';
import { failure } from '../tensor/errors.js';
import type { CausalLM } from './causal-lm.js';
import { type Ended, type GenerateOptions, generateSteps, withoutPauses } from './generate.js';
import { checkStops, StopScanner } from './stop.js';

/** Settings of {@link generateText}; every other one as for `generate`. */
export interface TextOptions
  extends Omit<GenerateOptions, 'maxNewTokens' | 'stopIds' | 'stopWhen'> {
  /** The most tokens to make. Default 100. */
  readonly maxNewTokens?: number;
  /** Ids at which to stop; default the tokenizer's own. */
  readonly stopIds?: readonly number[];
  /**
   * Texts at which to stop, wherever tokens begin and end in them; they are not part of the
   * continuation. The prompt is not searched. Default none.
   */
  readonly stop?: readonly string[];
}

/** Ids of a prompt as training sees one: with the bos where the tokenizer adds it, and no eos. */
export function promptIds(tokenizer: Tokenizer, prompt: string): number[] {
  const ids = tokenizer.encode(prompt, { addSpecialTokens: false });
  const start = tokenizer.addsBos || ids.length === 0 ? tokenizer.bosId : null;
  const all = start === null ? ids : [start, ...ids];
  if (all.length > 0) return all;
  throw failure('generate prompt', 'text', 'none', 'This tokenizer has no bos token to begin with');
}

/** One step of {@link textSteps}. */
export interface TextStep {
  /** The token; null at the end, when only text was left. */
  readonly id: number | null;
  /** The text that is certain now, '' where it is held back. */
  readonly text: string;
}

/** Special tokens leave no text, so that a stop string that is one must be seen by its id. */
function stopTokens(tokenizer: Tokenizer, stop: readonly string[]): number[] {
  return stop.flatMap((s) => {
    const id = tokenizer.tokenId(s);
    return id !== undefined && tokenizer.decode([id]) === '' ? [id] : [];
  });
}

/**
 * Continues a prompt, token by token, with the text that each token completes: whole characters
 * that cannot be part of a stop string.
 * @param prompt text, which gets the bos where the tokenizer adds it; or ids, taken as they are
 * @returns the generator returns how it ended
 * @throws at once, as `generate`
 */
export function textSteps(
  model: CausalLM,
  tokenizer: Tokenizer,
  prompt: string | readonly number[],
  options: TextOptions = {},
): Generator<TextStep, Ended> {
  return withoutPauses(pausingSteps(model, tokenizer, prompt, options));
}

/** The same, with a null for every step of a beam search, as `generateSteps`. */
function pausingSteps(
  model: CausalLM,
  tokenizer: Tokenizer,
  prompt: string | readonly number[],
  options: TextOptions,
): Generator<TextStep | null, Ended> {
  const { maxNewTokens = 100, stopIds = tokenizer.eosIds, stop = [], ...rest } = options;
  checkStops(stop);
  const ids = typeof prompt === 'string' ? promptIds(tokenizer, prompt) : prompt;
  const special = stopTokens(tokenizer, stop);
  const settings = { ...rest, maxNewTokens, stopIds: [...new Set([...stopIds, ...special])] };
  const beams = (options.numBeams ?? 1) > 1;
  if (!beams || stop.length === 0) {
    return withText(generateSteps(model, ids, settings), tokenizer, stop, beams);
  }
  // A beam is complete at a stop string: nothing comes after it.
  const stopWhen = (newIds: readonly number[]) => {
    const text = tokenizer.decode(newIds, { skipUnknown: true });
    return stop.some((s) => text.includes(s));
  };
  return withText(generateSteps(model, ids, { ...settings, stopWhen }), tokenizer, stop, true);
}

/** @param atOnce all ids are there at the first step, and none after a stop string */
function* withText(
  ids: Generator<number | null, Ended>,
  tokenizer: Tokenizer,
  stop: readonly string[],
  atOnce: boolean,
): Generator<TextStep | null, Ended> {
  const stream = tokenizer.decodeStream();
  const scanner = new StopScanner(stop);
  const ended: Ended = { reason: 'stop', score: null };
  try {
    for (;;) {
      const step = ids.next();
      if (step.done) {
        const rest = scanner.push(stream.end()) + scanner.end();
        if (rest !== '') yield { id: null, text: rest };
        return scanner.found === null ? step.value : { ...step.value, reason: 'stop' };
      }
      if (step.value === null) {
        yield null;
        continue;
      }
      yield { id: step.value, text: scanner.push(stream.push(step.value)) };
      if (scanner.found !== null && !atOnce) return ended;
    }
  } finally {
    // Frees the cache where this one is left before its end.
    ids.return(ended);
  }
}

/**
 * Continues a prompt, text piece by piece as it comes; the pieces joined are the continuation.
 * @param prompt text, or ids (of a chat, say: see `chatPrompt`)
 * @throws at once, as `generate`
 */
export function streamText(
  model: CausalLM,
  tokenizer: Tokenizer,
  prompt: string | readonly number[],
  options: TextOptions = {},
): Generator<string, Ended> {
  return withoutPauses(textPieces(model, tokenizer, prompt, options));
}

/** The same, with a null for every step that completes no text, as `generateSteps`. */
export function textPieces(
  model: CausalLM,
  tokenizer: Tokenizer,
  prompt: string | readonly number[],
  options: TextOptions = {},
): Generator<string | null, Ended> {
  return piecesOf(pausingSteps(model, tokenizer, prompt, options));
}

function* piecesOf(steps: Generator<TextStep | null, Ended>): Generator<string | null, Ended> {
  try {
    for (;;) {
      const step = steps.next();
      if (step.done) return step.value;
      yield step.value?.text || null;
    }
  } finally {
    steps.return({ reason: 'aborted', score: null });
  }
}

/**
 * The continuation of a prompt, without the prompt. Greedy unless a temperature is given.
 * @param prompt text, or ids
 * @throws when the prompt leaves no room in the model's positions, or a setting is out of range
 */
export function generateText(
  model: CausalLM,
  tokenizer: Tokenizer,
  prompt: string | readonly number[],
  options: TextOptions = {},
): string {
  return [...streamText(model, tokenizer, prompt, options)].join('');
}
