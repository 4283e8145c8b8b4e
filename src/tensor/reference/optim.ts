import { shapeText } from '../errors.js';
import { numel } from '../shape.js';
import { Call, type Kernels } from './call.js';

/** y += x. */
function accumulate(call: Call): void {
  call.counts(2, 0);
  call.expectSame(0, 1);
  const x = call.floats(0);
  const y = call.out(1);
  for (let i = 0; i < y.length; i++) y[i] = (y[i] as number) + (x[i] as number);
}

/** AdamW (Loshchilov and Hutter, 2019): the weight decay does not pass through the moments. */
function adamw(call: Call): void {
  call.counts(4, 7);
  call.expectSame(0, 1, 2, 3);
  const [lr, beta1, beta2, eps, weightDecay, step, gradScale] = call.attrs as number[] &
    [number, number, number, number, number, number, number];
  call.integer(5, 1, 2 ** 53);
  const g = call.floats(0);
  const p = call.out(1);
  const m = call.out(2);
  const v = call.out(3);
  const correction1 = 1 - beta1 ** step;
  const correction2 = 1 - beta2 ** step;
  for (let i = 0; i < p.length; i++) {
    const grad = (g[i] as number) * gradScale;
    const decayed = (p[i] as number) * (1 - lr * weightDecay);
    const mean = beta1 * (m[i] as number) + (1 - beta1) * grad;
    const square = beta2 * (v[i] as number) + (1 - beta2) * grad * grad;
    m[i] = mean;
    v[i] = square;
    p[i] = decayed - (lr * mean) / correction1 / (Math.sqrt(square / correction2) + eps);
  }
}

/** The same of any number of parameters, one after the other. */
function adamwEach(call: Call): void {
  const { args } = call;
  if (args.length === 0 || args.length % 4 !== 0) {
    throw call.error('g, p, m and v of each parameter', `${args.length} tensors`);
  }
  call.counts(args.length, 7);
  const calls = Array.from({ length: args.length / 4 }, (_, i) => {
    const one = new Call(call.name, args.slice(4 * i, 4 * i + 4), call.attrs);
    one.expectSame(0, 1, 2, 3);
    return one;
  });
  for (const one of calls) adamw(one);
}

/** SGD with momentum: m = momentum·m + g (m = g at first); p −= lr·m. */
function sgd(call: Call): void {
  call.counts(3, 5);
  call.expectSame(0, 1, 2);
  const first = call.flag(4);
  const [lr, momentum, weightDecay, gradScale] = call.attrs as number[] &
    [number, number, number, number];
  const g = call.floats(0);
  const p = call.out(1);
  const m = call.out(2);
  for (let i = 0; i < p.length; i++) {
    const grad = (g[i] as number) * gradScale + weightDecay * (p[i] as number);
    const moved = first ? grad : momentum * (m[i] as number) + grad;
    m[i] = moved;
    p[i] = (p[i] as number) - lr * moved;
  }
}

/** y = Σ x², one number. */
function sumSquares(call: Call): void {
  call.counts(2, 0);
  if (numel(call.shape(1)) !== 1)
    throw call.error('an output of one element', shapeText(call.shape(1)));
  const x = call.floats(0);
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += (x[i] as number) * (x[i] as number);
  call.out(1)[0] = sum;
}

export const optimKernels: Kernels = { accumulate, adamw, adamwEach, sgd, sumSquares };
