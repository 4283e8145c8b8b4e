// Prints the bits of a few products on the CUDA shim, for test/cuda-blas.test.ts.
import { tensor } from '../../../src/tensor/create.js';
import { loadCuda } from '../../../src/tensor/cuda.js';
import { normal } from '../../../src/tensor/random.js';
import { numel } from '../../../src/tensor/shape.js';
import { Tensor } from '../../../src/tensor/tensor.js';

const backend = loadCuda(0, process.env.LOWRANK_TEST_LIBRARY);
const make = (shape: number[], stream: number) =>
  tensor(normal({ seed: 3, stream }, numel(shape)), shape, { backend });

// Twice: a way that failed once is not tried again.
for (const stream of [1, 2]) {
  const [a, b] = [make([33, 40], stream), make([24, 40], 10 + stream)];
  const y = Tensor.empty(backend, [33, 24], 'f32');
  backend.run('matmul', [a, b, y], [0, 1, 1, 0]);
  console.log(Buffer.from(y.bytes()).toString('hex'));
}
console.log(backend.facts().products);
try {
  backend.setTf32(true);
  console.log('TF32');
} catch (error) {
  console.log((error as Error).message);
}
