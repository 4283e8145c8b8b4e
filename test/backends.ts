import type { Test } from 'uvu';
import type { Backend } from '../src/tensor/backend.js';
import { CudaBackend } from '../src/tensor/cuda.js';
import { NativeBackend } from '../src/tensor/native.js';
import { getBackend } from '../src/tensor/registry.js';
import { skipUnless } from './support.js';

/** A backend that tests run on, or why it is not there. */
export interface Candidate {
  readonly name: string;
  readonly backend: Backend | null;
  readonly reason: string;
}

function candidate(name: string): Candidate {
  try {
    return { name, backend: getBackend(name), reason: '' };
  } catch (error) {
    return { name, backend: null, reason: (error as Error).message };
  }
}

export const reference = getBackend('reference');

/** Set by `npm run test:gpu`: the native backend of the tests is the GPU. */
export const onGpu = process.env.LOWRANK_TEST_GPU === '1';

/** Set by `npm run test:gpu` for the laws that hold on a GPU where it is batch-invariant. */
export const batchInvariant = process.env.LOWRANK_TEST_BATCH_INVARIANT === '1';

/** Every backend: the reference always, cpu where the addon is built; a GPU in its place if asked. */
export const candidates: readonly Candidate[] = ['reference', onGpu ? 'cuda' : 'cpu'].map(
  candidate,
);

for (const { backend } of batchInvariant ? candidates : []) {
  if (backend instanceof CudaBackend) backend.setBatchInvariant(true);
}

/** The native backend, or null where no addon is built. */
export const native: NativeBackend | null =
  candidates
    .map((c) => c.backend)
    .filter((b) => b instanceof NativeBackend)
    .at(0) ?? null;

/** Registers one test for each backend; one that is not there is skipped with the reason. */
export function onEachBackend(test: Test, name: string, body: (backend: Backend) => void): void {
  for (const c of candidates) {
    const register = skipUnless(test, c.backend !== null, c.reason || `${c.name} is missing`);
    register(`${name} (${c.name})`, () => body(c.backend as Backend));
  }
}

/** Registers a test of the native backend alone, skipped with the reason where there is none. */
export function onNative(test: Test, name: string, body: (backend: NativeBackend) => void): void {
  const reason = candidates.find((c) => c.name === 'cpu')?.reason || 'cpu is missing';
  skipUnless(test, native !== null, reason)(name, () => body(native as NativeBackend));
}
