import { failure } from './errors.js';

/** Changes an attribute of every call of a kernel in a recording. */
export interface Shift {
  readonly kernel: string;
  /** Place of the attribute. */
  readonly attr: number;
  /** Added to what was recorded. */
  readonly by: number;
}

/** What a recording needs of the addon. */
export interface Player {
  setInput(recording: number, input: number, bytes: Uint8Array): void;
  replay(recording: number, ...shifts: number[]): boolean;
  dropRecord(recording: number): void;
}

/**
 * Kernel calls of a backend that were noted while they ran; on a GPU one CUDA graph, which starts
 * them all at once. It reads and writes the same memory each time.
 */
export class Recording {
  readonly #player: Player;
  readonly #number: number;
  readonly #kernels: ReadonlyMap<string, number>;
  #live = true;

  /** @param inputs the bytes that were uploaded, in order */
  constructor(
    player: Player,
    number: number,
    readonly inputs: readonly Uint8Array[],
    kernels: ReadonlyMap<string, number>,
  ) {
    this.#player = player;
    this.#number = number;
    this.#kernels = kernels;
  }

  /**
   * Does the calls again, with the same bits as if they were called one by one.
   * @param inputs for each upload the bytes to copy now, of the same length
   * @param shifts attributes that are other ones now
   * @returns false, with nothing done, where memory it uses was freed or had to be given up
   */
  replay(inputs: readonly Uint8Array[], shifts: readonly Shift[] = []): boolean {
    if (!this.#live) return false;
    const lengths = this.inputs.map((bytes) => bytes.length);
    if (inputs.length !== lengths.length || inputs.some((b, i) => b.length !== lengths[i])) {
      const received = inputs.map((bytes) => bytes.length).join(', ');
      throw failure('replay', `inputs of ${lengths.join(', ')} bytes`, received || 'none');
    }
    const flat = shifts.flatMap(({ kernel, attr, by }) => {
      const number = this.#kernels.get(kernel);
      if (number === undefined) throw failure('replay', 'the name of a kernel', `"${kernel}"`);
      return [number, attr, by];
    });
    inputs.forEach((bytes, i) => {
      if (bytes.length > 0) this.#player.setInput(this.#number, i, bytes);
    });
    this.#live = this.#player.replay(this.#number, ...flat);
    return this.#live;
  }

  /** Frees its memory. */
  dispose(): void {
    if (this.#live) this.#player.dropRecord(this.#number);
    this.#live = false;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
