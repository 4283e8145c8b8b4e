import type { DType } from './dtype.js';
import type { Shape } from './shape.js';

/** What a buffer is for; the memory books are kept by it. */
export type Purpose =
  | 'frozen'
  | 'trainable'
  | 'gradient'
  | 'optimizer'
  | 'activation'
  | 'workspace';

/** Every purpose in the order of its code. */
export const PURPOSES: readonly Purpose[] = [
  'frozen',
  'trainable',
  'gradient',
  'optimizer',
  'activation',
  'workspace',
];

/** Live and peak bytes by purpose, from the allocator's own books. */
export interface MemoryBooks {
  /** Bytes held now. */
  readonly live: Readonly<Record<Purpose, number>>;
  /** The most that was held at once, each purpose for itself. */
  readonly peak: Readonly<Record<Purpose, number>>;
  /** Bytes held now, all purposes. */
  readonly total: number;
  /** The most that was held at once, all purposes together. */
  readonly totalPeak: number;
  /** Freed bytes the pool keeps for reuse. */
  readonly pooled: number;
  /** Buffers held now. */
  readonly handles: number;
  /** Bytes of memory-mapped files; counted under frozen too. */
  readonly mapped: number;
}

/** Names of the arithmetics of products with a factor stored in bf16. */
export const COMPUTES = ['exact', 'bf16'] as const;

/**
 * Arithmetic of products with a factor stored in bf16. `exact` widens it and rounds nothing else;
 * `bf16` rounds the other factor to bf16, too, and sums in f32: twice as fast where the processor
 * multiplies bf16 (instruction set avx512bf16), no slower elsewhere.
 */
export type Compute = (typeof COMPUTES)[number];

/** A buffer of a backend: a positive integer that the backend looks up and checks. */
export type Handle = number;

/** Bytes on their way from a backend. */
export interface Download {
  /** Waits for them; once. */
  take(): Uint8Array;
  /** Gives them up, or does nothing once they are taken. */
  drop(): void;
}

/** A contiguous row-major view of a buffer, as a kernel takes it. A `Tensor` is one. */
export interface KernelTensor {
  readonly storage: { readonly handle: Handle };
  /** Bytes from the start of the buffer. */
  readonly byteOffset: number;
  readonly dtype: DType;
  readonly shape: Shape;
}

/**
 * Where tensors live and kernels run. Kernels and their arguments: docs/kernels.md.
 * Every method throws an `Error` on bad arguments and leaves the backend usable.
 */
export interface Backend {
  readonly name: string;
  /** Names of the kernels there are; being listed is being supported. */
  readonly kernels: ReadonlySet<string>;
  /** What is underneath, for people: instruction set, threads. */
  describe(): string;
  /** A buffer of `bytes`, not cleared. Throws RangeError when there is no memory. */
  allocate(bytes: number, purpose: Purpose): Handle;
  /** Gives a buffer back; the handle is dead afterwards. */
  free(handle: Handle): void;
  /** Moves a buffer's bytes to another purpose in the books. */
  retag(handle: Handle, purpose: Purpose): void;
  /** Copies `bytes` into the buffer from `byteOffset`. */
  upload(handle: Handle, byteOffset: number, bytes: Uint8Array): void;
  /** Fills `into` from the buffer at `byteOffset`. */
  download(handle: Handle, byteOffset: number, into: Uint8Array): void;
  /**
   * Copies `bytes` of a file from `position` on into the buffer, straight from where the file is
   * mapped; not there where the host's memory is the backend's own.
   */
  uploadFile?(
    handle: Handle,
    byteOffset: number,
    path: string,
    position: number,
    bytes: number,
  ): void;
  /**
   * Begins to copy `bytes` from the buffer at `byteOffset`, as they are after the calls so far, and
   * does not wait. Not there where a kernel is done when its call returns.
   */
  downloadLater?(handle: Handle, byteOffset: number, bytes: number): Download;
  /** A whole file as one read-only frozen buffer, memory-mapped where the backend can. */
  mapFile(path: string): { readonly handle: Handle; readonly bytes: number };
  /** Runs a kernel: inputs first, outputs last; outputs are complete when it returns. */
  run(kernel: string, tensors: readonly KernelTensor[], attrs: readonly number[]): void;
  memory(): MemoryBooks;
  /** Sets every peak to what is live now. */
  resetPeak(): void;
  /** Gives pooled memory back to the system. */
  trim(): void;
  /** Worker threads of the kernels, 1 or more. Results do not depend on it. */
  setThreads(count: number): void;
  /** The arithmetic of products with a factor stored in bf16. */
  readonly compute: Compute;
  /** Sets it; throws where the backend has no other than `exact`. */
  setCompute(mode: Compute): void;
}
