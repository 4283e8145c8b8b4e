import { closeSync, fstatSync, openSync, readSync, type Stats, statSync } from 'node:fs';
import type { Backend, Purpose } from '../tensor/backend.js';
import { encode } from '../tensor/create.js';
import { bf16ToNumber, type DType, dtypeBytes, f16ToNumber, viewOf } from '../tensor/dtype.js';
import { failure, nearest } from '../tensor/errors.js';
import { defaultBackend } from '../tensor/registry.js';
import { checkShape } from '../tensor/shape.js';
import { Storage } from '../tensor/storage.js';
import { Tensor } from '../tensor/tensor.js';
import { missingFile } from './files.js';
import {
  MAX_HEADER_BYTES,
  parseHeader,
  quoted,
  readableDType,
  type TensorEntry,
  tensorPlace,
} from './safetensors-header.js';

export type { FileDType, TensorEntry } from './safetensors-header.js';
export {
  entryBytes,
  safetensorsParts,
  tensorEntry,
  type WriteEntries,
  type WriteEntry,
  writeSafetensors,
} from './safetensors-writer.js';

/** Bytes read or converted at once. A multiple of every element size. */
const CHUNK = 16 * 2 ** 20;

/** How a tensor is loaded. */
export interface LoadOptions {
  /** Default: the default backend. */
  readonly backend?: Backend;
  /** Default: the file's own; another one is rounded to. */
  readonly dtype?: DType;
  /** Default frozen. Only a frozen tensor can stay in the mapped file; others are copied. */
  readonly purpose?: Purpose;
}

/** Whether `mapFile` maps rather than reads; a backend that reads is better given single tensors. */
function mapsFiles(backend: Backend): boolean {
  return backend.name === 'cpu';
}

function readFully(fd: number, into: Uint8Array, position: number): boolean {
  for (let at = 0; at < into.length; ) {
    const n = readSync(fd, into, at, Math.min(CHUNK, into.length - at), position + at);
    if (n === 0) return false;
    at += n;
  }
  return true;
}

/** A way out for files that people take for safetensors. */
function lookalike(start: Uint8Array): string | undefined {
  const text = Buffer.from(start).toString('latin1');
  if (text.startsWith('version ')) {
    return 'This is a git-lfs pointer, not the file itself: run git lfs pull';
  }
  if (text.startsWith('PK\x03\x04') || text.startsWith('\x80\x02')) {
    return 'This is a pickle file of PyTorch: convert it with safetensors.torch.save_file in Python';
  }
  if (text.startsWith('GGUF'))
    return 'This is a GGUF file; convert the original checkpoint instead';
  if (text.startsWith('<')) return 'This looks like a web page: download the file again';
  return undefined;
}

function readHeader(path: string, fd: number, fileBytes: number) {
  const place = `safetensors ${path}`;
  if (fileBytes < 8) {
    throw failure(place, 'at least the 8 bytes of the header length', `${fileBytes} bytes`);
  }
  const start = new Uint8Array(8);
  readFully(fd, start, 0);
  const length = new DataView(start.buffer).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    const rule = `a header of at most ${MAX_HEADER_BYTES} bytes`;
    throw failure(place, rule, `${length}`, lookalike(start));
  }
  if (Number(length) > fileBytes - 8) {
    throw failure(
      place,
      `a header that ends within the file's ${fileBytes} bytes`,
      `a length of ${length} after the first 8`,
      lookalike(start),
    );
  }
  const header = new Uint8Array(Number(length));
  if (!readFully(fd, header, 8)) throw failure(place, `${length} bytes of header`, 'fewer');
  return parseHeader(path, header, fileBytes);
}

/**
 * A safetensors file: its header in memory, its tensors read when asked for.
 *
 * The file must not be changed in place while tensors of it live; replacing it by a rename (as the
 * writers here do) is safe, and a later load from this object then throws.
 */
export class SafetensorsFile {
  readonly path: string;
  /** Tensors by name, in the header's order. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** The file's `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>;
  /** Size of the file. */
  readonly fileBytes: number;
  readonly #stats: Stats;
  /** The mapped file of each backend; dead (refs 0) once no tensor holds it. */
  readonly #mapped = new Map<Backend, Storage>();

  private constructor(path: string, stats: Stats, header: ReturnType<typeof readHeader>) {
    this.path = path;
    this.#stats = stats;
    this.fileBytes = stats.size;
    this.tensors = header.tensors;
    this.metadata = header.metadata;
  }

  /**
   * Opens a file and reads its header only.
   * @throws with file, tensor and rule when the file is missing or breaks the format
   */
  static open(path: string): SafetensorsFile {
    const seen = statSync(path, { throwIfNoEntry: false });
    if (!seen) throw missingFile('safetensors', path);
    if (!seen.isFile()) {
      const kind = seen.isDirectory() ? 'a directory' : 'something else';
      throw failure(`safetensors ${path}`, 'a file', kind);
    }
    const fd = openSync(path, 'r');
    try {
      const stats = fstatSync(fd);
      return new SafetensorsFile(path, stats, readHeader(path, fd, stats.size));
    } finally {
      closeSync(fd);
    }
  }

  /** A tensor's place in the file; an unknown name is an error with near names. */
  entry(name: string): TensorEntry {
    const entry = this.tensors.get(name);
    if (entry) return entry;
    const near = nearest(name, this.tensors.keys()).map(quoted).join(', ');
    throw failure(
      `safetensors ${this.path}`,
      `a tensor ${quoted(name)}`,
      `none among ${this.tensors.size}`,
      near && `The nearest are ${near}`,
    );
  }

  /** A copy of a tensor's bytes, whatever its dtype. */
  bytes(name: string): Uint8Array {
    const { byteOffset, byteLength } = this.entry(name);
    const out = new Uint8Array(byteLength);
    this.#read((fd) => this.#fill(fd, name, out, byteOffset));
    return out;
  }

  /**
   * A tensor of the file's shape. Frozen and in the file's dtype on a backend that maps files, it
   * lies in the mapped file (shared by all such tensors); else it is a copy.
   * @throws when the name is unknown, the dtype has no counterpart here, or the file has changed
   */
  load(name: string, options: LoadOptions = {}): Tensor {
    const entry = this.entry(name);
    const own = readableDType(entry.dtype);
    if (!own) {
      const way = entry.dtype.startsWith('F8')
        ? 'Store the tensor as BF16 or F16 instead (8-bit floats need scales kept elsewhere)'
        : 'Store the tensor in one of these instead';
      throw failure(
        tensorPlace(this.path, name),
        'a dtype of F32, F16, BF16, F64, I32, I64, U8, BOOL',
        entry.dtype,
        way,
      );
    }
    checkShape(tensorPlace(this.path, name), entry.shape);
    const backend = options.backend ?? defaultBackend();
    const purpose = options.purpose ?? 'frozen';
    const dtype = options.dtype ?? own;
    if (dtype !== own) return this.#loadAs(name, entry, own, dtype, backend, purpose);
    const aligned = entry.byteOffset % dtypeBytes(own) === 0;
    if (purpose === 'frozen' && aligned && entry.byteLength > 0 && mapsFiles(backend)) {
      return new Tensor(this.#map(backend), entry.shape, own, entry.byteOffset);
    }
    return this.#copy(name, entry, own, own, backend, purpose);
  }

  /** Another dtype: by the backend's own cast; f64, which only the reference has, by hand. */
  #loadAs(
    name: string,
    entry: TensorEntry,
    from: DType,
    to: DType,
    backend: Backend,
    purpose: Purpose,
  ): Tensor {
    const byHand = (from === 'f64' || to === 'f64') && backend.name !== 'reference';
    if (byHand || !backend.kernels.has('cast')) {
      return this.#copy(name, entry, from, to, backend, purpose);
    }
    const source = this.load(name, { backend });
    try {
      const out = Tensor.empty(backend, entry.shape, to, purpose);
      backend.run('cast', [source, out], []);
      return out;
    } finally {
      source.dispose();
    }
  }

  /** Reads piece by piece into a buffer of the backend's, converting on the way. */
  #copy(
    name: string,
    entry: TensorEntry,
    from: DType,
    to: DType,
    backend: Backend,
    purpose: Purpose,
  ): Tensor {
    const out = Tensor.empty(backend, entry.shape, to, purpose);
    if (from === to && backend.uploadFile) {
      try {
        this.#checkUnchanged(statSync(this.path));
        const { byteOffset, byteLength } = entry;
        backend.uploadFile(out.storage.handle, 0, this.path, byteOffset, byteLength);
        this.#checkUnchanged(statSync(this.path));
        return out;
      } catch (error) {
        out.dispose();
        throw error;
      }
    }
    const piece = new Uint8Array(Math.min(CHUNK, entry.byteLength));
    const ratio = dtypeBytes(to) / dtypeBytes(from);
    try {
      this.#read((fd) => {
        for (let at = 0; at < entry.byteLength; at += piece.length) {
          const part = piece.subarray(0, Math.min(piece.length, entry.byteLength - at));
          this.#fill(fd, name, part, entry.byteOffset + at);
          const bytes = from === to ? part : convert(part, from, to);
          backend.upload(out.storage.handle, at * ratio, bytes);
        }
      });
    } catch (error) {
      out.dispose();
      throw error;
    }
    return out;
  }

  /** A reference to the whole file mapped into the backend; one mapping while tensors hold it. */
  #map(backend: Backend): Storage {
    const held = this.#mapped.get(backend);
    if (held && held.refs > 0) return held.retain();
    const { handle, bytes } = backend.mapFile(this.path);
    const storage = new Storage(backend, handle, bytes, 'frozen');
    try {
      this.#checkUnchanged(statSync(this.path));
      if (bytes !== this.fileBytes) throw this.#changed(`${bytes} bytes`);
    } catch (error) {
      storage.release();
      throw error;
    }
    this.#mapped.set(backend, storage);
    return storage;
  }

  #read(use: (fd: number) => void): void {
    const fd = openSync(this.path, 'r');
    try {
      this.#checkUnchanged(fstatSync(fd));
      use(fd);
    } finally {
      closeSync(fd);
    }
  }

  #fill(fd: number, name: string, into: Uint8Array, position: number): void {
    if (readFully(fd, into, position)) return;
    throw failure(tensorPlace(this.path, name), `${into.length} bytes at ${position}`, 'fewer');
  }

  #checkUnchanged(now: Stats): void {
    const then = this.#stats;
    if (now.size !== then.size) throw this.#changed(`${now.size} bytes`);
    if (now.ino !== then.ino || now.dev !== then.dev || now.mtimeMs !== then.mtimeMs) {
      throw this.#changed('another file or time of change');
    }
  }

  #changed(received: string): Error {
    return failure(
      `safetensors ${this.path}`,
      `the file of ${this.fileBytes} bytes that was opened`,
      received,
      'The file was changed since: open it again',
    );
  }
}

/** Numbers of one dtype as the bytes of another; `bytes` starts at offset 0 of its buffer. */
function convert(bytes: Uint8Array, from: DType, to: DType): Uint8Array {
  const view = viewOf(from, bytes.buffer, bytes.byteOffset, bytes.length / dtypeBytes(from));
  if (from === 'bf16') return encode(Float64Array.from(view as Uint16Array, bf16ToNumber), to);
  if (from === 'f16') return encode(Float64Array.from(view as Uint16Array, f16ToNumber), to);
  if (to === 'i64' && !(view instanceof BigInt64Array)) {
    return encode(Float64Array.from(view as Float64Array, Math.trunc), to);
  }
  return encode(view, to);
}
