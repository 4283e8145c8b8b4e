import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { failure, onlyKnown } from '../tensor/errors.js';
import { readJsonObject } from './files.js';
import { lazyPackage } from './lazy-packages.js';
import { HUB_SETTINGS, type LocateOptions, locate } from './locate.js';
import {
  type EncodedSequence,
  fillTemplate,
  readTemplate,
  type SequenceTemplate,
} from './sequence-template.js';
import { specialIds } from './special-ids.js';

export interface EncodeOptions {
  /** Add what the tokenizer's template adds (a beginning-of-sequence token, say). Default true. */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leave special tokens out of the text. Default true. */
  readonly skipSpecialTokens?: boolean;
  /**
   * Ids without a token have no text, as in Hugging Face's own library, instead of being an error:
   * for what a model made whose table of embeddings is larger than the vocabulary (Qwen2's is).
   * Default false; decoding a stream, true.
   */
  readonly skipUnknown?: boolean;
}

/** Settings of `encodeBatch`. */
export interface EncodeBatchOptions {
  /** The most tokens of a row; longer ones are cut. Default any number. */
  readonly maxLength?: number;
  /** The least tokens of a row, padding included. Default as many as the longest row has. */
  readonly padTo?: number;
}

/** Texts as a batch; row-major [B, T]. */
export interface EncodedBatch {
  readonly inputIds: Int32Array;
  /** 1 where a token counts, 0 at padding. */
  readonly attentionMask: Uint8Array;
  /**
   * Which text of a pair each token is of; only where one is of the second, and not where the
   * tokenizer's `model_input_names` leave it out.
   */
  readonly tokenTypeIds?: Int32Array;
  /** B. */
  readonly batch: number;
  /** T. */
  readonly length: number;
}

type JsonObject = Record<string, unknown>;

/** The part of the library used here; its own types do not resolve under NodeNext. */
interface Library {
  encode(
    text: string,
    options: { add_special_tokens: boolean },
  ): { ids: (number | undefined)[]; tokens: string[] };
  decode(ids: number[], options: { skip_special_tokens: boolean }): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
  get_vocab(withAddedTokens: boolean): Map<string, number>;
}
const library = lazyPackage<{
  readonly Tokenizer: new (json: JsonObject, settings: JsonObject) => Library;
}>('@huggingface/tokenizers');

/** The character that stands for bytes that are not (yet) UTF-8. */
const REPLACEMENT = '\uFFFD';

/** Turns ids that arrive one by one into text, holding back bytes of characters not yet complete. */
export class DecodeStream {
  readonly #decode: (ids: readonly number[]) => string;
  /** Ids whose text matters: those of the last emitted piece, for context, and the held ones. */
  #ids: number[] = [];
  #prefix = '';
  #emittedIds = 0;

  constructor(decode: (ids: readonly number[]) => string) {
    this.#decode = decode;
  }

  /** The text that this id completes; often the token's own, '' in the middle of a character. */
  push(id: number): string {
    this.#ids.push(id);
    const text = this.#decode(this.#ids);
    if (text.endsWith(REPLACEMENT) || text.length <= this.#prefix.length) return '';
    return this.#emit(text);
  }

  /** What is still held back, incomplete characters shown as U+FFFD. */
  end(): string {
    const text = this.#decode(this.#ids);
    const rest = text.length > this.#prefix.length ? this.#emit(text) : '';
    this.#ids = [];
    this.#prefix = '';
    this.#emittedIds = 0;
    return rest;
  }

  #emit(text: string): string {
    const out = text.slice(this.#prefix.length);
    // Decoders look at the token before (a leading space is dropped at the start of a text).
    this.#ids = this.#ids.slice(this.#emittedIds);
    this.#emittedIds = this.#ids.length;
    this.#prefix = this.#decode(this.#ids);
    return out;
  }
}

/** A tokenizer as a model directory holds it. */
export class Tokenizer {
  readonly #library: Library;
  /** Largest id + 1: the rows an embedding needs. */
  readonly vocabSize: number;
  /** Begins a sequence; null where the model has none. */
  readonly bosId: number | null;
  /** Ends a sequence; null where the model has none. */
  readonly eosId: number | null;
  /** Every id at which generation stops; the first is {@link eosId}. */
  readonly eosIds: readonly number[];
  /** Fills up a batch; null where the model has none. */
  readonly padId: number | null;
  /** Whether {@link encode} puts {@link bosId} in front by default. */
  readonly addsBos: boolean;
  /** The chat template, as Jinja text; null where there is none. */
  readonly chatTemplate: string | null;
  /**
   * Whether the model is to be told which text of a pair each token is of, where tokenizer_config.json
   * says so (`model_input_names`); null where it says nothing.
   */
  readonly givesTokenTypes: boolean | null;
  readonly #postProcessor: unknown;
  readonly #truncationSide: 'left' | 'right';
  #template: SequenceTemplate | undefined;

  /**
   * @param json the object of tokenizer.json
   * @param settings the object of tokenizer_config.json
   * @param ids special ids found in the other files of the directory
   * @param place for messages
   */
  constructor(
    json: JsonObject,
    settings: JsonObject,
    ids: { bos: number[]; eos: number[]; pad: number[] },
    place = 'tokenizer',
  ) {
    this.#library = makeLibrary(json, settings, place);
    let largest = -1;
    for (const id of this.#library.get_vocab(true).values()) largest = Math.max(largest, id);
    this.vocabSize = largest + 1;
    const find = (kind: 'bos' | 'eos' | 'pad') => this.#special(kind, settings, ids[kind], place);
    this.bosId = find('bos')[0] ?? null;
    this.eosIds = find('eos');
    this.eosId = this.eosIds[0] ?? null;
    this.padId = find('pad')[0] ?? null;
    this.addsBos = this.bosId !== null && this.encode('a')[0] === this.bosId;
    this.givesTokenTypes = tokenTypesIn(settings.model_input_names, place);
    this.#postProcessor = json.post_processor;
    this.#truncationSide = settings.truncation_side === 'left' ? 'left' : 'right';
    this.chatTemplate = typeof settings.chat_template === 'string' ? settings.chat_template : null;
  }

  /**
   * Token ids of a text. Special tokens spelled out in the text become their ids. As in Hugging
   * Face's own library, a BPE with neither bytes nor an unknown token drops what it does not know.
   * @throws when a word has no token and the tokenizer has none for unknown ones
   */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const { ids, tokens } = this.#library.encode(text, {
      add_special_tokens: options.addSpecialTokens ?? true,
    });
    return ids.map((id, i) => {
      if (id !== undefined) return id;
      throw failure('encode', 'text of known tokens', JSON.stringify(tokens[i]));
    });
  }

  /**
   * A text, or a pair of texts, with the special tokens and token types of the tokenizer's own
   * template, cut to `maxLength` tokens: the longer text loses first, at the side that
   * tokenizer_config.json names (the right by default).
   * @throws as {@link encode}, and when the special tokens alone are more than `maxLength`
   */
  encodeSequence(
    text: string,
    pair: string | null = null,
    maxLength = Number.MAX_SAFE_INTEGER,
  ): EncodedSequence {
    this.#template ??= readTemplate(this.#postProcessor);
    const plain = (t: string) => (t === '' ? [] : this.encode(t, { addSpecialTokens: false }));
    const second = pair === null ? null : plain(pair);
    return fillTemplate(this.#template, plain(text), second, maxLength, this.#truncationSide);
  }

  /**
   * Several texts, or pairs of texts, as one batch for a model's `forward`: each as
   * {@link encodeSequence} makes it, padded on the right to the longest.
   * @throws as {@link encodeSequence}, and when there is no text or one without any token
   */
  encodeBatch(
    texts: readonly (string | readonly [string, string])[],
    options: EncodeBatchOptions = {},
  ): EncodedBatch {
    onlyKnown('encodeBatch', options, ['maxLength', 'padTo']);
    const rows = texts.map((t) =>
      typeof t === 'string'
        ? this.encodeSequence(t, null, options.maxLength)
        : this.encodeSequence(t[0], t[1], options.maxLength),
    );
    const { tokenTypeIds, ...batch } = padded(rows, options.padTo ?? 0, this.padId ?? 0);
    return this.givesTokenTypes === false || !tokenTypeIds ? batch : { ...batch, tokenTypeIds };
  }

  /**
   * The text of token ids.
   * @throws on an id that is not in the vocabulary, but for `skipUnknown`
   */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const list = Array.from(ids).filter((id) => {
      if (this.#library.id_to_token(id) !== undefined) return true;
      if (options.skipUnknown) return false;
      throw failure('decode', `ids of the vocabulary (0…${this.vocabSize - 1})`, String(id));
    });
    if (list.length === 0) return '';
    return this.#library.decode(list, { skip_special_tokens: options.skipSpecialTokens ?? true });
  }

  /** Decodes ids as they arrive, emitting only whole characters. */
  decodeStream(options: DecodeOptions = {}): DecodeStream {
    return new DecodeStream((ids) => this.decode(ids, { skipUnknown: true, ...options }));
  }

  /** The id of a token spelled as in tokenizer.json, or undefined. */
  tokenId(token: string): number | undefined {
    return this.#library.token_to_id(token);
  }

  /** The token of an id, spelled as in tokenizer.json, or undefined. */
  token(id: number): string | undefined {
    return this.#library.id_to_token(id);
  }

  /** The id of a named special token first, then those of the config files. */
  #special(kind: string, settings: JsonObject, ids: number[], place: string): number[] {
    const setting = settings[`${kind}_token`];
    const token =
      typeof setting === 'object' && setting !== null ? (setting as JsonObject).content : setting;
    // A config.json may name an id to begin with that the tokenizer itself does without (Qwen2).
    if (token === null && kind === 'bos') return [];
    if (typeof token !== 'string') return ids;
    const id = this.tokenId(token);
    if (id === undefined) {
      throw failure(
        `${place}, ${kind}_token`,
        'a token of the vocabulary in tokenizer.json',
        JSON.stringify(token),
      );
    }
    return [id, ...ids.filter((other) => other !== id)];
  }
}

/** Whether `model_input_names` has token types; a mask comes with every batch, whatever it says. */
function tokenTypesIn(names: unknown, place: string): boolean | null {
  if (names === undefined || names === null) return null;
  if (Array.isArray(names) && names.every((n) => typeof n === 'string')) {
    return names.includes('token_type_ids');
  }
  throw failure(`${place}, model_input_names`, 'a list of names', JSON.stringify(names));
}

function padded(rows: readonly EncodedSequence[], padTo: number, padId: number): EncodedBatch {
  if (rows.length === 0 || rows.some((r) => r.ids.length === 0)) {
    throw failure(
      'encodeBatch',
      'texts of at least one token',
      rows.length ? 'an empty one' : 'none',
    );
  }
  const length = rows.reduce((n, r) => Math.max(n, r.ids.length), padTo);
  const inputIds = new Int32Array(rows.length * length).fill(padId);
  const attentionMask = new Uint8Array(inputIds.length);
  const tokenTypeIds = new Int32Array(inputIds.length);
  rows.forEach(({ ids, typeIds }, b) => {
    inputIds.set(ids, b * length);
    tokenTypeIds.set(typeIds, b * length);
    attentionMask.fill(1, b * length, b * length + ids.length);
  });
  const types = tokenTypeIds.includes(1) ? { tokenTypeIds } : {};
  return { inputIds, attentionMask, ...types, batch: rows.length, length };
}

const KINDS = ['BPE', 'WordPiece', 'Unigram', 'WordLevel'];

function makeLibrary(json: JsonObject, settings: JsonObject, place: string): Library {
  const model = json.model as { type?: unknown; vocab?: unknown } | undefined;
  if (typeof model !== 'object' || model === null || model.vocab === undefined) {
    throw failure(place, 'a tokenizer.json with a model and its vocab', 'none');
  }
  // The library would take any other kind for a list of words.
  const { type } = model;
  if (type !== undefined && !KINDS.includes(type as string)) {
    throw failure(place, `a model of type ${KINDS.join(', ')}`, JSON.stringify(type));
  }
  // The library asks for these keys, but Hugging Face may leave empty ones out.
  const { Tokenizer: Library } = library();
  const empty = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null };
  try {
    return new Library(
      { ...empty, added_tokens: [], ...json },
      // Cleaning up spaces loses text; it is done only where the model's files ask for it.
      { clean_up_tokenization_spaces: false, ...settings },
    );
  } catch (error) {
    throw failure(place, 'a tokenizer of a known kind', (error as Error).message);
  }
}

/**
 * Reads the tokenizer of a model directory, or of a model of the Hugging Face Hub by
 * `org/name[@revision]`; see {@link openTokenizer}.
 * @throws where there is neither, on an unknown option, and as {@link openTokenizer} does
 */
export async function loadTokenizer(
  dirOrId: string,
  options: LocateOptions = {},
): Promise<Tokenizer> {
  onlyKnown('loadTokenizer', options, HUB_SETTINGS);
  return openTokenizer(await locate(dirOrId, 'tokenizer', options));
}

/**
 * Reads the tokenizer of a model directory, at once: `tokenizer.json`, with what `tokenizer_config.json`,
 * `special_tokens_map.json`, `generation_config.json` and `config.json` add where they are there.
 * @throws with the file's name when one is missing or malformed
 */
export function openTokenizer(dir: string): Tokenizer {
  const path = join(dir, 'tokenizer.json');
  const json = readJsonObject(path, 'tokenizer');
  const optional = (name: string): JsonObject =>
    existsSync(join(dir, name)) ? readJsonObject(join(dir, name), 'tokenizer') : {};
  const map = optional('special_tokens_map.json');
  const config = optional('tokenizer_config.json');
  const settings: JsonObject = { ...map };
  for (const [key, value] of Object.entries(config)) {
    if (value !== null || !(key in settings)) settings[key] = value;
  }
  const ids = (kind: string) => specialIds(dir, kind);
  const special = { bos: ids('bos'), eos: ids('eos'), pad: ids('pad') };
  return new Tokenizer(json, settings, special, `tokenizer ${path}`);
}
