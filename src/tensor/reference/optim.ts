import { shapeText } from '../errors.js';
import { numel } from '../shape.js';
import { Call, type Kernels } from './call.js';

/** y += x. */
function accumulate(call: Call): void {
  call.counts(2, 0);
  call.expectSame(0, 1);
  const x = call.floats(0);
  const y = call.activations(1);
  for (let i = 0; i < y.length; i++) y[i] = (y[i] as number) + (x[i] as number);
}

/**
 * A step's factor from {@link clipFactor}, where it begins with one, and its other tensors; 1 where
 * it does not. Where it is NaN nothing may change.
 */
function clipped(call: Call, tensors: number): { factor: number; rest: Call } {
  if (call.args.length !== tensors + 1) return { factor: 1, rest: call };
  if (numel(call.shape(0)) !== 1 || call.arg(0).dtype !== 'f32') {
    throw call.error('an f32 factor of one element', shapeText(call.shape(0)));
  }
  const factor = call.floats(0)[0] as number;
  return { factor, rest: new Call(call.name, call.args.slice(1), call.attrs) };
}

function adamw(whole: Call): void {
  const { factor, rest } = clipped(whole, 4);
  adamwOf(rest, factor);
}

/** AdamW (Loshchilov and Hutter, 2019): the weight decay does not pass through the moments. */
function adamwOf(call: Call, factor: number): void {
  call.counts(4, 7);
  call.expectSame(0, 1, 2, 3);
  const [lr, beta1, beta2, eps, weightDecay, step, gradScale] = call.attrs as number[] &
    [number, number, number, number, number, number, number];
  call.integer(5, 1, 2 ** 53);
  const g = call.floats(0);
  const p = call.out(1);
  const m = call.out(2);
  const v = call.out(3);
  if (Number.isNaN(factor)) return;
  const correction1 = 1 - beta1 ** step;
  const correction2 = 1 - beta2 ** step;
  for (let i = 0; i < p.length; i++) {
    const grad = (g[i] as number) * gradScale * factor;
    const decayed = (p[i] as number) * (1 - lr * weightDecay);
    const mean = beta1 * (m[i] as number) + (1 - beta1) * grad;
    const square = beta2 * (v[i] as number) + (1 - beta2) * grad * grad;
    m[i] = mean;
    v[i] = square;
    p[i] = decayed - (lr * mean) / correction1 / (Math.sqrt(square / correction2) + eps);
  }
}

/** The same of any number of parameters, one after the other. */
function adamwEach(whole: Call): void {
  const { length } = whole.args;
  if (length < 4 || length % 4 > 1) {
    throw whole.error('g, p, m and v of each parameter', `${length} tensors`);
  }
  whole.counts(length, 7);
  const { factor, rest: call } = clipped(whole, length - (length % 4));
  const { args } = call;
  const calls = Array.from({ length: args.length / 4 }, (_, i) => {
    const one = new Call(call.name, args.slice(4 * i, 4 * i + 4), call.attrs);
    one.expectSame(0, 1, 2, 3);
    return one;
  });
  for (const one of calls) adamwOf(one, factor);
}

/** SGD with momentum: m = momentum·m + g (m = g at first); p −= lr·m. */
function sgd(whole: Call): void {
  const { factor, rest: call } = clipped(whole, 3);
  call.counts(3, 5);
  call.expectSame(0, 1, 2);
  const first = call.flag(4);
  const [lr, momentum, weightDecay, gradScale] = call.attrs as number[] &
    [number, number, number, number];
  const g = call.floats(0);
  const p = call.out(1);
  const m = call.out(2);
  if (Number.isNaN(factor)) return;
  for (let i = 0; i < p.length; i++) {
    const grad = (g[i] as number) * gradScale * factor + weightDecay * (p[i] as number);
    const moved = first ? grad : momentum * (m[i] as number) + grad;
    m[i] = moved;
    p[i] = (p[i] as number) - lr * moved;
  }
}

/** y[t] = Σ x² of tensor t. */
function sumSquares(call: Call): void {
  const n = call.args.length - 1;
  if (n < 1) throw call.error('at least 2 tensors', `${n + 1}`);
  call.counts(n + 1, 0);
  call.expectShape(n, [n]);
  const all = Array.from({ length: n }, (_, t) => call.floats(t));
  const y = call.out(n);
  all.forEach((x, t) => {
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum += (x[i] as number) * (x[i] as number);
    y[t] = sum;
  });
}

/**
 * What brings gradients of these sums of squares to the largest norm, as PyTorch's
 * clip_grad_norm_; NaN where their norm or another number is not finite.
 */
function clipFactor(call: Call): void {
  const last = call.args.length - 1;
  if (last < 1) throw call.error('at least 2 tensors', `${last + 1}`);
  call.counts(last + 1, 1);
  const limit = call.attr(0);
  if (!(limit >= 0 && limit < Number.POSITIVE_INFINITY)) {
    throw call.error('a largest norm of 0 or more', String(limit));
  }
  if (call.shape(0).length !== 1) throw call.error('sums of squares [n]', shapeText(call.shape(0)));
  for (let i = 1; i <= last; i++) {
    if (numel(call.shape(i)) === 1) continue;
    throw call.error(`tensor ${i} of one element`, shapeText(call.shape(i)));
  }
  let total = 0;
  for (const sum of call.floats(0)) total += sum;
  const norm = Math.sqrt(total);
  let finite = Number.isFinite(norm);
  for (let i = 1; i < last; i++) finite = Number.isFinite(call.floats(i)[0]) && finite;
  const factor = limit > 0 && norm > limit ? limit / (norm + 1e-6) : 1;
  call.out(last)[0] = finite ? factor : Number.NaN;
}

export const optimKernels: Kernels = {
  accumulate,
  adamw,
  adamwEach,
  clipFactor,
  sgd,
  sumSquares,
};
