import { shapeText } from '../errors.js';
import { numel } from '../shape.js';
import type { Call, Floats, Kernels } from './call.js';
import { broadcastStrides, forRows } from './strided.js';

/** Panels of doubles that grow to the largest product seen and are used again. */
let panelA: Float64Array = new Float64Array(0);
let panelB: Float64Array = new Float64Array(0);

function grown(panel: Float64Array, length: number): Float64Array {
  return panel.length >= length ? panel : new Float64Array(length);
}

/** Copies a matrix into rows of length `depth`: row i is row i of `from`, or column i if `flip`. */
function pack(
  from: Floats,
  offset: number,
  rows: number,
  depth: number,
  flip: boolean,
  to: Float64Array,
): void {
  if (!flip) {
    for (let i = 0; i < rows * depth; i++) to[i] = from[offset + i] as number;
    return;
  }
  for (let k = 0; k < depth; k++) {
    const at = offset + k * rows;
    for (let i = 0; i < rows; i++) to[i * depth + k] = from[at + i] as number;
  }
}

/**
 * y[m, n] = alpha · Σ_k a[m, k] b[n, k] (+ bias[n]) (+ y[m, n]), k in order, one rounding at the
 * end. Two rows by four columns at a time keep eight sums in registers.
 */
function dotRows(
  a: Float64Array,
  b: Float64Array,
  y: Floats,
  yOffset: number,
  size: { m: number; n: number; k: number },
  rule: { alpha: number; accumulate: boolean; bias: Floats | null },
): void {
  const { m, n, k } = size;
  const { alpha, accumulate, bias } = rule;
  const store = (i: number, j: number, sum: number) => {
    const at = yOffset + i * n + j;
    let value = alpha * sum;
    if (bias) value += bias[j] as number;
    y[at] = accumulate ? (y[at] as number) + value : value;
  };
  const dot = (i: number, j: number) => {
    let sum = 0;
    for (let p = 0; p < k; p++) sum += (a[i * k + p] as number) * (b[j * k + p] as number);
    store(i, j, sum);
  };
  const m2 = m - (m % 2);
  const n4 = n - (n % 4);
  for (let i = 0; i < m2; i += 2) {
    const a0 = i * k;
    const a1 = a0 + k;
    for (let j = 0; j < n4; j += 4) {
      const b0 = j * k;
      const b1 = b0 + k;
      const b2 = b1 + k;
      const b3 = b2 + k;
      let s00 = 0;
      let s01 = 0;
      let s02 = 0;
      let s03 = 0;
      let s10 = 0;
      let s11 = 0;
      let s12 = 0;
      let s13 = 0;
      for (let p = 0; p < k; p++) {
        const x0 = a[a0 + p] as number;
        const x1 = a[a1 + p] as number;
        const w0 = b[b0 + p] as number;
        const w1 = b[b1 + p] as number;
        const w2 = b[b2 + p] as number;
        const w3 = b[b3 + p] as number;
        s00 += x0 * w0;
        s01 += x0 * w1;
        s02 += x0 * w2;
        s03 += x0 * w3;
        s10 += x1 * w0;
        s11 += x1 * w1;
        s12 += x1 * w2;
        s13 += x1 * w3;
      }
      store(i, j, s00);
      store(i, j + 1, s01);
      store(i, j + 2, s02);
      store(i, j + 3, s03);
      store(i + 1, j, s10);
      store(i + 1, j + 1, s11);
      store(i + 1, j + 2, s12);
      store(i + 1, j + 3, s13);
    }
    for (let j = n4; j < n; j++) {
      dot(i, j);
      dot(i + 1, j);
    }
  }
  for (let i = m2; i < m; i++) for (let j = 0; j < n; j++) dot(i, j);
}

/** y = alpha · op(a) op(b) (+ y), batch dimensions broadcast. */
function matmul(call: Call): void {
  call.counts(3, 4);
  const [sa, sb, sy] = [call.shape(0), call.shape(1), call.shape(2)];
  if (sa.length < 2 || sb.length < 2) {
    throw call.error('matrices', `${shapeText(sa)} and ${shapeText(sb)}`);
  }
  const transA = call.flag(0);
  const transB = call.flag(1);
  const alpha = call.attr(2);
  const accumulate = call.flag(3);
  const [rowsA, colsA] = sa.slice(-2) as [number, number];
  const [rowsB, colsB] = sb.slice(-2) as [number, number];
  const [m, k] = transA ? [colsA, rowsA] : [rowsA, colsA];
  const [n, kb] = transB ? [rowsB, colsB] : [colsB, rowsB];
  if (k !== kb) throw call.error('inner sizes that meet', `${shapeText(sa)} and ${shapeText(sb)}`);
  const batch = sy.slice(0, -2);
  for (const own of [sa.slice(0, -2), sb.slice(0, -2)]) {
    const fits = own.every((d, i) => d === 1 || d === batch[batch.length - own.length + i]);
    if (own.length > batch.length || !fits) {
      throw call.error(`batch sizes that broadcast to ${shapeText(batch)}`, shapeText(own));
    }
  }
  call.expectShape(2, [...batch, m, n]);
  const a = call.floats(0);
  const b = call.floats(1);
  const y = call.activations(2);
  panelA = grown(panelA, m * k);
  panelB = grown(panelB, n * k);
  // Offsets in whole matrices; a matrix that repeats along the batch is packed once.
  const places = (shape: readonly number[]) => ({
    offset: 0,
    strides: broadcastStrides(shape.slice(0, -2), batch),
  });
  let packedA = -1;
  let packedB = -1;
  let at = 0;
  forRows(batch, places(sa), places(sb), (count, aAt, aStep, bAt, bStep) => {
    for (let i = 0; i < count; i++) {
      const ma = aAt + i * aStep;
      const mb = bAt + i * bStep;
      if (ma !== packedA) pack(a, ma * m * k, m, k, transA, panelA);
      if (mb !== packedB) pack(b, mb * n * k, n, k, !transB, panelB);
      packedA = ma;
      packedB = mb;
      dotRows(panelA, panelB, y, at, { m, n, k }, { alpha, accumulate, bias: null });
      at += m * n;
    }
  });
}

/** Which tensors of a call are a layer's beside x, the first; `y` is one of the output's shape. */
export interface LayerPlaces {
  readonly w: number;
  readonly b: number | null;
  readonly y: number;
  /** Whether w is [I, O]. */
  readonly transposed: boolean;
}

/** to = x wᵀ (+ b). x [.., I], w [O, I] or [I, O], b [O]. */
export function layerInto(call: Call, { w, b, y, transposed }: LayerPlaces, to: Floats): void {
  const sx = call.shape(0);
  if (call.shape(w).length !== 2) throw call.error('a matrix w', shapeText(call.shape(w)));
  const [rows, columns] = call.shape(w) as [number, number];
  const [n, k] = transposed ? [columns, rows] : [rows, columns];
  if (sx.length === 0 || sx[sx.length - 1] !== k) {
    throw call.error(`x [.., ${k}]`, shapeText(sx));
  }
  if (b !== null) call.expectShape(b, [n]);
  call.expectShape(y, [...sx.slice(0, -1), n]);
  const m = numel(sx.slice(0, -1));
  panelA = grown(panelA, m * k);
  panelB = grown(panelB, n * k);
  pack(call.floats(0), 0, m, k, false, panelA);
  pack(call.floats(w), 0, n, k, transposed, panelB);
  const bias = b === null ? null : call.floats(b);
  dotRows(panelA, panelB, to, 0, { m, n, k }, { alpha: 1, accumulate: false, bias });
}

/** y = x wᵀ (+ b), or x w (+ b) with attribute 1. */
function linear(call: Call): void {
  const bias = call.args.length === 4;
  const transposed = call.attrs.length > 0 && call.flag(0);
  call.counts(bias ? 4 : 3, call.attrs.length > 0 ? 1 : 0);
  const y = call.args.length - 1;
  layerInto(call, { w: 1, b: bias ? 2 : null, y, transposed }, call.activations(y));
}

export const matmulKernels: Kernels = { matmul, linear };
