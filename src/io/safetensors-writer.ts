import type { DType } from '../tensor/dtype.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { type Parts, writeFileAtomic } from './files.js';
import {
  byteSize,
  FILE_DTYPES,
  type FileDType,
  fileDType,
  MAX_HEADER_BYTES,
  quoted,
} from './safetensors-header.js';

/** Bytes fetched from a backend at once. */
const CHUNK = 16 * 2 ** 20;

/** A tensor to be written. */
export interface WriteEntry {
  readonly name: string;
  /** Our dtype or the format's own name of one. */
  readonly dtype: DType | FileDType;
  readonly shape: readonly number[];
  /** Its bytes, whole or in pieces; asked for once, when its turn comes. */
  bytes(): Uint8Array | Parts;
}

/** Tensors to be written: a map, or entries whose bytes are made one by one. */
export type WriteEntries = ReadonlyMap<string, Tensor> | Iterable<WriteEntry>;

/** An entry for a live tensor; its bytes are fetched from the backend in pieces. */
export function tensorEntry(name: string, tensor: Tensor): WriteEntry {
  return {
    name,
    dtype: tensor.dtype,
    shape: tensor.shape,
    *bytes() {
      tensor.check('writeSafetensors');
      for (let at = 0; at < tensor.byteLength; at += CHUNK) {
        const piece = new Uint8Array(Math.min(CHUNK, tensor.byteLength - at));
        tensor.backend.download(tensor.storage.handle, tensor.byteOffset + at, piece);
        yield piece;
      }
    },
  };
}

/** Bytes of an entry, from its shape and dtype. */
export function entryBytes(entry: WriteEntry): number {
  return plan(entry).byteLength;
}

interface Planned {
  entry: WriteEntry;
  dtype: FileDType;
  byteLength: number;
  /** UTF-8 of the name: the order of the format is that of the bytes. */
  key: Buffer;
}

function plan(entry: WriteEntry): Planned {
  const place = `writeSafetensors, tensor ${quoted(entry.name)}`;
  const { name, shape } = entry;
  if (name === '__metadata__') {
    throw failure(place, 'a name other than __metadata__', 'the name of the metadata');
  }
  checkText(place, 'a name', name);
  const dtype = (FILE_DTYPES as readonly string[]).includes(entry.dtype)
    ? (entry.dtype as FileDType)
    : fileDType(entry.dtype as DType);
  if (dtype === undefined) throw failure(place, 'a dtype of the format', String(entry.dtype));
  for (const d of shape) {
    if (!Number.isSafeInteger(d) || d < 0) {
      throw failure(place, 'whole sizes of 0 or more', `[${shape.join(', ')}]`);
    }
  }
  const byteLength = byteSize(dtype, shape);
  if (byteLength === undefined) {
    throw failure(place, 'a size in whole bytes', `[${shape.join(', ')}] of ${dtype}`);
  }
  return { entry, dtype, byteLength, key: Buffer.from(name) };
}

/** JSON cannot carry half of a surrogate pair to readers that keep strings as UTF-8. */
function checkText(place: string, what: string, text: string): void {
  if (/\p{Surrogate}/u.test(text)) {
    throw failure(place, `${what} of whole characters`, `${quoted(text)} with a lone surrogate`);
  }
}

function headerBytes(plans: readonly Planned[], metadata: ReadonlyMap<string, string>): Uint8Array {
  const members: string[] = [];
  if (metadata.size > 0) {
    const pairs = [...metadata].map(([k, v]) => {
      checkText('writeSafetensors, __metadata__', 'a name', k);
      checkText('writeSafetensors, __metadata__', 'a value', v);
      return `${JSON.stringify(k)}:${JSON.stringify(v)}`;
    });
    members.push(`"__metadata__":{${pairs.join(',')}}`);
  }
  let at = 0;
  for (const { entry, dtype, byteLength } of plans) {
    const offsets = `[${at},${at + byteLength}]`;
    const fields = `"dtype":"${dtype}","shape":[${entry.shape.join(',')}],"data_offsets":${offsets}`;
    members.push(`${JSON.stringify(entry.name)}:{${fields}}`);
    at += byteLength;
  }
  const json = Buffer.from(`{${members.join(',')}}`);
  const padded = Math.ceil(json.length / 8) * 8;
  if (padded > MAX_HEADER_BYTES) {
    throw failure('writeSafetensors', `a header of at most ${MAX_HEADER_BYTES} bytes`, `${padded}`);
  }
  const out = new Uint8Array(8 + padded).fill(0x20, 8);
  new DataView(out.buffer).setBigUint64(0, BigInt(padded), true);
  out.set(json, 8);
  return out;
}

function* dataParts(plans: readonly Planned[]): Generator<Uint8Array> {
  for (const { entry, byteLength } of plans) {
    const bytes = entry.bytes();
    let written = 0;
    for (const part of bytes instanceof Uint8Array ? [bytes] : bytes) {
      written += part.length;
      yield part;
    }
    if (written !== byteLength) {
      throw failure(
        `writeSafetensors, tensor ${quoted(entry.name)}`,
        `${byteLength} bytes for [${entry.shape.join(', ')}] of ${entry.dtype}`,
        `${written}`,
      );
    }
  }
}

function* chain(first: Uint8Array, rest: Parts): Generator<Uint8Array> {
  yield first;
  yield* rest;
}

/**
 * A safetensors file as pieces, header first, in the layout of Hugging Face's own writer: larger
 * dtypes first, then by name. Names and shapes are checked at once, bytes as they are asked for.
 */
export function safetensorsParts(
  entries: WriteEntries,
  metadata: ReadonlyMap<string, string> | Readonly<Record<string, string>> = {},
): Parts {
  const list =
    entries instanceof Map
      ? Array.from(entries as ReadonlyMap<string, Tensor>, ([n, t]) => tensorEntry(n, t))
      : (entries as Iterable<WriteEntry>);
  const plans = Array.from(list, plan);
  plans.sort(
    (a, b) =>
      FILE_DTYPES.indexOf(b.dtype) - FILE_DTYPES.indexOf(a.dtype) || Buffer.compare(a.key, b.key),
  );
  const seen = new Set<string>();
  for (const { entry } of plans) {
    if (seen.has(entry.name)) {
      throw failure('writeSafetensors', 'each tensor name once', `${quoted(entry.name)} twice`);
    }
    seen.add(entry.name);
  }
  const notes = metadata instanceof Map ? metadata : new Map(Object.entries(metadata));
  return chain(headerBytes(plans, notes), dataParts(plans));
}

/**
 * Writes a safetensors file atomically, streaming one tensor after the other.
 * @param metadata strings by name, such as `{ format: 'pt' }`, which Hugging Face's readers ask for
 * @throws on a name given twice, bytes that do not fit the shape, or a failed write; an old file
 *   then still stands
 */
export function writeSafetensors(
  path: string,
  entries: WriteEntries,
  metadata: ReadonlyMap<string, string> | Readonly<Record<string, string>> = {},
): void {
  writeFileAtomic(path, safetensorsParts(entries, metadata));
}
