import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, checkpoint, scope, setTrainable } from '../src/autograd/index.js';
import { LoraAdapters } from '../src/lora/index.js';
import type { CausalLM, TokenBatch } from '../src/models/causal-lm.js';
import { randomParameters } from '../src/models/init.js';
import { buildCausalLM } from '../src/models/load.js';
import { withTraining } from '../src/nn/index.js';
import { add, exp, gelu, linear, mul, sum } from '../src/ops/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import type { Shape } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';
import { inside } from './support/cli.js';
import { writeWorkspace } from './support/model-dir.js';

const random = (backend: Backend, shape: Shape, stream: number): Tensor =>
  tensor(
    normal(
      { seed: 3, stream },
      shape.reduce((n, d) => n * d, 1),
    ),
    shape,
    { backend },
  );

const bits = (t: Tensor | null) => (t ? Buffer.from(t.bytes()).toString('hex') : 'none');

onEachBackend(
  test,
  'a part has the bits and the gradients of one without, and keeps its inputs',
  (backend) => {
    const before = backend.memory();
    scope(() => {
      const results = [false, true].map((kept) => {
        const x = setTrainable(random(backend, [6, 5], 1), true);
        const w = setTrainable(random(backend, [7, 5], 2), true);
        const constant = random(backend, [6, 7], 3);
        let calls = 0;
        const part = ([a, c]: readonly Tensor[]) => {
          calls++;
          return mul(exp(gelu(linear(a as Tensor, w))), c as Tensor);
        };
        const start = backend.memory().live.activation;
        const y = kept ? checkpoint(part, [x, constant]) : scope(() => part([x, constant]));
        const held = backend.memory().live.activation - start;
        backward(sum(add(y, y)));
        return { bits: [y, x.grad, w.grad].map(bits), grad: constant.grad, calls, held };
      });
      const [plain, again] = results as [(typeof results)[0], (typeof results)[0]];
      assert.equal(again.bits, plain.bits);
      assert.is(again.grad, null);
      assert.equal([plain.calls, again.calls], [1, 2]);
      assert.is(again.held, 6 * 7 * 4, 'the result and nothing else');
      assert.ok(plain.held > again.held);
    });
    assert.is(backend.memory().handles, before.handles);
  },
);

onEachBackend(
  test,
  'a part that needs no gradient, or answers its input, is left as it is',
  (backend) => {
    scope(() => {
      const x = random(backend, [2, 3], 1);
      assert.not.ok(checkpoint(([a]) => exp(a as Tensor), [x]).requiresGrad);
      const t = setTrainable(random(backend, [2, 3], 2), true);
      assert.is(
        checkpoint(([a]) => a as Tensor, [t]),
        t,
      );
      // One input that the result does not depend on.
      const y = checkpoint(([, b]) => exp(b as Tensor), [t, setTrainable(x, true)]);
      backward(sum(y));
      assert.equal(t.grad?.toNumbers(), [0, 0, 0, 0, 0, 0]);
    });
  },
);

const COMMON = { vocab_size: 61 };
const GPT2 = {
  ...COMMON,
  ...{ model_type: 'gpt2', n_embd: 16, n_layer: 3, n_head: 2, n_positions: 32 },
  ...{ embd_pdrop: 0.1, attn_pdrop: 0.1, resid_pdrop: 0.1 },
};
const LLAMA = {
  ...COMMON,
  ...{ model_type: 'llama', hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 4 },
  ...{ num_key_value_heads: 2, intermediate_size: 24, max_position_embeddings: 32 },
};

function batchOf(rows: number, length: number): TokenBatch {
  const inputIds = Int32Array.from({ length: rows * length }, (_, i) => (i * 17) % 61);
  const attentionMask = new Uint8Array(rows * length).fill(1);
  attentionMask.fill(0, rows * length - 3);
  const labels = inputIds.map((id, i) => (attentionMask[i] === 0 || i % 5 === 0 ? -100 : id));
  return { inputIds, attentionMask, labels, batch: rows, length };
}

/** Loss, gradients and most bytes of activations of one training pass. */
function pass(model: CausalLM, tensors: ReadonlyMap<string, Tensor>, checkpoint: boolean) {
  const { backend } = model;
  backend.resetPeak();
  const context = { seed: 5, step: 2, checkpoint };
  const loss = scope(() => {
    const result = withTraining(context, () => model.loss(batchOf(2, 24)).loss);
    backward(result);
    return result.item();
  });
  const grads = [...tensors].map(([name, t]) => `${name} ${bits(t.grad)}`);
  const peak = backend.memory().peak.activation;
  for (const t of tensors.values()) setTrainable(setTrainable(t, false), true);
  return { loss, grads, peak };
}

for (const [name, config] of Object.entries({ gpt2: GPT2, llama: LLAMA })) {
  for (const mode of ['lora', 'full'] as const) {
    onEachBackend(
      test,
      `${name}, ${mode}: the bits of a step without, in less memory`,
      (backend) => {
        const before = backend.memory().handles;
        const model = buildCausalLM(config, randomParameters(1, 3, backend));
        let tensors: ReadonlyMap<string, Tensor> = new Map(model.namedParameters());
        for (const t of tensors.values()) setTrainable(t, mode === 'full');
        if (mode === 'lora') {
          const lora = {
            rank: 2,
            targetModules: ['all-linear'],
            dropout: 0.2,
            init: 'gaussian',
          } as const;
          const adapters = new LoraAdapters(model).add('a', lora, 1);
          tensors = adapters.tensors('a');
        }
        const plain = pass(model, tensors, false);
        const again = pass(model, tensors, true);
        assert.is(again.loss, plain.loss);
        assert.equal(again.grads, plain.grads);
        assert.ok(again.peak < 0.75 * plain.peak, `${again.peak} of ${plain.peak} bytes`);
        model.dispose();
        assert.is(backend.memory().handles, before);
      },
    );
  }
}

onEachBackend(
  test,
  'a mixed batch with checkpoints is refused: its rows are not kept',
  (backend) => {
    const model = buildCausalLM(GPT2, randomParameters(1, 3, backend));
    const adapters = new LoraAdapters(model).add('a', { rank: 2, targetModules: ['c_attn'] }, 1);
    const context = { seed: 5, step: 2, checkpoint: true };
    const loss = () =>
      withTraining(context, () => adapters.withRows(['a', null], () => model.loss(batchOf(2, 24))));
    assert.throws(() => scope(loss), '[lora withRows] expected a pass that keeps its activations');
    model.dispose();
  },
);

test('a run with --gradient-checkpointing writes the bytes of one without, and can go on without', async () => {
  const root = mkdtempSync(join(tmpdir(), 'lowrank-checkpoint-'));
  try {
    writeWorkspace(root);
    const files = ['--model', join(root, 'model'), '--data', join(root, 'train.jsonl')];
    const settings = ['--steps', '4', '--accumulation', '2', '--dropout', '0.1', '--seed', '5'];
    const run = (out: string, ...more: string[]) =>
      inside('train', ...files, '--out', join(root, out), ...settings, ...more);
    const weights = (out: string) => readFileSync(join(root, out, 'adapter_model.safetensors'));
    assert.is((await run('plain')).code, 0);
    const { code, stderr } = await run('checkpointed', '--gradient-checkpointing');
    assert.is(code, 0, stderr);
    assert.ok(weights('checkpointed').equals(weights('plain')));
    // It is no setting of the run: the finished one is known again without it.
    assert.match((await run('checkpointed', '--resume')).stdout, 'Nothing left to do');
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
});

test.run();
