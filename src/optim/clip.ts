import { Deferred } from '../tensor/deferred.js';
import { failure } from '../tensor/errors.js';
import { Tensor } from '../tensor/tensor.js';

/** Tensors of one kernel call: they must fit the array that calls travel through. */
const TOGETHER = 256;

/** The gradients of these tensors that have one. */
function gradientsOf(parameters: Iterable<Tensor>): Tensor[] {
  const grads = [...parameters].flatMap(({ grad }) => (grad ? [grad] : []));
  const { backend } = grads[0] ?? {};
  const other = grads.find((g) => g.backend !== backend)?.backend;
  if (!backend || !other) return grads;
  throw failure('gradient norm', `gradients on one backend, ${backend.name}`, other.name);
}

/** Σ x² of each tensor, f32 [n]; at least one. */
function sumsOfSquares(tensors: readonly Tensor[]): Tensor {
  const { backend } = tensors[0] as Tensor;
  const sums = Tensor.empty(backend, [tensors.length], 'f32', 'workspace').keep();
  try {
    for (let at = 0; at < tensors.length; at += TOGETHER) {
      const some = tensors.slice(at, at + TOGETHER);
      const { storage, dtype } = sums;
      const out = { storage, byteOffset: 4 * at, dtype, shape: [some.length] };
      backend.run('sumSquares', [...some, out], []);
    }
    return sums;
  } catch (error) {
    sums.dispose();
    throw error;
  }
}

/** √Σ of sums of squares. */
const rootOf = (sums: ArrayLike<number>): number =>
  Math.sqrt(Array.from(sums).reduce((total, sum) => total + sum, 0));

/** The same of a tensor. Waits for the backend. */
const normOf = (sums: Tensor): number => rootOf(sums.toNumbers());

/**
 * The Euclidean norm of the gradients of these tensors taken together; those without one count 0.
 * NaN or infinite when a gradient is. Waits for the backend once.
 * @throws when the gradients lie on several backends
 */
export function gradientNorm(parameters: Iterable<Tensor>): number {
  const grads = gradientsOf(parameters);
  if (grads.length === 0) return 0;
  const sums = sumsOfSquares(grads);
  try {
    return normOf(sums);
  } finally {
    sums.dispose();
  }
}

/** The factor that brings gradients of this norm to at most `maxNorm`; 1 where they are. */
export function clipFactor(norm: number, maxNorm: number): number {
  return norm > maxNorm ? maxNorm / (norm + 1e-6) : 1;
}

/**
 * Clipping whose norm and factor the backend computes and keeps, so that an optimizer's update can
 * follow before either is known here: on a GPU nothing is waited for.
 */
export class Clipping {
  /**
   * What every gradient is to be multiplied by, f32 [1], for {@link Optimizer.update}: the factor of
   * {@link clipFactor}; NaN where the norm or one of `finite` is not finite.
   */
  readonly factor: Tensor;
  readonly #sums: Tensor;

  private constructor(sums: Tensor, factor: Tensor) {
    this.#sums = sums;
    this.factor = factor;
  }

  /**
   * @param maxNorm largest norm of all gradients together; 0 for any
   * @param finite f32 tensors of one element, such as losses
   * @returns null where none of the parameters has a gradient
   * @throws on a norm below 0, and when the tensors lie on several backends
   */
  static of(
    parameters: Iterable<Tensor>,
    maxNorm: number,
    finite: readonly Tensor[] = [],
  ): Clipping | null {
    if (!(maxNorm >= 0 && maxNorm < Number.POSITIVE_INFINITY)) {
      throw failure('clipping maxNorm', 'a number of 0 or more', String(maxNorm));
    }
    const grads = gradientsOf(parameters);
    if (grads.length === 0) return null;
    const { backend } = grads[0] as Tensor;
    const other = finite.find((t) => t.backend !== backend)?.backend;
    if (other) throw failure('clipping', `losses on one backend, ${backend.name}`, other.name);
    const sums = sumsOfSquares(grads);
    const factor = Tensor.empty(backend, [1], 'f32', 'workspace').keep();
    const clipping = new Clipping(sums, factor);
    try {
      for (let at = 0; at === 0 || at < finite.length; at += TOGETHER) {
        const some = finite.slice(at, at + TOGETHER);
        const before = at > 0 ? [factor] : [];
        backend.run('clipFactor', [sums, ...before, ...some, factor], [maxNorm]);
      }
      return clipping;
    } catch (error) {
      clipping.dispose();
      throw error;
    }
  }

  /** The norm of the gradients before clipping, as {@link gradientNorm}. Waits for the backend. */
  norm(): number {
    return normOf(this.#sums);
  }

  /** The norm and the factor on their way: a GPU goes on until one of them is asked for. */
  later(): ClippingFigures {
    return new ClippingFigures(this.#sums, this.factor);
  }

  dispose(): void {
    this.#sums.dispose();
    this.factor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** What a {@link Clipping} found; reading it waits for the backend, making it does not. */
export class ClippingFigures {
  readonly #sums: Deferred;
  readonly #factor: Deferred;

  constructor(sums: Tensor, factor: Tensor) {
    this.#sums = new Deferred(sums);
    this.#factor = new Deferred(factor);
  }

  /** The norm of the gradients before clipping. */
  norm(): number {
    return rootOf(this.#sums.values());
  }

  /** What the gradients were multiplied by; NaN where nothing was changed. */
  factor(): number {
    return this.#factor.values()[0] as number;
  }

  dispose(): void {
    this.#sums.dispose();
    this.#factor.dispose();
  }
}
