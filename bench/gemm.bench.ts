import { noGrad, scope } from '../src/autograd/index.js';
import { cast, matmul } from '../src/ops/index.js';
import type { Compute } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { uniform } from '../src/tensor/random.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { measure, native, type Result, threadCounts } from './support.js';

interface Shape {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transA?: boolean;
  readonly transB?: boolean;
  /** Stored type of the second factor; default f32. */
  readonly weight?: 'f16' | 'bf16';
  readonly compute?: Compute;
}

/**
 * M × K by K × N products: square ones in all orders, those of a training step of GPT-2 124M on 512
 * tokens (its head on a chunk of 254) and of the bundled model, one of SmolLM2, those of rank 8 to
 * 64, and those of decoding, 1 to 16 rows.
 */
const SHAPES: readonly Shape[] = [
  { m: 512, n: 512, k: 512 },
  { m: 1024, n: 1024, k: 1024 },
  { m: 1024, n: 1024, k: 1024, transB: true },
  { m: 1024, n: 1024, k: 1024, transA: true },
  { m: 1024, n: 1024, k: 1024, transA: true, transB: true },
  { m: 2048, n: 2048, k: 2048 },
  { m: 512, n: 3072, k: 768 },
  { m: 512, n: 768, k: 3072, transB: true },
  { m: 3072, n: 768, k: 512, transA: true },
  { m: 512, n: 576, k: 1536, transB: true },
  { m: 254, n: 50257, k: 768, transB: true },
  { m: 254, n: 768, k: 50257 },
  { m: 512, n: 3072, k: 768, weight: 'bf16' },
  { m: 512, n: 3072, k: 768, weight: 'bf16', compute: 'bf16' },
  { m: 512, n: 3072, k: 768, weight: 'f16' },
  { m: 4096, n: 192, k: 192, transB: true },
  { m: 4096, n: 4096, k: 192, transB: true },
  { m: 512, n: 8, k: 768, transB: true },
  { m: 512, n: 64, k: 768, transB: true },
  { m: 512, n: 2304, k: 8, transB: true },
  { m: 2304, n: 8, k: 512, transA: true },
  { m: 8, n: 768, k: 512, transA: true },
  { m: 1, n: 4096, k: 4096 },
  { m: 1, n: 4096, k: 4096, transB: true },
  { m: 1, n: 4096, k: 4096, transB: true, weight: 'bf16' },
  { m: 16, n: 4096, k: 4096, transB: true },
];

function random(rows: number, columns: number): Tensor {
  const values = uniform({ seed: 1, stream: rows }, rows * columns);
  return tensor(Float32Array.from(values), [rows, columns], { backend: native() });
}

/** Matrix products by shape, order and stored type, over thread counts. */
export async function run(): Promise<Result[]> {
  const backend = native();
  const results: Result[] = [];
  for (const { m, n, k, transA = false, transB = false, weight, compute = 'exact' } of SHAPES) {
    const a = transA ? random(k, m) : random(m, k);
    const plain = transB ? random(n, k) : random(k, n);
    const b = weight ? noGrad(() => cast(plain, weight)) : plain;
    const stored = weight ? ` ${weight}${compute === 'bf16' ? ', compute bf16' : ''}` : '';
    const name = `${m} × ${n} × ${k}${transA ? ' aᵀ' : ''}${transB ? ' bᵀ' : ''}${stored}`;
    backend.setCompute(compute);
    for (const threads of threadCounts()) {
      const result = await measure(name, threads, 2 * m * n * k, () => {
        noGrad(() => scope(() => void matmul(a, b, { transA, transB })));
      });
      const bytes = a.byteLength + b.byteLength + 4 * m * n;
      const rate = `${(bytes / result.milliseconds / 1e6).toFixed(1)} GB/s`;
      results.push(m <= 16 || n <= 64 || k <= 64 ? { ...result, note: rate } : result);
    }
    for (const t of new Set([a, b, plain])) t.dispose();
  }
  backend.setCompute('exact');
  return results;
}
