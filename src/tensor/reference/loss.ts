import { shapeText } from '../errors.js';
import type { Call, Floats, Kernels } from './call.js';
import { logSumExp } from './softmax.js';

/** The shape of logits [N, V], labels [N] and settings of a cross-entropy, checked. */
function inputs(call: Call, logits = 0, labelled = 1) {
  const shape = call.shape(logits);
  const [n, v] = shape as [number, number];
  if (shape.length !== 2) throw call.error('logits [N, V]', shapeText(shape));
  call.expectShape(labelled, [n]);
  const labels = call.ints(labelled);
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
  return { n, v, labels, ignoreIndex, smoothing };
}

type Settings = ReturnType<typeof inputs>;

/** −(1−ε)·logp[label] − ε/V·Σ logp of a row that begins at `at`. */
function lossOf({ v, smoothing }: Settings, x: Floats, at: number, label: number, lse: number) {
  const value = (1 - smoothing) * (lse - (x[at + label] as number));
  if (smoothing === 0) return value;
  let sum = 0;
  for (let i = 0; i < v; i++) sum += lse - (x[at + i] as number);
  return value + (smoothing / v) * sum;
}

/** d · (softmax − (1−ε)·onehot − ε/V) of a row of x into that of dx, which may be the same. */
function gradOf(
  { v, smoothing }: Settings,
  x: Floats,
  dx: Floats,
  { at, label, lse, d }: { at: number; label: number; lse: number; d: number },
): void {
  for (let i = 0; i < v; i++) {
    const target = (i === label ? 1 - smoothing : 0) + smoothing / v;
    dx[at + i] = d * (Math.exp((x[at + i] as number) - lse) - target);
  }
}

/** loss = −(1−ε)·logp[label] − ε/V·Σ logp, 0 where the label is ignored. */
function crossEntropy(call: Call): void {
  call.counts(3, 2);
  const settings = inputs(call);
  const { n, v, labels, ignoreIndex } = settings;
  call.expectShape(2, [n]);
  const logits = call.floats(0);
  const loss = call.out(2);
  for (let r = 0; r < n; r++) {
    const label = labels[r] as number;
    const at = r * v;
    loss[r] =
      label === ignoreIndex ? 0 : lossOf(settings, logits, at, label, logSumExp(logits, at, v));
  }
}

/** dlogits = dloss · (softmax − (1−ε)·onehot − ε/V), zero rows where the label is ignored. */
function crossEntropyGrad(call: Call): void {
  call.counts(4, 2);
  const settings = inputs(call);
  const { n, v, labels, ignoreIndex } = settings;
  call.expectShape(2, [n]);
  call.expectShape(3, [n, v]);
  const logits = call.floats(0);
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
    gradOf(settings, logits, dlogits, { at, label, lse, d: dloss[r] as number });
  }
}

/** The loss of each row, and factor times the gradient of their sum in the logits' place. */
function crossEntropyWithGrad(call: Call): void {
  call.counts(3, 3);
  const settings = inputs(call, 2, 0);
  const { n, v, labels, ignoreIndex } = settings;
  call.expectShape(1, [n]);
  const loss = call.out(1);
  const logits = call.out(2);
  // As a tensor of the same dtype would hold it.
  const d = logits instanceof Float32Array ? Math.fround(call.attr(2)) : call.attr(2);
  for (let r = 0; r < n; r++) {
    const label = labels[r] as number;
    const at = r * v;
    if (label === ignoreIndex) {
      loss[r] = 0;
      logits.fill(0, at, at + v);
      continue;
    }
    const lse = logSumExp(logits, at, v);
    loss[r] = lossOf(settings, logits, at, label, lse);
    gradOf(settings, logits, logits, { at, label, lse, d });
  }
}

export const lossKernels: Kernels = {
  crossEntropy,
  'crossEntropy.grad': crossEntropyGrad,
  'crossEntropy.withGrad': crossEntropyWithGrad,
};
