import { isFloat } from '../dtype.js';
import type { Call, Kernels } from './call.js';
import { loading, storing } from './cast.js';

/**
 * W + Σ s_i B_i A_i as W is stored: tensor 0 is W [out, in], or [in, out] where attribute 0 is 1;
 * then A [r, in] and B [out, r] of each adapter, whose scales are the other attributes.
 */
function lowRankSum(call: Call, pairs: number): Float64Array {
  call.counts(call.args.length, 1 + pairs);
  const transposed = call.flag(0);
  const [rows, cols] = call.shape(0) as [number, number];
  if (call.shape(0).length !== 2) throw call.error('W of 2 dimensions', `${call.shape(0)}`);
  const [out, inner] = transposed ? [cols, rows] : [rows, cols];
  const total = Float64Array.from(call.floats(0));
  for (let i = 0; i < pairs; i++) {
    const rank = call.shape(1 + 2 * i)[0] ?? 0;
    call.expectShape(1 + 2 * i, [rank, inner]);
    call.expectShape(2 + 2 * i, [out, rank]);
    const [a, b, scale] = [call.floats(1 + 2 * i), call.floats(2 + 2 * i), call.attr(1 + i)];
    for (let o = 0; o < out; o++) {
      for (let j = 0; j < inner; j++) {
        let sum = 0;
        for (let k = 0; k < rank; k++) {
          sum += (b[o * rank + k] as number) * (a[k * inner + j] as number);
        }
        const at = transposed ? j * cols + o : o * cols + j;
        total[at] = (total[at] as number) + scale * sum;
      }
    }
  }
  return total;
}

/** y = W + Σ s_i B_i A_i rounded once; ok [1] = 1 where all of y is finite, else 0. */
function mergeLowRank(call: Call): void {
  const count = call.args.length;
  if (count < 3 || count % 2 === 0) throw call.error('W, pairs of A and B, y and ok', `${count}`);
  call.expectShape(count - 2, call.shape(0));
  call.expectShape(count - 1, [1]);
  const total = lowRankSum(call, (count - 3) / 2);
  const { dtype } = call.arg(count - 2);
  if (!isFloat(dtype)) throw call.error('y of a floating dtype', dtype);
  const store = storing(dtype);
  const load = loading(dtype);
  const y = call.outAny(count - 2) as { [i: number]: number | bigint };
  let finite = true;
  total.forEach((v, i) => {
    y[i] = store(v);
    finite &&= Number.isFinite(load(y[i] as number));
  });
  call.outInts(count - 1)[0] = finite ? 1 : 0;
}

/** n [out] = the lengths of the rows of W + s B A [out, in]. W, A, B → n */
function lowRankNorms(call: Call): void {
  call.counts(4, 2);
  const total = lowRankSum(call, 1);
  const [rows, cols] = call.shape(0) as [number, number];
  const transposed = call.flag(0);
  call.expectShape(3, [transposed ? cols : rows]);
  const squares = new Float64Array(transposed ? cols : rows);
  total.forEach((v, i) => {
    const row = transposed ? i % cols : Math.floor(i / cols);
    squares[row] = (squares[row] as number) + v * v;
  });
  call.out(3).set(squares.map(Math.sqrt));
}

export const loraKernels: Kernels = { mergeLowRank, lowRankNorms };
