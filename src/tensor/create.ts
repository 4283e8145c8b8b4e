import type { Backend, Purpose } from './backend.js';
import { type DType, numberToBf16, numberToF16, viewOf } from './dtype.js';
import { failure, shapeText } from './errors.js';
import { defaultBackend } from './registry.js';
import { checkShape, numel, type Shape } from './shape.js';
import { Tensor } from './tensor.js';

/** Where and as what a new tensor is made. */
export interface CreateOptions {
  readonly backend?: Backend;
  /** Default f32. */
  readonly dtype?: DType;
  /** Default activation. */
  readonly purpose?: Purpose;
}

/** Numbers rounded into the storage of a dtype, as bytes. */
export function encode(values: ArrayLike<number | bigint>, dtype: DType): Uint8Array {
  const bytes = new Uint8Array(
    values.length * viewOf(dtype, new ArrayBuffer(0), 0, 0).BYTES_PER_ELEMENT,
  );
  const view = viewOf(dtype, bytes.buffer, 0, values.length);
  for (let i = 0; i < values.length; i++) {
    const v = values[i] as number | bigint;
    if (view instanceof BigInt64Array) view[i] = BigInt(v);
    else if (dtype === 'bf16') view[i] = numberToBf16(Number(v));
    else if (dtype === 'f16') view[i] = numberToF16(Number(v));
    else if (dtype === 'bool') view[i] = Number(v) !== 0 ? 1 : 0;
    else view[i] = Number(v);
  }
  return bytes;
}

/** A tensor of these values, in row-major order; `shape` defaults to one dimension. */
export function tensor(
  values: ArrayLike<number | bigint>,
  shape: Shape = [values.length],
  options: CreateOptions = {},
): Tensor {
  checkShape('tensor', shape);
  if (numel(shape) !== values.length) {
    throw failure('tensor', `${numel(shape)} values for ${shapeText(shape)}`, `${values.length}`);
  }
  const dtype = options.dtype ?? 'f32';
  const direct =
    (dtype === 'f32' && values instanceof Float32Array) ||
    (dtype === 'i32' && values instanceof Int32Array);
  const bytes = direct
    ? new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
    : encode(values, dtype);
  const out = Tensor.empty(options.backend ?? defaultBackend(), shape, dtype, options.purpose);
  out.setBytes(bytes);
  return out;
}

/** A tensor of one value throughout. */
export function full(shape: Shape, value: number, options: CreateOptions = {}): Tensor {
  const backend = options.backend ?? defaultBackend();
  const out = Tensor.empty(backend, shape, options.dtype ?? 'f32', options.purpose);
  backend.run('fill', [out], [value]);
  return out;
}

export function zeros(shape: Shape, options: CreateOptions = {}): Tensor {
  return full(shape, 0, options);
}

export function ones(shape: Shape, options: CreateOptions = {}): Tensor {
  return full(shape, 1, options);
}
