import { failure, shapeText } from './errors.js';

/** Sizes of a tensor's dimensions, outermost first; `[]` is a scalar. */
export type Shape = readonly number[];

/** Number of elements. */
export function numel(shape: Shape): number {
  let n = 1;
  for (let i = 0; i < shape.length; i++) n *= shape[i] as number;
  return n;
}

export function sameShape(a: Shape, b: Shape): boolean {
  if (a === b) return true;
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Row-major strides in elements. */
export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i] as number;
  }
  return strides;
}

/** Throws unless every size is a whole number ≥ 0 and the rank is at most 8. */
export function checkShape(where: string, shape: Shape): void {
  if (shape.length > 8) throw failure(where, 'at most 8 dimensions', shapeText(shape));
  for (let i = 0; i < shape.length; i++) {
    const d = shape[i] as number;
    if (!Number.isSafeInteger(d) || d < 0) {
      throw failure(where, 'whole sizes of 0 or more', shapeText(shape));
    }
  }
}

/** The shape of `a` and `b` broadcast together by NumPy's rule. */
export function broadcastShapes(where: string, a: Shape, b: Shape): Shape {
  if (sameShape(a, b)) return a;
  const rank = Math.max(a.length, b.length);
  const out = new Array<number>(rank);
  for (let i = 0; i < rank; i++) {
    const x = a[a.length - rank + i] ?? 1;
    const y = b[b.length - rank + i] ?? 1;
    if (x !== y && x !== 1 && y !== 1) {
      throw failure(where, 'shapes that broadcast', `${shapeText(a)} and ${shapeText(b)}`);
    }
    out[i] = x === 1 ? y : x;
  }
  return out;
}

/** An axis counted from the end when negative, checked against the rank. */
export function normalAxis(where: string, axis: number, rank: number): number {
  const a = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || a < 0 || a >= rank) {
    throw failure(where, `an axis of ${-rank}…${rank - 1}`, String(axis));
  }
  return a;
}

/** Several axes, each checked, sorted, none twice. */
export function normalAxes(where: string, axes: readonly number[], rank: number): number[] {
  const out = axes.map((a) => normalAxis(where, a, rank)).sort((x, y) => x - y);
  if (new Set(out).size !== out.length) throw failure(where, 'axes each once', `[${axes}]`);
  return out;
}

/** The shape without these (normal) axes. */
export function withoutAxes(shape: Shape, axes: readonly number[]): number[] {
  return shape.filter((_, i) => !axes.includes(i));
}
