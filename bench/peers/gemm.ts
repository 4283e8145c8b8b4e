/**
 * Our f32 matrix product against NumPy's OpenBLAS in alternating rounds: GFLOP/s of each (median of
 * the rounds) and their ratio. Needs python3 with numpy; the overrides that make OpenBLAS take
 * this processor for another are unset for it.
 *
 * usage: npx tsx bench/peers/gemm.ts [--rounds 5]
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { noGrad, scope } from '../../src/autograd/index.js';
import { matmul } from '../../src/ops/index.js';
import { full } from '../../src/tensor/create.js';
import { machine, native, threadCounts } from '../support.js';

const SIZES: readonly (readonly [number, number, number])[] = [
  [512, 512, 512],
  [1024, 1024, 1024],
  [2048, 2048, 2048],
  [4096, 192, 192],
  [4096, 512, 192],
  [4096, 4096, 192],
];

const median = (values: readonly number[]) =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;

function ours(threads: number): number[] {
  const backend = native();
  backend.setThreads(threads);
  return SIZES.map(([m, n, k]) =>
    scope(() => {
      const a = full([m, k], 0.5, { backend });
      const b = full([k, n], 0.25, { backend });
      const once = () => {
        const start = performance.now();
        noGrad(() => scope(() => void matmul(a, b)));
        return performance.now() - start;
      };
      once();
      return (2 * m * n * k) / median(Array.from({ length: 7 }, once)) / 1e6;
    }),
  );
}

function theirs(threads: number): number[] {
  const env: NodeJS.ProcessEnv = { ...process.env, OPENBLAS_NUM_THREADS: String(threads) };
  delete env.OPENBLAS_CORETYPE;
  delete env.OPENBLAS_L2_SIZE;
  const run = spawnSync('python3', [fileURLToPath(new URL('openblas_gemm.py', import.meta.url))], {
    input: SIZES.map((s) => s.join(' ')).join('\n'),
    env,
    encoding: 'utf8',
  });
  if (run.status !== 0) {
    console.error(
      `[peers/gemm] expected python3 with numpy, received: ${run.stderr.trim() || run.error?.message}`,
    );
    process.exit(1);
  }
  return run.stdout.trim().split('\n').map(Number);
}

const { values } = parseArgs({ options: { rounds: { type: 'string', default: '5' } } });
console.log(JSON.stringify(machine()));
for (const threads of threadCounts()) {
  const rounds = Array.from({ length: Number(values.rounds) }, () => [
    ours(threads),
    theirs(threads),
  ]);
  SIZES.forEach((size, i) => {
    const [us, them] = [0, 1].map((side) =>
      median(rounds.map((r) => (r[side] as number[])[i] as number)),
    ) as [number, number];
    console.log(
      `${size.join(' × ').padEnd(20)} ${threads} threads: lowrank ${us.toFixed(0)}, OpenBLAS ${them.toFixed(0)} GFLOP/s, ratio ${(us / them).toFixed(2)}`,
    );
  });
}
