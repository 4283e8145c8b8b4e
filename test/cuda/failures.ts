/**
 * Every failure that the shim can play, one after the other, in a process whose end shows what was
 * left: `failures.ts LIBRARY FILE`.
 */
import { scope } from '../../src/autograd/index.js';
import { tensor } from '../../src/tensor/create.js';
import { loadCuda } from '../../src/tensor/cuda.js';
import { Tensor } from '../../src/tensor/tensor.js';

const [library, file] = process.argv.slice(2) as [string, string];

function work(): void {
  const backend = loadCuda(0, library);
  scope(() => {
    const x = tensor([1, 2, 3], [3], { backend });
    const y = Tensor.empty(backend, [3], 'f32');
    const { recording } = backend.record(() => backend.run('affine', [x, y], [2, 1]));
    if (typeof recording !== 'string') recording.replay([]);
    y.toNumbers();
  });
  backend.free(backend.mapFile(file).handle);
}

const calls = ['malloc', 'host', 'event', 'stream', 'launch', 'copy', 'sync'];
const graphs = ['capture', 'instantiate', 'replay'];
const plays = [
  ...['no-driver', 'old-driver', 'no-device', 'old-device'],
  ...[...calls, ...graphs].flatMap((what) =>
    [1, 2, 3, 4].flatMap((n) => [`${what}:${n}`, `${what}=${n}`]),
  ),
];
let failed = 0;
for (const play of plays) {
  process.env.LOWRANK_SHIM_FAIL = play;
  try {
    work();
  } catch {
    failed++;
  }
}
delete process.env.LOWRANK_SHIM_FAIL;
work();
if (failed < 20)
  throw new Error(`expected most of ${plays.length} plays to fail, received ${failed}`);
