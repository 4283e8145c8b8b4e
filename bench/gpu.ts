/**
 * Times training steps, attention and products on an NVIDIA GPU, and beside PyTorch + PEFT where a
 * Python with torch, transformers and peft is given; prints one JSON line a row.
 *
 * usage: npm run bench:gpu -- [--peer PYTHON] [--case NAME…] [--steps 20] [--small]
 *   cases: gpt2, gpt2-full, llama-1b, attention, matmul
 *
 * --small runs tiny shapes, to try the script itself. Without npm: node build-gpu/kit/bench-gpu.mjs, as docs/gpu.md says.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { tensor } from '../src/tensor/create.js';
import type { CudaBackend } from '../src/tensor/cuda.js';
import { getBackend } from '../src/tensor/registry.js';
import { Tensor } from '../src/tensor/tensor.js';
import { train } from '../src/train/trainer.js';
import { buildStep, type StepSettings } from './step-work.js';

const { values } = parseArgs({
  options: {
    peer: { type: 'string' },
    case: { type: 'string', multiple: true },
    steps: { type: 'string', default: '20' },
    small: { type: 'boolean', default: false },
  },
});
const STEPS = Number(values.steps);
/** Steps before the measured ones: the first runs op by op, the second is recorded. */
const WARMUP = 4;
/** Dense bf16 of an H100 SXM, operations a second; NVIDIA's data sheet. */
const PEAK = 989.4e12;

type Row = Readonly<Record<string, string | number>>;

const CASES: Readonly<Record<string, Omit<StepSettings, 'rank' | 'dtype'>>> = {
  gpt2: { model: 'gpt2', mode: 'lora', batch: 8, seq: 512 },
  'gpt2-full': { model: 'gpt2', mode: 'full', batch: 8, seq: 512 },
  'llama-1b': { model: 'llama-1b', mode: 'lora', batch: 4, seq: 1024 },
};

const median = (list: readonly number[]): number =>
  [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)] as number;

const round = (x: number, digits = 4): number => Number(x.toPrecision(digits));

async function step(backend: CudaBackend, name: string): Promise<Row> {
  const full = CASES[name] as (typeof CASES)[string];
  const shape = values.small ? { ...full, model: 'tiny', batch: 1, seq: 8 } : full;
  const work = buildStep({ ...shape, rank: 8, dtype: 'bf16' }, backend);
  backend.resetPeak();
  const seconds: number[] = [];
  const settings = { steps: WARMUP + STEPS, lr: 1e-4, schedule: 'constant', seed: 1 } as const;
  const source = { batch: () => work.batch };
  for await (const e of train(work.model, work.optimizer, source, { ...settings, graphs: true })) {
    if (e.step > WARMUP) seconds.push(e.seconds);
  }
  const stepSeconds = median(seconds);
  const peak = backend.memory().totalPeak;
  work.dispose();
  backend.trim();
  return {
    case: name,
    step_ms: round(stepSeconds * 1e3),
    tokens_per_s: Math.round((shape.batch * shape.seq) / stepSeconds),
    mfu: round(work.flops / stepSeconds / PEAK, 3),
    peak_mb: Math.round(peak / 2 ** 20),
  };
}

/** Seconds a call, of calls that follow one another without waiting. */
function timed(backend: CudaBackend, call: () => void, wait: Tensor): number {
  const rounds = values.small ? 1 : 5;
  const calls = values.small ? 1 : 20;
  const seconds: number[] = [];
  for (let i = 0; i <= rounds; i++) {
    const start = performance.now();
    for (let c = 0; c < calls; c++) call();
    backend.download(wait.storage.handle, 0, new Uint8Array(4));
    if (i > 0) seconds.push((performance.now() - start) / 1e3 / calls);
  }
  return median(seconds);
}

/** Tensors of one shape and dtype with small values; freed by `dispose`. */
function filled(backend: CudaBackend, shape: readonly number[], dtype: 'f32' | 'bf16'): Tensor {
  const wide = Tensor.empty(backend, shape, 'f32');
  const block = tensor([0.01], [1, 1, 1, 1].slice(0, shape.length), { backend });
  backend.run('broadcast', [block, wide], []);
  block.dispose();
  if (dtype === 'f32') return wide;
  const out = Tensor.empty(backend, shape, 'bf16');
  backend.run('cast', [wide, out], []);
  wide.dispose();
  return out;
}

function attention(backend: CudaBackend): Row {
  const [B, T, H, D] = values.small ? [1, 70, 2, 8] : [4, 2048, 16, 64];
  const [q, k, v, y, dy, dq, dk, dv] = Array.from({ length: 8 }, () =>
    filled(backend, [B, T, H, D], 'f32'),
  ) as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
  const lse = filled(backend, [B, H, T], 'f32');
  const attrs = [0, 1, 1 / Math.sqrt(D), 0, -1];
  const forward = timed(backend, () => backend.run('attention', [q, k, v, y, lse], attrs), y);
  const grads = [q, k, v, y, lse, dy, dq, dk, dv];
  const backward = timed(backend, () => backend.run('attention.grad', grads, attrs), dq);
  for (const t of grads) t.dispose();
  const flops = 2 * B * H * T * T * D; // two products over half the square, two operations each
  return {
    case: 'attention',
    forward_ms: round(forward * 1e3),
    backward_ms: round(backward * 1e3),
    forward_tflops: round(flops / forward / 1e12),
    backward_tflops: round((2.5 * flops) / backward / 1e12),
  };
}

function matmul(backend: CudaBackend): Row {
  const n = values.small ? 64 : 4096;
  const x = filled(backend, [n, n], 'f32');
  const w = filled(backend, [n, n], 'bf16');
  const y = filled(backend, [n, n], 'f32');
  const seconds = timed(backend, () => backend.run('linear', [x, w, y], []), y);
  for (const t of [x, w, y]) t.dispose();
  return {
    case: 'matmul',
    ms: round(seconds * 1e3),
    tflops: round((2 * n ** 3) / seconds / 1e12),
  };
}

/** The peer's rows for the same case. */
function peer(name: string): Row[] {
  const script = fileURLToPath(new URL('peers/gpu.py', import.meta.url));
  const args = [script, '--case', name, '--steps', String(STEPS)];
  const { status, stdout, stderr } = spawnSync(values.peer as string, args, { encoding: 'utf8' });
  if (status !== 0) {
    console.error(`[bench:gpu] the peer failed at ${name}:\n${stderr.slice(-2000)}`);
    return [];
  }
  return stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Row);
}

async function run(backend: CudaBackend, name: string): Promise<Row> {
  if (name === 'attention') return attention(backend);
  if (name === 'matmul') return matmul(backend);
  return step(backend, name);
}

const known = [...Object.keys(CASES), 'attention', 'matmul'];
const chosen = values.case ?? known;
const unknown = chosen.find((name) => !known.includes(name));
if (unknown !== undefined || !(STEPS > 0)) {
  console.error(`[bench:gpu] expected --case of ${known.join(', ')} and --steps above 0`);
  process.exit(2);
}
let backend: CudaBackend | undefined;
try {
  backend = getBackend('cuda') as CudaBackend;
} catch (error) {
  console.log(`[bench:gpu] skipped, nothing was measured: ${(error as Error).message}`);
}
if (backend) {
  backend.setCompute('bf16');
  const print = (row: Row) => console.log(JSON.stringify(row));
  print({ device: backend.describe(), products: backend.facts().products ?? '' });
  for (const name of chosen) {
    print({ ...(await run(backend, name)), by: 'lowrank' });
    if (values.peer) for (const row of peer(name)) print(row);
  }
}
