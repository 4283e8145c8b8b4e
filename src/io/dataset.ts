import { readFileSync } from 'node:fs';
import { failure, nearest } from '../tensor/errors.js';
import { missingFile } from './files.js';
import type { Tokenizer } from './tokenizer.js';

/** A line of a data file. `line` counts from 1. */
export type DataRecord =
  | { readonly kind: 'text'; readonly line: number; readonly text: string }
  | {
      readonly kind: 'completion';
      readonly line: number;
      readonly prompt: string;
      readonly completion: string;
    };

const FORMS = '"text", or "prompt" and "completion"';

/** What kind of JSON value this is, in words. */
export function kindOf(value: unknown): string {
  if (value === null) return 'null';
  return Array.isArray(value) ? 'an array' : typeof value === 'object' ? 'an object' : typeof value;
}

function field(place: string, object: Readonly<Record<string, unknown>>, name: string): string {
  const value = object[name];
  if (typeof value !== 'string') throw failure(place, `"${name}" to be a string`, kindOf(value));
  return value;
}

function missingFields(place: string, keys: readonly string[]): Error {
  if (keys.includes('messages')) {
    return failure(
      place,
      FORMS,
      '"messages"',
      'Chats are not read yet: write each as a prompt and a completion',
    );
  }
  const has = keys.length > 0 ? keys.map((k) => JSON.stringify(k)).join(', ') : 'no field';
  const wanted = keys.includes('completion')
    ? 'prompt'
    : keys.includes('prompt')
      ? 'completion'
      : undefined;
  const others = keys.filter((k) => k !== 'prompt' && k !== 'completion');
  const near = wanted && nearest(wanted, others, 1)[0];
  const hint = near && `Is "${near}" meant to be "${wanted}"?`;
  return failure(place, wanted ? `"${wanted}" as well` : FORMS, has, hint);
}

/** One object of a JSON Lines file. */
export interface JsonLine {
  /** Counted from 1. */
  readonly line: number;
  /** file:line, for messages. */
  readonly place: string;
  readonly object: Readonly<Record<string, unknown>>;
}

/** One line of JSON as an object; `forms` says what it should hold. */
function parseObject(json: string, place: string, forms: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (error) {
    throw failure(place, 'a line of JSON', (error as Error).message);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw failure(place, `a JSON object with ${forms}`, kindOf(value));
  }
  return value as Record<string, unknown>;
}

function toRecord({ object, place, line }: JsonLine): DataRecord {
  const has = (name: string) => Object.hasOwn(object, name);
  if (has('text')) {
    const both = has('prompt') ? 'prompt' : has('completion') ? 'completion' : undefined;
    if (both) throw failure(place, `either ${FORMS}`, `"text" and "${both}"`);
    const text = field(place, object, 'text');
    if (text === '') throw failure(place, '"text" with something in it', 'an empty string');
    return { kind: 'text', line, text };
  }
  if (!has('prompt') || !has('completion')) throw missingFields(place, Object.keys(object));
  const prompt = field(place, object, 'prompt');
  const completion = field(place, object, 'completion');
  if (completion === '') {
    throw failure(place, '"completion" with something in it', 'an empty string');
  }
  return { kind: 'completion', line, prompt, completion };
}

/**
 * The objects of JSON Lines. Blank lines, CRLF and a byte order mark are tolerated.
 * @param file its name, for messages
 * @param forms the fields that an object should have, for messages
 * @throws with file:line on anything but an object, and when there is none at all
 */
export function* jsonLines(bytes: Uint8Array, file: string, forms: string): Generator<JsonLine> {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  let count = 0;
  let at = bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf ? 3 : 0;
  for (let line = 1; at < bytes.length; line++) {
    const newline = bytes.indexOf(0x0a, at);
    const end = newline < 0 ? bytes.length : newline;
    const place = `${file}:${line}`;
    let text: string;
    try {
      text = decoder.decode(bytes.subarray(at, end));
    } catch {
      throw failure(place, 'UTF-8 text', 'bytes that are not UTF-8');
    }
    if (text.trim() !== '') {
      count++;
      yield { line, place, object: parseObject(text, place, forms) };
    }
    at = end + 1;
  }
  if (count === 0) throw failure(file, `lines of JSON with ${forms}`, 'an empty file');
}

/** The bytes of a data file. @throws naming it when it is missing or a directory */
export function readDataFile(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') throw missingFile('data', path);
    if (code === 'EISDIR') throw failure(`data ${path}`, 'a JSON Lines file', 'a directory');
    throw error;
  }
}

/**
 * Records of JSON Lines: an object a line with `text`, or with `prompt` and `completion`; further
 * fields do not matter. Blank lines, CRLF and a byte order mark are tolerated.
 * @param file its name, for messages
 * @throws with file:line on anything else, and when there is no record at all
 */
export function parseJsonl(bytes: Uint8Array, file: string): DataRecord[] {
  return Array.from(jsonLines(bytes, file, FORMS), toRecord);
}

/** Reads a JSON Lines file; see {@link parseJsonl}. */
export function readJsonl(path: string): DataRecord[] {
  return parseJsonl(readDataFile(path), path);
}

/** The label of a position without loss. */
export const IGNORED = -100;

/**
 * A sequence to learn from. `labels[i]` is `ids[i]` or −100 for no loss; the model shifts by one,
 * so that the label at i is predicted from the ids before i (the one at 0 from nothing: not at all).
 */
export interface Example {
  readonly ids: Int32Array;
  readonly labels: Int32Array;
}

/** What of a tokenizer is needed here. */
export type Encoder = Pick<Tokenizer, 'encode'>;

export interface TokenizeOptions {
  /** The most tokens of an example, special ones included; at least 2. */
  readonly maxLength: number;
  /** Ends every completion and text; null for none. */
  readonly eosId: number | null;
  /** Begins every example; left out or null for none. */
  readonly bosId?: number | null;
}

/** What became of the records. */
export interface Tokenized {
  /** One for each record, in their order. */
  readonly examples: Example[];
  /** Tokens of all examples. */
  readonly tokens: number;
  /** Labels that count for the loss: not −100, and not the first of their example. */
  readonly targets: number;
  /** Examples that were longer than `maxLength`, and the tokens they lost. */
  readonly truncated: number;
  readonly truncatedTokens: number;
  /** Of these, the prompts that lost tokens on the left, and completions or texts on the right. */
  readonly truncatedPrompts: number;
  readonly truncatedCompletions: number;
}

/**
 * Tokens of a completion as they follow the prompt. Tokenizing both together is right for
 * tokenizers that mark the start of a text; where it would join a token across the border, each is
 * tokenized for itself, for the prompt alone is what generation starts from.
 */
function split(tokenizer: Encoder, prompt: string, completion: string): [number[], number[]] {
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
  if (prompt === '') return [[], encode(completion)];
  const first = encode(prompt);
  const both = encode(prompt + completion);
  const joined = both.length > first.length && first.every((id, i) => both[i] === id);
  return [first, joined ? both.slice(first.length) : encode(completion)];
}

/**
 * Turns records into examples. A text is labelled throughout; of a prompt and completion only the
 * completion, and the eos after it, are. Too long: a prompt loses tokens on its left (the bos
 * stays), then a completion or text on its right; the counts say how much was lost.
 */
export function tokenizeRecords(
  records: readonly DataRecord[],
  tokenizer: Encoder,
  options: TokenizeOptions,
): Tokenized {
  const { maxLength, eosId, bosId = null } = options;
  if (!Number.isInteger(maxLength) || maxLength < 2) {
    throw failure('maxLength', 'a whole number of 2 or more', String(maxLength));
  }
  const counts = { tokens: 0, targets: 0, truncated: 0, truncatedTokens: 0 };
  const sides = { truncatedPrompts: 0, truncatedCompletions: 0 };
  const bos = bosId === null ? [] : [bosId];
  const eos = eosId === null ? [] : [eosId];
  const examples = records.map((record) => {
    const [prompt, completion] =
      record.kind === 'text'
        ? [[], tokenizer.encode(record.text, { addSpecialTokens: false })]
        : split(tokenizer, record.prompt, record.completion);
    const learned = [...completion, ...eos];
    const room = maxLength - bos.length;
    const keptLearned = learned.slice(0, room);
    const keptPrompt = prompt.slice(Math.max(0, prompt.length + keptLearned.length - room));
    const lost = prompt.length + learned.length - keptPrompt.length - keptLearned.length;
    if (lost > 0) counts.truncated++;
    counts.truncatedTokens += lost;
    if (keptPrompt.length < prompt.length) sides.truncatedPrompts++;
    if (keptLearned.length < learned.length) sides.truncatedCompletions++;
    const ids = Int32Array.from([...bos, ...keptPrompt, ...keptLearned]);
    const labels = ids.slice();
    if (record.kind === 'completion') labels.fill(IGNORED, 0, bos.length + keptPrompt.length);
    const example = { ids, labels };
    counts.tokens += ids.length;
    counts.targets += countTargets(example);
    return example;
  });
  return { examples, ...counts, ...sides };
}

/** Labels of an example that count for the loss: not −100 and not at position 0. */
export function countTargets({ labels }: Example): number {
  let n = 0;
  for (let i = 1; i < labels.length; i++) if (labels[i] !== IGNORED) n++;
  return n;
}

export interface Packed {
  readonly examples: Example[];
  /** Tokens of the last, shorter row that were left out; 0 unless asked for. */
  readonly droppedTokens: number;
}

/**
 * Joins examples end to end and cuts rows of exactly `length` tokens, so that no place is padding.
 * The last row is shorter where the tokens do not come out even, or left out with `dropRemainder`.
 */
export function packExamples(
  examples: readonly Example[],
  length: number,
  options: { readonly dropRemainder?: boolean } = {},
): Packed {
  if (!Number.isInteger(length) || length < 2) {
    throw failure('packExamples', 'a length of 2 or more', String(length));
  }
  const total = examples.reduce((n, e) => n + e.ids.length, 0);
  const ids = new Int32Array(total);
  const labels = new Int32Array(total);
  let at = 0;
  for (const e of examples) {
    ids.set(e.ids, at);
    labels.set(e.labels, at);
    at += e.ids.length;
  }
  const remainder = total % length;
  const droppedTokens = options.dropRemainder ? remainder : 0;
  const rows: Example[] = [];
  for (let from = 0; from < total - droppedTokens; from += length) {
    const to = Math.min(from + length, total);
    rows.push({ ids: ids.slice(from, to), labels: labels.slice(from, to) });
  }
  return { examples: rows, droppedTokens };
}

/** Examples side by side, filled up on the right. */
export interface Batch {
  /** [B, T], row-major. */
  readonly inputIds: Int32Array;
  /** [B, T]: 1 for tokens, 0 for padding. */
  readonly attentionMask: Uint8Array;
  /** [B, T], aligned with inputIds; −100 for no loss. */
  readonly labels: Int32Array;
  /** B. */
  readonly batch: number;
  /** T. */
  readonly length: number;
  /** Labels that count for the loss after the shift by one. */
  readonly targets: number;
  /** Tokens that are not padding. */
  readonly tokens: number;
}

/**
 * Puts examples into one batch, padded on the right to the longest.
 * @param options.multipleOf rounds T up to a multiple of this (default 1)
 */
export function collate(
  examples: readonly Example[],
  padId: number,
  options: { readonly multipleOf?: number } = {},
): Batch {
  const { multipleOf = 1 } = options;
  if (examples.length === 0) throw failure('collate', 'at least one example', 'none');
  if (!Number.isInteger(multipleOf) || multipleOf < 1) {
    throw failure('collate', 'multipleOf of 1 or more', String(multipleOf));
  }
  const longest = examples.reduce((n, e) => Math.max(n, e.ids.length), 0);
  const length = Math.ceil(longest / multipleOf) * multipleOf;
  const batch = examples.length;
  const inputIds = new Int32Array(batch * length).fill(padId);
  const attentionMask = new Uint8Array(batch * length);
  const labels = new Int32Array(batch * length).fill(IGNORED);
  let targets = 0;
  let tokens = 0;
  examples.forEach((e, row) => {
    inputIds.set(e.ids, row * length);
    labels.set(e.labels, row * length);
    attentionMask.fill(1, row * length, row * length + e.ids.length);
    targets += countTargets(e);
    tokens += e.ids.length;
  });
  return { inputIds, attentionMask, labels, batch, length, targets, tokens };
}
