// time-limit: 300
// What the op table does not ask of the CUDA kernels: every dtype, odd addresses, sizes at the seams
// of their ways, special values and faults. The CPU's kernels say what is right.
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { Backend } from '../src/tensor/backend.js';
import { DTYPES, type DType, dtypeBytes, isFloat } from '../src/tensor/dtype.js';
import type { NativeBackend } from '../src/tensor/native.js';
import { normal } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { native } from './backends.js';
import { cudaShim } from './cuda.js';
import { skipUnless } from './support.js';

const onCuda = skipUnless(test, native !== null, 'no native addon, and so no CUDA shim');
const cpu = native as Backend;
const cuda = native ? cudaShim() : cpu;

interface Operand {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly values: readonly number[];
}

let stream = 0;

/** Normal numbers, or what is given, over and over. */
function floats(shape: Shape, values: readonly number[] = [], dtype: DType = 'f32'): Operand {
  const count = numel(shape);
  const made = values.length > 0 ? values : [...normal({ seed: 7, stream: stream++ }, count)];
  return {
    shape,
    dtype,
    values: Array.from({ length: count }, (_, i) => made[i % made.length] ?? 0),
  };
}

/** Integers from 0 to below − 1, in a jumble. */
const ints = (shape: Shape, below: number, dtype: DType = 'i32'): Operand => ({
  shape,
  dtype,
  values: Array.from({ length: numel(shape) }, (_, i) => (i * 7919 + 13) % below),
});

/** The bytes of values in a dtype, as the reference's cast stores them. */
function bytesOf(backend: Backend, { shape, dtype, values }: Operand): Uint8Array {
  const exact = new Float32Array(values);
  const [from, to] = [exact.byteLength, exact.length * dtypeBytes(dtype)].map((n) =>
    backend.allocate(n, 'workspace'),
  ) as [number, number];
  const bytes = new Uint8Array(exact.length * dtypeBytes(dtype));
  const view = (handle: number, type: DType) => ({
    storage: { handle },
    byteOffset: 0,
    dtype: type,
    shape,
  });
  backend.upload(from, 0, new Uint8Array(exact.buffer));
  backend.run('cast', [view(from, 'f32'), view(to, dtype)], []);
  backend.download(to, 0, bytes);
  backend.free(from);
  backend.free(to);
  return bytes;
}

/** Runs a kernel with operands `lead` elements into their buffers; the bytes of the outputs. */
function call(
  backend: Backend,
  kernel: string,
  operands: readonly Operand[],
  outputs: number,
  attrs: readonly number[],
  lead: number,
): Uint8Array[] {
  const views = operands.map((o) => {
    const size = dtypeBytes(o.dtype);
    const bytes = bytesOf(cpu, o);
    const handle = backend.allocate((lead + numel(o.shape)) * size, 'workspace');
    backend.upload(handle, lead * size, bytes);
    return { storage: { handle }, byteOffset: lead * size, dtype: o.dtype, shape: o.shape };
  });
  try {
    backend.run(kernel, views, attrs);
    return views.slice(views.length - outputs).map((v) => {
      const bytes = new Uint8Array(numel(v.shape) * dtypeBytes(v.dtype));
      backend.download(v.storage.handle, v.byteOffset, bytes);
      return bytes;
    });
  } finally {
    for (const v of views) backend.free(v.storage.handle);
  }
}

/** That a kernel answers as the CPU's, the last `outputs` operands being what it writes. */
function agrees(
  kernel: string,
  operands: readonly Operand[],
  attrs: readonly number[] = [],
  { outputs = 1, exact = false, leads = [0, 1] as readonly number[] } = {},
): void {
  const shapes = operands.map((o) => `${o.dtype} [${o.shape}]`).join(', ');
  for (const lead of leads) {
    const title = `${kernel} (${attrs}) of ${shapes}, ${lead} in`;
    const want = call(cpu, kernel, operands, outputs, attrs, lead);
    // Threads in other orders, too: a race would show.
    process.env.LOWRANK_SHIM_ORDER = lead === 0 ? 'reverse' : 'shuffled';
    const got = call(cuda, kernel, operands, outputs, attrs, lead);
    want.forEach((w, i) => {
      const { dtype } = operands[operands.length - outputs + i] as Operand;
      const g = got[i] as Uint8Array;
      if (exact || dtype !== 'f32') {
        assert.equal(bitsOf(dtype, g), bitsOf(dtype, w), title);
      } else {
        near(numbersOf(g), numbersOf(w), title);
      }
    });
  }
}

const numbersOf = (bytes: Uint8Array) => new Float32Array(bytes.buffer);

/** Every bit, but for those that tell one NaN of a half type from another. */
function bitsOf(dtype: DType, bytes: Uint8Array): string {
  const nan = { f16: 0x7c00, bf16: 0x7f80 }[dtype as 'f16' | 'bf16'];
  if (nan === undefined) return Buffer.from(bytes).toString('hex');
  const halves = new Uint16Array(bytes.buffer);
  return Array.from(halves, (h) => ((h & 0x7fff) > nan ? 'nan' : h.toString(16))).join(' ');
}

function near(got: Float32Array, want: Float32Array, title: string): void {
  const finite = want.filter(Number.isFinite);
  const largest = finite.reduce((most, v) => Math.max(most, Math.abs(v)), 0.03);
  got.forEach((v, i) => {
    const w = want[i] as number;
    const close = Object.is(v, w) || (Number.isNaN(v) && Number.isNaN(w)) || v === w;
    const off = Math.abs(v - w) / largest;
    assert.ok(close || off < 1e-5, `${title}: element ${i} is ${v}, expected ${w}`);
  });
}

const SPECIAL = [0, -0, 1, -1, NaN, Infinity, -Infinity, 1e-40, -1e-40, 3e38, 88, -88, 104, -104];

onCuda('elementwise kernels take special values and any address', () => {
  for (const shape of [[14], [2051], [3, 5, 14]]) {
    const x = floats(shape, SPECIAL);
    const y = floats(shape);
    for (const name of ['neg', 'abs', 'exp', 'log', 'sqrt', 'rsqrt', 'tanh', 'sigmoid', 'relu']) {
      agrees(name, [x, y]);
    }
    agrees('silu', [x, y]);
    for (const form of [0, 1]) agrees('gelu', [x, y], [form]);
    agrees('affine', [x, y], [2, -1]);
    const other = floats(shape, [...SPECIAL.slice(3), 2, 5]);
    for (const name of ['add', 'sub', 'mul', 'div', 'maximum', 'minimum']) {
      agrees(name, [x, other, y], [], { exact: true });
    }
    agrees('accumulate', [floats(shape, [], 'f16'), floats(shape)], [], { exact: true });
  }
});

onCuda('binary kernels broadcast along any axes', () => {
  const shapes: [Shape, Shape, Shape][] = [
    [[5, 8], [8], [5, 8]],
    [
      [5, 1],
      [5, 8],
      [5, 8],
    ],
    [
      [3, 1, 8],
      [4, 1],
      [3, 4, 8],
    ],
    [
      [2, 3, 4, 12],
      [3, 1, 12],
      [2, 3, 4, 12],
    ],
    [[], [7], [7]],
    [[], [], []],
    [
      [1, 9],
      [6, 1],
      [6, 9],
    ],
    [[0, 4], [4], [0, 4]],
  ];
  for (const [a, b, y] of shapes) {
    agrees('sub', [floats(a), floats(b), floats(y)], [], { exact: true });
    agrees('mul', [floats(a, [], 'bf16'), floats(b, [], 'f16'), floats(y)], [], { exact: true });
  }
});

onCuda('casts reach every dtype from every dtype', () => {
  const values = [0, -0, 1, -1.5, 2.5, 300, -300, 65504, 70000, 3e9, -3e9, 1e20, NaN, Infinity];
  for (const from of DTYPES) {
    for (const to of DTYPES) {
      const x = isFloat(from) || from === 'f64' ? values : values.map((v) => Math.trunc(v) || 0);
      agrees('cast', [floats([3, 11], x, from), floats([3, 11], [1], to)], [], { exact: true });
    }
  }
  for (const to of DTYPES) {
    for (const value of [0, 1, -1, 2.5, 300, 1e10, NaN, Infinity]) {
      agrees('fill', [floats([37], [1], to)], [value], { exact: true });
    }
  }
});

onCuda('layout kernels move every dtype', () => {
  for (const dtype of DTYPES) {
    const of = (shape: Shape) => ints(shape, 2, dtype);
    const any = (shape: Shape) => ints(shape, 120, dtype === 'bool' ? 'u8' : dtype);
    const exact = { exact: true };
    agrees('permute', [any([37, 66]), any([66, 37])], [1, 0], exact);
    agrees('permute', [any([3, 5, 2, 8]), any([3, 2, 5, 8])], [0, 2, 1, 3], exact);
    agrees('permute', [any([3, 5, 9]), any([9, 5, 3])], [2, 1, 0], exact);
    agrees('permute', [any([2, 3, 40]), any([40, 2, 3])], [2, 0, 1], exact);
    agrees('slice', [any([6, 48]), any([3, 16])], [2, 16], exact);
    agrees('slice.grad', [any([3, 7]), any([6, 9])], [2, 1], exact);
    agrees('write', [any([3, 16]), any([6, 48])], [2, 16], exact);
    agrees('concat', [any([2, 3]), any([2, 0]), any([2, 5]), any([2, 8])], [1], exact);
    agrees('broadcast', [any([3, 1]), any([2, 3, 5])], [], exact);
    agrees('broadcast', [any([16]), any([3, 16])], [], exact);
    agrees('copy', [any([3, 7]), any([21])], [], exact);
    agrees('gather', [any([5, 4, 3]), ints([5, 7, 3], 4), any([5, 7, 3])], [1], exact);
    agrees('permute', [of([0, 4]), of([4, 0])], [1, 0], exact);
  }
  for (const width of [16, 18, 7]) {
    for (const dtype of ['f32', 'bf16'] as const) {
      agrees('slice.gradAdd', [floats([3, width], [], dtype), floats([5, width * 2])], [1, width]);
    }
  }
});

onCuda('sums run over any axes', () => {
  const cases: [Shape, number[]][] = [
    [
      [5, 3, 4, 8],
      [0, 2],
    ],
    [
      [5, 3, 4, 8],
      [1, 3],
    ],
    [
      [5, 3, 4, 8],
      [0, 1],
    ],
    [[5, 3, 4, 7], [3]],
    [[2, 1100, 4], [1]],
    [[3000], [0]],
    [[3, 70000], [1]],
    [[4200, 9], [0]],
    [[4, 1, 3], [1]],
    [[4, 0, 3], [1]],
    [[0, 3], [1]],
    [[7], []],
  ];
  for (const [shape, axes] of cases) {
    const kept = shape.filter((_, d) => !axes.includes(d));
    agrees('sum', [floats(shape), floats(kept)], axes, { leads: [0, 3] });
  }
  agrees('sum', [floats([9, 33], [], 'bf16'), floats([33])], [0]);
  const many = [0, 1, 5, 2049, 70001, 3, 16384, 16385].map((n) => floats([n]));
  for (const x of many) agrees('sumSquares', [x, floats([1])]);
  agrees('sumSquares', [...many, floats([many.length])]);
  const few = Array.from({ length: 130 }, (_, i) => floats([i % 5]));
  agrees('sumSquares', [...few, floats([130])]);
  agrees('sumSquares', [floats([9], SPECIAL), floats([1])]);
});

onCuda('the largest is the first of equals, and NaN wins', () => {
  const values = [1, 5, 5, -Infinity, 3, -0, 0];
  for (const x of [
    floats([6, 1030], values),
    floats([2, 37, 3], [...values, NaN, NaN]),
    floats([3, 5], [-Infinity]),
    floats([3, 1]),
  ]) {
    const y = [x.shape[0] as number, ...x.shape.slice(2)];
    agrees('max', [x, floats(y), ints(y, 1)], [1], { outputs: 2, exact: true });
    agrees('argmax', [x, ints(y, 1)], [1]);
    const index = ints(y, x.shape[1] as number);
    agrees('max.grad', [index, floats(y), x], [1], { exact: true });
  }
});

onCuda('rows at the seams of their ways agree', () => {
  for (const n of [1, 31, 1024, 1025, 8193]) {
    const x = floats([3, n]);
    for (const name of ['softmax', 'logSoftmax']) {
      agrees(name, [x, floats([3, n])], [], { leads: [1] });
      agrees(`${name}.grad`, [floats([3, n]), floats([3, n]), floats([3, n])], [], { leads: [1] });
    }
    const labels: Operand = { shape: [3], dtype: 'i32', values: [n - 1, -7, 0] };
    for (const smoothing of [0, 0.1]) {
      const attrs = [-7, smoothing];
      agrees('crossEntropy', [x, labels, floats([3])], attrs, { leads: [1] });
      agrees('crossEntropy.grad', [x, labels, floats([3]), floats([3, n])], attrs, { leads: [1] });
    }
  }
  agrees('softmax', [floats([4, 3], [-Infinity, -Infinity, -Infinity, 1, NaN, 2]), floats([4, 3])]);
  agrees('softmax', [floats([2, 4], [-Infinity, 3, -Infinity, 100]), floats([2, 4])]);
});

onCuda('norms keep rows in registers or walk over them', () => {
  for (const n of [5, 6, 8, 256, 260, 1032, 8196]) {
    const rows = n > 8000 ? 2 : 19;
    const x = floats(
      [rows, n],
      [...normal({ seed: 8, stream: n }, rows * n)].map((v) => v + 3),
    );
    const [w, b, dy] = [floats([n], [], 'bf16'), floats([n]), floats([rows, n])];
    const eps = [1e-5];
    agrees('rmsNorm', [x, w, dy], eps);
    agrees('layerNorm', [x, w, b, dy], eps);
    for (const name of ['rmsNorm', 'layerNorm']) {
      agrees(`${name}.gradInput`, [x, w, dy, x], eps);
      agrees(`${name}.gradWeight`, [x, dy, w.dtype === 'f32' ? w : floats([n])], eps);
    }
  }
  agrees('rmsNorm.gradWeight', [floats([0, 8]), floats([0, 8]), floats([8])], [1e-5]);
});

onCuda('angles of far positions keep their digits', () => {
  const positions: Operand = { shape: [1, 4], dtype: 'i32', values: [0, 131071, 1000003, -5] };
  const invFreq = floats(
    [8],
    Array.from({ length: 8 }, (_, i) => 10000 ** (-i / 8)),
  );
  for (const inverse of [0, 1]) {
    const x = floats([1, 4, 3, 20]);
    agrees('rope', [x, positions, invFreq, floats([1, 4, 3, 20])], [inverse, 1.5]);
  }
  agrees('rope', [floats([1, 4, 1, 6]), positions, floats([3]), floats([1, 4, 1, 6])], [0, 1]);
});

onCuda('rows of a table and their gradients follow the order of ids', () => {
  for (const [v, n, c] of [
    [7, 1100, 8],
    [70000, 300, 5],
    [3, 40, 260],
    [300, 1, 4],
  ] as const) {
    const [id, dy] = [ints([n], v), floats([n, c])];
    const table = floats([Math.min(v, 400), c]);
    agrees('embedding', [table, ints([n], Math.min(v, 400)), floats([n, c])], [], { exact: true });
    if (v > 400) {
      const wide = floats([v, c], [0.5]);
      agrees('embedding.gradAdd', [id, dy, wide], [], { exact: true, leads: [0] });
    } else {
      agrees('embedding.grad', [id, dy, table], [], { exact: true });
      agrees('embedding.gradAdd', [id, dy, table], [], { exact: true });
    }
  }
  // A thread a line, and sorted by what is added to.
  for (const [outer, to, inner, from, dtype] of [
    [3, 50, 2, 7, 'f32'],
    [3, 500, 2, 7, 'f32'],
    [1, 1500, 1, 1, 'f32'],
    [2, 700, 3, 900, 'bf16'],
    [1, 70000, 1, 66000, 'f32'],
  ] as const) {
    const index = ints([outer, to, inner], from);
    const dy = floats([outer, to, inner], [], dtype);
    agrees('gather.grad', [index, dy, floats([outer, from, inner])], [1], { exact: true });
  }
});

onCuda('dropout keeps the very elements the CPU keeps', () => {
  const attrs = [0.3, 2 ** 41 + 5, 2 ** 32 - 1, 12];
  for (const n of [1, 4, 1027]) {
    agrees('dropout', [floats([n]), floats([n])], attrs, { exact: true });
    agrees('dropout', [floats([n], [], 'bf16'), floats([n])], attrs, { exact: true });
  }
  for (const p of [0, 1]) agrees('dropout', [floats([9], SPECIAL), floats([9])], [p, 1, 1, 1]);
});

onCuda('optimizers step as on the CPU', () => {
  const positive = (n: number) => floats([n], [0.5, 0.01, 2]);
  for (const n of [0, 1, 2053]) {
    const state = [floats([n]), floats([n]), floats([n]), positive(n)];
    agrees('adamw', state, [1e-2, 0.9, 0.999, 1e-8, 0.1, 7, 0.5], { outputs: 3 });
    for (const first of [0, 1]) {
      agrees('sgd', state.slice(0, 3), [0.1, 0.9, 0.01, 0.5, first], { outputs: 2 });
    }
  }
});

onCuda('AdamW of many parameters in a call is that of each', () => {
  const attrs = [1e-2, 0.9, 0.999, 1e-8, 0.1, 7, 0.5];
  const states = Array.from({ length: 66 }, (_, i) => {
    const n = [3, 0, 8, 2049][i % 4] as number;
    return [floats([n], [], i % 3 ? 'f32' : 'bf16'), floats([n]), floats([n]), floats([n], [0.5])];
  });
  for (const lead of [0, 1]) {
    const each = states.map((state) => call(cuda, 'adamw', state, 4, attrs, lead));
    const all = call(cuda, 'adamwEach', states.flat(), 4 * states.length, attrs, lead);
    assert.equal(all.map(String), each.flat().map(String));
  }
  const part = states.flat().slice(1);
  assert.throws(() => call(cuda, 'adamwEach', part, 1, attrs, 0), 'g, p, m and v of each');
});

onCuda('the gradient beside the loss, of more logits than shared memory has', () => {
  for (const smoothing of [0, 0.1]) {
    const labels: Operand = { shape: [3], dtype: 'i32', values: [60000, -7, 5] };
    const attrs = [-7, smoothing, 0.25];
    const x = floats([3, 60001]);
    agrees('crossEntropy.withGrad', [labels, floats([3]), x], attrs, { outputs: 2 });
  }
});

onCuda('clipping sees numbers of every call that is not finite', () => {
  const sums = floats([130], [0.25, 3]);
  for (const count of [0, 1, 128, 129, 300]) {
    for (const bad of [-1, 0, count - 1]) {
      const numbers = Array.from({ length: count }, (_, i) => floats([1], [i === bad ? NaN : i]));
      agrees('clipFactor', [sums, ...numbers, floats([1])], [0.5], { exact: bad < 0 });
    }
  }
});

onCuda('a fault leaves no factor to step by', () => {
  const view = (shape: Shape, dtype: DType = 'f32') => {
    const storage = { handle: cuda.allocate(64, 'workspace') };
    return { storage, byteOffset: 0, dtype, shape };
  };
  const [labels, losses, logits, sums] = [view([2], 'i32'), view([2]), view([2, 3]), view([1])];
  const factor = view([1]);
  const labelled = (last: number) => new Uint8Array(Int32Array.of(0, last).buffer);
  const { recording } = (cuda as NativeBackend).record(() => {
    cuda.upload(labels.storage.handle, 0, labelled(2));
    cuda.run('fill', [logits], [1]);
    cuda.run('fill', [sums], [4]);
    cuda.run('crossEntropy.withGrad', [labels, losses, logits], [-1, 0, 1]);
    cuda.run('clipFactor', [sums, factor], [1]);
  });
  assert.ok(typeof recording !== 'string');
  const read = () => {
    const bytes = new Uint8Array(4);
    cuda.download(factor.storage.handle, 0, bytes);
    return new Float32Array(bytes.buffer)[0] as number;
  };
  assert.ok(Math.abs(read() - 0.5) < 1e-6);
  // All calls of the graph are on their way before the host can see the fault.
  recording.replay([labelled(3)]);
  assert.throws(read, /\[crossEntropy.withGrad\] expected labels from 0 to 2, received 3/);
  assert.ok(Number.isNaN(read()));
  recording.replay([labelled(1)]);
  assert.ok(Math.abs(read() - 0.5) < 1e-6);
  recording.dispose();
  for (const t of [labels, losses, logits, sums, factor]) cuda.free(t.storage.handle);
});

onCuda('ids and labels outside their range are errors of the next call', () => {
  const bad: Operand = { shape: [3], dtype: 'i32', values: [1, 9, 0] };
  const negative: Operand = { shape: [3], dtype: 'i32', values: [1, 0, -1] };
  const rows = floats([3, 2]);
  const table = floats([5, 2]);
  const index = (o: Operand): Operand => ({ ...o, shape: [3, 1] });
  const cases: [string, Operand[], number[], RegExp][] = [
    ['embedding', [table, bad, rows], [], /\[embedding\] expected ids from 0 to 4, received 9/],
    ['embedding.grad', [bad, rows, table], [], /\[embedding.grad\] expected ids .*received 9/],
    ['embedding.gradAdd', [negative, rows, table], [], /\[embedding.gradAdd\] .*received -1/],
    ['gather', [rows, index(bad), index(floats([3]))], [1], /\[gather\] .* 0 to 1, received 9/],
    ['gather.grad', [index(negative), index(floats([3])), rows], [1], /\[gather.grad\].*-1/],
    [
      'gather.grad',
      [
        { shape: [1, 99], dtype: 'i32', values: Array(99).fill(-1) },
        floats([1, 99]),
        floats([1, 4]),
      ],
      [1],
      /\[gather.grad\] .* 0 to 3, received -1/,
    ],
    [
      'crossEntropy',
      [table, { ...bad, shape: [5], values: [0, 0, 0, 7, 0] }, floats([5])],
      [-100, 0],
      /\[crossEntropy\] expected labels from 0 to 1, received 7/,
    ],
    ['crossEntropy.grad', [rows, negative, floats([3]), rows], [-100, 0], /grad\] .*received -1/],
    [
      'crossEntropy.withGrad',
      [negative, floats([3]), rows],
      [-100, 0, 1],
      /\[crossEntropy.withGrad\] expected labels from 0 to 1, received -1/,
    ],
  ];
  for (const [kernel, operands, attrs, message] of cases) {
    assert.throws(() => call(cuda, kernel, operands, 1, attrs, 0), message);
    agrees('neg', [rows, rows]);
  }
});

test.run();
