import type { Tensor } from '../tensor/tensor.js';

/**
 * The Euclidean norm of the gradients of these tensors taken together; those without one count 0.
 * NaN or infinite when a gradient is. Waits for the backend once.
 */
export function gradientNorm(parameters: Iterable<Tensor>): number {
  const grads = [...parameters].flatMap(({ grad }) => (grad ? [grad] : []));
  const { backend } = grads[0] ?? {};
  if (!backend) return 0;
  const squares = new Float32Array(grads.length);
  const handle = backend.allocate(squares.byteLength, 'workspace');
  try {
    grads.forEach((grad, i) => {
      const out = { storage: { handle }, byteOffset: 4 * i, dtype: 'f32', shape: [1] } as const;
      backend.run('sumSquares', [grad, out], []);
    });
    backend.download(handle, 0, new Uint8Array(squares.buffer));
  } finally {
    backend.free(handle);
  }
  return Math.sqrt(squares.reduce((total, square) => total + square, 0));
}

/** The factor that brings gradients of this norm to at most `maxNorm`; 1 where they are. */
export function clipFactor(norm: number, maxNorm: number): number {
  return norm > maxNorm ? maxNorm / (norm + 1e-6) : 1;
}
