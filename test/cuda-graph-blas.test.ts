// time-limit: 300
// Steps as CUDA graphs whose products are cuBLASLt's: in its place stands the tests' own.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { tensor } from '../src/tensor/create.js';
import { type CudaBackend, loadCuda } from '../src/tensor/cuda.js';
import { Recording } from '../src/tensor/recording.js';
import { Tensor } from '../src/tensor/tensor.js';
import type { BatchSource, TrainOptions } from '../src/train/trainer.js';
import { native } from './backends.js';
import { shimLibrary } from './cuda.js';
import { ReplayCounter } from './support/replays.js';
import { TinyRun } from './support/run.js';
import { TINY, type TinySettings, tinyBatch } from './support/tiny.js';
import { skipUnless } from './support.js';

const test = suite('cuda graphs with cuBLASLt');
const onShim = skipUnless(test, native !== null, 'no native addon, and so no CUDA shim');
const shim = native ? shimLibrary() : '';
const root = mkdtempSync(join(tmpdir(), 'lowrank-graph-blas-'));
const log = join(root, 'products');
test.after(() => rmSync(root, { recursive: true, force: true }));
process.env.LOWRANK_SHIM_BLAS = join(dirname(shim), 'libcublasLt_shim.so');
process.env.LOWRANK_SHIM_BLAS_LOG = log;

const open = (): CudaBackend => loadCuda(0, shim);

/** What `body` answers, and the products that the library computed meanwhile. */
function products<T>(body: () => T): { result: T; lines: string[] } {
  writeFileSync(log, '');
  const result = body();
  return { result, lines: readFileSync(log, 'utf8').split('\n').slice(0, -1) };
}

const ramp = (n: number, by: number) => Array.from({ length: n }, (_, i) => ((i * 7) % 11) * by);

onShim('a product is captured, not run, and replayed on other inputs', () => {
  const backend = open();
  const w = tensor(ramp(24 * 32, 0.1), [24, 32], { backend });
  const bias = tensor(ramp(24, 0.5), [24], { backend });
  const y = Tensor.empty(backend, [20, 24], 'f32');
  const multiply = (values: readonly number[]) => {
    const x = tensor(values, [20, 32], { backend });
    backend.run('linear', [x, w, bias, y], [0]);
    x.dispose();
  };
  const [first, second] = [ramp(640, 0.3), ramp(640, -0.2)];
  const line = 'type 0, 20 x 24 x 32, batch 1, bias';
  const { result, lines } = products(() => backend.record(() => multiply(first)));
  assert.equal(lines, [line], 'once as it was recorded, and not while it was captured');
  const recording = result.recording as Recording;
  assert.instance(recording, Recording, String(recording));
  const eager = [first, second].map((values) => {
    multiply(values);
    return Buffer.from(y.bytes());
  });
  const bytes = (values: readonly number[]) => new Uint8Array(Float32Array.from(values).buffer);
  for (const [i, values] of [second, first, second].entries()) {
    const again = products(() => recording.replay([bytes(values)]));
    assert.ok(again.result);
    assert.equal(again.lines, [line]);
    assert.ok(Buffer.from(y.bytes()).equals(eager[i % 2 === 0 ? 1 : 0] as Buffer), `replay ${i}`);
  }
  // A graph holds the products as they were: another arithmetic makes it void.
  backend.setTf32(true);
  assert.not.ok(recording.replay([bytes(first)]));
  backend.setTf32(false);
  for (const t of [w, bias, y]) t.dispose();
  assert.is(backend.memory().total, 0);
});

const WIDE: TinySettings = {
  ...{ ...TINY, layers: 1, hidden: 24, ffn: 40, heads: 2, keyValueHeads: 2, headSize: 12 },
  vocab: 29,
};
const alike: BatchSource = {
  batch: (step, micro) => tinyBatch(7 + 100 * step + micro, [14, 11], WIDE.vocab),
};

async function runOf(settings: TinySettings, options: Partial<TrainOptions>) {
  const backend = open();
  if (settings.dtype === 'bf16') backend.setCompute('bf16');
  using run = new TinyRun(backend, settings);
  writeFileSync(log, '');
  const events = await run.train(6, options, alike);
  const lines = readFileSync(log, 'utf8').split('\n').slice(0, -1);
  return { events: events.map(({ seconds: _, ...rest }) => rest), bits: run.bits(), lines };
}

for (const [title, settings, options] of [
  ['f32', WIDE, {}],
  ['bf16', { ...WIDE, dtype: 'bf16' }, { accumulation: 2 }],
  ['f32, ahead', WIDE, { ahead: true }],
] as const) {
  onShim(`replayed steps have the bits of eager ones: ${title}`, async () => {
    const eager = await runOf(settings, options);
    using counter = new ReplayCounter();
    const replayed = await runOf(settings, { ...options, graphs: true });
    assert.is(counter.replays, 4, 'all but the first two');
    assert.ok(eager.lines.length >= 6 * 7, `${eager.lines.length} products by the library`);
    assert.equal(replayed.lines, eager.lines, 'the same products, in the same order');
    assert.equal(replayed.events, eager.events);
    assert.equal(replayed.bits, eager.bits);
  });
}

test.run();
