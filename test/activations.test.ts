// time-limit: 600
// Training with activations in bf16 within the blocks.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, scope } from '../src/autograd/index.js';
import { LoraAdapters, type LoraConfig } from '../src/lora/index.js';
import { buildCausalLM } from '../src/models/load.js';
import { withTraining } from '../src/nn/index.js';
import type { Backend } from '../src/tensor/backend.js';
import type { ActivationDType } from '../src/tensor/dtype.js';
import { dryRun } from '../src/train/dry-run.js';
import { native, onEachBackend, onNative, reference } from './backends.js';
import { cudaShim } from './cuda.js';
import { inside } from './support/cli.js';
import { writeWorkspace } from './support/model-dir.js';
import { shake } from './support/random-configs.js';
import { TINY, tinyConfig, tinySource } from './support/tiny.js';
import { skipUnless } from './support.js';

const test = suite('activations');
const root = mkdtempSync(join(tmpdir(), 'lowrank-activations-'));
const at = (...parts: string[]) => join(root, ...parts);
writeWorkspace(root);
test.after(() => rmSync(root, { recursive: true, force: true }));

const onCuda = skipUnless(test, native !== null, 'no native addon, and so no CUDA shim');

type Config = Record<string, unknown>;

const SIZE = { ...TINY, dtype: 'bf16', hidden: 32, ffn: 48, headSize: 16, vocab: 37 } as const;

const CONFIGS: Readonly<Record<string, Config>> = {
  llama: tinyConfig(SIZE),
  qwen3: { ...tinyConfig(SIZE), model_type: 'qwen3' },
  gpt2: {
    model_type: 'gpt2',
    vocab_size: SIZE.vocab,
    n_positions: 64,
    n_embd: SIZE.hidden,
    n_layer: 2,
    n_head: 2,
    embd_pdrop: 0,
    resid_pdrop: 0.1,
    attn_pdrop: 0,
  },
};

const [B, T] = [2, 24];
const batch = {
  inputIds: Int32Array.from({ length: B * T }, (_, i) => (i * 17 + (i % 5)) % SIZE.vocab),
  labels: Int32Array.from({ length: B * T }, (_, i) => (i * 17 + (i % 5)) % SIZE.vocab),
  attentionMask: Uint8Array.from({ length: B * T }, (_, i) => (i >= B * T - 3 ? 0 : 1)),
  batch: B,
  length: T,
};

interface Options {
  readonly activations?: ActivationDType;
  readonly checkpoint?: boolean;
  readonly lora?: Partial<LoraConfig>;
}

/** One step's loss and gradients, and what is held of it between forward and backward, in bytes. */
function stepOf(backend: Backend, config: Config, options: Options) {
  const { activations = 'f32', checkpoint = false, lora = {} } = options;
  const model = buildCausalLM(config, tinySource(SIZE, backend));
  const adapters = new LoraAdapters(model);
  adapters.add('own', { rank: 4, alpha: 8, targetModules: 'all-linear', ...lora }, 3);
  adapters.setActive('own').setTrainable('own', true);
  // B away from zero, so that A has a gradient.
  shake(adapters, 'own', 7);
  return scope(() => {
    const parameters = [...adapters.tensors('own').values()];
    const before = backend.memory().live.activation;
    const context = { seed: 5, step: 1, checkpoint, activations };
    const { loss } = withTraining(context, () => model.loss(batch));
    const held = backend.memory().live.activation - before;
    backward(loss);
    const grads = parameters.map((t) => {
      assert.is(t.grad?.dtype, 'f32');
      return Float64Array.from(t.grad?.toNumbers() ?? []);
    });
    const result = { loss: loss.item(), grads, held };
    model.dispose();
    return result;
  });
}

/** The distance of two sets of gradients, over the length of the second. */
function apart(a: readonly Float64Array[], b: readonly Float64Array[]): number {
  const square = (all: readonly Float64Array[]) =>
    all.reduce((sum, g) => g.reduce((n, v) => n + v * v, sum), 0);
  const differences = a.map((g, i) => g.map((v, j) => v - (b[i]?.[j] as number)));
  return Math.sqrt(square(differences) / square(b));
}

for (const [name, config] of Object.entries(CONFIGS)) {
  onEachBackend(test, `${name}: rounds a little and keeps about half`, (backend) => {
    const exact = stepOf(backend, config, {});
    const rounded = stepOf(backend, config, { activations: 'bf16' });
    assert.is.not(rounded.loss, exact.loss);
    assert.ok(Math.abs(rounded.loss - exact.loss) < 0.01 * exact.loss, `${rounded.loss}`);
    const far = apart(rounded.grads, exact.grads);
    assert.ok(far < 0.1, `gradients ${far} apart`);
    const share = rounded.held / exact.held;
    assert.ok(share < 0.72, `${share} of the bytes`);
  });
}

onEachBackend(test, 'blocks computed again in backward give the same bits', (backend) => {
  for (const config of Object.values(CONFIGS)) {
    const kept = stepOf(backend, config, { activations: 'bf16' });
    const again = stepOf(backend, config, { activations: 'bf16', checkpoint: true });
    assert.is(again.loss, kept.loss);
    assert.equal(again.grads, kept.grads);
  }
});

onEachBackend(test, 'variants that add in f32 hand bf16 on, too', (backend) => {
  const variants: readonly Partial<LoraConfig>[] = [
    { variant: 'dora' },
    { loraBias: true },
    { rank: 40 },
  ];
  for (const lora of variants) {
    const exact = stepOf(backend, CONFIGS.gpt2 as Config, { lora });
    const rounded = stepOf(backend, CONFIGS.gpt2 as Config, { lora, activations: 'bf16' });
    assert.ok(Math.abs(rounded.loss - exact.loss) < 0.01 * exact.loss, `${rounded.loss}`);
    assert.ok(apart(rounded.grads, exact.grads) < 0.1, JSON.stringify(lora));
    assert.ok(rounded.held < exact.held);
  }
});

onNative(test, '1, 2 and 3 threads give the same bits', (backend) => {
  const { threads } = backend.info();
  try {
    const results = [1, 2, 3].map((count) => {
      backend.setThreads(count);
      return stepOf(backend, CONFIGS.llama as Config, { activations: 'bf16' });
    });
    assert.equal(results[1], results[0]);
    assert.equal(results[2], results[0]);
  } finally {
    backend.setThreads(threads);
  }
});

onCuda('the cuda backend computes the same', () => {
  for (const config of Object.values(CONFIGS)) {
    const want = stepOf(reference, config, { activations: 'bf16' });
    const cuda = cudaShim();
    for (const compute of ['exact', 'bf16'] as const) {
      cuda.setCompute(compute);
      const got = stepOf(cuda, config, { activations: 'bf16' });
      const off = compute === 'exact' ? 1e-3 : 1e-2;
      assert.ok(Math.abs(got.loss - want.loss) < off * want.loss, `${compute}: ${got.loss}`);
      assert.ok(apart(got.grads, want.grads) < 10 * off, `${compute}`);
    }
    cuda.setCompute('exact');
  }
});

test('activations of another dtype are refused', () => {
  const context = { seed: 1, step: 0, activations: 'f16' as ActivationDType };
  const expected = /\[withTraining activations\] expected f32 or bf16, received "f16"/;
  assert.throws(() => withTraining(context, () => 0), expected);
});

const files = ['--model', at('model'), '--data', at('train.jsonl')];

onNative(
  test,
  'train takes --activations, records it, and --dry-run tells the memory',
  async () => {
    const run = (name: string, ...how: string[]) =>
      inside('train', ...files, '--out', at(name), '--steps', '2', ...how);
    const trained = await run('run', '--activations', 'bf16', '--json');
    assert.is(trained.code, 0, trained.stderr);
    const { settings } = JSON.parse(readFileSync(at('run', 'training.json'), 'utf8'));
    assert.is(settings.activations, 'bf16');
    const wrong = await run('wrong', '--activations', 'bf61');
    assert.is(wrong.code, 2);
    assert.match(wrong.stderr, 'Did you mean bf16?');
    // Activations are a setting of a run: it does not go on with others.
    const other = await run('run', '--resume');
    assert.is(other.code, 1);
    assert.match(other.stderr, 'activations');
    const needs = async (activations: ActivationDType) => {
      const settings = { modelDir: at('model'), dataFile: at('train.jsonl'), steps: 2 };
      const { memory } = await dryRun({ ...settings, out: at('dry'), activations, backend: 'cpu' });
      return memory.peak.activation;
    };
    assert.ok((await needs('bf16')) < 0.85 * (await needs('f32')));
  },
);

test.run();
