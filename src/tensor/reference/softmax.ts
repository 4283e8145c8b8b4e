import { type Call, type Floats, type Kernels, rowsOf } from './call.js';

/** The largest element and log Σ exp of `count` elements from `at`; −∞ and −∞ of none. */
export function logSumExp(x: Floats, at: number, count: number): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < count; i++) largest = Math.max(largest, x[at + i] as number);
  // A row of only −∞ (or with +∞ or NaN) cannot be shifted by its largest element.
  if (!Number.isFinite(largest)) return largest;
  let sum = 0;
  for (let i = 0; i < count; i++) sum += Math.exp((x[at + i] as number) - largest);
  return largest + Math.log(sum);
}

function softmax(call: Call): void {
  call.counts(2, 0);
  call.expectSame(0, 1);
  const { rows, width } = rowsOf(call, 0);
  const x = call.floats(0);
  const y = call.out(1);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    const lse = logSumExp(x, at, width);
    for (let i = at; i < at + width; i++) y[i] = Math.exp((x[i] as number) - lse);
  }
}

function logSoftmax(call: Call): void {
  call.counts(2, 0);
  call.expectSame(0, 1);
  const { rows, width } = rowsOf(call, 0);
  const x = call.floats(0);
  const y = call.out(1);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    const lse = logSumExp(x, at, width);
    for (let i = at; i < at + width; i++) y[i] = (x[i] as number) - lse;
  }
}

/** dx = y ⊙ (dy − Σ dy ⊙ y). */
function softmaxGrad(call: Call): void {
  call.counts(3, 0);
  call.expectSame(0, 1, 2);
  const { rows, width } = rowsOf(call, 0);
  const y = call.floats(0);
  const dy = call.floats(1);
  const dx = call.out(2);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    let dot = 0;
    for (let i = at; i < at + width; i++) dot += (y[i] as number) * (dy[i] as number);
    for (let i = at; i < at + width; i++) dx[i] = (y[i] as number) * ((dy[i] as number) - dot);
  }
}

/** dx = dy − exp(y) Σ dy. */
function logSoftmaxGrad(call: Call): void {
  call.counts(3, 0);
  call.expectSame(0, 1, 2);
  const { rows, width } = rowsOf(call, 0);
  const y = call.floats(0);
  const dy = call.floats(1);
  const dx = call.out(2);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    let sum = 0;
    for (let i = at; i < at + width; i++) sum += dy[i] as number;
    for (let i = at; i < at + width; i++)
      dx[i] = (dy[i] as number) - Math.exp(y[i] as number) * sum;
  }
}

export const softmaxKernels: Kernels = {
  softmax,
  logSoftmax,
  'softmax.grad': softmaxGrad,
  'logSoftmax.grad': logSoftmaxGrad,
};
