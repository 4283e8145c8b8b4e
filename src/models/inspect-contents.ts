import { basename } from 'node:path';
import type { FileDType, SafetensorsFile } from '../io/safetensors.js';

/** What tensors of one dtype add up to. */
export interface DTypeShare {
  readonly dtype: FileDType;
  readonly tensors: number;
  readonly elements: number;
  readonly bytes: number;
}

/** One tensor of a file. */
export interface TensorLine {
  readonly name: string;
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  readonly bytes: number;
  /** The file, where there are several. */
  readonly file?: string;
}

/** What every kind of inspection says of its tensors. */
export interface Contents {
  readonly path: string;
  readonly tensors: number;
  /** Bytes of the tensors. */
  readonly bytes: number;
  readonly dtypes: readonly DTypeShare[];
  readonly files: readonly { readonly name: string; readonly bytes: number }[];
  /** Every tensor, where that was asked for. */
  readonly list?: readonly TensorLine[];
}

/** What the tensors of some files add up to. */
export function contentsOf(
  path: string,
  files: readonly SafetensorsFile[],
  list: boolean,
): Contents {
  const shares = new Map<FileDType, { tensors: number; elements: number; bytes: number }>();
  const lines: TensorLine[] = [];
  let tensors = 0;
  let bytes = 0;
  for (const file of files) {
    for (const [name, { dtype, shape, byteLength }] of file.tensors) {
      const share = shares.get(dtype) ?? { tensors: 0, elements: 0, bytes: 0 };
      shares.set(dtype, share);
      share.tensors++;
      share.elements += elementsOf(shape);
      share.bytes += byteLength;
      tensors++;
      bytes += byteLength;
      const where = files.length > 1 ? { file: basename(file.path) } : {};
      if (list) lines.push({ name, dtype, shape, bytes: byteLength, ...where });
    }
  }
  const dtypes = Array.from(shares, ([dtype, share]) => ({ dtype, ...share }));
  dtypes.sort((a, b) => b.bytes - a.bytes);
  return {
    ...{ path, tensors, bytes, dtypes },
    files: files.map((f) => ({ name: basename(f.path), bytes: f.fileBytes })),
    ...(list ? { list: lines } : {}),
  };
}

/** Elements of a shape. */
export function elementsOf(shape: readonly number[]): number {
  return shape.reduce((n, d) => n * d, 1);
}
