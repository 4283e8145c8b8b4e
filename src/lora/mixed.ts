import { trainingContext } from '../nn/index.js';
import {
  add,
  addLowRankRows,
  addRows,
  concat,
  matmul,
  type RowFactors,
  reshape,
  takeRows,
} from '../ops/index.js';
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

/** The rows of a batch that name an adapter. */
function rowsOf(rows: Rows, name: string): number[] {
  return rows.flatMap((row, i) => (row === name ? [i] : []));
}

/**
 * A sum, whose memory may become the result's, and what a branch adds to its own rows: they are
 * taken out, computed and added.
 */
function addOwn(
  sum: Tensor,
  rows: Rows,
  name: string,
  change: (part: (t: Tensor) => Tensor) => Tensor | null,
): Tensor {
  const places = rowsOf(rows, name);
  const all = places.length === rows.length;
  const made = change((t) => (all ? t : takeRows(t, places)));
  if (!made) return sum;
  return all ? add(sum, made) : addRows(sum, made, places, true);
}

/**
 * A layer's output for a mixed batch: every row gets what its own adapter adds. Plain branches of a
 * dense layer are one grouped product; each of the others is computed on its own rows alone.
 * @param x the layer's input [rows, ..]
 * @param y the base's output, whose memory may become the result's
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
  const together: Grouped[] = [];
  let sum = y;
  for (const name of names) {
    const branch = branches.get(name) as Branch;
    const factors = branch instanceof LoraBranch ? branch.grouped() : null;
    if (factors) together.push({ name, factors, branch: branch as LoraBranch });
    // A branch sees rows that no other one has changed: each row has one adapter.
    else
      sum = addOwn(sum, rows, name, (part) =>
        branch.change(part(x), branch.readsOutput ? part(y) : y),
      );
  }
  return groupedSum(together, rows, x, sum);
}

/** What a head tied to an embedding adds to the logits of rows whose adapters change it. */
export function mixedLogits(
  path: string,
  branches: ReadonlyMap<string, Branch>,
  rows: Rows,
  hidden: Tensor,
  y: Tensor,
): Tensor {
  let sum = y;
  for (const name of new Set(rows)) {
    const branch = name === null ? undefined : branches.get(name);
    if (name === null || !branch?.headChange) continue;
    if (hidden.shape[0] !== rows.length) {
      const expected = `${rows.length} rows in the head tied to ${path}, one for each adapter named`;
      throw failure('lora withRows', expected, `${hidden.shape[0]}`);
    }
    const { headChange } = branch;
    sum = addOwn(sum, rows, name, (part) => headChange.call(branch, part(hidden)));
  }
  return sum;
}

/** A branch that is computed with others. */
interface Grouped {
  readonly name: string;
  readonly factors: RowFactors;
  readonly branch: LoraBranch;
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

/** What all plain branches add, each to its own rows: a product for those of one dropout. */
function groupedSum(together: readonly Grouped[], rows: Rows, x: Tensor, y: Tensor): Tensor {
  let sum = y;
  const training = trainingContext() !== null;
  const byDropout = new Map<number, Grouped[]>();
  for (const one of together) {
    const p = training ? one.branch.dropout : 0;
    byDropout.set(p, [...(byDropout.get(p) ?? []), one]);
  }
  for (const group of byDropout.values()) {
    const places = new Map(group.map(({ name }, i) => [name, i]));
    const groups = rows.map((name) => (name === null ? -1 : (places.get(name) ?? -1)));
    const factors = group.map((one) => one.factors);
    // The mask is the layer's, not the adapter's: all of one dropout see the same input.
    const seen = (group[0] as Grouped).branch.seen(x);
    sum = addLowRankRows(sum, seen, factors, groups, { own: true });
  }
  const biased = together.flatMap(({ name, branch: { c, scaling } }) =>
    c ? [{ name, c, scaling }] : [],
  );
  if (biased.length === 0) return sum;
  const own = rowMask(
    y,
    rows,
    biased.map(({ name, scaling }) => [name, scaling] as const),
  );
  const table = biased.map(({ c }) => reshape(c, [1, -1]));
  return add(sum, matmul(own, table.length === 1 ? (table[0] as Tensor) : concat(table, 0)));
}
