import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { type DType, dtypeBytes } from '../src/tensor/dtype.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, onNative, reference } from './backends.js';
import { dtypesOf, gradInputs, inputsOf, run, table } from './op-cases.js';

// Every kernel with sound calls spoilt in one place: it must answer or name itself, never crash,
// and the native backend must refuse what the reference refuses.

interface Argument {
  readonly dtype: DType;
  readonly shape: Shape;
  readonly bytes: Uint8Array;
}

interface KernelCall {
  readonly kernel: string;
  readonly args: readonly Argument[];
  readonly attrs: readonly number[];
}

/** The kernel calls that the op table makes, forward and backward. */
function soundCalls(): KernelCall[] {
  const calls: KernelCall[] = [];
  const recorder: Backend = {
    name: 'recorder',
    kernels: reference.kernels,
    describe: () => 'the reference backend, recorded',
    allocate: (bytes, purpose) => reference.allocate(bytes, purpose),
    free: (handle) => reference.free(handle),
    retag: (handle, purpose) => reference.retag(handle, purpose),
    upload: (handle, offset, bytes) => reference.upload(handle, offset, bytes),
    download: (handle, offset, into) => reference.download(handle, offset, into),
    mapFile: (path) => reference.mapFile(path),
    memory: () => reference.memory(),
    resetPeak: () => reference.resetPeak(),
    trim: () => reference.trim(),
    setThreads: (count) => reference.setThreads(count),
    compute: reference.compute,
    setCompute: (mode) => reference.setCompute(mode),
    run: (kernel, tensors, attrs) => {
      const args = tensors.map((t) => {
        const bytes = new Uint8Array(numel(t.shape) * dtypeBytes(t.dtype));
        reference.download(t.storage.handle, t.byteOffset, bytes);
        return { dtype: t.dtype, shape: t.shape, bytes };
      });
      calls.push({ kernel, args, attrs });
      reference.run(kernel, tensors, attrs);
    },
  };
  for (const { cases } of table()) {
    for (const c of cases) {
      if (c.sample.label === 'several tiles') continue;
      const dtypes = dtypesOf(c, 'f32');
      run(c, { backend: recorder, dtypes, inputs: inputsOf(c), grads: gradInputs(c) });
    }
  }
  const f = (shape: Shape): Argument => ({
    dtype: 'f32',
    shape,
    bytes: new Uint8Array(numel(shape) * 4),
  });
  calls.push({
    kernel: 'adamw',
    args: [f([5]), f([5]), f([5]), f([5])],
    attrs: [0.1, 0.9, 0.99, 1e-8, 0.1, 3, 1],
  });
  calls.push({
    kernel: 'adamwEach',
    args: [f([5]), f([5]), f([5]), f([5]), f([2, 3]), f([2, 3]), f([2, 3]), f([2, 3])],
    attrs: [0.1, 0.9, 0.99, 1e-8, 0.1, 3, 1],
  });
  calls.push({ kernel: 'sgd', args: [f([5]), f([5]), f([5])], attrs: [0.1, 0.9, 0.1, 1, 0] });
  calls.push({
    kernel: 'adamwEach',
    args: [f([1]), f([5]), f([5]), f([5]), f([5])],
    attrs: [0.1, 0.9, 0.99, 1e-8, 0.1, 3, 1],
  });
  calls.push({
    kernel: 'sgd',
    args: [f([1]), f([5]), f([5]), f([5])],
    attrs: [0.1, 0.9, 0.1, 1, 0],
  });
  calls.push({ kernel: 'sumSquares', args: [f([2, 3]), f([5]), f([2])], attrs: [] });
  calls.push({ kernel: 'clipFactor', args: [f([3]), f([]), f([1])], attrs: [1] });
  calls.push({ kernel: 'accumulate', args: [f([2, 3]), f([2, 3])], attrs: [] });
  calls.push({ kernel: 'write', args: [f([2, 3]), f([3, 5])], attrs: [1, 2] });
  calls.push({ kernel: 'slice.gradAdd', args: [f([2, 3]), f([3, 5])], attrs: [1, 2] });
  const ids: Argument = { dtype: 'i32', shape: [2], bytes: new Uint8Array(8) };
  calls.push({ kernel: 'embedding.gradAdd', args: [ids, f([2, 3]), f([4, 3])], attrs: [] });
  return calls;
}

/** The ways to spoil one argument: another dtype, other sizes, other integers. */
function spoiltArguments(arg: Argument): Argument[] {
  const { dtype, shape, bytes } = arg;
  const blank = (shape: Shape, dtype: DType): Argument => ({
    dtype,
    shape,
    bytes: new Uint8Array(Math.max(0, numel(shape)) * dtypeBytes(dtype)),
  });
  const dtypes: DType[] = ['f32', 'bf16', 'i32', 'i64', 'u8'];
  const out = dtypes.filter((d) => d !== dtype).map((d) => blank(shape, d));
  shape.forEach((d, i) => {
    for (const size of [0, d + 1, d - 1, 2 * d]) {
      const other = shape.map((e, k) => (k === i ? size : e));
      if (size >= 0 && size !== d) out.push(blank(other, dtype));
    }
  });
  out.push(blank([...shape, 1], dtype), blank([1, ...shape], dtype), blank(shape.slice(1), dtype));
  if (dtype === 'i32' && bytes.length > 0) {
    for (const value of [-1, 1000, 2 ** 31 - 1, -(2 ** 31)]) {
      const ints = new Int32Array(bytes.slice().buffer);
      ints[ints.length - 1] = value;
      out.push({ dtype, shape, bytes: new Uint8Array(ints.buffer) });
    }
  }
  return out;
}

/** A sound call spoilt in one place, in every way there is. */
function spoilt(call: KernelCall): KernelCall[] {
  const { args, attrs } = call;
  const swap = <T>(list: readonly T[], at: number, value: T) =>
    list.map((e, k) => (k === at ? value : e));
  return [
    ...args.flatMap((arg, i) =>
      spoiltArguments(arg).map((other) => ({ ...call, args: swap(args, i, other) })),
    ),
    ...args.map((_, i) => ({ ...call, args: args.filter((_, k) => k !== i) })),
    ...args.slice(-1).map((arg) => ({ ...call, args: [...args, arg] })),
    ...attrs.flatMap((_, i) =>
      [-1, 0.5, 3, 1000, 2 ** 31, 2 ** 53, Number.NaN, Number.NEGATIVE_INFINITY].map((value) => ({
        ...call,
        attrs: swap(attrs, i, value),
      })),
    ),
    { ...call, attrs: attrs.slice(1) },
    { ...call, attrs: [...attrs, 0] },
  ];
}

/** Runs a call; answers the error it met, or null. */
function attempt(backend: Backend, { kernel, args, attrs }: KernelCall): Error | null {
  const tensors = args.map(({ dtype, shape, bytes }) => {
    const t = Tensor.empty(backend, shape, dtype);
    if (bytes.length > 0) t.setBytes(bytes);
    return t;
  });
  try {
    backend.run(kernel, tensors, attrs);
    return null;
  } catch (error) {
    return error as Error;
  } finally {
    for (const t of tensors) t.dispose();
  }
}

const describe = ({ kernel, args, attrs }: KernelCall) =>
  `${kernel} ${args.map((a) => `${a.dtype}[${a.shape}]`).join(' ')} (${attrs})`;

const sound = soundCalls();
const unsound = sound.flatMap(spoilt);

test('the calls reach every kernel', () => {
  const seen = new Set(sound.map((c) => c.kernel));
  assert.equal(
    [...reference.kernels].filter((k) => !seen.has(k)),
    [],
  );
  assert.ok(unsound.length > 10000, `${unsound.length} spoilt calls`);
});

onEachBackend(test, 'spoilt calls are answered or refused by name', (backend) => {
  const { handles } = backend.memory();
  for (const c of sound) assert.is(attempt(backend, c), null, describe(c));
  let refused = 0;
  for (const c of unsound) {
    const error = attempt(backend, c);
    if (!error) continue;
    refused++;
    if (!error.message.startsWith(`[${c.kernel}] expected`)) {
      assert.unreachable(`${describe(c)}: ${error.message}`);
    }
  }
  assert.ok(refused > unsound.length / 2, `${refused} of ${unsound.length} refused`);
  assert.is(backend.memory().handles, handles, 'nothing is left behind');
  const x = tensor([1, 2], undefined, { backend });
  assert.equal(x.toNumbers(), [1, 2], 'the backend lives on');
  x.dispose();
});

onNative(test, 'the native backend refuses what the reference refuses, and no more', (backend) => {
  const lax = unsound.filter((c) => attempt(reference, c) && !attempt(backend, c));
  const strict = unsound.filter((c) => !attempt(reference, c) && attempt(backend, c));
  assert.equal(lax.map(describe), []);
  assert.equal(strict.map(describe), []);
});

test.run();
