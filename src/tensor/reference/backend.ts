import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import {
  type Backend,
  type Compute,
  type Handle,
  type KernelTensor,
  type MemoryBooks,
  PURPOSES,
  type Purpose,
} from '../backend.js';
import { Books } from '../books.js';
import { dtypeBytes } from '../dtype.js';
import { failure } from '../errors.js';
import { numel } from '../shape.js';
import { activatedKernels } from './activated.js';
import { attentionKernels } from './attention.js';
import { type Arg, Call, type Kernel } from './call.js';
import { castKernels } from './cast.js';
import { dropoutKernels } from './dropout.js';
import { elementwiseKernels } from './elementwise.js';
import { embeddingKernels } from './embedding.js';
import { loraKernels } from './lora.js';
import { loraRowKernels } from './lora-rows.js';
import { lossKernels } from './loss.js';
import { matmulKernels } from './matmul.js';
import { normKernels } from './norm.js';
import { optimKernels } from './optim.js';
import { reduceKernels } from './reduce.js';
import { ropeKernels } from './rope.js';
import { shapeKernels } from './shape.js';
import { softmaxKernels } from './softmax.js';

const KERNELS: ReadonlyMap<string, Kernel> = new Map(
  Object.entries({
    ...elementwiseKernels,
    ...reduceKernels,
    ...matmulKernels,
    ...activatedKernels,
    ...softmaxKernels,
    ...lossKernels,
    ...normKernels,
    ...ropeKernels,
    ...embeddingKernels,
    ...attentionKernels,
    ...dropoutKernels,
    ...shapeKernels,
    ...castKernels,
    ...optimKernels,
    ...loraKernels,
    ...loraRowKernels,
  }),
);

/** Freed buffers are kept for reuse up to this many bytes, so that steps do not churn the heap. */
const POOL_LIMIT = 256 * 2 ** 20;

interface Block {
  /** At least `bytes` long. */
  readonly buffer: ArrayBuffer;
  readonly bytes: number;
  readonly mapped: boolean;
  purpose: Purpose;
}

/**
 * Every kernel in plain TypeScript: always there, and the oracle of the other backends.
 *
 * Arithmetic is done in doubles and rounded once, when it is stored to the output's dtype; f64
 * tensors are never rounded, so that gradients can be checked against finite differences.
 * Everything runs on the calling thread.
 */
export class ReferenceBackend implements Backend {
  readonly name = 'reference';
  readonly compute = 'exact';
  readonly kernels: ReadonlySet<string> = new Set(KERNELS.keys());
  readonly #blocks = new Map<Handle, Block>();
  readonly #books = new Books();
  readonly #pool = new Map<number, ArrayBuffer[]>();
  #pooled = 0;
  #mapped = 0;
  #next = 1;

  describe(): string {
    return 'reference (plain TypeScript, 1 thread)';
  }

  allocate(bytes: number, purpose: Purpose): Handle {
    if (!Number.isSafeInteger(bytes) || bytes < 0) {
      throw failure('allocate', 'a whole number of bytes, 0 or more', String(bytes));
    }
    checkPurpose('allocate', purpose);
    return this.#add({ buffer: this.#buffer(bytes), bytes, mapped: false, purpose });
  }

  free(handle: Handle): void {
    const block = this.#block('free', handle);
    this.#blocks.delete(handle);
    this.#books.add(block.purpose, -block.bytes);
    if (block.mapped) this.#mapped -= block.bytes;
    else this.#keep(block.buffer);
  }

  retag(handle: Handle, purpose: Purpose): void {
    checkPurpose('retag', purpose);
    const block = this.#block('retag', handle);
    this.#books.add(block.purpose, -block.bytes);
    this.#books.add(purpose, block.bytes);
    block.purpose = purpose;
  }

  upload(handle: Handle, byteOffset: number, bytes: Uint8Array): void {
    const block = this.#block('upload', handle);
    if (block.mapped) throw failure('upload', 'memory that may be written', 'a mapped file');
    checkRange('upload', block, byteOffset, bytes.length);
    new Uint8Array(block.buffer, byteOffset, bytes.length).set(bytes);
  }

  download(handle: Handle, byteOffset: number, into: Uint8Array): void {
    const block = this.#block('download', handle);
    checkRange('download', block, byteOffset, into.length);
    into.set(new Uint8Array(block.buffer, byteOffset, into.length));
  }

  /** Reads the file: plain JavaScript cannot map it. The bytes count as mapped all the same. */
  mapFile(path: string): { handle: Handle; bytes: number } {
    const buffer = readWhole(path);
    const bytes = buffer.byteLength;
    this.#mapped += bytes;
    return { handle: this.#add({ buffer, bytes, mapped: true, purpose: 'frozen' }), bytes };
  }

  run(kernel: string, tensors: readonly KernelTensor[], attrs: readonly number[]): void {
    const body = KERNELS.get(kernel);
    if (!body) throw failure(kernel, 'a kernel of the reference backend', 'none');
    const args = tensors.map((t) => this.#arg(kernel, t));
    const call = new Call(kernel, args, attrs);
    body(call);
    call.settle();
  }

  memory(): MemoryBooks {
    return {
      ...this.#books.read(this.#blocks.size),
      pooled: this.#pooled,
      mapped: this.#mapped,
    };
  }

  resetPeak(): void {
    this.#books.resetPeak();
  }

  trim(): void {
    this.#pool.clear();
    this.#pooled = 0;
  }

  /** Checks the number and does nothing with it: every kernel here runs on the calling thread. */
  setThreads(count: number): void {
    if (!Number.isSafeInteger(count) || count < 1) {
      throw failure('setThreads', 'a whole number of threads, 1 or more', String(count));
    }
  }

  /** @throws unless it is `exact`: sums here are doubles, and nothing is rounded on the way */
  setCompute(mode: Compute): void {
    if (mode === 'exact') return;
    throw failure('setCompute', 'exact on the reference backend', mode, 'Use the backend cpu');
  }

  #add(block: Block): Handle {
    const handle = this.#next++;
    this.#blocks.set(handle, block);
    this.#books.add(block.purpose, block.bytes);
    return handle;
  }

  #block(where: string, handle: Handle): Block {
    const block = this.#blocks.get(handle);
    if (!block) throw failure(where, 'the handle of a live buffer', String(handle));
    return block;
  }

  #arg(kernel: string, t: KernelTensor): Arg {
    const block = this.#block(kernel, t.storage.handle);
    checkRange(kernel, block, t.byteOffset, numel(t.shape) * dtypeBytes(t.dtype));
    return {
      dtype: t.dtype,
      shape: t.shape,
      buffer: block.buffer,
      byteOffset: t.byteOffset,
      readOnly: block.mapped,
    };
  }

  /** A pooled buffer of the same rounded size, with whatever it held, or a fresh one. */
  #buffer(bytes: number): ArrayBuffer {
    const size = Math.ceil(bytes / 64) * 64;
    const reused = this.#pool.get(size)?.pop();
    if (reused) {
      this.#pooled -= size;
      return reused;
    }
    try {
      return new ArrayBuffer(size);
    } catch {
      throw new RangeError(`[allocate] expected memory for ${bytes} bytes, received none`);
    }
  }

  #keep(buffer: ArrayBuffer): void {
    const size = buffer.byteLength;
    if (size === 0 || this.#pooled + size > POOL_LIMIT) return;
    const list = this.#pool.get(size);
    if (list) list.push(buffer);
    else this.#pool.set(size, [buffer]);
    this.#pooled += size;
  }
}

function checkPurpose(where: string, purpose: Purpose): void {
  if (!PURPOSES.includes(purpose)) throw failure(where, PURPOSES.join(', '), String(purpose));
}

function checkRange(where: string, block: Block, byteOffset: number, bytes: number): void {
  const ok = Number.isSafeInteger(byteOffset) && byteOffset >= 0;
  if (!ok || byteOffset + bytes > block.bytes) {
    throw failure(
      where,
      `bytes within a buffer of ${block.bytes}`,
      `${bytes} bytes from offset ${byteOffset}`,
    );
  }
}

/** A file's bytes, read in parts because one call of the system reads at most 2 GiB. */
function readWhole(path: string): ArrayBuffer {
  const file = openSync(path, 'r');
  try {
    const { size } = fstatSync(file);
    const bytes = new Uint8Array(size);
    let at = 0;
    while (at < size) {
      const got = readSync(file, bytes, at, Math.min(size - at, 2 ** 30), at);
      if (got === 0) throw failure('mapFile', `${size} bytes in ${path}`, `${at}`);
      at += got;
    }
    return bytes.buffer;
  } finally {
    closeSync(file);
  }
}
