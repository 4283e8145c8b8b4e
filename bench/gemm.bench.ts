import { noGrad, scope } from '../src/autograd/index.js';
import { matmul } from '../src/ops/index.js';
import { tensor } from '../src/tensor/create.js';
import { uniform } from '../src/tensor/random.js';
import { measure, native, type Result, threadCounts } from './support.js';

/** M × K by K × N products: square ones, and those of the bundled model's training step. */
const SHAPES: readonly { m: number; n: number; k: number; transA?: boolean; transB?: boolean }[] = [
  { m: 512, n: 512, k: 512 },
  { m: 1024, n: 1024, k: 1024 },
  { m: 1024, n: 1024, k: 1024, transB: true },
  { m: 1024, n: 1024, k: 1024, transA: true },
  { m: 2048, n: 2048, k: 2048 },
  { m: 4096, n: 192, k: 192, transB: true },
  { m: 4096, n: 512, k: 192, transB: true },
  { m: 4096, n: 4096, k: 192, transB: true },
  { m: 4096, n: 192, k: 4096 },
  { m: 512, n: 192, k: 4096, transA: true },
  { m: 4096, n: 8, k: 192, transB: true },
  { m: 4096, n: 192, k: 8, transB: true },
  { m: 1, n: 4096, k: 192, transB: true },
];

/** f32 matrix products by shape and transposes, over thread counts. */
export async function run(): Promise<Result[]> {
  const backend = native();
  const results: Result[] = [];
  for (const { m, n, k, transA = false, transB = false } of SHAPES) {
    const random = (rows: number, columns: number) =>
      tensor(
        Float32Array.from(uniform({ seed: 1, stream: rows }, rows * columns)),
        [rows, columns],
        {
          backend,
        },
      );
    const a = transA ? random(k, m) : random(m, k);
    const b = transB ? random(n, k) : random(k, n);
    for (const threads of threadCounts()) {
      const name = `${m} × ${n} × ${k}${transA ? ' aᵀ' : ''}${transB ? ' bᵀ' : ''}`;
      results.push(
        await measure(name, threads, 2 * m * n * k, () => {
          noGrad(() => scope(() => void matmul(a, b, { transA, transB })));
        }),
      );
    }
    a.dispose();
    b.dispose();
  }
  return results;
}
