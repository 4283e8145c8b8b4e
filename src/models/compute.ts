import type { Module } from '../nn/index.js';
import { type Backend, COMPUTES, type Compute } from '../tensor/backend.js';
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
