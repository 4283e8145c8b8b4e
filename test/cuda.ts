import { buildShim } from '../scripts/cuda-shim.mjs';
import { loadCuda } from '../src/tensor/cuda.js';
import type { NativeBackend } from '../src/tensor/native.js';
import { onGpu } from './backends.js';

/** The shim's library; under `npm run test:asan` with sanitizers. */
export function shimLibrary(): string {
  return buildShim(process.env.LOWRANK_SHIM_SANITIZE === '1');
}

/**
 * The CUDA backend on the processor: native/cuda compiled with the shim of test/cuda-shim. Throws
 * where there is no C++ compiler or no addon. In `npm run test:gpu` it is the GPU itself.
 */
export function cudaShim(): NativeBackend {
  return onGpu ? loadCuda() : loadCuda(0, shimLibrary());
}
