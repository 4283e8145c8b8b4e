import type { Checkpoint } from '../io/checkpoint.js';
import type { LabelledRecord, RawLabel } from '../io/labelled.js';
import type { Tokenizer } from '../io/tokenizer.js';
import type { ProblemType } from '../models/classifier.js';
import { type ClassifierHead, hasHead, labelsOf, plainLabels } from '../models/head.js';
import { failure, nearest } from '../tensor/errors.js';

/** The most classes that numbers alone make; above, they are rather values or ids of something. */
const MOST_NUMBERED = 1000;

/** What a label is, as JSON has it. An empty list may be of names or of numbers. */
type Kind = 'name' | 'integer' | 'real' | 'names' | 'numbers' | 'empty list';

function kindOf(label: RawLabel): Kind {
  if (typeof label === 'string') return 'name';
  if (typeof label === 'number') return Number.isSafeInteger(label) ? 'integer' : 'real';
  if (label.length === 0) return 'empty list';
  return typeof label[0] === 'string' ? 'names' : 'numbers';
}

const isList = (kind: Kind) => kind === 'names' || kind === 'numbers' || kind === 'empty list';

/** The labels that a classifier knows, and how those of a data file become numbers. */
export class LabelSpace {
  readonly #ids: ReadonlyMap<string, number>;

  /**
   * @param names in the order of the classifier's scores
   * @param aliases further names by id, such as a config.json's `label2id` may have
   */
  constructor(
    readonly names: readonly string[],
    readonly problemType: ProblemType,
    aliases: ReadonlyMap<string, number> = new Map(),
  ) {
    this.#ids = new Map([...aliases, ...names.map((name, i) => [name, i] as const)]);
  }

  /**
   * A label as numbers: the class's id alone; 0 or 1 for each label; or the values.
   * @param place file:line, for messages
   * @throws naming the nearest labels where it is not one of these
   */
  encode(label: RawLabel, place: string): number[] {
    if (this.problemType === 'regression') return this.#values(label, place);
    if (this.problemType === 'multi_label_classification') return this.#several(label, place);
    if (typeof label === 'object') {
      const received = JSON.stringify(label);
      throw failure(place, 'one label (the problem is single_label_classification)', received);
    }
    return [this.#id(label, place)];
  }

  #id(label: string | number, place: string): number {
    const count = this.names.length;
    if (typeof label === 'number') {
      if (Number.isInteger(label) && label >= 0 && label < count) return label;
      const hint =
        label === -1
          ? 'Leave "label" out where it is not known'
          : 'Other labels than the model’s need a new head: --num-labels';
      throw failure(place, `a class of 0…${count - 1}`, String(label), hint);
    }
    const id = this.#ids.get(label);
    if (id !== undefined) return id;
    const near = nearest(label, this.#ids.keys()).join(', ');
    const hint = `Nearest: ${near}. Other labels than these need a new head: --num-labels`;
    throw failure(place, `one of the model’s ${count} labels`, JSON.stringify(label), hint);
  }

  #several(label: RawLabel, place: string): number[] {
    const count = this.names.length;
    const expected = `a list of names, or of ${count} times 0 or 1 (multi_label_classification)`;
    if (typeof label !== 'object') throw failure(place, expected, JSON.stringify(label));
    if (kindOf(label) === 'numbers') {
      if (label.length === count && label.every((v) => v === 0 || v === 1)) {
        return [...(label as readonly number[])];
      }
      throw failure(place, expected, JSON.stringify(label));
    }
    const out = new Array<number>(count).fill(0);
    for (const name of label) out[this.#id(name, place)] = 1;
    return out;
  }

  #values(label: RawLabel, place: string): number[] {
    const list = typeof label === 'object' ? label : [label];
    const count = this.names.length;
    if (list.length === count && list.every((v) => typeof v === 'number')) return [...list];
    const expected = count === 1 ? 'a number' : `a list of ${count} numbers`;
    throw failure(place, `${expected} (the problem is regression)`, JSON.stringify(label));
  }
}

/** The labels of records with their places. @throws naming the first record without one */
function labelled(records: readonly LabelledRecord[], file: string) {
  return records.map(({ label, line }) => {
    const place = `${file}:${line}`;
    if (label === undefined) throw failure(place, '"label"', 'none');
    return { label, place, kind: kindOf(label) };
  });
}

type Labelled = ReturnType<typeof labelled>;

/** The kind of problem that labels pose where nothing says it. */
function problemOf(all: Labelled, count: number | undefined): ProblemType {
  const first = all[0]?.kind as Kind;
  const wanted = isList(first) ? 'a list as the lines before' : 'one label as the lines before';
  for (const { kind, place, label } of all) {
    if (isList(kind) !== isList(first)) throw failure(place, wanted, JSON.stringify(label));
  }
  if (isList(first)) return 'multi_label_classification';
  const numbers = all.every(({ kind }) => kind !== 'name');
  const real = all.some(({ kind }) => kind === 'real');
  if (numbers && (real || count === 1)) return 'regression';
  return 'single_label_classification';
}

/** Names in order, checked to be all names. */
function namesIn(all: Labelled, listed: boolean): string[] {
  const names = new Set<string>();
  for (const { label, place } of all) {
    for (const one of listed ? (label as readonly (string | number)[]) : [label as string]) {
      if (typeof one !== 'string') throw failure(place, 'a name as the lines before', `${one}`);
      names.add(one);
    }
  }
  return [...names].sort();
}

/** Classes of labels that are all numbers. */
function numberedClasses(all: Labelled, count: number | undefined): string[] {
  let largest = 0;
  for (const { label, place } of all) {
    if (!Number.isSafeInteger(label) || (label as number) < 0) {
      const hint = label === -1 ? 'Leave records without a label out' : undefined;
      const expected = 'the number of a class: 0 or more, as the lines before';
      throw failure(place, expected, JSON.stringify(label), hint);
    }
    if (count !== undefined && (label as number) >= count) {
      throw failure(place, `a class of 0…${count - 1} (numLabels ${count})`, String(label));
    }
    largest = Math.max(largest, label as number);
  }
  if (count === undefined && largest >= MOST_NUMBERED) {
    const hint = 'Give numLabels for so many classes, or problemType regression for values';
    throw failure('labels', `classes of 0…${MOST_NUMBERED - 1}`, String(largest), hint);
  }
  return plainLabels(count ?? largest + 1);
}

/** What a user says of a new label set. */
export interface LabelOptions {
  /** How many labels; default as many as the data has. */
  readonly count?: number;
  readonly problemType?: ProblemType;
}

/** Width of lists of numbers: all as long as the first. */
function widthOf(all: Labelled): number {
  const first = all.find(({ kind }) => kind === 'numbers')?.label as readonly number[] | undefined;
  return first?.length ?? 1;
}

function classNames(all: Labelled, problem: ProblemType, count: number | undefined): string[] {
  if (problem === 'regression') return plainLabels(widthOf(all));
  const listed = problem === 'multi_label_classification';
  const numeric = all.some(({ kind }) => kind === (listed ? 'numbers' : 'integer'));
  if (listed) return numeric ? plainLabels(widthOf(all)) : namesIn(all, true);
  const [first] = all;
  return first?.kind === 'name' ? namesIn(all, false) : numberedClasses(all, count);
}

/**
 * The labels of a new head, as the training records have them: names in the order of their
 * characters, or as many classes as the largest number says. Real numbers make a regression, lists
 * several labels a record, unless a problem type is given.
 * @throws where labels are missing, of several kinds, not of the problem type, or not `count`
 */
export function labelsOfData(
  records: readonly LabelledRecord[],
  file: string,
  options: LabelOptions = {},
): LabelSpace {
  const { count } = options;
  const all = labelled(records, file);
  const problem = options.problemType ?? problemOf(all, count);
  const listed = problem === 'multi_label_classification';
  const fits = (kind: Kind) =>
    problem === 'regression'
      ? kind === 'integer' || kind === 'real' || kind === 'numbers'
      : listed === isList(kind);
  const wrong = all.find(({ kind }) => !fits(kind));
  if (wrong) {
    const received = JSON.stringify(wrong.label);
    throw failure(wrong.place, `a label of ${problem}`, received);
  }
  const names = classNames(all, problem, count);
  if (count !== undefined && names.length !== count) {
    const list = names.slice(0, 8).join(', ');
    const received = `${names.length} in the data: ${list}${names.length > 8 ? ', …' : ''}`;
    throw failure('numLabels', `${count} labels`, received);
  }
  if (names.length === 0 || (problem === 'single_label_classification' && names.length === 1)) {
    const received = names.length === 0 ? 'none' : `"${names[0]}" only`;
    throw failure(`labels of ${file}`, 'several labels to tell apart', received);
  }
  const space = new LabelSpace(names, problem);
  for (const { label, place } of all) space.encode(label, place);
  return space;
}

/**
 * The labels of a classifier whose config.json does not say what problem they are for: as
 * transformers has it, one label is a regression, lists are several labels, else it is one class.
 */
export function problemOfLabels(records: readonly LabelledRecord[], count: number): ProblemType {
  if (count === 1) return 'regression';
  const listed = records.some(({ label }) => typeof label === 'object');
  return listed ? 'multi_label_classification' : 'single_label_classification';
}

/** The id that pads sequences: the model's own, else the tokenizer's. */
export function paddingOf(
  config: Readonly<Record<string, unknown>>,
  tokenizer: Pick<Tokenizer, 'padId' | 'eosId'>,
): number {
  const own = config.pad_token_id;
  return Number.isSafeInteger(own) ? (own as number) : (tokenizer.padId ?? tokenizer.eosId ?? 0);
}

/** Further names of labels by id, of a config.json. */
function aliasesOf(config: Readonly<Record<string, unknown>>, count: number): Map<string, number> {
  const entries = Object.entries((config.label2id ?? {}) as Record<string, unknown>);
  const valid = (id: unknown) =>
    Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) < count;
  return new Map(entries.filter(([, id]) => valid(id)) as [string, number][]);
}

/**
 * The labels that a classifier of this configuration knows.
 * @param head what it answers where that is not what config.json says
 * @param records from whose labels the kind of problem follows where nothing says it
 */
export function knownLabels(
  config: Readonly<Record<string, unknown>>,
  head: ClassifierHead | undefined,
  records: readonly LabelledRecord[],
): LabelSpace {
  const names = head?.labels ?? labelsOf(config);
  const said = head?.problemType ?? config.problem_type ?? undefined;
  const problem = (said as ProblemType | undefined) ?? problemOfLabels(records, names.length);
  return new LabelSpace(names, problem, head ? new Map() : aliasesOf(config, names.length));
}

/**
 * The labels of a run: those of the model, or with `count` or where it has no head for sequences
 * those of the data, for which a new head is made.
 */
export function chooseLabels(
  checkpoint: Checkpoint,
  tokenizer: Pick<Tokenizer, 'padId' | 'eosId'>,
  records: readonly LabelledRecord[],
  file: string,
  options: LabelOptions & { readonly seed: number },
): { space: LabelSpace; head?: ClassifierHead } {
  const { config } = checkpoint;
  const { problemType, count, seed } = options;
  if (count === undefined && hasHead(checkpoint)) {
    if (problemType === undefined) return { space: knownLabels(config, undefined, records) };
    const head = { labels: labelsOf(config), problemType };
    const aliases = aliasesOf(config, head.labels.length);
    return { space: new LabelSpace(head.labels, problemType, aliases), head };
  }
  const space = labelsOfData(records, file, options);
  const padId = paddingOf(config, tokenizer);
  const head = { labels: space.names, problemType: space.problemType, seed };
  return { space, head: Number.isSafeInteger(config.pad_token_id) ? head : { ...head, padId } };
}
