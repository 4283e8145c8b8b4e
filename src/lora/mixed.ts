import { trainingContext } from '../nn/index.js';
import { add, concat, linear, matmul, mul, reshape } from '../ops/index.js';
import { tensor } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Branch } from './branch.js';
import type { Host } from './host.js';
import { LoraBranch } from './variants/plain.js';

type Rows = readonly (string | null)[];

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
 * A layer's output for a mixed batch: every row gets what its own adapter adds. All plain branches
 * together are one product of rank R = Σ r, of which each row keeps its adapter's columns:
 * y + ((x A₁…ₙᵀ) ⊙ S) B₁…ₙᵀ with S [rows, R] the row's scaling on its own columns, else 0.
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
  const names = [...new Set(rows)].filter((n) => n !== null && branches.has(n)) as string[];
  const grouped: [string, LoraBranch][] = [];
  let sum = y;
  for (const name of names) {
    const branch = branches.get(name) as Branch;
    const dropped =
      branch instanceof LoraBranch && branch.dropout > 0 && trainingContext() !== null;
    if (branch instanceof LoraBranch && branch.isProduct && !dropped && branch.site.kind !== 'conv')
      grouped.push([name, branch]);
    else {
      const change = branch.change(x, y);
      if (change) sum = add(sum, mul(change, rowMask(y, rows, [[name, 1, 1]])));
    }
  }
  return grouped.length > 0 ? add(sum, groupedProduct(grouped, rows, x, y)) : sum;
}

/** One value a row and column: `value` on the `width` columns of the row's adapter, else 0. */
function rowMask(
  like: Tensor,
  rows: Rows,
  columns: readonly (readonly [name: string, width: number, value: number])[],
): Tensor {
  const total = columns.reduce((n, [, width]) => n + width, 0);
  const values = new Float32Array(rows.length * total);
  rows.forEach((row, i) => {
    let at = i * total;
    for (const [name, width, value] of columns) {
      if (name === row) values.fill(value, at, at + width);
      at += width;
    }
  });
  const between = like.shape.slice(1, -1).map(() => 1);
  return tensor(values, [rows.length, ...between, total], { backend: like.backend });
}

function groupedProduct(
  grouped: readonly (readonly [string, LoraBranch])[],
  rows: Rows,
  x: Tensor,
  y: Tensor,
): Tensor {
  const all = grouped.map(([, branch]) => branch);
  const [{ site }] = all as [LoraBranch];
  const columns = grouped.map(([name, b]) => [name, b.rank, b.scaling] as const);
  const h = site.down(
    x,
    side(
      all.map((b) => b.a),
      0,
    ),
  );
  const kept = mul(h, rowMask(h, rows, columns));
  const change = linear(
    kept,
    side(
      all.map((b) => b.b),
      1,
    ),
  );
  const biased = grouped.filter(([, b]) => b.c !== null);
  if (biased.length === 0) return change;
  const own = rowMask(
    y,
    rows,
    biased.map(([name, b]) => [name, 1, b.scaling] as const),
  );
  const table = side(
    biased.map(([, b]) => reshape(b.c as Tensor, [1, -1])),
    0,
  );
  return add(change, matmul(own, table));
}

function side(tensors: readonly Tensor[], axis: number): Tensor {
  return tensors.length === 1 ? (tensors[0] as Tensor) : concat(tensors, axis);
}
