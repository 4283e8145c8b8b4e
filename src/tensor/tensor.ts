import type { Backend, KernelTensor, Purpose } from './backend.js';
import {
  bf16ToNumber,
  type DType,
  dtypeBytes,
  f16ToNumber,
  isFloat,
  type TypedArray,
  viewOf,
} from './dtype.js';
import { failure, shapeText } from './errors.js';
import { currentTracker, type Tracker, unwatch, watch } from './lifetime.js';
import { checkShape, numel, type Shape } from './shape.js';
import { Storage } from './storage.js';

/** Shape and dtype of a tensor, without its elements. */
export interface Meta {
  readonly shape: Shape;
  readonly dtype: DType;
}

/** A node of the autograd graph, as a tensor sees it: something held while the tensor lives. */
export interface GraphNode {
  /** The accumulated gradient, on leaves only. */
  readonly grad: Tensor | null;
  retain(): void;
  release(): void;
}

/**
 * A contiguous row-major array in a backend's memory, with its place in the autograd graph.
 *
 * Its storage is freed by `dispose()` (or `using`), or by the scope it was made in. Use after
 * dispose throws. The elements never change but through the in-place ops that say so.
 */
export class Tensor implements KernelTensor {
  #disposed = false;
  // Whether the garbage collector's safety net knows this tensor.
  #watched = false;
  #node: GraphNode | null = null;
  // The scope that holds it, and its place there.
  #tracker: Tracker | null = null;
  #place = 0;
  #meta: Meta | null = null;

  /** Takes over one reference to `storage`. Made through {@link Tensor.empty} or the creators. */
  constructor(
    readonly storage: Storage,
    readonly shape: Shape,
    readonly dtype: DType,
    /** Bytes from the start of the storage. */
    readonly byteOffset = 0,
    tracked = true,
  ) {
    if (!tracked) return;
    const tracker = currentTracker();
    if (tracker) this.#enter(tracker);
    else this.#watch();
  }

  /** A tensor with unset elements. */
  static empty(
    backend: Backend,
    shape: Shape,
    dtype: DType,
    purpose: Purpose = 'activation',
  ): Tensor {
    checkShape('empty', shape);
    return new Tensor(
      Storage.allocate(backend, numel(shape) * dtypeBytes(dtype), purpose),
      shape,
      dtype,
    );
  }

  get backend(): Backend {
    return this.storage.backend;
  }

  /** Number of elements. */
  get size(): number {
    return numel(this.shape);
  }

  get byteLength(): number {
    return this.size * dtypeBytes(this.dtype);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Its node in the autograd graph; null for a constant. Set by autograd only. */
  get node(): GraphNode | null {
    return this.#node;
  }

  set node(node: GraphNode | null) {
    if (node === this.#node) return;
    this.#node?.release();
    this.#node = node;
    if (!this.#tracker) this.#rewatch();
  }

  /** Whether a gradient flows to or through this tensor. */
  get requiresGrad(): boolean {
    return this.#node !== null;
  }

  /** The accumulated gradient of a trainable tensor, of its shape; null before backward. */
  get grad(): Tensor | null {
    return this.#node?.grad ?? null;
  }

  /** Shape and dtype without the elements, which may outlive them. */
  get meta(): Meta {
    this.#meta ??= { shape: this.shape, dtype: this.dtype };
    return this.#meta;
  }

  /** A second tensor over the same elements, outside the graph. `shape` must hold as many. */
  alias(shape: Shape = this.shape, tracked = true): Tensor {
    this.check('alias');
    return new Tensor(this.storage.retain(), shape, this.dtype, this.byteOffset, tracked);
  }

  /** Takes the tensor out of its scope: it lives until `dispose()`. */
  keep(): this {
    if (this.#tracker && this.#tracker === currentTracker()) {
      this.#leave();
      this.#watch();
    }
    return this;
  }

  /** Hands a tensor of an ending scope to the one around, or to nobody; another's stays there. */
  handOver(from: Tracker, around: Tracker | null): void {
    if (this.#tracker !== from) return;
    this.#leave();
    if (around) this.#enter(around);
    else this.#watch();
  }

  /** Frees what an ended scope still holds. */
  static disposeAll(tracker: Tracker): void {
    const { tensors } = tracker;
    while (tracker.count > 0) {
      const at = --tracker.count;
      const t = tensors[at] as Tensor;
      tensors[at] = undefined;
      t.#tracker = null;
      t.dispose();
    }
  }

  /** Frees the tensor's hold on its storage and graph. A second call does nothing. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    if (this.#watched) unwatch(this);
    if (this.#tracker) this.#leave();
    this.#node?.release();
    this.#node = null;
    this.storage.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Throws if the tensor was disposed. */
  check(where: string): this {
    if (this.#disposed) {
      throw failure(
        where,
        'a live tensor',
        `one of shape ${shapeText(this.shape)} that was disposed`,
        'A scope frees what it made and did not return; return it or keep() it',
      );
    }
    return this;
  }

  /** A copy of the raw bytes. */
  bytes(): Uint8Array {
    this.check('bytes');
    const out = new Uint8Array(this.byteLength);
    if (out.length > 0) this.backend.download(this.storage.handle, this.byteOffset, out);
    return out;
  }

  /** A copy of the elements: floats widened (f16, bf16 to Float32Array), integers as they are. */
  toArray(): Exclude<TypedArray, Uint16Array> {
    const raw = viewOf(this.dtype, this.bytes().buffer, 0, this.size);
    if (!(raw instanceof Uint16Array)) return raw;
    const widen = this.dtype === 'bf16' ? bf16ToNumber : f16ToNumber;
    return Float32Array.from(raw, widen);
  }

  /** The elements as plain numbers (i64 beyond 2⁵³ loses digits). */
  toNumbers(): number[] {
    return Array.from(this.toArray() as ArrayLike<number | bigint>, Number);
  }

  /** The one element of a tensor of size 1. */
  item(): number {
    if (this.size !== 1) throw failure('item', 'a tensor of one element', shapeText(this.shape));
    return this.toNumbers()[0] as number;
  }

  /** Overwrites the raw bytes in place. */
  setBytes(bytes: Uint8Array): void {
    this.check('setBytes');
    if (bytes.length !== this.byteLength) {
      throw failure('setBytes', `${this.byteLength} bytes`, `${bytes.length}`);
    }
    this.storage.version++;
    if (bytes.length > 0) this.backend.upload(this.storage.handle, this.byteOffset, bytes);
  }

  toString(): string {
    return `Tensor(${shapeText(this.shape)}, ${this.dtype}, ${this.backend.name}${this.#disposed ? ', disposed' : ''})`;
  }

  get isFloat(): boolean {
    return isFloat(this.dtype);
  }

  #enter(tracker: Tracker): void {
    this.#tracker = tracker;
    this.#place = tracker.count;
    tracker.tensors[tracker.count++] = this;
  }

  /** The last one takes its place. */
  #leave(): void {
    const tracker = this.#tracker as Tracker;
    const { tensors } = tracker;
    const at = --tracker.count;
    const last = tensors[at] as Tensor;
    tensors[at] = undefined;
    if (last !== this) {
      tensors[this.#place] = last;
      last.#place = this.#place;
    }
    this.#tracker = null;
  }

  #watch(): void {
    this.#watched = true;
    const { storage } = this;
    const node = this.#node;
    watch(this, () => {
      node?.release();
      storage.release();
    });
  }

  #rewatch(): void {
    if (this.#watched) unwatch(this);
    this.#watch();
  }
}
