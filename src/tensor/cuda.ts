import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { failure } from './errors.js';
import { loadAddon, NativeBackend } from './native.js';
import { PACKAGE_ROOT } from './package-root.js';

/** Where the build puts the library. */
const LIBRARY = fileURLToPath(new URL('build/Release/liblowrank_cuda.so', PACKAGE_ROOT));

/** An NVIDIA GPU. */
export class CudaBackend extends NativeBackend {
  override describe(): string {
    const { isa, compute } = this.info();
    const products = compute === 'exact' ? '' : `, products in ${compute}`;
    return `${this.name} (${isa}${products})`;
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
