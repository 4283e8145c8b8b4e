import type { Backend } from './backend.js';
import { failure, nearest } from './errors.js';
import { loadNative } from './native.js';
import { ReferenceBackend } from './reference/backend.js';

/** Names that {@link getBackend} knows. `auto` is cpu where the addon loads, else reference. */
export const BACKENDS = ['auto', 'cpu', 'reference'] as const;
export type BackendName = (typeof BACKENDS)[number];

const made = new Map<string, Backend>();
let chosen: Backend | undefined;
let warned = false;

/**
 * A backend by name; made once per process.
 * @throws when the name is unknown or the native addon cannot be loaded (the reason is in the text)
 */
export function getBackend(name: string = 'auto'): Backend {
  if (name === 'auto') return automatic();
  const known = made.get(name);
  if (known) return known;
  let backend: Backend;
  if (name === 'reference') backend = new ReferenceBackend();
  else if (name === 'cpu') backend = loadNative();
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
