import type { DType } from '../tensor/dtype.js';
import { failure } from '../tensor/errors.js';
import { JsonScanner, quoted } from './json-scanner.js';

export { quoted } from './json-scanner.js';

/** Bits of one element of every dtype the format names, in the format's own order. */
const BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

/** A dtype as safetensors files spell it. */
export type FileDType = keyof typeof BITS;

/** Every dtype of the format; the writer lays larger ones first. */
export const FILE_DTYPES = Object.keys(BITS) as readonly FileDType[];

const READABLE = {
  F32: 'f32',
  F16: 'f16',
  BF16: 'bf16',
  F64: 'f64',
  I32: 'i32',
  I64: 'i64',
  U8: 'u8',
  BOOL: 'bool',
} as const satisfies Partial<Record<FileDType, DType>>;

const WRITTEN = Object.fromEntries(Object.entries(READABLE).map(([f, d]) => [d, f])) as Record<
  DType,
  FileDType
>;

/** Our dtype for a file's, or undefined where there is none. */
export function readableDType(dtype: FileDType): DType | undefined {
  return (READABLE as Partial<Record<FileDType, DType>>)[dtype];
}

/** The file's spelling of our dtype. */
export function fileDType(dtype: DType): FileDType {
  return WRITTEN[dtype];
}

/** Bits of one element. */
export function fileDTypeBits(dtype: FileDType): number {
  return BITS[dtype];
}

/** One tensor of a file. */
export interface TensorEntry {
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  /** Bytes from the start of the file. */
  readonly byteOffset: number;
  readonly byteLength: number;
}

export interface Header {
  readonly tensors: Map<string, TensorEntry>;
  readonly metadata: Map<string, string>;
}

/** The most bytes a header may have. */
export const MAX_HEADER_BYTES = 100_000_000;

/** Where an error of a tensor in a file is. */
export function tensorPlace(file: string, name: string): string {
  return `safetensors ${file}, tensor ${quoted(name)}`;
}

interface RawEntry {
  name: string;
  dtype: FileDType;
  shape: number[];
  begin: number;
  end: number;
}

function scanDType(scanner: JsonScanner): FileDType {
  const dtype = scanner.string('dtype to be a string');
  if (!Object.hasOwn(BITS, dtype)) {
    throw scanner.fail(`dtype to be one of ${FILE_DTYPES.join(', ')}`, quoted(dtype));
  }
  return dtype as FileDType;
}

function scanTensor(scanner: JsonScanner, name: string): RawEntry {
  let dtype: FileDType | undefined;
  let shape: number[] | undefined;
  let offsets: number[] | undefined;
  scanner.object(
    'a tensor',
    (field) => {
      if (field === 'dtype') dtype = scanDType(scanner);
      else if (field === 'shape') shape = scanner.integers('shape');
      else if (field === 'data_offsets') offsets = scanner.integers('data_offsets');
      else throw scanner.fail('the fields dtype, shape and data_offsets only', quoted(field));
    },
    'field of a tensor',
  );
  if (dtype === undefined || shape === undefined || offsets === undefined) {
    const missing = [!dtype && 'dtype', !shape && 'shape', !offsets && 'data_offsets'];
    throw scanner.fail(
      'the fields dtype, shape and data_offsets',
      `no ${missing.filter(Boolean).join(', no ')}`,
    );
  }
  const [begin, end] = offsets;
  if (begin === undefined || end === undefined || offsets.length !== 2) {
    throw scanner.fail('data_offsets of two numbers', `${offsets.length}`);
  }
  return { name, dtype, shape, begin, end };
}

/** Bytes of a tensor, or undefined where they cannot be a whole number up to 2^53 - 1. */
export function byteSize(dtype: FileDType, shape: readonly number[]): number | undefined {
  if (shape.includes(0)) return 0;
  let bits = BITS[dtype] as number;
  for (const d of shape) {
    // A product below 2^53 is exact; its partial products are no larger, as no size is 0.
    bits *= d;
    if (bits > Number.MAX_SAFE_INTEGER) return largeByteSize(dtype, shape);
  }
  return bits % 8 === 0 ? bits / 8 : undefined;
}

function largeByteSize(dtype: FileDType, shape: readonly number[]): number | undefined {
  const bits = shape.reduce((n, d) => n * BigInt(d), BigInt(BITS[dtype]));
  const bytes = Number(bits / 8n);
  return bits % 8n === 0n && Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** Every tensor's span fits its shape, and the spans tile the data without hole or overlap. */
function checkSpans(file: string, entries: readonly RawEntry[], dataBytes: number): void {
  const sorted = [...entries].sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = 0;
  let before = 'the header';
  for (const { name, dtype, shape, begin, end } of sorted) {
    const place = tensorPlace(file, name);
    const range = `data_offsets [${begin}, ${end}]`;
    if (end < begin) throw failure(place, 'data_offsets that do not run backwards', range);
    if (begin < at) {
      throw failure(place, `no overlap: a start at ${at}, after ${before}`, range);
    }
    if (begin > at) throw failure(place, `no hole: a start at ${at}, after ${before}`, range);
    const bytes = byteSize(dtype, shape);
    const size = `shape [${shape.join(', ')}] of ${dtype}`;
    if (bytes === undefined) {
      throw failure(place, 'a size in whole bytes of at most 2^53 - 1', size);
    }
    if (end - begin !== bytes) {
      throw failure(place, `a span of ${bytes} bytes for ${size}`, `${end - begin} (${range})`);
    }
    if (end > dataBytes) {
      throw failure(place, `data within the file's ${dataBytes} bytes after the header`, range);
    }
    at = end;
    before = `tensor ${quoted(name)}`;
  }
  if (at !== dataBytes) {
    const rule = `${at} bytes of data, as the header says`;
    throw failure(`safetensors ${file}`, rule, `${dataBytes}: ${dataBytes - at} too many`);
  }
}

function headerText(file: string, bytes: Uint8Array): string {
  const place = `safetensors ${file}`;
  if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) {
    throw failure(place, 'a header that begins with "{"', 'a byte order mark');
  }
  if (bytes[0] !== 0x7b) {
    const first = bytes[0];
    const received = first === undefined ? 'an empty header' : `byte 0x${first.toString(16)}`;
    throw failure(place, 'a header that begins with "{"', received);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw failure(place, 'a header in UTF-8', 'bytes that are not UTF-8');
  }
}

/**
 * Reads and checks a safetensors header.
 * @param file the file's name, for messages
 * @param header the bytes of the JSON (after the eight bytes of its length)
 * @param fileBytes size of the whole file
 * @throws with file, tensor and rule wherever the format is broken
 */
export function parseHeader(file: string, header: Uint8Array, fileBytes: number): Header {
  const place = `safetensors ${file}`;
  const scanner = new JsonScanner(headerText(file, header), place, 'the header');
  const metadata = new Map<string, string>();
  const entries: RawEntry[] = [];
  scanner.object(
    'the header',
    (name) => {
      if (name === '__metadata__') {
        scanner.place = `${place}, __metadata__`;
        scanner.object(
          '__metadata__',
          (key) => metadata.set(key, scanner.string(`the value of ${quoted(key)} to be a string`)),
          'metadata name',
        );
      } else {
        scanner.place = tensorPlace(file, name);
        entries.push(scanTensor(scanner, name));
      }
      scanner.place = place;
    },
    'tensor name',
  );
  scanner.end();
  const dataStart = 8 + header.length;
  checkSpans(file, entries, fileBytes - dataStart);
  const tensors = new Map<string, TensorEntry>();
  for (const { name, dtype, shape, begin, end } of entries) {
    tensors.set(name, { dtype, shape, byteOffset: dataStart + begin, byteLength: end - begin });
  }
  return { tensors, metadata };
}
