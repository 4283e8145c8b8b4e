import { type Shape, stridesOf } from '../shape.js';

/** A walk over a shape with one element offset per operand. */
export interface Operand {
  readonly offset: number;
  /** Elements from one index to the next, per dimension; 0 repeats. */
  readonly strides: readonly number[];
}

/** The strides by which a tensor of `shape` is read as if it had the broadcast shape `to`. */
export function broadcastStrides(shape: Shape, to: Shape): number[] {
  const own = stridesOf(shape);
  const lead = to.length - shape.length;
  return to.map((_, i) => (i < lead || shape[i - lead] === 1 ? 0 : (own[i - lead] as number)));
}

/**
 * Calls `row(count, aOffset, aStep, bOffset, bStep)` for every row along the last dimension, in
 * row-major order. A scalar is one row of one element.
 */
export function forRows(
  shape: Shape,
  a: Operand,
  b: Operand,
  row: (count: number, aAt: number, aStep: number, bAt: number, bStep: number) => void,
): void {
  if (shape.includes(0)) return;
  const outer = Math.max(shape.length - 1, 0);
  const count = shape[outer] ?? 1;
  const aStep = a.strides[outer] ?? 0;
  const bStep = b.strides[outer] ?? 0;
  const index = new Int32Array(outer);
  let aAt = a.offset;
  let bAt = b.offset;
  for (;;) {
    row(count, aAt, aStep, bAt, bStep);
    let d = outer - 1;
    for (; d >= 0; d--) {
      aAt += a.strides[d] as number;
      bAt += b.strides[d] as number;
      index[d] = (index[d] as number) + 1;
      if (index[d] !== shape[d]) break;
      aAt -= (a.strides[d] as number) * (shape[d] as number);
      bAt -= (b.strides[d] as number) * (shape[d] as number);
      index[d] = 0;
    }
    if (d < 0) return;
  }
}

/** Copies a block of `shape` from one strided place to another. */
export function stridedCopy(
  shape: Shape,
  from: Uint32Array,
  source: Operand,
  to: Uint32Array,
  target: Operand,
): void {
  forRows(shape, source, target, (count, fromAt, fromStep, toAt, toStep) => {
    for (let i = 0; i < count; i++) {
      to[toAt + i * toStep] = from[fromAt + i * fromStep] as number;
    }
  });
}

/** The operand of the part of a tensor of `shape` that begins at `starts`. */
export function partOf(shape: Shape, starts: readonly number[]): Operand {
  const strides = stridesOf(shape);
  const offset = strides.reduce((sum, s, i) => sum + s * (starts[i] as number), 0);
  return { offset, strides };
}
