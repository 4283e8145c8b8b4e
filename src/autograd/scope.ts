import { failure } from '../tensor/errors.js';
import { popTracker, pushTracker, type Tracker } from '../tensor/lifetime.js';
import { Tensor } from '../tensor/tensor.js';

/** Calls `visit` with every tensor in a value: tensors, arrays, maps and plain objects of them. */
export function eachTensor(value: unknown, visit: (t: Tensor) => void): void {
  if (value instanceof Tensor) visit(value);
  else if (Array.isArray(value)) for (const v of value) eachTensor(v, visit);
  else if (value instanceof Map) for (const v of value.values()) eachTensor(v, visit);
  else if (value && Object.getPrototypeOf(value) === Object.prototype) {
    for (const v of Object.values(value)) eachTensor(v, visit);
  }
}

/**
 * Runs `fn` and frees every tensor that it made and did not return (or `keep()`). What it returns
 * belongs to the scope around, if there is one. What the graph needs for backward stays held by
 * the graph.
 * @throws when `fn` returns a promise: a scope ends when the call does
 */
export function scope<T>(fn: () => T): T {
  const tracker = pushTracker();
  let result: T;
  try {
    result = fn();
    if (result instanceof Promise) {
      result.catch(() => {});
      throw failure('scope', 'a function that returns its result', 'one that returns a promise');
    }
  } catch (error) {
    endScope(tracker, undefined);
    throw error;
  }
  endScope(tracker, result);
  return result;
}

/** Ends the innermost scope: what is kept goes to the one around, the rest is freed. */
export function endScope(tracker: Tracker, kept: unknown): void {
  const around = popTracker();
  if (kept instanceof Tensor) kept.handOver(tracker, around);
  else if (typeof kept === 'object' && kept) {
    eachTensor(kept, (t) => t.handOver(tracker, around));
  }
  Tensor.disposeAll(tracker);
}
