import { failure } from '../tensor/errors.js';

/** A place in a template: a special token, or one of the texts. */
type Piece =
  | { readonly ids: readonly number[]; readonly type: number }
  | { readonly text: 'A' | 'B'; readonly type: number };

/** What a tokenizer puts around one text and around a pair of texts. */
export interface SequenceTemplate {
  readonly single: readonly Piece[];
  readonly pair: readonly Piece[];
}

/** A text or a pair of texts as the model is given it. */
export interface EncodedSequence {
  readonly ids: number[];
  /** Which of the two texts each id is of, as the template says: 0 or 1. */
  readonly typeIds: number[];
  /** Tokens that were cut off. */
  readonly lost: number;
}

type Json = Readonly<Record<string, unknown>>;

const A = { text: 'A', type: 0 } as const;
const PLAIN: SequenceTemplate = { single: [A], pair: [A, { text: 'B', type: 1 }] };

/** A special token of BertProcessing and RobertaProcessing: [token, id]. */
function namedToken(json: Json, key: string, type: number): Piece {
  const value = json[key];
  const id: unknown = Array.isArray(value) ? value[1] : undefined;
  if (Number.isInteger(id)) return { ids: [id as number], type };
  throw failure('tokenizer post_processor', `${key} as [token, id]`, JSON.stringify(value));
}

/** The pieces of `single` or `pair` of TemplateProcessing. */
function templatePieces(json: Json, key: 'single' | 'pair'): Piece[] {
  const list = json[key];
  const tokens = (json.special_tokens ?? {}) as Record<string, { ids?: unknown }>;
  const wrong = (received: unknown) =>
    failure(`tokenizer post_processor ${key}`, 'a template', JSON.stringify(received));
  if (!Array.isArray(list)) throw wrong(list);
  return list.map((item: Json): Piece => {
    const part = (item.Sequence ?? item.SpecialToken) as { id?: unknown; type_id?: unknown };
    const type = part?.type_id ?? 0;
    if (!Number.isInteger(type)) throw wrong(item);
    if (item.Sequence !== undefined && (part.id === 'A' || part.id === 'B')) {
      return { text: part.id, type: type as number };
    }
    const ids = Object.hasOwn(tokens, String(part?.id)) ? tokens[String(part.id)]?.ids : undefined;
    if (!Array.isArray(ids) || !ids.every(Number.isInteger)) throw wrong(item);
    return { ids, type: type as number };
  });
}

/**
 * The template of a tokenizer.json's `post_processor`: what a model of sequences expects around one
 * text and around two.
 * @throws on a kind that is not known
 */
export function readTemplate(postProcessor: unknown): SequenceTemplate {
  if (postProcessor === null || postProcessor === undefined) return PLAIN;
  const json = postProcessor as Json;
  switch (json.type) {
    case 'TemplateProcessing':
      return { single: templatePieces(json, 'single'), pair: templatePieces(json, 'pair') };
    case 'BertProcessing': {
      const [cls, sep] = [namedToken(json, 'cls', 0), namedToken(json, 'sep', 0)];
      const second = [{ text: 'B', type: 1 }, namedToken(json, 'sep', 1)] as const;
      return { single: [cls, A, sep], pair: [cls, A, sep, ...second] };
    }
    case 'RobertaProcessing': {
      // Two separators between the texts, and one type for both.
      const [cls, sep] = [namedToken(json, 'cls', 0), namedToken(json, 'sep', 0)];
      const pair = [cls, A, sep, sep, { text: 'B', type: 0 }, sep] as const;
      return { single: [cls, A, sep], pair };
    }
    case 'ByteLevel':
      return PLAIN;
    case 'Sequence': {
      const parts = Array.isArray(json.processors) ? json.processors : [];
      const [template, ...more] = parts.map(readTemplate).filter((t) => t !== PLAIN);
      if (more.length === 0) return template ?? PLAIN;
      throw failure('tokenizer post_processor', 'one template', `${more.length + 1}`);
    }
  }
  const known = 'TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel, Sequence';
  throw failure('tokenizer post_processor', `one of ${known}`, JSON.stringify(json.type));
}

/** Tokens that a template adds. */
function added(pieces: readonly Piece[]): number {
  return pieces.reduce((n, p) => n + ('ids' in p ? p.ids.length : 0), 0);
}

/**
 * How many tokens of two texts stay when both may have `room` together: the longer one loses first,
 * and where both are too long each gets half, the longer one (the second of equals) the odd token.
 * That is the longest-first rule of Hugging Face's tokenizers.
 */
export function longestFirst(first: number, second: number, room: number): [number, number] {
  if (first + second <= room) return [first, second];
  const shorter = Math.min(first, second);
  let longer = shorter > room ? shorter : Math.max(shorter, room - shorter);
  let kept = shorter;
  if (kept + longer > room) {
    kept = Math.floor(room / 2);
    longer = kept + (room % 2);
  }
  return first > second ? [longer, kept] : [kept, longer];
}

/**
 * Puts one text's or two texts' tokens into a template, cut to `maxLength` longest first.
 * @param second tokens of the second text; null for one text alone
 * @param side where a text that is too long loses tokens
 * @throws when the template alone is longer than `maxLength`
 */
export function fillTemplate(
  template: SequenceTemplate,
  first: readonly number[],
  second: readonly number[] | null,
  maxLength: number,
  side: 'left' | 'right' = 'right',
): EncodedSequence {
  const pieces = second === null ? template.single : template.pair;
  const room = maxLength - added(pieces);
  if (room < 0) {
    throw failure('maxLength', `${added(pieces)} or more for special tokens`, String(maxLength));
  }
  // Hugging Face's library cuts each text to the whole length first, which can make both equal.
  const lengthA = Math.min(first.length, maxLength);
  const lengthB = Math.min(second?.length ?? 0, maxLength);
  const [keptA, keptB] = longestFirst(lengthA, lengthB, room);
  const cut = (ids: readonly number[], kept: number) =>
    side === 'right' ? ids.slice(0, kept) : ids.slice(ids.length - kept);
  const texts = { A: cut(first, keptA), B: cut(second ?? [], keptB) };
  const ids: number[] = [];
  const typeIds: number[] = [];
  for (const piece of pieces) {
    for (const id of 'ids' in piece ? piece.ids : texts[piece.text]) {
      ids.push(id);
      typeIds.push(piece.type);
    }
  }
  return { ids, typeIds, lost: first.length + (second?.length ?? 0) - keptA - keptB };
}
