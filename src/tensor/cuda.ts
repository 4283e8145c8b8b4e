import { fileURLToPath } from 'node:url';
import { loadAddon, NativeBackend } from './native.js';

/** Where the build puts the library, relative to this file in src/ and in dist/ alike. */
const LIBRARY = fileURLToPath(new URL('../../build/Release/liblowrank_cuda.so', import.meta.url));

/**
 * Opens an NVIDIA GPU through the CUDA library, which is loaded only now.
 * @param device number of the GPU, from 0
 * @throws with the reason and the way out where the library, the driver or the GPU is missing
 */
export function loadCuda(device = 0, library: string = LIBRARY): NativeBackend {
  return new NativeBackend(loadAddon().open(library, device), 'cuda');
}
