/** A backend without memory: it keeps books of what would be allocated, and computes nothing. */
import type { Backend, Handle, MemoryBooks, Purpose } from '../../src/tensor/backend.js';
import { Books } from '../../src/tensor/books.js';
import { getBackend } from '../../src/tensor/registry.js';

/** For models whose shapes count and not their numbers: every element reads as 0. */
export class ShapesBackend implements Backend {
  readonly name = 'shapes';
  readonly kernels = getBackend('reference').kernels;
  readonly #books = new Books();
  readonly #held = new Map<Handle, { bytes: number; purpose: Purpose }>();
  #next = 1;

  describe(): string {
    return 'shapes only';
  }

  allocate(bytes: number, purpose: Purpose): Handle {
    this.#books.add(purpose, bytes);
    this.#held.set(this.#next, { bytes, purpose });
    return this.#next++;
  }

  free(handle: Handle): void {
    const held = this.#held.get(handle);
    if (held) this.#books.add(held.purpose, -held.bytes);
    this.#held.delete(handle);
  }

  retag(handle: Handle, purpose: Purpose): void {
    const held = this.#held.get(handle);
    if (!held) return;
    this.#books.add(held.purpose, -held.bytes);
    this.#books.add(purpose, held.bytes);
    held.purpose = purpose;
  }

  upload(): void {}

  download(_handle: Handle, _byteOffset: number, into: Uint8Array): void {
    into.fill(0);
  }

  mapFile(): never {
    throw new Error('no files');
  }

  run(): void {}

  memory(): MemoryBooks {
    return this.#books.read(this.#held.size);
  }

  resetPeak(): void {
    this.#books.resetPeak();
  }

  trim(): void {}

  setThreads(): void {}
  readonly compute = 'exact';
  setCompute(): void {}
}
