import { createHash } from 'node:crypto';
import { bf16ToNumber, dtypeBytes, f16ToNumber, numberToBf16, viewOf } from '../tensor/dtype.js';
import { shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';

/** Elements of a piece; tensors of up to three pieces are read whole. */
const PIECE = 1024;

/** `count` elements from `start` on as bf16 bits: what stays of f32 weights stored as bf16. */
function sample(t: Tensor, start: number, count: number): Uint16Array {
  const size = dtypeBytes(t.dtype);
  const bytes = new Uint8Array(count * size);
  t.backend.download(t.storage.handle, t.byteOffset + start * size, bytes);
  const raw = viewOf(t.dtype, bytes.buffer, 0, count);
  const { dtype } = t;
  return Uint16Array.from(raw as ArrayLike<number>, (v) => {
    const wide = dtype === 'bf16' ? bf16ToNumber(v) : dtype === 'f16' ? f16ToNumber(v) : Number(v);
    return numberToBf16(wide);
  });
}

/**
 * A hash of a base model: SHA-256 of the names and shapes of its tensors, in the order of the
 * names, and of a few thousand elements of each (its first, middle and last 1,024), rounded to
 * bf16. So other weights of the same shapes have another hash, the same weights widened to f32 or
 * narrowed to bf16 have the same one, and hardly anything is read of a mapped file.
 * @param left names of tensors that do not count: those that an adapter holds whole
 */
export function baseFingerprint(
  base: ReadonlyMap<string, Tensor>,
  left: ReadonlySet<string> = new Set(),
): string {
  const hash = createHash('sha256');
  for (const name of [...base.keys()].sort()) {
    if (left.has(name)) continue;
    const t = base.get(name) as Tensor;
    t.check('baseFingerprint');
    hash.update(`${name} ${shapeText(t.shape)}\n`);
    const starts =
      t.size <= 3 * PIECE ? [0] : [0, Math.floor((t.size - PIECE) / 2), t.size - PIECE];
    const count = t.size <= 3 * PIECE ? t.size : PIECE;
    if (count > 0) for (const at of starts) hash.update(sample(t, at, count));
  }
  return `sha256:${hash.digest('hex')}`;
}
