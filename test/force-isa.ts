/**
 * Loaded before a test file by the runner's `--isa NAME`: the native backend of this process starts
 * on that instruction set. The name is this module's search `?NAME`.
 */
import { NativeBackend } from '../src/tensor/native.js';
import { getBackend } from '../src/tensor/registry.js';

const backend = getBackend('cpu');
if (backend instanceof NativeBackend) {
  backend.setIsa(decodeURIComponent(new URL(import.meta.url).search.slice(1)));
}
