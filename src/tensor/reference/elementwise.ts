import { shapeText } from '../errors.js';
import { sameShape } from '../shape.js';
import type { Call, Floats, Kernel, Kernels } from './call.js';
import { normalCdf, normalPdf, sigmoid } from './special.js';
import { broadcastStrides, forRows } from './strided.js';

/** y = f(x), element by element. */
function unary(f: (x: number) => number): Kernel {
  return (call) => {
    call.counts(2, 0);
    mapTo(call, f);
  };
}

function mapTo(call: Call, f: (x: number) => number): void {
  call.expectSame(0, 1);
  const x = call.floats(0);
  const y = call.activations(1);
  for (let i = 0; i < y.length; i++) y[i] = f(x[i] as number);
}

/** y = f(a, b) with NumPy's broadcasting of a and b to y's shape. */
function binary(f: (a: number, b: number) => number): Kernel {
  return (call) => {
    call.counts(3, 0);
    const shape = call.shape(2);
    for (const i of [0, 1]) {
      const own = call.shape(i);
      const fits = own.every((d, k) => d === 1 || d === shape[shape.length - own.length + k]);
      if (own.length > shape.length || !fits) {
        throw call.error(`shapes that broadcast to ${shapeText(shape)}`, shapeText(own));
      }
    }
    const a = call.floats(0);
    const b = call.floats(1);
    const y = call.out(2);
    if (sameShape(call.shape(0), shape) && sameShape(call.shape(1), shape)) {
      for (let i = 0; i < y.length; i++) y[i] = f(a[i] as number, b[i] as number);
      return;
    }
    let at = 0;
    forRows(
      shape,
      { offset: 0, strides: broadcastStrides(call.shape(0), shape) },
      { offset: 0, strides: broadcastStrides(call.shape(1), shape) },
      (count, aAt, aStep, bAt, bStep) => {
        for (let i = 0; i < count; i++) {
          y[at++] = f(a[aAt + i * aStep] as number, b[bAt + i * bStep] as number);
        }
      },
    );
  };
}

const SQRT_2_OVER_PI = Math.sqrt(2 / Math.PI);
/** The coefficient of x³ in the tanh form of GELU (Hendrycks and Gimpel, 2016). */
const GELU_CUBIC = 0.044715;

export const gelu = (x: number) => x * normalCdf(x);
const geluGrad = (x: number) => normalCdf(x) + x * normalPdf(x);

export function geluTanh(x: number): number {
  return (x / 2) * (1 + Math.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)));
}

function geluTanhGrad(x: number): number {
  const t = Math.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x));
  const inner = SQRT_2_OVER_PI * (1 + 3 * GELU_CUBIC * x * x);
  return (1 + t) / 2 + (x / 2) * (1 - t * t) * inner;
}

export const relu = (x: number) => (x > 0 || Number.isNaN(x) ? x : 0);
export const silu = (x: number) => x * sigmoid(x);

function siluGrad(x: number): number {
  const s = sigmoid(x);
  return s * (1 + x * (1 - s));
}

/** dx = f′(x) · dy. */
function chain(call: Call, derivative: (x: number) => number): void {
  call.expectSame(0, 1, 2);
  const x = call.floats(0);
  const dy = call.floats(1);
  const dx = call.activations(2);
  for (let i = 0; i < dx.length; i++) dx[i] = derivative(x[i] as number) * (dy[i] as number);
}

function affine(call: Call): void {
  call.counts(2, 2);
  const scale = call.attr(0);
  const shift = call.attr(1);
  mapTo(call, (x) => scale * x + shift);
}

/** y = silu(gate) · up. */
function swiglu(call: Call): void {
  call.counts(3, 0);
  call.expectSame(0, 1, 2);
  const gate = call.floats(0);
  const up = call.floats(1);
  const y = call.activations(2);
  for (let i = 0; i < y.length; i++) y[i] = silu(gate[i] as number) * (up[i] as number);
}

/** dgate = silu′(gate) · up · dy; dup = silu(gate) · dy. */
function swigluGrad(call: Call): void {
  call.counts(5, 0);
  call.expectSame(0, 1, 2, 3, 4);
  const gate = call.floats(0);
  const up = call.floats(1);
  const dy = call.floats(2);
  const dgate: Floats = call.activations(3);
  const dup: Floats = call.activations(4);
  for (let i = 0; i < dgate.length; i++) {
    const g = gate[i] as number;
    dgate[i] = siluGrad(g) * (up[i] as number) * (dy[i] as number);
    dup[i] = silu(g) * (dy[i] as number);
  }
}

/** Elementwise arithmetic; Math.max and Math.min propagate NaN as the contract asks. */
export const elementwiseKernels: Kernels = {
  add: binary((a, b) => a + b),
  sub: binary((a, b) => a - b),
  mul: binary((a, b) => a * b),
  div: binary((a, b) => a / b),
  maximum: binary(Math.max),
  minimum: binary(Math.min),
  affine,
  neg: unary((x) => -x),
  abs: unary(Math.abs),
  exp: unary(Math.exp),
  log: unary(Math.log),
  sqrt: unary(Math.sqrt),
  rsqrt: unary((x) => 1 / Math.sqrt(x)),
  tanh: unary(Math.tanh),
  sigmoid: unary(sigmoid),
  relu: unary(relu),
  silu: unary(silu),
  'silu.grad': (call) => {
    call.counts(3, 0);
    chain(call, siluGrad);
  },
  gelu: (call) => {
    call.counts(2, 1);
    mapTo(call, call.flag(0) ? geluTanh : gelu);
  },
  'gelu.grad': (call) => {
    call.counts(3, 1);
    chain(call, call.flag(0) ? geluTanhGrad : geluGrad);
  },
  swiglu,
  'swiglu.grad': swigluGrad,
};
