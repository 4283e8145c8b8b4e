import type { Download } from './backend.js';
import { failure, shapeText } from './errors.js';
import type { Tensor } from './tensor.js';

/**
 * The elements of an f32 tensor as they are now, on their way from its backend: a GPU goes on with
 * other work until they are asked for. On backends whose calls are done when they return they are
 * copied at once.
 */
export class Deferred {
  #download: Download | null = null;
  #values: Float32Array | null = null;

  /** The tensor may be changed or disposed of afterwards. @throws unless it is of f32 */
  constructor(tensor: Tensor) {
    const { backend, storage, byteOffset, byteLength, dtype, shape } = tensor.check('Deferred');
    if (dtype !== 'f32') {
      throw failure('Deferred', 'a tensor of f32', `${dtype} ${shapeText(shape)}`);
    }
    if (backend.downloadLater && byteLength > 0) {
      this.#download = backend.downloadLater(storage.handle, byteOffset, byteLength);
    } else {
      this.#values = tensor.toArray() as Float32Array;
    }
  }

  /** The elements. Waits where they are not there yet. @throws after dispose() */
  values(): Float32Array {
    if (this.#values) return this.#values;
    if (!this.#download) throw failure('Deferred', 'values that were not given up', 'none');
    const bytes = this.#download.take();
    this.#download = null;
    this.#values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    return this.#values;
  }

  /** Gives up what nobody has asked for. */
  dispose(): void {
    this.#download?.drop();
    this.#download = null;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
