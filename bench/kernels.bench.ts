import { backward, clearGradient, noGrad, scope, setTrainable } from '../src/autograd/index.js';
import { headLoss } from '../src/ops/index.js';
import { dtypeBytes } from '../src/tensor/dtype.js';
import { numel } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { type KernelCall, kernelCalls, MODEL_SHAPES, type Operand } from './kernel-calls.js';
import { measure, native, peakGflops, type Result, threadCounts } from './support.js';

/** Milliseconds of measuring for each call: two hundred stay below two minutes. */
const TIME = 60;

/** A tensor of small numbers that are not all alike; none is subnormal or zero. */
function made({ shape, dtype, below }: Operand): Tensor {
  const t = Tensor.empty(native(), shape, dtype);
  const n = numel(shape);
  if (dtype === 'i32') {
    t.setBytes(
      new Uint8Array(Int32Array.from({ length: n }, (_, i) => (i * 7919) % (below ?? 1)).buffer),
    );
  } else if (dtype === 'f32') {
    t.setBytes(
      new Uint8Array(
        Float32Array.from({ length: n }, (_, i) => (1 + ((i * 7919) % 1021)) / 1100).buffer,
      ),
    );
  } else {
    // bf16: the upper half of an f32 between 0.5 and 1.
    t.setBytes(
      new Uint8Array(Uint16Array.from({ length: n }, (_, i) => 0x3f00 + (i % 128)).buffer),
    );
  }
  return t;
}

const bytesOf = ({ shape, dtype }: Operand) => numel(shape) * dtypeBytes(dtype);

const copies = new Map<string, number>();

/** Bytes a second that the kernel `copy` reads and writes, over about so many bytes in all. */
async function copyRate(bytes: number, threads: number): Promise<number> {
  const size = 2 ** Math.max(12, Math.round(Math.log2(bytes)));
  const key = `${size} ${threads}`;
  let rate = copies.get(key);
  if (rate === undefined) {
    const half: Operand = { shape: [size / 8], dtype: 'f32' };
    const tensors = [made(half), made(half)];
    const run = () => native().run('copy', tensors, []);
    rate = size / ((await measure('copy', threads, undefined, run, TIME)).milliseconds / 1000);
    copies.set(key, rate);
    for (const t of tensors) t.dispose();
  }
  return rate;
}

/** A result with what it reached of the machine: the larger of bytes over a copy's, flops over the peak. */
async function judged(result: Result, bytes: number): Promise<Result> {
  const seconds = result.milliseconds / 1000;
  const rate = await copyRate(bytes, result.threads);
  const ofPeak = result.shareOfPeak ?? 0;
  const share = Math.max(bytes / rate / seconds, ofPeak);
  const bound = ofPeak > bytes / rate / seconds ? 'peak' : 'copy';
  const note = `${(bytes / seconds / 1e9).toFixed(1)} GB/s, ${(100 * share).toFixed(0)} % of ${bound}`;
  return { ...result, note: share < 0.5 ? `${note}: below half` : note };
}

async function timed(model: string, call: KernelCall, threads: number): Promise<Result> {
  const { kernel, label, attrs, flops } = call;
  const tensors = call.tensors.map(made);
  try {
    const name = `${model} ${kernel}${label ? `, ${label}` : ''}`;
    const run = () => native().run(kernel, tensors, attrs);
    const bytes = call.bytes ?? call.tensors.reduce((sum, t) => sum + bytesOf(t), 0);
    return await judged(await measure(name, threads, flops, run, TIME), bytes);
  } finally {
    for (const t of tensors) t.dispose();
  }
}

/** The loss of a frozen head and its gradient for the hidden states: two products by the head. */
async function headLosses(threads: number): Promise<Result[]> {
  const results: Result[] = [];
  for (const { name, batch, time, channels, vocab } of MODEL_SHAPES) {
    const n = batch * time;
    const hidden = made({ shape: [n, channels], dtype: 'f32' });
    setTrainable(hidden, true);
    const weight = made({ shape: [vocab, channels], dtype: 'f32' });
    const labels = made({ shape: [n], dtype: 'i32', below: vocab });
    const flops = 2 * n * vocab * channels;
    const loss = () => headLoss(hidden, weight, labels, { factor: 1 / n });
    const forward = () => noGrad(() => scope(() => void loss()));
    const both = () =>
      scope(() => {
        backward(loss());
        clearGradient(hidden);
      });
    results.push(await measure(`${name} headLoss`, threads, flops, forward, TIME));
    results.push(await measure(`${name} headLoss and dx`, threads, 2 * flops, both, TIME));
    for (const t of [hidden, weight, labels]) t.dispose();
  }
  return results.map((r) => ((r.shareOfPeak ?? 1) < 0.5 ? { ...r, note: 'below half' } : r));
}

/**
 * Every kernel family at the shapes of a training step: GB/s beside a copy of as many bytes, and
 * GFLOP/s beside the peak of the registers. "Below half" marks what has the most to gain.
 */
export async function run(): Promise<Result[]> {
  const results: Result[] = [];
  for (const threads of threadCounts()) {
    peakGflops(threads);
    for (const shape of MODEL_SHAPES) {
      for (const call of kernelCalls(shape)) results.push(await timed(shape.name, call, threads));
    }
    results.push(...(await headLosses(threads)));
  }
  return results;
}
