import { failure, nearest } from '../tensor/errors.js';
import { type JsonLine, jsonLines, kindOf, readDataFile } from './dataset.js';

/** A label as a data file has it: a class's name or number, a value, or a list of such. */
export type RawLabel = string | number | readonly (string | number)[];

/** A text, or a pair of texts, to classify. */
export interface LabelledRecord {
  /** Of its file, counted from 1. */
  readonly line: number;
  readonly text: string;
  /** The second of two texts. */
  readonly pair?: string;
  /** Left out where the file has none, as GLUE's test files. */
  readonly label?: RawLabel;
  /** The record's own `idx`, as GLUE's have one. */
  readonly idx?: string | number;
}

/** Names of the text, or of both texts of a pair: ours first, then those of GLUE's tasks. */
const FIELDS: readonly (readonly [string] | readonly [string, string])[] = [
  ['text', 'text_pair'],
  ['text'],
  // MRPC, STS-B, RTE, WNLI
  ['sentence1', 'sentence2'],
  // QQP
  ['question1', 'question2'],
  // MNLI, SNLI, AX
  ['premise', 'hypothesis'],
  // QNLI
  ['question', 'sentence'],
  // SST-2, CoLA
  ['sentence'],
];

/** The fields that a record to classify has, for messages. */
export const LABELLED_FORMS =
  '"text" (and "text_pair") and "label", or GLUE’s fields (sentence; sentence1, sentence2; ' +
  'question, sentence; premise, hypothesis; question1, question2)';

const NAMES = [...new Set(FIELDS.flat())];

/** The names of a record's texts. @throws when it has none, half a pair, or several */
function fieldsOf({ object, place }: JsonLine): readonly string[] {
  const keys = Object.keys(object);
  const there = NAMES.filter((name) => Object.hasOwn(object, name));
  const exact = FIELDS.find((f) => f.length === there.length && f.every((n) => there.includes(n)));
  if (exact) return exact;
  const texts = there.map((n) => JSON.stringify(n)).join(', ');
  const [half] = FIELDS.filter((f) => f.some((n) => there.includes(n)) && f.length === 2);
  if (there.length === 1 && half) {
    const other = half.find((n) => n !== there[0]) as string;
    const near = nearest(other, [...keys.filter((k) => k !== there[0] && k !== 'label')], 1)[0];
    const hint = near === undefined ? undefined : `Is "${near}" meant to be "${other}"?`;
    throw failure(place, `"${other}" as well`, texts, hint);
  }
  if (there.length > 0) throw failure(place, `one of ${LABELLED_FORMS}`, texts);
  if (keys.includes('prompt') || keys.includes('completion')) {
    const hint = 'A classifier learns labels; prompts and completions are for causal models';
    throw failure(place, LABELLED_FORMS, '"prompt" or "completion"', hint);
  }
  const has = keys.length > 0 ? keys.map((k) => JSON.stringify(k)).join(', ') : 'no field';
  throw failure(place, LABELLED_FORMS, has);
}

function textOf({ object, place }: JsonLine, name: string): string {
  const value = object[name];
  if (typeof value !== 'string') throw failure(place, `"${name}" to be a string`, kindOf(value));
  return value;
}

const isPlain = (v: unknown): v is string | number =>
  typeof v === 'string' || (typeof v === 'number' && Number.isFinite(v));

function labelOf({ object, place }: JsonLine): RawLabel | undefined {
  const value = object.label;
  if (value === undefined || value === null) {
    const near = nearest('label', Object.keys(object), 1)[0];
    const misspelt = near !== undefined && /^labels?$/i.test(near) && near !== 'label';
    if (misspelt) throw failure(place, '"label"', `"${near}"`);
    return undefined;
  }
  if (isPlain(value)) return value;
  if (Array.isArray(value) && value.every(isPlain)) {
    const kinds = new Set(value.map((v) => typeof v));
    if (kinds.size < 2) return value;
  }
  const expected = '"label" to be a name, a number, or a list of names or of numbers';
  const received = Array.isArray(value) ? JSON.stringify(value) : kindOf(value);
  throw failure(place, expected, received);
}

/** One line as a record to classify. */
function toLabelled(line: JsonLine): LabelledRecord {
  const [first = '', second] = fieldsOf(line);
  const label = labelOf(line);
  const { idx } = line.object;
  return {
    line: line.line,
    text: textOf(line, first),
    ...(second === undefined ? {} : { pair: textOf(line, second) }),
    ...(label === undefined ? {} : { label }),
    ...(isPlain(idx) ? { idx } : {}),
  };
}

/**
 * Records to classify from JSON Lines: an object a line with `text` (and `text_pair`), or with the
 * fields of one of GLUE's tasks (`sentence`; `sentence1` and `sentence2`; `question` and
 * `sentence`; `premise` and `hypothesis`; `question1` and `question2`), and a `label`: the name or
 * number of a class, a list of names or of 0 and 1 for several labels, or a value. The label may be
 * left out where nothing is learned or measured. Further fields do not matter.
 * @param file its name, for messages
 * @throws with file:line on anything else, and when there is no record at all
 */
export function parseLabelled(bytes: Uint8Array, file: string): LabelledRecord[] {
  return Array.from(jsonLines(bytes, file, LABELLED_FORMS), toLabelled);
}

/** Reads a JSON Lines file of records to classify; see {@link parseLabelled}. */
export function readLabelled(path: string): LabelledRecord[] {
  return parseLabelled(readDataFile(path), path);
}
