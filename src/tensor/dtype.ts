/** Storage types of a tensor's elements. `f64` exists on the reference backend only. */
export type DType = 'f32' | 'f16' | 'bf16' | 'f64' | 'i32' | 'i64' | 'u8' | 'bool';

/** Every dtype in the order of its code (the number that crosses the native boundary). */
export const DTYPES: readonly DType[] = ['f32', 'f16', 'bf16', 'f64', 'i32', 'i64', 'u8', 'bool'];

const CODES = Object.fromEntries(DTYPES.map((d, i) => [d, i])) as Record<DType, number>;
const BYTES: Record<DType, number> = {
  f32: 4,
  f16: 2,
  bf16: 2,
  f64: 8,
  i32: 4,
  i64: 8,
  u8: 1,
  bool: 1,
};

/** The code of a dtype, its place in {@link DTYPES}. */
export function dtypeCode(dtype: DType): number {
  return CODES[dtype];
}

/** Bytes of one element. */
export function dtypeBytes(dtype: DType): number {
  return BYTES[dtype];
}

export function isFloat(dtype: DType): boolean {
  return dtype === 'f32' || dtype === 'f16' || dtype === 'bf16' || dtype === 'f64';
}

/** The dtype in which arithmetic on these inputs is done and answered: f64 if one is f64, else f32. */
export function computeDType(dtypes: readonly DType[]): DType {
  return dtypes.includes('f64') ? 'f64' : 'f32';
}

/** What activations may be stored in; see docs/kernels.md. */
export const ACTIVATION_DTYPES = ['f32', 'bf16'] as const;
export type ActivationDType = (typeof ACTIVATION_DTYPES)[number];

/**
 * The dtype in which an op of activations answers: bf16 where all of them are bf16, else that of
 * arithmetic.
 */
export function activationDType(dtypes: readonly DType[]): DType {
  return dtypes.every((d) => d === 'bf16') ? 'bf16' : computeDType(dtypes);
}

/** The dtype that was asked for; in f64 arithmetic, the oracle's, f64. */
export function askedDType(asked: ActivationDType, dtypes: readonly DType[]): DType {
  const dtype = computeDType(dtypes);
  return dtype === 'f64' ? dtype : asked;
}

/** The dtype of an activation's gradient: bf16 as itself, else that of arithmetic. */
export function gradientDType(activation: DType, upstream: DType): DType {
  return activation === 'bf16' ? 'bf16' : computeDType([upstream]);
}

const f32Scratch = new Float32Array(1);
const u32Scratch = new Uint32Array(f32Scratch.buffer);

/** bfloat16 bits to a number; exact. */
export function bf16ToNumber(bits: number): number {
  u32Scratch[0] = bits << 16;
  return f32Scratch[0] as number;
}

/** A number to bfloat16 bits: to f32, then round to nearest even; NaN stays a (quiet) NaN. */
export function numberToBf16(value: number): number {
  f32Scratch[0] = value;
  const bits = u32Scratch[0] as number;
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** IEEE half bits to a number; exact, subnormals included. */
export function f16ToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** A number to IEEE half bits: to f32, then round to nearest even; overflow gives Inf, NaN stays NaN. */
export function numberToF16(value: number): number {
  f32Scratch[0] = value;
  const bits = u32Scratch[0] as number;
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((bits >>> 13) & 0x3ff);
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Subnormal half: value / 2^-24, rounded to nearest even. The product is exact in double.
    const scaled = Math.abs(f32Scratch[0] as number) * 2 ** 24;
    const floor = Math.floor(scaled);
    const rest = scaled - floor;
    return sign | (rest > 0.5 || (rest === 0.5 && floor & 1) ? floor + 1 : floor);
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}

/** The typed array that holds a dtype's elements; f16 and bf16 are held as their bits. */
export type TypedArray =
  | Float32Array
  | Float64Array
  | Uint16Array
  | Int32Array
  | BigInt64Array
  | Uint8Array;

/** A typed array of this dtype's storage over `count` elements of `buffer` from `byteOffset`. */
export function viewOf(
  dtype: DType,
  buffer: ArrayBufferLike,
  byteOffset: number,
  count: number,
): TypedArray {
  switch (dtype) {
    case 'f32':
      return new Float32Array(buffer, byteOffset, count);
    case 'f64':
      return new Float64Array(buffer, byteOffset, count);
    case 'f16':
    case 'bf16':
      return new Uint16Array(buffer, byteOffset, count);
    case 'i32':
      return new Int32Array(buffer, byteOffset, count);
    case 'i64':
      return new BigInt64Array(buffer, byteOffset, count);
    default:
      return new Uint8Array(buffer, byteOffset, count);
  }
}
