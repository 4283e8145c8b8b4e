import * as assert from 'uvu/assert';
import {
  backward,
  definedOps,
  noGrad,
  type Op,
  type Sample,
  type SampleInput,
  scope,
  setTrainable,
} from '../src/autograd/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { encode, tensor } from '../src/tensor/create.js';
import { type DType, dtypeBytes, isFloat } from '../src/tensor/dtype.js';
import { normal, streamOf } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { Storage } from '../src/tensor/storage.js';
import { Tensor } from '../src/tensor/tensor.js';
import { reference } from './backends.js';
import '../src/ops/index.js';

/** One op on one of its samples. */
export interface Case {
  readonly op: Op<unknown>;
  readonly sample: Sample<unknown>;
  readonly title: string;
}

/** Inputs that are constants by the op's own word: no gradient flows to them. */
const CONSTANT_INPUTS: Readonly<Record<string, readonly number[]>> = { rope: [2] };

export function caseOf(op: Op<unknown>, sample: Sample<unknown>): Case {
  return { op, sample, title: `${op.spec.name}, ${sample.label}` };
}

/** Every op with its cases, by name. */
export function table(): { name: string; op: Op<unknown>; cases: Case[] }[] {
  return [...definedOps()].map(([name, op]) => ({
    name,
    op,
    cases: op.spec.samples.map((sample) => caseOf(op, sample)),
  }));
}

/** Standard normal numbers that belong to a name, as f32 holds them. */
function numbersOf(name: string, count: number): Float64Array {
  return normal({ seed: 1, stream: streamOf(name) }, count).map(Math.fround);
}

/** The values of one input; floats as f32 holds them, so that every dtype starts from the same. */
function valuesOf(input: SampleInput, name: string): Float64Array {
  const count = numel(input.shape);
  if (input.values) {
    assert.is(input.values.length, count, `values of ${name}`);
    return Float64Array.from(input.values, input.dtype ? Number : Math.fround);
  }
  const { scale = 1, shift = 0 } = input;
  return numbersOf(name, count).map((v) => Math.fround(v * scale + shift));
}

/** The values of every input of a case. */
export function inputsOf(c: Case): Float64Array[] {
  return c.sample.inputs.map((input, i) => valuesOf(input, `${c.title}, input ${i}`));
}

/** Which inputs are floats. */
export function floatInputs(c: Case): number[] {
  return c.sample.inputs.flatMap((input, i) => (input.dtype ? [] : [i]));
}

/** Which inputs a gradient flows to. */
export function gradInputs(c: Case): number[] {
  if (!c.op.spec.backward) return [];
  const constants = CONSTANT_INPUTS[c.op.spec.name] ?? [];
  return floatInputs(c).filter((i) => !constants.includes(i));
}

/** The same dtype for every float input of a case; the others as the sample says. */
export function dtypesOf(c: Case, float: DType): DType[] {
  return c.sample.inputs.map((input) => input.dtype ?? float);
}

/** Values as a dtype stores them. */
export function rounded(values: Float64Array, dtype: DType): Float64Array {
  if (dtype !== 'f16' && dtype !== 'bf16') return values;
  const t = tensor(values, [values.length], { backend: reference, dtype });
  const out = Float64Array.from(t.toNumbers());
  t.dispose();
  return out;
}

/** Leaves freed buffers full of NaN for the pools to hand out: a kernel must write every element. */
function soil(backend: Backend, shapes: readonly Shape[], dtypes: readonly DType[]): void {
  shapes.forEach((shape, i) => {
    const bytes = new Uint8Array(numel(shape) * dtypeBytes(dtypes[i] as DType)).fill(0xff);
    const handles = [0, 1, 2].map(() => backend.allocate(bytes.length, 'workspace'));
    for (const handle of handles) if (bytes.length > 0) backend.upload(handle, 0, bytes);
    for (const handle of handles) backend.free(handle);
  });
}

/** A tensor whose elements begin `lead` elements into a larger buffer. */
function placed(
  backend: Backend,
  values: Float64Array,
  shape: Shape,
  dtype: DType,
  lead: number,
): Tensor {
  if (lead === 0) return tensor(values, shape, { backend, dtype });
  const offset = lead * dtypeBytes(dtype);
  const bytes = encode(values, dtype);
  const storage = Storage.allocate(backend, offset + bytes.length, 'activation');
  if (bytes.length > 0) storage.backend.upload(storage.handle, offset, bytes);
  return new Tensor(storage, shape, dtype, offset);
}

/** What an op answered: output 0, the other outputs, and the gradients that were asked for. */
export interface Result {
  readonly outputs: readonly { readonly dtype: DType; readonly values: Float64Array }[];
  readonly grads: readonly (Float64Array | null)[];
  readonly gradDTypes: readonly (DType | null)[];
  /** All of it as raw bytes, to compare bit for bit. */
  readonly bytes: readonly Uint8Array[];
}

export interface RunOptions {
  readonly backend: Backend;
  readonly dtypes: readonly DType[];
  readonly inputs: readonly Float64Array[];
  /** Inputs to take the gradient of; none by default. */
  readonly grads?: readonly number[];
  /** Through the op's composition from basic ops instead of its kernel. */
  readonly composed?: boolean;
  /** Elements before each input in its buffer. */
  readonly lead?: number;
}

/** Runs a case forward, and backward from a fixed random gradient of output 0. */
export function run(c: Case, options: RunOptions): Result {
  const { backend, dtypes, inputs, grads = [], lead = 0 } = options;
  const { spec } = c.op;
  return scope(() => {
    const tensors = c.sample.inputs.map((input, i) =>
      placed(backend, inputs[i] as Float64Array, input.shape, dtypes[i] as DType, lead),
    );
    for (const i of grads) setTrainable(tensors[i] as Tensor, true);
    const metas = spec.infer(tensors, c.sample.attrs);
    soil(
      backend,
      [...metas, ...tensors].map((m) => m.shape),
      [...metas, ...tensors].map((m) => m.dtype),
    );
    const composed = options.composed ? spec.composed?.(tensors, c.sample.attrs) : undefined;
    const outputs = composed ? [composed] : c.op(tensors, c.sample.attrs);
    outputs.forEach((t, i) => {
      assert.equal(t.shape, metas[i]?.shape, `${c.title}: shape of output ${i}`);
      assert.is(t.dtype, metas[i]?.dtype, `${c.title}: dtype of output ${i}`);
    });
    const [y] = outputs as [Tensor];
    const differentiable = grads.length > 0 && isFloat(y.dtype);
    assert.is(y.requiresGrad, differentiable, `${c.title}: whether a gradient flows`);
    if (differentiable) {
      const dtype = y.dtype === 'f16' ? 'f32' : y.dtype;
      backward(y, tensor(upstreamOf(c, y.size), y.shape, { backend, dtype }));
    }
    const taken = tensors.map((t) => t.grad);
    if (differentiable) {
      for (const i of grads) assert.ok(taken[i], `${c.title}: gradient of input ${i}`);
    }
    const values = (t: Tensor) => Float64Array.from(t.toNumbers());
    const all = [...outputs, ...taken.filter((t) => t !== null)];
    return {
      outputs: outputs.map((t) => ({ dtype: t.dtype, values: values(t) })),
      grads: taken.map((t) => t && values(t)),
      gradDTypes: taken.map((t) => t?.dtype ?? null),
      bytes: all.map((t) => t.bytes()),
    };
  });
}

/** The random gradient of output 0 with which a case is walked backward, as bf16 holds it. */
export function upstreamOf(c: Case, count: number): Float64Array {
  return rounded(numbersOf(`${c.title}, upstream`, count), 'bf16');
}

/** Output 0 of a case in f64 on the reference backend, outside the graph. */
export function valueIn64(c: Case, inputs: readonly Float64Array[]): Float64Array {
  const dtypes = dtypesOf(c, 'f64');
  return noGrad(
    () => run(c, { backend: reference, dtypes, inputs }).outputs[0]?.values,
  ) as Float64Array;
}

/** The gradients of Σ upstream ⊙ output 0 by central differences of f64 values. */
export function finiteDifferences(c: Case, input: number, eps: number): Float64Array {
  const inputs = inputsOf(c);
  const x = inputs[input] as Float64Array;
  const contract = () => {
    const y = valueIn64(c, inputs);
    const upstream = upstreamOf(c, y.length);
    return y.reduce((sum, v, i) => sum + v * (upstream[i] as number), 0);
  };
  return x.map((value, i) => {
    x[i] = value + eps;
    const above = contract();
    x[i] = value - eps;
    const below = contract();
    x[i] = value;
    return (above - below) / (2 * eps);
  });
}

/** Throws unless every element is within rtol of the largest expected one (or of 0.01). */
export function expectClose(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  rtol: number,
  what: string,
): void {
  assert.is(got.length, want.length, `${what}: count`);
  let largest = 0.01;
  for (let i = 0; i < want.length; i++) {
    const size = Math.abs(want[i] as number);
    if (Number.isFinite(size)) largest = Math.max(largest, size);
  }
  for (let i = 0; i < want.length; i++) {
    const a = got[i] as number;
    const b = want[i] as number;
    const close = Number.isFinite(b) ? Math.abs(a - b) <= rtol * largest : Object.is(a, b);
    if (!close) assert.unreachable(`${what}: element ${i} is ${a}, expected ${b} (${rtol})`);
  }
}
