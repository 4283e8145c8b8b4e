import { bf16ToNumber, numberToBf16 } from '../dtype.js';
import type { Call, Floats, Kernels } from './call.js';
import { gelu, geluTanh, relu, silu } from './elementwise.js';
import { layerInto } from './matmul.js';

/** In the order of the attribute; see docs/kernels.md. */
const ACTIVATIONS = [relu, silu, gelu, geluTanh] as const;

/** Throws unless there are these many tensors, or `biases` more; answers the place of the first output. */
function firstOutput(call: Call, inputs: number, biases: number, outputs: number): number {
  const without = inputs + outputs;
  const { length } = call.args;
  if (length !== without && length !== without + biases) {
    throw call.error(`${without} or ${without + biases} tensors`, String(length));
  }
  return length - outputs;
}

/** An output shaped and stored as another. */
function output(call: Call, i: number, like: number): Floats {
  call.expectShape(i, call.shape(like));
  const [own, other] = [call.arg(i).dtype, call.arg(like).dtype];
  if (own !== other) throw call.error(`one dtype, ${other}`, own);
  return call.activations(i);
}

/** What a result stored as tensor `i` is made of, rounded as that is. */
function rounded(call: Call, i: number, inner: Floats): Floats {
  if (call.arg(i).dtype !== 'bf16') return inner;
  return inner.map((v) => bf16ToNumber(numberToBf16(v)));
}

/** y = f(x wᵀ + b), and what f is taken of where it is kept. */
function activatedLinear(call: Call): void {
  call.counts(call.args.length, 3);
  const [transposed, kept] = [call.flag(0), call.flag(2)];
  const f = ACTIVATIONS[call.integer(1, 0, ACTIVATIONS.length - 1)] as (x: number) => number;
  const at = firstOutput(call, 2, 1, kept ? 2 : 1);
  const y = output(call, at, at);
  const inner = kept ? output(call, at + 1, at) : y;
  layerInto(call, { w: 1, b: at === 3 ? 2 : null, y: at, transposed }, inner);
  const h = rounded(call, at, inner);
  for (let i = 0; i < y.length; i++) y[i] = f(h[i] as number);
}

/** y = silu(gate)·up, and both where they are kept. */
function gatedLinear(call: Call): void {
  call.counts(call.args.length, 2);
  const [transposed, kept] = [call.flag(0), call.flag(1)];
  const at = firstOutput(call, 3, 2, kept ? 3 : 1);
  const biased = at === 5;
  const y = output(call, at, at);
  const gate = kept ? output(call, at + 1, at) : y.slice();
  const up = kept ? output(call, at + 2, at) : y;
  layerInto(call, { w: 1, b: biased ? 3 : null, y: at, transposed }, gate);
  layerInto(call, { w: 2, b: biased ? 4 : null, y: at, transposed }, up);
  const [g, u] = [rounded(call, at, gate), rounded(call, at, up)];
  for (let i = 0; i < y.length; i++) y[i] = silu(g[i] as number) * (u[i] as number);
}

export const activatedKernels: Kernels = { activatedLinear, gatedLinear };
