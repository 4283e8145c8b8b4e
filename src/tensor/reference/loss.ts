import { shapeText } from '../errors.js';
import type { Call, Floats, Kernels } from './call.js';
import { logSumExp } from './softmax.js';

/** The logits [N, V], labels [N] and settings of a cross-entropy, checked. */
function inputs(call: Call) {
  const [n, v] = call.shape(0) as [number, number];
  if (call.shape(0).length !== 2) throw call.error('logits [N, V]', shapeText(call.shape(0)));
  call.expectShape(1, [n]);
  const labels = call.ints(1);
  const ignoreIndex = call.integer(0, -(2 ** 31), 2 ** 31 - 1);
  const smoothing = call.attr(1);
  if (!(smoothing >= 0 && smoothing <= 1)) {
    throw call.error('smoothing from 0 to 1', String(smoothing));
  }
  for (const label of labels) {
    if (label !== ignoreIndex && (label < 0 || label >= v)) {
      throw call.error(`labels of 0…${v - 1} or ${ignoreIndex}`, String(label));
    }
  }
  const logits: Floats = call.floats(0);
  return { n, v, logits, labels, ignoreIndex, smoothing };
}

/** loss = −(1−ε)·logp[label] − ε/V·Σ logp, 0 where the label is ignored. */
function crossEntropy(call: Call): void {
  call.counts(3, 2);
  const { n, v, logits, labels, ignoreIndex, smoothing } = inputs(call);
  call.expectShape(2, [n]);
  const loss = call.out(2);
  for (let r = 0; r < n; r++) {
    const label = labels[r] as number;
    if (label === ignoreIndex) {
      loss[r] = 0;
      continue;
    }
    const lse = logSumExp(logits, r * v, v);
    let value = (1 - smoothing) * (lse - (logits[r * v + label] as number));
    if (smoothing > 0) {
      let sum = 0;
      for (let i = 0; i < v; i++) sum += lse - (logits[r * v + i] as number);
      value += (smoothing / v) * sum;
    }
    loss[r] = value;
  }
}

/** dlogits = dloss · (softmax − (1−ε)·onehot − ε/V), zero rows where the label is ignored. */
function crossEntropyGrad(call: Call): void {
  call.counts(4, 2);
  const { n, v, logits, labels, ignoreIndex, smoothing } = inputs(call);
  call.expectShape(2, [n]);
  call.expectShape(3, [n, v]);
  const dloss = call.floats(2);
  const dlogits = call.out(3);
  for (let r = 0; r < n; r++) {
    const label = labels[r] as number;
    const at = r * v;
    if (label === ignoreIndex) {
      dlogits.fill(0, at, at + v);
      continue;
    }
    const lse = logSumExp(logits, at, v);
    const d = dloss[r] as number;
    for (let i = 0; i < v; i++) {
      const target = (i === label ? 1 - smoothing : 0) + smoothing / v;
      dlogits[at + i] = d * (Math.exp((logits[at + i] as number) - lse) - target);
    }
  }
}

export const lossKernels: Kernels = { crossEntropy, 'crossEntropy.grad': crossEntropyGrad };
