import { bf16ToNumber, type DType, f16ToNumber, numberToBf16, numberToF16 } from '../dtype.js';
import type { Call, Kernels } from './call.js';

const RANGES: Partial<Record<DType, readonly [number, number]>> = {
  i32: [-(2 ** 31), 2 ** 31 - 1],
  u8: [0, 255],
};

/** A number towards zero into an integer dtype; beyond the range its end, NaN 0. */
function toInteger(value: number, dtype: DType): number {
  const [low, high] = RANGES[dtype] as readonly [number, number];
  return Number.isNaN(value) ? 0 : Math.min(Math.max(Math.trunc(value), low), high);
}

/** As {@link toInteger} for i64, whose ends no double can hold. */
function toInt64(value: number): bigint {
  if (Number.isNaN(value)) return 0n;
  if (value >= 2 ** 63) return 2n ** 63n - 1n;
  if (value < -(2 ** 63)) return -(2n ** 63n);
  return BigInt(Math.trunc(value));
}

/** How a number becomes a stored element of a dtype. */
export function storing(dtype: DType): (value: number) => number | bigint {
  switch (dtype) {
    case 'f32':
    case 'f64':
      return (v) => v;
    case 'f16':
      return numberToF16;
    case 'bf16':
      return numberToBf16;
    case 'i64':
      return toInt64;
    case 'bool':
      return (v) => (v !== 0 ? 1 : 0);
    default:
      return (v) => toInteger(v, dtype);
  }
}

/** How a stored element of a dtype becomes a number. */
export function loading(dtype: DType): (element: number | bigint) => number {
  if (dtype === 'f16') return (e) => f16ToNumber(e as number);
  if (dtype === 'bf16') return (e) => bf16ToNumber(e as number);
  return Number;
}

/** x in y's dtype. */
function cast(call: Call): void {
  call.counts(2, 0);
  call.expectSame(0, 1);
  const from = call.arg(0).dtype;
  const to = call.arg(1).dtype;
  if (from === to) {
    const { from: x, to: y } = call.moved(0, 1);
    y.set(x);
    return;
  }
  const load = loading(from);
  const store = storing(to);
  const x = call.any(0) as ArrayLike<number | bigint>;
  const y = call.outAny(1) as { [i: number]: number | bigint; length: number };
  for (let i = 0; i < y.length; i++) y[i] = store(load(x[i] as number | bigint));
}

/** y = value throughout, in y's dtype. */
function fill(call: Call): void {
  call.counts(1, 1);
  const element = storing(call.arg(0).dtype)(call.attr(0));
  (call.outAny(0) as { fill(value: number | bigint): unknown }).fill(element);
}

export const castKernels: Kernels = { cast, fill };
