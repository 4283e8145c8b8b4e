import type { Tokenizer } from '../io/tokenizer.js';
import { failure } from '../tensor/errors.js';
import type { CausalLM } from './causal-lm.js';
import { type GenerateOptions, generate } from './generate.js';

/** Settings of {@link generateText}; every other one as for `generate`. */
export interface TextOptions extends Omit<GenerateOptions, 'maxNewTokens' | 'stopIds'> {
  /** The most tokens to make. Default 100. */
  readonly maxNewTokens?: number;
  /** Ids at which to stop; default the tokenizer's own. */
  readonly stopIds?: readonly number[];
}

/** Ids of a prompt as training sees one: with the bos where the tokenizer adds it, and no eos. */
export function promptIds(tokenizer: Tokenizer, prompt: string): number[] {
  const ids = tokenizer.encode(prompt, { addSpecialTokens: false });
  const start = tokenizer.addsBos || ids.length === 0 ? tokenizer.bosId : null;
  const all = start === null ? ids : [start, ...ids];
  if (all.length > 0) return all;
  throw failure('generate prompt', 'text', 'none', 'This tokenizer has no bos token to begin with');
}

/** Continues a prompt, text piece by piece as it comes; the pieces joined are the continuation. */
export function* streamText(
  model: CausalLM,
  tokenizer: Tokenizer,
  prompt: string,
  options: TextOptions = {},
): Generator<string> {
  const { maxNewTokens = 100, stopIds = tokenizer.eosIds, ...rest } = options;
  const stream = tokenizer.decodeStream();
  const ids = promptIds(tokenizer, prompt);
  for (const id of generate(model, ids, { ...rest, maxNewTokens, stopIds })) {
    const piece = stream.push(id);
    if (piece !== '') yield piece;
  }
  const last = stream.end();
  if (last !== '') yield last;
}

/**
 * The continuation of a prompt, without the prompt. Greedy unless a temperature is given.
 * @throws when the prompt leaves no room in the model's positions, or a setting is out of range
 */
export function generateText(
  model: CausalLM,
  tokenizer: Tokenizer,
  prompt: string,
  options: TextOptions = {},
): string {
  return [...streamText(model, tokenizer, prompt, options)].join('');
}
