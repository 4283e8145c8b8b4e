import type { Backend } from './backend.js';
import { loadCuda } from './cuda.js';
import { failure, nearest } from './errors.js';
import { loadNative } from './native.js';
import { ReferenceBackend } from './reference/backend.js';

/**
 * Names that {@link getBackend} knows. `auto` is cpu where the addon loads, else reference; `cuda`
 * is the first NVIDIA GPU, and `cuda:1`, … are those after it.
 */
export const BACKENDS = ['auto', 'cpu', 'cuda', 'reference'] as const;
export type BackendName = (typeof BACKENDS)[number];

/** `cuda`, or `cuda:` and the number of a GPU. */
const CUDA = /^cuda(?::(0|[1-9]\d{0,3}))?$/;

const made = new Map<string, Backend>();
let chosen: Backend | undefined;
let warned = false;

/**
 * A backend by name; made once per process.
 * @throws when the name is unknown, or the native addon, the CUDA library, the driver or the GPU is
 * missing (the reason and the way out are in the text)
 */
export function getBackend(name: string = 'auto'): Backend {
  if (name === 'auto') return automatic();
  if (name === 'cuda:0') return getBackend('cuda');
  const known = made.get(name);
  if (known) return known;
  let backend: Backend;
  if (name === 'reference') backend = new ReferenceBackend();
  else if (name === 'cpu') backend = loadNative();
  else if (CUDA.test(name)) backend = loadCuda(Number(CUDA.exec(name)?.[1] ?? 0));
  else {
    throw failure(
      'backend',
      `one of ${BACKENDS.join(', ')}`,
      `"${name}"`,
      `Did you mean ${nearest(name, BACKENDS, 1)[0]}?`,
    );
  }
  made.set(name, backend);
  return backend;
}

function automatic(): Backend {
  try {
    return getBackend('cpu');
  } catch (error) {
    if (!warned) {
      warned = true;
      console.error(
        `lowrank: running on the reference backend (plain TypeScript, slow): ${(error as Error).message}`,
      );
    }
    return getBackend('reference');
  }
}

/** The backend of tensors made without naming one. */
export function defaultBackend(): Backend {
  chosen ??= getBackend('auto');
  return chosen;
}

/** Sets the default backend by name or object, and answers it. */
export function setDefaultBackend(backend: Backend | string): Backend {
  chosen = typeof backend === 'string' ? getBackend(backend) : backend;
  return chosen;
}
