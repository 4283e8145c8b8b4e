import {
  bf16ToNumber,
  type DType,
  dtypeBytes,
  f16ToNumber,
  isFloat,
  numberToBf16,
  type TypedArray,
  viewOf,
} from '../dtype.js';
import { failure, shapeText } from '../errors.js';
import { numel, type Shape, sameShape } from '../shape.js';

/** A kernel of the reference backend. */
export type Kernel = (call: Call) => void;
/** A family of kernels by name. */
export type Kernels = Readonly<Record<string, Kernel>>;

/** Elements that arithmetic reads and writes: stored f32 rounds once, stored f64 not at all. */
export type Floats = Float32Array | Float64Array;
/** Elements moved without being looked at, as unsigned numbers of their size. */
export type Bits = Uint8Array | Uint16Array | Uint32Array | BigUint64Array;

/** A tensor of a call, its handle looked up and its bounds checked. */
export interface Arg {
  readonly dtype: DType;
  readonly shape: Shape;
  readonly buffer: ArrayBuffer;
  readonly byteOffset: number;
  /** A mapped file, which no kernel may write to. */
  readonly readOnly: boolean;
}

/** The value of every 16-bit pattern, for widening by lookup. */
function widenTable(toNumber: (bits: number) => number): Float32Array {
  return Float32Array.from({ length: 65536 }, (_, bits) => toNumber(bits));
}
const tables: { f16?: Float32Array; bf16?: Float32Array } = {};

function widen(bits: Uint16Array, dtype: 'f16' | 'bf16'): Float32Array {
  tables[dtype] ??= widenTable(dtype === 'f16' ? f16ToNumber : bf16ToNumber);
  const table = tables[dtype];
  const out = new Float32Array(bits.length);
  for (let i = 0; i < out.length; i++) out[i] = table[bits[i] as number] as number;
  return out;
}

/** One call of a kernel: its tensors and attributes, and the checks that each kernel repeats. */
export class Call {
  readonly #rounded: { readonly bits: Uint16Array; readonly values: Float32Array }[] = [];

  constructor(
    readonly name: string,
    readonly args: readonly Arg[],
    readonly attrs: readonly number[],
  ) {}

  error(expected: string, received: string): Error {
    return failure(this.name, expected, received);
  }

  /** Checks the counts of tensors and attributes; an attribute count of −1 leaves it open. */
  counts(tensors: number, attrs: number): void {
    if (this.args.length !== tensors) {
      throw this.error(`${tensors} tensors`, `${this.args.length}`);
    }
    if (attrs >= 0 && this.attrs.length !== attrs) {
      throw this.error(`${attrs} attributes`, `${this.attrs.length}`);
    }
  }

  arg(i: number): Arg {
    const arg = this.args[i];
    if (!arg) throw this.error(`more than ${i} tensors`, `${this.args.length}`);
    return arg;
  }

  attr(i: number): number {
    const attr = this.attrs[i];
    if (attr === undefined) throw this.error(`more than ${i} attributes`, `${this.attrs.length}`);
    return attr;
  }

  /** A whole attribute of low … high. */
  integer(i: number, low: number, high: number): number {
    const value = this.attr(i);
    if (!Number.isInteger(value) || value < low || value > high) {
      throw this.error(`attribute ${i} to be an integer from ${low} to ${high}`, String(value));
    }
    return value;
  }

  /** An attribute that is 0 or 1. */
  flag(i: number): boolean {
    return this.integer(i, 0, 1) === 1;
  }

  shape(i: number): Shape {
    return this.arg(i).shape;
  }

  /** Throws unless tensor `i` has this shape. */
  expectShape(i: number, shape: Shape): void {
    if (!sameShape(this.shape(i), shape)) {
      throw this.error(`tensor ${i} of shape ${shapeText(shape)}`, shapeText(this.shape(i)));
    }
  }

  /** Throws unless all these tensors have one shape. */
  expectSame(...which: number[]): void {
    for (const i of which) this.expectShape(i, this.shape(which[0] as number));
  }

  /** The elements of a floating input, f16 and bf16 widened exactly. */
  floats(i: number): Floats {
    const { dtype } = this.arg(i);
    if (!isFloat(dtype)) throw this.error(`tensor ${i} of a floating dtype`, dtype);
    const data = this.#view(i);
    if (dtype === 'f16' || dtype === 'bf16') return widen(data as Uint16Array, dtype);
    return data as Floats;
  }

  /** The elements of an index input. */
  ints(i: number): Int32Array {
    const { dtype } = this.arg(i);
    if (dtype !== 'i32') throw this.error(`tensor ${i} of dtype i32`, dtype);
    return this.#view(i) as Int32Array;
  }

  /** The elements of a mask input. */
  mask(i: number): Uint8Array {
    const { dtype } = this.arg(i);
    if (dtype !== 'u8' && dtype !== 'bool') throw this.error(`tensor ${i} of dtype u8`, dtype);
    return this.#view(i) as Uint8Array;
  }

  /** The elements of an output of arithmetic: f32, or f64 on this backend. */
  out(i: number): Floats {
    const { dtype } = this.arg(i);
    if (dtype !== 'f32' && dtype !== 'f64') throw this.error(`output ${i} of dtype f32`, dtype);
    return this.#writable(i) as Floats;
  }

  /** The elements of an output of activations: f32, f64, or bf16, which {@link settle} rounds to. */
  activations(i: number): Floats {
    if (this.arg(i).dtype !== 'bf16') return this.out(i);
    const bits = this.#writable(i) as Uint16Array;
    const values = widen(bits, 'bf16');
    this.#rounded.push({ bits, values });
    return values;
  }

  /** Writes what stands in outputs of bf16, once, at the kernel's end. */
  settle(): void {
    for (const { bits, values } of this.#rounded) {
      for (let i = 0; i < bits.length; i++) bits[i] = numberToBf16(values[i] as number);
    }
  }

  /** The elements of an output of indices. */
  outInts(i: number): Int32Array {
    const { dtype } = this.arg(i);
    if (dtype !== 'i32') throw this.error(`output ${i} of dtype i32`, dtype);
    return this.#writable(i) as Int32Array;
  }

  /** The elements of an input of any dtype; f16 and bf16 as their bits. */
  any(i: number): TypedArray {
    return this.#view(i);
  }

  /** The elements of an output of any dtype; f16 and bf16 as their bits. */
  outAny(i: number): TypedArray {
    return this.#writable(i);
  }

  /** Input `i` and output `o`, of one dtype, as bits: what only moves keeps NaN payloads. */
  moved(i: number, o: number): { from: Uint32Array; to: Uint32Array } {
    const [own, other] = [this.arg(i).dtype, this.arg(o).dtype];
    if (own !== other) throw this.error(`one dtype, ${own}`, other);
    // Whatever the size of an element, it is indexed alike; one type keeps the kernels' loops plain.
    const from = bitsOf(this.#view(i)) as Uint32Array;
    const to = bitsOf(this.#writable(o)) as Uint32Array;
    return { from, to };
  }

  #view(i: number): TypedArray {
    const { dtype, shape, buffer, byteOffset } = this.arg(i);
    const count = numel(shape);
    const width = dtypeBytes(dtype);
    if (byteOffset % width === 0) return viewOf(dtype, buffer, byteOffset, count);
    // A tensor of a mapped file may begin anywhere; JavaScript reads aligned elements only.
    return viewOf(dtype, buffer.slice(byteOffset, byteOffset + count * width), 0, count);
  }

  #writable(i: number): TypedArray {
    const { dtype, readOnly, byteOffset } = this.arg(i);
    if (readOnly) {
      throw this.error(`output ${i} in memory that may be written`, 'a mapped file');
    }
    if (byteOffset % dtypeBytes(dtype) !== 0) {
      throw this.error(`output ${i} aligned to its elements`, `byte offset ${byteOffset}`);
    }
    return this.#view(i);
  }
}

function bitsOf(data: TypedArray): Bits {
  const { buffer, byteOffset, length } = data;
  switch (data.BYTES_PER_ELEMENT) {
    case 1:
      return new Uint8Array(buffer, byteOffset, length);
    case 2:
      return new Uint16Array(buffer, byteOffset, length);
    case 4:
      return new Uint32Array(buffer, byteOffset, length);
    default:
      return new BigUint64Array(buffer, byteOffset, length);
  }
}

/** Rows of a tensor seen as [rows, last dimension]; a scalar has no last dimension. */
export function rowsOf(call: Call, i: number): { rows: number; width: number } {
  const shape = call.shape(i);
  const width = shape[shape.length - 1];
  if (width === undefined) throw call.error(`tensor ${i} of 1 dimension or more`, '[]');
  return { rows: numel(shape.slice(0, -1)), width };
}
