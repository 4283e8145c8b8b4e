import * as assert from 'uvu/assert';
import { type DType, isFloat } from '../src/tensor/dtype.js';
import { reference } from './backends.js';
import {
  type Case,
  dtypesOf,
  expectClose,
  floatInputs,
  gradInputs,
  inputsOf,
  type Result,
  rounded,
  run,
} from './op-cases.js';

/** f32 results against f64: this share of the largest value, unless an op says otherwise. */
const RTOL = 1e-5;

/** Ops that take f32 (or f64) gradients only, as they are parts of other ops' gradients. */
const GRADIENT_OPS = ['slice.grad', 'gather.grad', 'max.grad'];

/** Ops whose inputs must share one dtype. */
const ONE_DTYPE = ['concat'];

/** Results in f64 on the reference backend, by case and input dtypes. */
const cache = new Map<string, Result>();

/** What a case should answer for inputs stored in these dtypes. */
export function oracle(c: Case, dtypes: readonly DType[]): Result {
  const key = `${c.title}: ${dtypes}`;
  let known = cache.get(key);
  if (!known) {
    const inputs = inputsOf(c).map((v, i) => rounded(v, dtypes[i] as DType));
    known = run(c, {
      backend: reference,
      dtypes: dtypesOf(c, 'f64'),
      inputs,
      grads: gradInputs(c),
    });
    cache.set(key, known);
  }
  return known;
}

/**
 * Throws unless every element is a value within `rtol` of the largest expected one, rounded to the
 * dtype: as rounding never turns two values about, it lies between the ends of that range, rounded.
 */
function expectStored(
  got: Float64Array,
  want: Float64Array,
  dtype: DType,
  rtol: number,
  what: string,
): void {
  if (dtype !== 'bf16') {
    // f16 only holds what is moved or cast.
    expectClose(got, rounded(want, dtype), rtol, what);
    return;
  }
  assert.is(got.length, want.length, `${what}: count`);
  const sizes = want.map(Math.abs).filter(Number.isFinite);
  const slack = rtol * sizes.reduce((most, v) => Math.max(most, v), 0.01);
  const [low, high] = [-slack, slack].map((by) =>
    rounded(
      want.map((v) => v + by),
      dtype,
    ),
  );
  got.forEach((v, i) => {
    const [from, to] = [low?.[i] as number, high?.[i] as number];
    if (!(v >= from && v <= to) && !Object.is(v, from)) {
      assert.unreachable(`${what}: element ${i} is ${v}, expected ${from} to ${to}`);
    }
  });
}

/**
 * Whether a gradient reads what was rounded: attention's output, or the one half of dx that
 * gatedLinear adds the other to.
 */
const readsRounded = (c: Case, got: Result, i: number) =>
  (['attention', 'fusedAttention'].includes(c.op.spec.name) && got.outputs[0]?.dtype === 'bf16') ||
  (c.op.spec.name === 'gatedLinear' && got.gradDTypes[i] === 'bf16');

/** Runs a case with its inputs stored in these dtypes and compares everything with the oracle. */
export function check(
  c: Case,
  backend: typeof reference,
  dtypes: readonly DType[],
  lead = 0,
): Result {
  const want = oracle(c, dtypes);
  const got = run(c, { backend, dtypes, inputs: inputsOf(c), grads: gradInputs(c), lead });
  const what = `${c.title} (${dtypes})`;
  got.outputs.forEach(({ dtype, values }, i) => {
    const expected = want.outputs[i]?.values as Float64Array;
    if (isFloat(dtype)) expectStored(values, expected, dtype, RTOL, `${what}, output ${i}`);
    else expectClose(values, expected, 0, `${what}, output ${i}`);
  });
  got.grads.forEach((g, i) => {
    if (!g) return;
    const rtol = readsRounded(c, got, i) ? 2 ** -6 : RTOL;
    const dtype = got.gradDTypes[i] as DType;
    expectStored(g, want.grads[i] as Float64Array, dtype, rtol, `${what}, gradient ${i}`);
  });
  return got;
}

/** Every way to store the float inputs of a case with some of them in a half type. */
export function halfDTypes(c: Case): DType[][] {
  const { name } = c.op.spec;
  const floats = floatInputs(c);
  if (GRADIENT_OPS.includes(name) || floats.length === 0) return [];
  const sets = ONE_DTYPE.includes(name) || floats.length === 1 ? [] : floats.map((i) => [i]);
  return [...sets, floats].flatMap((set) =>
    (['bf16', 'f16'] as const).map((half) =>
      dtypesOf(c, 'f32').map((d, i) => (set.includes(i) ? half : d)),
    ),
  );
}

/** Every bit of a result. */
export const bitsOf = (r: Result) => r.bytes.map((b) => Buffer.from(b).toString('hex')).join(' ');
