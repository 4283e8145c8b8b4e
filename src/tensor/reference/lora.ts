import { numel } from '../shape.js';
import { type Call, type Kernels, rowsOf } from './call.js';

/**
 * z = y + s_g (x A_gᵀ) B_gᵀ for the adapter g of each row of the batch; z = y where it has none.
 * y [B, .., O], x [B, .., I], A [r, I] and B [O, r] of each adapter → z. Attributes: the scale of
 * each adapter, then the adapter of each row, −1 for none.
 */
function addLowRankRows(call: Call): void {
  const count = call.args.length;
  if (count < 3 || count % 2 === 0) throw call.error('y, x, pairs of A and B, and z', `${count}`);
  const adapters = (count - 3) / 2;
  const batch = call.shape(1)[0] ?? 0;
  call.counts(count, adapters + batch);
  call.expectShape(count - 1, call.shape(0));
  const { rows, width: inner } = rowsOf(call, 1);
  const out = rowsOf(call, 0).width;
  call.expectShape(0, [...call.shape(1).slice(0, -1), out]);
  const factors = Array.from({ length: adapters }, (_, i) => {
    const rank = call.shape(2 + 2 * i)[0] ?? 0;
    call.expectShape(2 + 2 * i, [rank, inner]);
    call.expectShape(3 + 2 * i, [out, rank]);
    const [a, b] = [call.floats(2 + 2 * i), call.floats(3 + 2 * i)];
    return { a, b, rank, scale: call.attr(i) };
  });
  const [y, x, z] = [call.floats(0), call.floats(1), call.out(count - 1)];
  z.set(y);
  if (numel(call.shape(0)) === 0) return;
  const each = rows / batch;
  for (let row = 0; row < rows; row++) {
    const group = call.integer(adapters + Math.floor(row / each), -1, adapters - 1);
    const factor = factors[group];
    if (!factor) continue;
    const { a, b, rank, scale } = factor;
    const h = new Float64Array(rank);
    for (let k = 0; k < rank; k++) {
      let sum = 0;
      for (let i = 0; i < inner; i++) {
        sum += (x[row * inner + i] as number) * (a[k * inner + i] as number);
      }
      h[k] = scale * sum;
    }
    for (let o = 0; o < out; o++) {
      let sum = z[row * out + o] as number;
      for (let k = 0; k < rank; k++) sum += (h[k] as number) * (b[o * rank + k] as number);
      z[row * out + o] = sum;
    }
  }
}

export const loraKernels: Kernels = { addLowRankRows };
