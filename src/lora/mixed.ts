import { trainingContext } from '../nn/index.js';
import { add, addLowRankRows, concat, matmul, mul, reshape } from '../ops/index.js';
import { tensor } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Branch } from './branch.js';
import type { Host } from './host.js';
import { LoraBranch } from './variants/plain.js';

type Rows = readonly (string | null)[];

/** Throws when an adapter among the rows' holds parameters whole: those cannot differ by row. */
export function checkRows(host: Host, rows: Rows): void {
  for (const name of new Set(rows)) {
    if (name === null) continue;
    const [whole] = host.saved.tensors(name).keys();
    if (whole === undefined) continue;
    const received = `"${name}", which holds ${whole}`;
    throw failure('lora withRows', 'adapters of LoRA layers only', received);
  }
}

/** Runs `fn` with each row of a batch having its own adapter. */
export function withRows<T>(host: Host, rows: Rows, fn: () => T): T {
  for (const { layer } of host.wrapped.values()) layer.rows = rows;
  try {
    return fn();
  } finally {
    for (const { layer } of host.wrapped.values()) layer.rows = null;
  }
}

/**
 * A layer's output for a mixed batch: every row gets what its own adapter adds. Plain branches of a
 * dense layer are one grouped product; others are computed for all rows and masked.
 * @param x the layer's input [rows, ..]
 * @param y the base's output
 */
export function mixedSum(
  path: string,
  branches: ReadonlyMap<string, Branch>,
  rows: Rows,
  x: Tensor,
  y: Tensor,
): Tensor {
  if (x.shape[0] !== rows.length) {
    const expected = `${rows.length} rows in ${path}, one for each adapter named`;
    throw failure('lora withRows', expected, `${x.shape[0]}`);
  }
  if (trainingContext()?.checkpoint) {
    // Backward comes when the rows are no longer set, and would compute the block without them.
    const wayOut = 'Train without gradient checkpointing';
    throw failure('lora withRows', 'a pass that keeps its activations', 'checkpoints', wayOut);
  }
  const names = [...new Set(rows)].filter((n) => n !== null && branches.has(n)) as string[];
  const grouped: [string, LoraBranch][] = [];
  let sum = y;
  for (const name of names) {
    const branch = branches.get(name) as Branch;
    const dropped =
      branch instanceof LoraBranch && branch.dropout > 0 && trainingContext() !== null;
    if (
      branch instanceof LoraBranch &&
      branch.isProduct &&
      !dropped &&
      branch.site.kind === 'dense'
    )
      grouped.push([name, branch]);
    else {
      const change = branch.change(x, y);
      if (change) sum = add(sum, mul(change, rowMask(y, rows, [[name, 1]])));
    }
  }
  return grouped.length > 0 ? groupedSum(grouped, rows, x, sum) : sum;
}

/** A value for each row in a column of its adapter, else 0: [rows, 1, .., columns]. */
function rowMask(
  like: Tensor,
  rows: Rows,
  columns: readonly (readonly [name: string, value: number])[],
): Tensor {
  const values = rows.flatMap((row) => columns.map(([name, v]) => (name === row ? v : 0)));
  const between = like.shape.slice(1, -1).map(() => 1);
  const shape = [rows.length, ...between, columns.length];
  return tensor(Float32Array.from(values), shape, { backend: like.backend });
}

/** What all plain branches add, each to its own rows. */
function groupedSum(
  grouped: readonly (readonly [string, LoraBranch])[],
  rows: Rows,
  x: Tensor,
  y: Tensor,
): Tensor {
  const places = new Map(grouped.map(([name], i) => [name, i]));
  const factors = grouped.map(([, { a, b, scaling }]) => ({ a, b, scale: scaling }));
  const groups = rows.map((name) => (name === null ? -1 : (places.get(name) ?? -1)));
  const sum = addLowRankRows(y, x, factors, groups);
  const biased = grouped.filter(([, b]) => b.c !== null);
  if (biased.length === 0) return sum;
  const own = rowMask(
    y,
    rows,
    biased.map(([name, b]) => [name, b.scaling] as const),
  );
  const table = biased.map(([, b]) => reshape(b.c as Tensor, [1, -1]));
  return add(sum, matmul(own, table.length === 1 ? (table[0] as Tensor) : concat(table, 0)));
}
