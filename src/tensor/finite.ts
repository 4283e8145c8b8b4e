import { type DType, dtypeBytes, viewOf } from './dtype.js';
import type { Tensor } from './tensor.js';

/** Bytes fetched from a backend at once. A multiple of every element size. */
const PIECE = 64 * 2 ** 10;

/** The bits of an exponent of all ones: Inf or NaN. */
const EXPONENTS = { f32: 0x7f800000, f16: 0x7c00, bf16: 0x7f80 } as const;

/**
 * The index of the first NaN or Inf among the elements of a buffer, or −1. Integers are finite.
 * @param bytes elements of `dtype`, aligned to their size in their buffer
 */
export function firstNonFinite(bytes: Uint8Array, dtype: DType): number {
  const count = bytes.length / dtypeBytes(dtype);
  if (dtype === 'f64') {
    const values = viewOf(dtype, bytes.buffer, bytes.byteOffset, count) as Float64Array;
    return values.findIndex((v) => !Number.isFinite(v));
  }
  if (dtype !== 'f32' && dtype !== 'f16' && dtype !== 'bf16') return -1;
  const mask = EXPONENTS[dtype];

  const { buffer, byteOffset } = bytes;
  const bits =
    dtype === 'f32'
      ? new Uint32Array(buffer, byteOffset, count)
      : new Uint16Array(buffer, byteOffset, count);
  for (let i = 0; i < count; i++) {
    if (((bits[i] as number) & mask) === mask) return i;
  }
  return -1;
}

/** Whether every element of a tensor is finite; it is read in pieces. */
export function isFiniteTensor(t: Tensor): boolean {
  t.check('isFinite');
  const buffer = new Uint8Array(Math.min(PIECE, t.byteLength));
  for (let at = 0; at < t.byteLength; at += buffer.length) {
    const piece = buffer.subarray(0, Math.min(buffer.length, t.byteLength - at));
    t.backend.download(t.storage.handle, t.byteOffset + at, piece);
    if (firstNonFinite(piece, t.dtype) >= 0) return false;
  }
  return true;
}
