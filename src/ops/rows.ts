import { defineOp, first, type Meta } from '../autograd/index.js';
import type { KernelTensor } from '../tensor/backend.js';
import { zeros } from '../tensor/create.js';
import { computeDType, dtypeBytes } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { numel, type Shape, sameShape } from '../tensor/shape.js';
import { Tensor } from '../tensor/tensor.js';
import { add } from './elementwise.js';
import { concat, slice } from './shape.js';

/** Neighbouring rows of a batch, and their place among those that were picked. */
interface Run {
  readonly from: number;
  readonly at: number;
  readonly count: number;
}

/** Rows of a batch in runs of neighbours. */
function runsOf(rows: readonly number[]): Run[] {
  const runs: { from: number; at: number; count: number }[] = [];
  rows.forEach((row, at) => {
    const last = runs.at(-1);
    if (last && last.from + last.count === row) last.count++;
    else runs.push({ from: row, at, count: 1 });
  });
  return runs;
}

/** `count` rows of a tensor from row `from` on, as kernels see them. */
function part({ storage, dtype, byteOffset, shape }: Tensor, from: number, count: number) {
  const width = numel(shape.slice(1));
  const view: KernelTensor = {
    storage,
    dtype,
    byteOffset: byteOffset + from * width * dtypeBytes(dtype),
    shape: [count, width],
  };
  return view;
}

/** Throws unless rows rise and lie in a batch. */
function checkRows(where: string, shape: Shape, rows: readonly number[]): void {
  const rise = rows.every((row, i) => Number.isInteger(row) && row > (rows[i - 1] ?? -1));
  if (shape.length > 0 && rise && (rows.at(-1) ?? -1) < (shape[0] as number)) return;
  throw failure(where, `rising rows of a batch ${shapeText(shape)}`, `[${rows}]`);
}

/** Rows of x, of any dtype, outside the graph. */
function taken(x: Tensor, rows: readonly number[]): Tensor {
  const { backend, dtype, shape } = x;
  const made = Tensor.empty(backend, [rows.length, ...shape.slice(1)], dtype);
  for (const { from, at, count } of runsOf(rows)) {
    backend.run('copy', [part(x, from, count), part(made, at, count)], []);
  }
  return made;
}

/** into's rows += x's, in place. */
function addInto(into: Tensor, x: Tensor, rows: readonly number[]): void {
  for (const { from, at, count } of runsOf(rows)) {
    into.backend.run('accumulate', [part(x, at, count), part(into, from, count)], []);
  }
}

interface Attrs {
  readonly rows: readonly number[];
  /** Whether y's memory may become the result's. */
  readonly own: boolean;
}

const takeRowsOp = defineOp<Pick<Attrs, 'rows'>>({
  name: 'takeRows',
  infer: ([x], { rows }) => {
    const { shape, dtype } = x as Meta;
    checkRows('takeRows', shape, rows);
    return [{ shape: [rows.length, ...shape.slice(1)], dtype }];
  },
  forward: ([x], { rows }) => ({ output: taken(x as Tensor, rows) }),
  // dx = dy in the rows taken, 0 in the others
  backward: ({ grad, attrs: { rows }, inputs, earlier }) => {
    const into = earlier(0);
    if (into?.dtype === grad.dtype) {
      addInto(into, grad, rows);
      return [into];
    }
    const dx = Tensor.empty(grad.backend, (inputs[0] as Meta).shape, grad.dtype);
    grad.backend.run('fill', [dx], [0]);
    addInto(dx, grad, rows);
    return [dx];
  },
  composed: ([x], { rows }) => {
    const cut = (from: number, count: number) => slice(x as Tensor, 0, from, from + count);
    if (rows.length === 0) return cut(0, 0);
    return concat(runsOf(rows).map(({ from, count }) => cut(from, count)));
  },
  samples: [
    { label: 'two runs', inputs: [{ shape: [7, 3, 5] }], attrs: { rows: [1, 2, 5] } },
    { label: 'one', inputs: [{ shape: [3, 1] }], attrs: { rows: [2] } },
    { label: 'none', inputs: [{ shape: [3, 5] }], attrs: { rows: [] } },
    { label: 'empty', inputs: [{ shape: [4, 0] }], attrs: { rows: [0, 3] } },
  ],
});

/**
 * Rows of a batch (a copy), of any dtype.
 * @param x [B, ..]
 * @param rows their places, rising
 * @returns [rows.length, ..]
 */
export function takeRows(x: Tensor, rows: readonly number[]): Tensor {
  return first(takeRowsOp([x], { rows }));
}

const addRowsOp = defineOp<Attrs>({
  name: 'addRows',
  infer: ([y, x], { rows }) => {
    const { shape } = y as Meta;
    checkRows('addRows', shape, rows);
    const wanted = [rows.length, ...shape.slice(1)];
    if (!sameShape((x as Meta).shape, wanted)) {
      throw failure('addRows', `rows ${shapeText(wanted)}`, shapeText((x as Meta).shape));
    }
    return [{ shape, dtype: computeDType([(y as Meta).dtype, (x as Meta).dtype]) }];
  },
  forward: (inputs, { rows, own }) => {
    const [y, x] = inputs as readonly [Tensor, Tensor];
    const dtype = computeDType([y.dtype, x.dtype]);
    const owned = own && y.storage.refs === 1 && y.dtype === dtype;
    const output = owned ? y.alias() : Tensor.empty(y.backend, y.shape, dtype);
    if (owned) y.storage.version++;
    else y.backend.run('cast', [y, output], []);
    addInto(output, x, rows);
    return { output };
  },
  // dx = dy's rows
  backward: ({ grad, attrs: { rows }, needs }) => [
    needs[0] ? grad : null,
    needs[1] ? taken(grad, rows) : null,
  ],
  composed: (inputs, { rows }) => {
    const [y, x] = inputs as readonly [Tensor, Tensor];
    const rest = x.shape.slice(1);
    const like = { backend: x.backend, dtype: x.dtype };
    const parts: Tensor[] = [];
    let next = 0;
    for (const { from, at, count } of runsOf(rows)) {
      parts.push(zeros([from - next, ...rest], like), slice(x, 0, at, at + count));
      next = from + count;
    }
    parts.push(slice(x, 0, 0, 0), zeros([(y.shape[0] as number) - next, ...rest], like));
    return add(y, concat(parts));
  },
  samples: [
    {
      label: 'two runs',
      inputs: [{ shape: [7, 3, 5] }, { shape: [3, 3, 5] }],
      attrs: { rows: [0, 4, 5], own: false },
    },
    {
      label: 'in place',
      inputs: [{ shape: [3, 37] }, { shape: [2, 37] }],
      attrs: { rows: [1, 2], own: true },
    },
    {
      label: 'one',
      inputs: [{ shape: [1, 1] }, { shape: [1, 1] }],
      attrs: { rows: [0], own: false },
    },
    {
      label: 'none',
      inputs: [{ shape: [2, 3] }, { shape: [0, 3] }],
      attrs: { rows: [], own: false },
    },
  ],
});

/**
 * y with x added to some of its rows.
 * @param y [B, ..]
 * @param x [rows.length, ..]
 * @param rows their places in y, rising
 * @param own hands y over, as in {@link addLowRank}. Default false
 */
export function addRows(y: Tensor, x: Tensor, rows: readonly number[], own = false): Tensor {
  return first(addRowsOp([y, x], { rows, own }));
}
