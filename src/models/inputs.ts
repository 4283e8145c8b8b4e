import { failure, onlyKnown, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';

/**
 * Whole numbers for every token of a batch: a list a row, all of one length, or one flat list,
 * row-major.
 */
export type TokenValues =
  | readonly (readonly number[])[]
  | readonly number[]
  | Int32Array
  | Uint8Array;

/** What a model's `forward` is given: B sequences of T tokens each. */
export interface ForwardInput {
  /**
   * Token ids. Rows must be of one length: pad the shorter ones and give an `attentionMask`. A
   * flat list comes with `batch` or `length`; without either it is one sequence.
   */
  readonly inputIds: TokenValues;
  /** 1 where a token counts, 0 at padding; of the shape of `inputIds`. Default all 1. */
  readonly attentionMask?: TokenValues | undefined;
  /** For classifiers of pairs: which of the two texts each token is of. Default all 0. */
  readonly tokenTypeIds?: TokenValues | undefined;
  /**
   * For a causal model the tokens themselves, −100 where one does not count, of the shape of
   * `inputIds`: the model shifts them, so that position t is to predict label t + 1. For a
   * classifier one class or value a sequence, or a list of L a sequence.
   */
  readonly labels?: TokenValues | Float32Array | undefined;
  /** Number of sequences B; only with flat lists. */
  readonly batch?: number | undefined;
  /** Tokens of each sequence T; only with flat lists. */
  readonly length?: number | undefined;
}

/** What `forward` answers. */
export interface ForwardOutput {
  /** [B, T, V] of a causal model, [B, L] of a classifier; before any softmax. */
  readonly logits: Tensor;
  /** One element: the mean over the labels that count; null where no labels were given. */
  readonly loss: Tensor | null;
}

/** An input with its tokens checked and flat; the labels are as they were given. */
export interface FlatInput {
  readonly inputIds: Int32Array;
  readonly attentionMask?: Uint8Array;
  readonly tokenTypeIds?: Int32Array;
  readonly labels?: NonNullable<ForwardInput['labels']>;
  readonly batch: number;
  readonly length: number;
}

const FIELDS = Object.keys({
  inputIds: true,
  attentionMask: true,
  tokenTypeIds: true,
  labels: true,
  batch: true,
  length: true,
} satisfies Record<keyof ForwardInput, true>);

type Values = TokenValues | Float32Array;

/** Whether the values are a list a row. */
export function isRows(values: Values): values is readonly (readonly number[])[] {
  return Array.isArray(values) && Array.isArray(values[0]);
}

/**
 * The values one after the other, [rows, columns].
 * @param where for messages
 * @throws when they are not of that shape
 */
export function flatValues(
  where: string,
  values: Values,
  [rows, columns]: readonly [number, number],
): ArrayLike<number> {
  const wanted = shapeText([rows, columns]);
  if (!isRows(values)) {
    if (typeof values !== 'object' || values.length !== rows * columns) {
      const received = typeof values === 'object' ? `${values.length} values` : typeof values;
      throw failure(where, `${wanted} values`, received);
    }
    return values as ArrayLike<number>;
  }
  const lengths = values.map((row) => row.length);
  if (values.length !== rows || lengths.some((n) => n !== columns)) {
    throw failure(where, `${wanted} values`, `rows of ${lengths.join(', ')}`);
  }
  return values.flat();
}

/** Whole numbers as i32. @throws on any other, naming the first */
export function wholeNumbers(where: string, values: ArrayLike<number>): Int32Array {
  if (values instanceof Int32Array) return values;
  const out = new Int32Array(values.length);
  for (let i = 0; i < out.length; i++) {
    const v = values[i] as number;
    out[i] = v;
    if (out[i] !== v) throw failure(where, 'whole numbers of 32 bits', `${v} at ${i}`);
  }
  return out;
}

function shapeOfRows(rows: readonly (readonly number[])[], input: ForwardInput): [number, number] {
  if (input.batch !== undefined || input.length !== undefined) {
    const hint = 'Rows say both themselves';
    throw failure('forward', 'batch and length only beside flat inputIds', 'both', hint);
  }
  const lengths = rows.map((r) => r.length);
  if (new Set(lengths).size > 1) {
    throw failure(
      'forward inputIds',
      'rows of one length',
      lengths.join(', '),
      'Pad the shorter ones and give an attentionMask that is 0 at the padding; ' +
        'Tokenizer.encodeBatch does both',
    );
  }
  return [rows.length, lengths[0] ?? 0];
}

function shapeOf(input: ForwardInput): [number, number] {
  const { inputIds, batch, length } = input;
  if (typeof inputIds !== 'object' || inputIds === null) {
    const hint = typeof inputIds === 'string' ? 'Tokenizer.encode makes ids of a text' : undefined;
    throw failure('forward inputIds', 'token ids', String(inputIds), hint);
  }
  if (isRows(inputIds)) return shapeOfRows(inputIds, input);
  const size = inputIds.length;
  const rows = batch ?? (length === undefined ? 1 : size / length);
  const columns = length ?? size / rows;
  if (Number.isInteger(rows) && Number.isInteger(columns) && rows * columns === size) {
    return [rows, columns];
  }
  throw failure('forward inputIds', `batch × length ids`, `${size} for ${rows} × ${columns}`);
}

/** Checks and flattens a model's input. @throws on unknown fields and on shapes that disagree */
export function flatInput(input: ForwardInput): FlatInput {
  onlyKnown('forward', input, FIELDS);
  const shape = shapeOf(input);
  const [batch, length] = shape;
  if (batch < 1 || length < 1) {
    throw failure('forward inputIds', 'at least one token', shapeText(shape));
  }
  const whole = (name: 'inputIds' | 'attentionMask' | 'tokenTypeIds') => {
    const values = input[name];
    if (values === undefined) return undefined;
    return wholeNumbers(`forward ${name}`, flatValues(`forward ${name}`, values, shape));
  };
  const mask = whole('attentionMask');
  const wrong = mask?.find((v) => v !== 0 && v !== 1);
  if (wrong !== undefined) throw failure('forward attentionMask', '0 or 1', String(wrong));
  const types = whole('tokenTypeIds');
  return {
    inputIds: whole('inputIds') as Int32Array,
    ...(mask ? { attentionMask: Uint8Array.from(mask) } : {}),
    ...(types ? { tokenTypeIds: types } : {}),
    ...(input.labels === undefined ? {} : { labels: input.labels }),
    batch,
    length,
  };
}
