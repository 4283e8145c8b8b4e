import type { Module } from '../nn/index.js';
import { type Backend, COMPUTES, type Compute } from '../tensor/backend.js';
import { CudaBackend } from '../tensor/cuda.js';
import { failure, nearest } from '../tensor/errors.js';

/**
 * Sets the arithmetic of a model's products with weights stored in bf16: `exact`, or `bf16`, which
 * rounds activations to bf16, too, and is twice as fast where the processor multiplies bf16. It is
 * a setting of the model's backend, whose other models follow it.
 *
 *     const model = await loadModel('org/name', { dtype: 'bf16' });
 *     const restore = setCompute(model, 'bf16');
 *
 * @returns sets it as it was
 * @throws for `bf16` where it would do nothing: on a model without frozen matrices in bf16, and on
 *   the reference backend, which computes everything in doubles
 */
export function setCompute(model: Module, compute: Compute): () => void {
  if (!COMPUTES.includes(compute)) {
    const hint = `Nearest: ${nearest(String(compute), COMPUTES, 1).join('')}`;
    throw failure('compute', `one of ${COMPUTES.join(', ')}`, `"${compute}"`, hint);
  }
  let backend: Backend | undefined;
  let rounds = false;
  const dtypes = new Set<string>();
  for (const [, t] of model.namedParameters()) {
    backend ??= t.backend;
    if (t.shape.length < 2) continue;
    dtypes.add(t.dtype);
    if (t.dtype === 'bf16') rounds = true;
  }
  if (!backend) throw failure('compute', 'a model with parameters', 'one without');
  if (compute !== 'exact' && !rounds) {
    const received = `weights in ${[...dtypes].join(', ')}`;
    const hint = 'Other weights are always computed exactly: leave it out';
    throw failure(`compute ${compute}`, 'weights stored in bf16', received, hint);
  }
  const before = backend.compute;
  backend.setCompute(compute);
  return () => backend.setCompute(before);
}

/** How a GPU multiplies. */
export interface ProductSettings {
  /**
   * Lets products of f32 with f32 round their factors to TF32, which has 10 bits after the point,
   * for the tensor cores of a GPU; sums stay f32. Needs cuBLASLt. Default false.
   */
  readonly tf32?: boolean;
  /**
   * A row's bits depend on nothing but the row, however many are computed with it: `cuda` then
   * multiplies by its own kernels, at a fraction of cuBLASLt's speed. Other backends always are.
   * Default false.
   */
  readonly batchInvariant?: boolean;
}

/**
 * Sets how a backend multiplies; what is not given stays as it is.
 *
 *     const restore = setProducts(getBackend('cuda'), { tf32: true });
 *
 * @returns sets it as it was
 * @throws for `tf32` on a backend other than `cuda`, where cuBLASLt is missing, and with
 *   `batchInvariant`
 */
export function setProducts(
  backend: Backend,
  { tf32, batchInvariant }: ProductSettings,
): () => void {
  if (!(backend instanceof CudaBackend)) {
    const hint = 'Leave it out: other backends multiply f32 exactly';
    if (tf32) throw failure('tf32', 'the cuda backend', backend.name, hint);
    return () => {};
  }
  const before = { tf32: backend.tf32, batchInvariant: backend.batchInvariant };
  const set = (to: ProductSettings) => {
    // What is turned off first, as they exclude each other.
    if (!to.tf32) backend.setTf32(false);
    backend.setBatchInvariant(to.batchInvariant ?? false);
    if (to.tf32) backend.setTf32(true);
  };
  const restore = () => set(before);
  try {
    set({ tf32: tf32 ?? before.tf32, batchInvariant: batchInvariant ?? before.batchInvariant });
  } catch (error) {
    restore();
    throw error;
  }
  return restore;
}
