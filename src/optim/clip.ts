import type { Tensor } from '../tensor/tensor.js';

/**
 * The Euclidean norm of the gradients of these tensors taken together; those without one count 0.
 * NaN or infinite when a gradient is.
 */
export function gradientNorm(parameters: Iterable<Tensor>): number {
  let total = 0;
  for (const p of parameters) {
    const { grad } = p;
    if (!grad) continue;
    total += sumSquares(grad);
  }
  return Math.sqrt(total);
}

/** Σ x². */
function sumSquares(x: Tensor): number {
  const out = x.backend.allocate(4, 'workspace');
  try {
    x.backend.run(
      'sumSquares',
      [x, { storage: { handle: out }, byteOffset: 0, dtype: 'f32', shape: [1] }],
      [],
    );
    const bytes = new Uint8Array(4);
    x.backend.download(out, 0, bytes);
    return new DataView(bytes.buffer).getFloat32(0, true);
  } finally {
    x.backend.free(out);
  }
}

/** The factor that brings gradients of this norm to at most `maxNorm`; 1 where they are. */
export function clipFactor(norm: number, maxNorm: number): number {
  return norm > maxNorm ? maxNorm / (norm + 1e-6) : 1;
}
