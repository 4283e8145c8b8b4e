/**
 * Our matrix product against others' in alternating rounds: GFLOP/s of each (median of the rounds)
 * and their ratio. In f32 the peer is NumPy's OpenBLAS, with the overrides that make it take this
 * processor for another unset. In bf16 it is PyTorch's oneDNN on bf16 factors; ours takes f32
 * activations and rounds them on the way (compute bf16). One thread is timed by the processor time
 * it takes, which other processes hardly change; several by the clock, which needs a quiet machine.
 *
 * usage: npx tsx bench/peers/gemm.ts [--dtype f32|bf16] [--rounds 5] [--python python3] [--large]
 *   [--threads N]
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { noGrad, scope } from '../../src/autograd/index.js';
import { cast, matmul } from '../../src/ops/index.js';
import { full } from '../../src/tensor/create.js';
import { machine, native, threadCounts } from '../support.js';

interface Case {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transA?: boolean;
  readonly transB?: boolean;
}

const { values } = parseArgs({
  options: {
    dtype: { type: 'string', default: 'f32' },
    rounds: { type: 'string', default: '5' },
    python: { type: 'string', default: 'python3' },
    large: { type: 'boolean', default: false },
    threads: { type: 'string' },
  },
});
if (values.dtype !== 'f32' && values.dtype !== 'bf16') {
  console.error(`[peers/gemm] expected --dtype f32 or bf16, received ${values.dtype}`);
  process.exit(2);
}
const brain = values.dtype === 'bf16';

const orders = (size: number): Case[] =>
  [0, 1, 2, 3].map((i) => ({ m: size, n: size, k: size, transA: i > 1, transB: i % 2 === 1 }));

/** All four orders of square ones, and products of GPT-2 124M on 512 tokens. */
const CASES: readonly Case[] = [
  { m: 512, n: 512, k: 512 },
  ...orders(1024),
  ...orders(2048),
  ...(values.large ? orders(4096) : []),
  { m: 512, n: 3072, k: 768 },
  { m: 512, n: 768, k: 3072, transB: true },
  { m: 512, n: 768, k: 3072 },
  { m: 3072, n: 768, k: 512, transA: true },
  { m: 4096, n: 192, k: 192 },
];

/** After a pause the second core takes about 15 ms until it computes at its own speed. */
const WARM_UP_MS = 50;

const median = (all: readonly number[]) =>
  [...all].sort((a, b) => a - b)[Math.floor(all.length / 2)] as number;

/** Milliseconds. */
function processorTime(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

function ours(threads: number): number[] {
  const backend = native();
  backend.setThreads(threads);
  backend.setCompute(brain ? 'bf16' : 'exact');
  return CASES.map(({ m, n, k, transA = false, transB = false }) =>
    noGrad(() =>
      scope(() => {
        const a = full(transA ? [k, m] : [m, k], 0.5, { backend });
        const plain = full(transB ? [n, k] : [k, n], 0.25, { backend });
        const b = brain ? cast(plain, 'bf16') : plain;
        const clock = threads === 1 ? processorTime : () => performance.now();
        const once = () => {
          const start = clock();
          scope(() => void matmul(a, b, { transA, transB }));
          return clock() - start;
        };
        const warm = performance.now() + WARM_UP_MS;
        do once();
        while (performance.now() < warm);
        return (2 * m * n * k) / median(Array.from({ length: 7 }, once)) / 1e6;
      }),
    ),
  );
}

function theirs(threads: number): number[] {
  const env: NodeJS.ProcessEnv = { ...process.env, OPENBLAS_NUM_THREADS: String(threads) };
  delete env.OPENBLAS_CORETYPE;
  delete env.OPENBLAS_L2_SIZE;
  const name = brain ? 'torch_gemm.py' : 'openblas_gemm.py';
  const script = fileURLToPath(new URL(name, import.meta.url));
  const lines = CASES.map((c) => [c.m, c.n, c.k, c.transA ? 1 : 0, c.transB ? 1 : 0].join(' '));
  const run = spawnSync(values.python, [script, String(threads)], {
    input: lines.join('\n'),
    env,
    encoding: 'utf8',
  });
  if (run.status !== 0) {
    const wanted = `${values.python} with ${brain ? 'torch' : 'numpy'}`;
    console.error(`[peers/gemm] expected ${wanted}, received: ${run.stderr || run.error?.message}`);
    process.exit(1);
  }
  return run.stdout.trim().split('\n').map(Number);
}

console.log(JSON.stringify(machine()));
const peer = brain ? 'PyTorch' : 'OpenBLAS';
for (const threads of values.threads ? [Number(values.threads)] : threadCounts()) {
  const rounds = Array.from({ length: Number(values.rounds) }, () => [
    ours(threads),
    theirs(threads),
  ]);
  CASES.forEach(({ m, n, k, transA, transB }, i) => {
    const [us, them] = [0, 1].map((side) =>
      median(rounds.map((r) => (r[side] as number[])[i] as number)),
    ) as [number, number];
    const name = `${m} × ${n} × ${k}${transA ? ' aᵀ' : ''}${transB ? ' bᵀ' : ''}`;
    console.log(
      `${name.padEnd(26)} ${threads} threads: lowrank ${us.toFixed(0)}, ${peer} ${them.toFixed(0)} GFLOP/s, ratio ${(us / them).toFixed(2)}`,
    );
  });
}
