import type { Backend, Handle, Purpose } from './backend.js';

/** A backend's buffer with a count of the tensors and graph nodes that hold it. */
export class Storage {
  #refs = 1;
  /** Grows when the contents change in place; a saved tensor that changed is an error in backward. */
  version = 0;

  constructor(
    readonly backend: Backend,
    readonly handle: Handle,
    readonly bytes: number,
    private tag: Purpose,
  ) {}

  static allocate(backend: Backend, bytes: number, purpose: Purpose): Storage {
    return new Storage(backend, backend.allocate(bytes, purpose), bytes, purpose);
  }

  get refs(): number {
    return this.#refs;
  }

  get purpose(): Purpose {
    return this.tag;
  }

  retag(purpose: Purpose): void {
    if (purpose === this.tag) return;
    this.backend.retag(this.handle, purpose);
    this.tag = purpose;
  }

  retain(): this {
    this.#refs++;
    return this;
  }

  release(): void {
    if (--this.#refs === 0) this.backend.free(this.handle);
  }
}
