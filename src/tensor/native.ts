import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type {
  Backend,
  Compute,
  Download,
  Handle,
  KernelTensor,
  MemoryBooks,
  Purpose,
} from './backend.js';
import { PURPOSES } from './backend.js';
import { byPurpose } from './books.js';
import { dtypeCode } from './dtype.js';
import { failure } from './errors.js';
import { PACKAGE_ROOT } from './package-root.js';
import { type Player, Recording } from './recording.js';

/** What the addon answers about itself. */
export interface NativeInfo {
  readonly version: string;
  /** The instruction set in use, and those this processor has. */
  readonly isa: string;
  readonly isas: readonly string[];
  readonly threads: number;
  readonly compute: Compute;
  /** How a GPU multiplies; of the CPU nothing. */
  readonly options: Readonly<Record<string, boolean>>;
  readonly kernels: readonly string[];
}

interface NativeBooks {
  readonly live: readonly number[];
  readonly peak: readonly number[];
  readonly total: number;
  readonly totalPeak: number;
  readonly pooled: number;
  readonly handles: number;
  readonly mapped: number;
}

/** The addon's exports; docs/kernels.md says what each promises. */
interface Addon extends Player {
  info(): NativeInfo;
  facts(): Record<string, string>;
  bind(commands: Float64Array): void;
  run(kernel: number): void;
  alloc(bytes: number, purpose: number): Handle;
  free(handle: Handle): void;
  retag(handle: Handle, purpose: number): void;
  write(handle: Handle, byteOffset: number, bytes: Uint8Array): void;
  read(handle: Handle, byteOffset: number, into: Uint8Array): void;
  writeFile(handle: Handle, byteOffset: number, path: string, at: number, bytes: number): void;
  readLater(handle: Handle, byteOffset: number, bytes: number): number;
  takeRead(read: number, into: Uint8Array): void;
  dropRead(read: number): void;
  map(path: string): { handle: Handle; bytes: number };
  memory(): NativeBooks;
  resetPeak(): void;
  trim(): void;
  setThreads(count: number): void;
  setIsa(name: string): void;
  setCompute(mode: string): void;
  setOption(name: string, on: boolean): void;
  fmaPeak(): number;
  beginRecord(): void;
  endRecord(): number | string;
}

/** The addon itself: the CPU's functions, and a way to those of a backend in another library. */
interface MainAddon extends Addon {
  open(library: string, device: number): Addon;
}

/** A native backend: one call per kernel, through a shared array of plain numbers. */
export class NativeBackend implements Backend {
  readonly name: string;
  readonly kernels: ReadonlySet<string>;
  readonly #addon: Addon;
  #uploads: Uint8Array[] | null = null;
  readonly #numbers = new Map<string, number>();
  readonly #commands = new Float64Array(4096);
  readonly #purposes = new Map<Purpose, number>(PURPOSES.map((p, i) => [p, i]));

  constructor(addon: Addon, name: string) {
    this.#addon = addon;
    this.name = name;
    addon.info().kernels.forEach((name, i) => {
      this.#numbers.set(name, i);
    });
    this.kernels = new Set(this.#numbers.keys());
    addon.bind(this.#commands);
  }

  info(): NativeInfo {
    return this.#addon.info();
  }

  describe(): string {
    const { isa, threads, compute } = this.info();
    const products = compute === 'exact' ? '' : `, products in ${compute}`;
    return `cpu (${isa}, ${threads} thread${threads === 1 ? '' : 's'}${products})`;
  }

  /** What the device says of itself, by name; of the CPU nothing. */
  facts(): Readonly<Record<string, string>> {
    return this.#addon.facts();
  }

  /** Forces an instruction set, for tests and benchmarks; throws if this processor lacks it. */
  setIsa(name: string): void {
    this.#addon.setIsa(name);
  }

  get compute(): Compute {
    return this.info().compute;
  }

  setCompute(mode: Compute): void {
    this.#addon.setCompute(mode);
  }

  /** Copies part of a file; see {@link Backend.uploadFile}. */
  protected writeFile(
    handle: Handle,
    byteOffset: number,
    path: string,
    at: number,
    bytes: number,
  ): void {
    this.#addon.writeFile(handle, byteOffset, path, at, bytes);
  }

  /** Begins a copy to the host; see {@link Backend.downloadLater}. */
  protected readLater(handle: Handle, byteOffset: number, bytes: number): Download {
    const read = this.#addon.readLater(handle, byteOffset, bytes);
    return {
      take: () => {
        const into = new Uint8Array(bytes);
        this.#addon.takeRead(read, into);
        return into;
      },
      drop: () => this.#addon.dropRead(read),
    };
  }

  /** Sets one of the options that `info()` lists. */
  protected setOption(name: string, on: boolean): void {
    this.#addon.setOption(name, on);
  }

  /** GFLOP/s that fused multiply-adds on registers reach on the threads set: benchmarks' yardstick. */
  fmaPeak(): number {
    return this.#addon.fmaPeak();
  }

  setThreads(count: number): void {
    this.#addon.setThreads(count);
  }

  allocate(bytes: number, purpose: Purpose): Handle {
    return this.#addon.alloc(bytes, this.#purposes.get(purpose) as number);
  }

  free(handle: Handle): void {
    this.#addon.free(handle);
  }

  retag(handle: Handle, purpose: Purpose): void {
    this.#addon.retag(handle, this.#purposes.get(purpose) as number);
  }

  upload(handle: Handle, byteOffset: number, bytes: Uint8Array): void {
    this.#addon.write(handle, byteOffset, bytes);
    this.#uploads?.push(bytes.slice());
  }

  download(handle: Handle, byteOffset: number, into: Uint8Array): void {
    this.#addon.read(handle, byteOffset, into);
  }

  mapFile(path: string): { handle: Handle; bytes: number } {
    return this.#addon.map(path);
  }

  run(kernel: string, tensors: readonly KernelTensor[], attrs: readonly number[]): void {
    const number = this.#numbers.get(kernel);
    if (number === undefined) throw failure(kernel, `a kernel of the ${this.name} backend`, 'none');
    const c = this.#commands;
    let at = 0;
    c[at++] = tensors.length;
    for (let k = 0; k < tensors.length; k++) {
      const t = tensors[k] as KernelTensor;
      const { shape } = t;
      if (at + shape.length + 4 + attrs.length >= c.length) {
        throw failure(kernel, 'a call that fits the command array', `${tensors.length} tensors`);
      }
      c[at++] = t.storage.handle;
      c[at++] = t.byteOffset;
      c[at++] = dtypeCode(t.dtype);
      c[at++] = shape.length;
      for (let i = 0; i < shape.length; i++) c[at++] = shape[i] as number;
    }
    c[at++] = attrs.length;
    for (let i = 0; i < attrs.length; i++) c[at++] = attrs[i] as number;
    this.#addon.run(number);
  }

  /**
   * Notes every upload and kernel call of `fn` while they run, so that {@link Recording.replay}
   * does them again. Memory that `fn` takes stays the recording's own.
   * @returns what `fn` answers, and the recording, or the reason why it cannot be replayed
   * @throws where the backend has no recordings, or what `fn` throws
   */
  record<T>(fn: () => T): { result: T; recording: Recording | string } {
    const uploads: Uint8Array[] = [];
    this.#addon.beginRecord();
    this.#uploads = uploads;
    let result: T;
    try {
      result = fn();
    } catch (error) {
      this.#uploads = null;
      const ended = this.#addon.endRecord();
      if (typeof ended === 'number') this.#addon.dropRecord(ended);
      throw error;
    }
    this.#uploads = null;
    const ended = this.#addon.endRecord();
    if (typeof ended === 'string') return { result, recording: ended };
    return { result, recording: new Recording(this.#addon, ended, uploads, this.#numbers) };
  }

  memory(): MemoryBooks {
    const books = this.#addon.memory();
    return {
      ...books,
      live: byPurpose((i) => books.live[i] as number),
      peak: byPurpose((i) => books.peak[i] as number),
    };
  }

  resetPeak(): void {
    this.#addon.resetPeak();
  }

  trim(): void {
    this.#addon.trim();
  }
}

/** The contract of docs/kernels.md that this code keeps; raised with every change to it. */
const CONTRACT = '9';

/** Where the builds put the addon. */
const ADDON = fileURLToPath(new URL('build/Release/lowrank.node', PACKAGE_ROOT));

const AGAIN = 'Build it again: npx lowrank build (in a clone: npm run build)';

/**
 * Loads the native addon.
 * @throws with the reason and the way out when it is missing or cannot be loaded
 */
export function loadAddon(path: string = ADDON): MainAddon {
  if (!existsSync(path)) {
    throw failure('backend cpu', 'a built native addon', 'none', 'Run: npx lowrank build');
  }
  let addon: MainAddon;
  try {
    addon = createRequire(import.meta.url)(path) as MainAddon;
  } catch (error) {
    const { message } = error as Error;
    throw failure('backend cpu', 'a native addon that loads here', message, AGAIN);
  }
  const { version } = addon.info();
  if (version === CONTRACT) return addon;
  const received = `one of contract ${version}, from another build`;
  throw failure('backend cpu', `an addon of contract ${CONTRACT}`, received, AGAIN);
}

/** The CPU's backend; {@link loadAddon} has the errors. */
export function loadNative(path: string = ADDON): NativeBackend {
  return new NativeBackend(loadAddon(path), 'cpu');
}
