import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Download, Handle } from './backend.js';
import { failure } from './errors.js';
import { loadAddon, NativeBackend } from './native.js';
import { PACKAGE_ROOT } from './package-root.js';

/** Where the build puts the library. */
const LIBRARY = fileURLToPath(new URL('build/Release/liblowrank_cuda.so', PACKAGE_ROOT));

/** An NVIDIA GPU. */
export class CudaBackend extends NativeBackend {
  override describe(): string {
    const { isa, compute, options } = this.info();
    const parts = [
      isa,
      ...(compute === 'exact' ? [] : [`products in ${compute}`]),
      ...(options.tf32 ? ['f32 in TF32'] : []),
      ...(options.batchInvariant ? ['batch-invariant'] : []),
    ];
    return `${this.name} (${parts.join(', ')})`;
  }

  uploadFile(
    handle: Handle,
    byteOffset: number,
    path: string,
    position: number,
    bytes: number,
  ): void {
    this.writeFile(handle, byteOffset, path, position, bytes);
  }

  downloadLater(handle: Handle, byteOffset: number, bytes: number): Download {
    return this.readLater(handle, byteOffset, bytes);
  }

  /**
   * Whether products of f32 with f32 may round their factors to TF32 (10 bits after the point) for
   * the tensor cores; sums stay f32. Off at first.
   */
  get tf32(): boolean {
    return this.info().options.tf32 === true;
  }

  /** @throws where cuBLASLt is missing, whose products it changes, or with `batchInvariant` */
  setTf32(on: boolean): void {
    this.setOption('tf32', on);
  }

  /**
   * Whether a row's bits depend on the row alone, however many are computed with it, as they always
   * do on the cpu backend. Products then take one way for all numbers of rows, by own kernels, at a
   * fraction of cuBLASLt's speed: see docs/gpu.md. Off at first.
   */
  get batchInvariant(): boolean {
    return this.info().options.batchInvariant === true;
  }

  /** @throws together with `tf32`, which is cuBLASLt's */
  setBatchInvariant(on: boolean): void {
    this.setOption('batchInvariant', on);
  }
}

/**
 * Opens an NVIDIA GPU through the CUDA library, which is loaded only now.
 * @param device number of the GPU, from 0
 * @throws with the reason and the way out where the library, the driver or the GPU is missing
 */
export function loadCuda(device = 0, library: string = LIBRARY): CudaBackend {
  const addon = loadAddon();
  if (!existsSync(library)) {
    const wayOut =
      'Where nvcc is (CUDA 12.4 or later), run: npx lowrank build --cuda on. Or use --backend cpu';
    throw failure('backend cuda', `the CUDA library ${library}`, 'none', wayOut);
  }
  const name = device === 0 ? 'cuda' : `cuda:${device}`;
  try {
    return new CudaBackend(addon.open(library, device), name);
  } catch (error) {
    const { message } = error as Error;
    if (!message.startsWith('[open]')) throw error;
    const wayOut = 'Build it again: npx lowrank build --cuda on. Or use --backend cpu';
    throw failure('backend cuda', `a CUDA library that loads from ${library}`, message, wayOut);
  }
}
