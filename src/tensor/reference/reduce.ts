import { shapeText } from '../errors.js';
import { numel, type Shape, stridesOf, withoutAxes } from '../shape.js';
import type { Call, Kernels } from './call.js';
import { forRows } from './strided.js';

function axesOf(call: Call, rank: number): number[] {
  const axes = [...call.attrs];
  const valid = axes.every((a) => Number.isInteger(a) && a >= 0 && a < rank);
  if (!valid || new Set(axes).size !== axes.length) {
    throw call.error(`axes of 0…${rank - 1}, each once`, `[${axes}]`);
  }
  return axes;
}

/** y = Σ x over the axes; the sums are kept in doubles and rounded once. */
function sum(call: Call): void {
  call.counts(2, -1);
  const shape = call.shape(0);
  const axes = axesOf(call, shape.length);
  const kept = withoutAxes(shape, axes);
  call.expectShape(1, kept);
  const x = call.floats(0);
  const y = call.out(1);
  const sums = new Float64Array(y.length);
  const keptStrides = stridesOf(kept);
  let k = 0;
  const strides = shape.map((_, i) => (axes.includes(i) ? 0 : (keptStrides[k++] as number)));
  forRows(
    shape,
    { offset: 0, strides: stridesOf(shape) },
    { offset: 0, strides },
    (count, xAt, xStep, yAt, yStep) => {
      for (let i = 0; i < count; i++) {
        const to = yAt + i * yStep;
        sums[to] = (sums[to] as number) + (x[xAt + i * xStep] as number);
      }
    },
  );
  y.set(sums);
}

/** A tensor seen as [outer, axis, inner]. */
function around(call: Call, shape: Shape): { outer: number; length: number; inner: number } {
  const axis = call.attr(0);
  const length = shape[axis];
  if (length === undefined) {
    throw call.error(`an axis of 0…${shape.length - 1}`, String(axis));
  }
  return {
    outer: numel(shape.slice(0, axis)),
    length,
    inner: numel(shape.slice(axis + 1)),
  };
}

/** Finds the first largest element along the axis (the first NaN if there is one). */
function largest(call: Call, found: (at: number, value: number, index: number) => void): void {
  const shape = call.shape(0);
  const { outer, length, inner } = around(call, shape);
  const x = call.floats(0);
  if (length === 0 && outer * inner > 0) {
    throw call.error('an axis with elements', shapeText(shape));
  }
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < inner; i++) {
      let best = x[o * length * inner + i] as number;
      let index = 0;
      for (let j = 1; j < length && !Number.isNaN(best); j++) {
        const value = x[(o * length + j) * inner + i] as number;
        if (value > best || Number.isNaN(value)) {
          best = value;
          index = j;
        }
      }
      found(o * inner + i, best, index);
    }
  }
}

function max(call: Call): void {
  call.counts(3, 1);
  const kept = withoutAxes(call.shape(0), [call.attr(0)]);
  call.expectShape(1, kept);
  call.expectShape(2, kept);
  const y = call.out(1);
  const indices = call.outInts(2);
  largest(call, (at, value, index) => {
    y[at] = value;
    indices[at] = index;
  });
}

function argmax(call: Call): void {
  call.counts(2, 1);
  call.expectShape(1, withoutAxes(call.shape(0), [call.attr(0)]));
  const indices = call.outInts(1);
  largest(call, (at, _value, index) => {
    indices[at] = index;
  });
}

/** dx is dy at the index of the largest, 0 elsewhere. */
function maxGrad(call: Call): void {
  call.counts(3, 1);
  call.expectSame(0, 1);
  const shape = call.shape(2);
  const { outer, length, inner } = around(call, shape);
  call.expectShape(1, withoutAxes(shape, [call.attr(0)]));
  const indices = call.ints(0);
  const dy = call.floats(1);
  const dx = call.out(2).fill(0);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < inner; i++) {
      const index = indices[o * inner + i] as number;
      if (index < 0 || index >= length) {
        throw call.error(`an index of 0…${length - 1}`, String(index));
      }
      dx[(o * length + index) * inner + i] = dy[o * inner + i] as number;
    }
  }
}

export const reduceKernels: Kernels = { sum, max, 'max.grad': maxGrad, argmax };
