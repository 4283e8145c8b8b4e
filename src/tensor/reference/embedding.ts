import { shapeText } from '../errors.js';
import type { Call, Kernels } from './call.js';

function tableOf(call: Call, i: number): { rows: number; width: number } {
  const shape = call.shape(i);
  if (shape.length !== 2) throw call.error('a table [V, C]', shapeText(shape));
  return { rows: shape[0] as number, width: shape[1] as number };
}

function checkId(call: Call, id: number, rows: number): void {
  if (id < 0 || id >= rows) throw call.error(`ids of 0…${rows - 1}`, String(id));
}

/** y[.., :] = table[ids[..], :]. */
function embedding(call: Call): void {
  call.counts(3, 0);
  const { rows, width } = tableOf(call, 0);
  call.expectShape(2, [...call.shape(1), width]);
  const ids = call.ints(1);
  for (const id of ids) checkId(call, id, rows);
  const table = call.floats(0);
  const y = call.out(2);
  for (let i = 0; i < ids.length; i++) {
    const at = (ids[i] as number) * width;
    y.set(table.subarray(at, at + width), i * width);
  }
}

/** dtable[id, :] = Σ of dy's rows with that id, in the order of ids; or that added to it. */
function embeddingGrad(call: Call, added: boolean): void {
  call.counts(3, 0);
  const { rows, width } = tableOf(call, 2);
  call.expectShape(1, [...call.shape(0), width]);
  const ids = call.ints(0);
  const dy = call.floats(1);
  const dtable = call.out(2);
  const sums = added ? Float64Array.from(dtable) : new Float64Array(rows * width);
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i] as number;
    checkId(call, id, rows);
    for (let c = 0; c < width; c++) {
      const to = id * width + c;
      sums[to] = (sums[to] as number) + (dy[i * width + c] as number);
    }
  }
  dtable.set(sums);
}

export const embeddingKernels: Kernels = {
  embedding,
  'embedding.grad': (call) => embeddingGrad(call, false),
  'embedding.gradAdd': (call) => embeddingGrad(call, true),
};
