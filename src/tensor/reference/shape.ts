import { shapeText } from '../errors.js';
import { numel, type Shape, stridesOf } from '../shape.js';
import type { Call, Kernels } from './call.js';
import { broadcastStrides, partOf, stridedCopy } from './strided.js';

/** y.shape[i] = x.shape[axes[i]]. */
function permute(call: Call): void {
  call.counts(2, -1);
  const shape = call.shape(0);
  const axes = call.attrs;
  const valid = shape.every((_, i) => axes.includes(i));
  if (axes.length !== shape.length || !valid) {
    throw call.error(`a permutation of ${shape.length} axes`, `[${axes}]`);
  }
  const target = axes.map((a) => shape[a] as number);
  call.expectShape(1, target);
  const own = stridesOf(shape);
  const { from, to } = call.moved(0, 1);
  const source = { offset: 0, strides: axes.map((a) => own[a] as number) };
  stridedCopy(target, from, source, to, { offset: 0, strides: stridesOf(target) });
}

/** The part of `whole` that begins at the call's attributes and has the shape `cut`, checked. */
function partIn(call: Call, whole: Shape, cut: Shape) {
  const starts = call.attrs;
  const fits =
    whole.length === cut.length &&
    starts.length === whole.length &&
    starts.every(
      (s, i) => Number.isInteger(s) && s >= 0 && s + (cut[i] as number) <= (whole[i] as number),
    );
  if (!fits) {
    throw call.error(
      `a part of ${shapeText(whole)}`,
      `${shapeText(cut)} from [${starts.join(', ')}]`,
    );
  }
  return partOf(whole, starts);
}

/** y = the part of x that begins at starts. */
function slice(call: Call): void {
  call.counts(2, -1);
  const cut = call.shape(1);
  const part = partIn(call, call.shape(0), cut);
  const { from, to } = call.moved(0, 1);
  stridedCopy(cut, from, part, to, { offset: 0, strides: stridesOf(cut) });
}

/** dx = zeros but for dy in the part that begins at starts. */
function sliceGrad(call: Call): void {
  call.counts(2, -1);
  const { buffer, byteOffset, byteLength } = call.outAny(1);
  new Uint8Array(buffer, byteOffset, byteLength).fill(0);
  write(call);
}

/** The part of dx that begins at starts += dy. */
function sliceGradAdd(call: Call): void {
  call.counts(2, -1);
  const cut = call.shape(0);
  const { offset, strides } = partIn(call, call.shape(1), cut);
  const dy = call.floats(0);
  const dx = call.activations(1);
  for (let i = 0; i < dy.length; i++) {
    let rest = i;
    let at = offset;
    for (let d = cut.length - 1; d >= 0; d--) {
      const n = cut[d] as number;
      at += (rest % n) * (strides[d] as number);
      rest = Math.floor(rest / n);
    }
    dx[at] = (dx[at] as number) + (dy[i] as number);
  }
}

/** x copied into the part of y that begins at starts. */
function write(call: Call): void {
  call.counts(2, -1);
  const cut = call.shape(0);
  const part = partIn(call, call.shape(1), cut);
  const { from, to } = call.moved(0, 1);
  stridedCopy(cut, from, { offset: 0, strides: stridesOf(cut) }, to, part);
}

/** y = x1 … xn one after another along the axis. */
function concat(call: Call): void {
  const axis = call.attr(0);
  const count = call.args.length - 1;
  if (count < 1 || call.attrs.length !== 1) {
    throw call.error('one input or more, an output and an axis', `${call.args.length} tensors`);
  }
  const whole = call.shape(count);
  if (whole[axis] === undefined) {
    throw call.error(`an axis of 0…${whole.length - 1}`, String(axis));
  }
  let start = 0;
  for (let i = 0; i < count; i++) {
    const shape = call.shape(i);
    const size = shape[axis] ?? 0;
    const fits =
      shape.length === whole.length && shape.every((d, k) => k === axis || d === whole[k]);
    if (!fits || start + size > (whole[axis] as number)) {
      throw call.error(`inputs that fill ${shapeText(whole)}`, shapeText(shape));
    }
    const starts = whole.map((_, k) => (k === axis ? start : 0));
    const { from, to } = call.moved(i, count);
    stridedCopy(shape, from, { offset: 0, strides: stridesOf(shape) }, to, partOf(whole, starts));
    start += size;
  }
  if (start !== whole[axis]) {
    throw call.error(`${whole[axis]} along axis ${axis}`, String(start));
  }
}

/**
 * Walks NumPy's take_along_axis over an index of shape [.., n, ..] and a tensor of shape
 * [.., length, ..] that agree on every other axis: f(place in the tensor, place in the index).
 */
function forIndices(
  call: Call,
  index: Int32Array,
  indexShape: Shape,
  shape: Shape,
  f: (at: number, i: number) => void,
): void {
  const axis = call.attr(0);
  const length = shape[axis];
  const fits =
    indexShape.length === shape.length && shape.every((d, i) => i === axis || d === indexShape[i]);
  if (length === undefined || !fits) {
    throw call.error(`an index that fits ${shapeText(shape)}`, shapeText(indexShape));
  }
  const inner = numel(shape.slice(axis + 1));
  const each = (indexShape[axis] as number) * inner;
  for (let i = 0; i < index.length; i++) {
    const j = index[i] as number;
    if (j < 0 || j >= length) throw call.error(`an index of 0…${length - 1}`, String(j));
    f((Math.floor(i / each) * length + j) * inner + (i % inner), i);
  }
}

/** y[.., i, ..] = x[.., index[.., i, ..], ..]. */
function gather(call: Call): void {
  call.counts(3, 1);
  call.expectSame(1, 2);
  const { from, to } = call.moved(0, 2);
  forIndices(call, call.ints(1), call.shape(1), call.shape(0), (at, i) => {
    to[i] = from[at] as number;
  });
}

/** dx[.., index[.., i, ..], ..] += dy[.., i, ..], in the order of index. */
function gatherGrad(call: Call): void {
  call.counts(3, 1);
  call.expectSame(0, 1);
  const dy = call.floats(1);
  const dx = call.out(2);
  const sums = new Float64Array(dx.length);
  forIndices(call, call.ints(0), call.shape(0), call.shape(2), (at, i) => {
    sums[at] = (sums[at] as number) + (dy[i] as number);
  });
  dx.set(sums);
}

/** x repeated to y's shape. */
function broadcast(call: Call): void {
  call.counts(2, 0);
  const own = call.shape(0);
  const shape = call.shape(1);
  const fits = own.every((d, i) => d === 1 || d === shape[shape.length - own.length + i]);
  if (own.length > shape.length || !fits) {
    throw call.error(`a shape that broadcasts to ${shapeText(shape)}`, shapeText(own));
  }
  const { from, to } = call.moved(0, 1);
  const source = { offset: 0, strides: broadcastStrides(own, shape) };
  stridedCopy(shape, from, source, to, { offset: 0, strides: stridesOf(shape) });
}

/** x's bytes in y: the same dtype and count, whatever the shapes. */
function copy(call: Call): void {
  call.counts(2, 0);
  const { dtype, shape } = call.arg(0);
  const target = call.arg(1);
  if (target.dtype !== dtype || numel(target.shape) !== numel(shape)) {
    throw call.error(
      `${dtype} ${numel(shape)} elements`,
      `${target.dtype} ${numel(target.shape)} elements`,
    );
  }
  const { from, to } = call.moved(0, 1);
  to.set(from);
}

export const shapeKernels: Kernels = {
  permute,
  slice,
  'slice.grad': sliceGrad,
  'slice.gradAdd': sliceGradAdd,
  write,
  concat,
  gather,
  'gather.grad': gatherGrad,
  broadcast,
  copy,
};
