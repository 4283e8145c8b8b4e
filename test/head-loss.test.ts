import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope, setTrainable } from '../src/autograd/index.js';
import { LoraAdapters } from '../src/lora/index.js';
import type { CausalLM, TokenBatch } from '../src/models/causal-lm.js';
import { randomParameters } from '../src/models/init.js';
import { buildCausalLM } from '../src/models/load.js';
import { crossEntropy, reshape, scale } from '../src/ops/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';
import { expectClose } from './op-cases.js';

/** So many tokens that the logits of a batch are several chunks. */
const VOCABULARY = 120001;
const [ROWS, LENGTH] = [3, 60];

const CONFIG = {
  ...{ model_type: 'gpt2', n_embd: 8, n_layer: 1, n_head: 2, n_positions: 64 },
  ...{ vocab_size: VOCABULARY, embd_pdrop: 0, attn_pdrop: 0, resid_pdrop: 0 },
};

function batchBelow(vocabulary: number): TokenBatch {
  const inputIds = Int32Array.from({ length: ROWS * LENGTH }, (_, i) => (i * 7919) % vocabulary);
  const labels = inputIds.map((id, i) => (i % 3 === 0 ? -100 : id));
  return { inputIds, labels, batch: ROWS, length: LENGTH };
}

/** The mean loss from logits written out. */
function fromLogits(model: CausalLM): Tensor {
  const V = model.vocabSize;
  const { labels = new Int32Array(), ...input } = batchBelow(V);
  const next = labels.map((_, i) => ((i + 1) % LENGTH === 0 ? -100 : (labels[i + 1] as number)));
  const logits = reshape(model.logits({ ...input }), [ROWS * LENGTH, V]);
  const targets = tensor(next, [next.length], { backend: model.backend, dtype: 'i32' });
  const count = next.filter((l) => l !== -100).length;
  return scale(crossEntropy(logits, targets, { reduction: 'sum' }), 1 / count);
}

function gradients(tensors: ReadonlyMap<string, Tensor>, loss: () => Tensor) {
  const value = scope(() => {
    const result = loss();
    backward(result);
    return result.item();
  });
  const grads = new Map([...tensors].map(([name, t]) => [name, t.grad?.toNumbers() as number[]]));
  for (const t of tensors.values()) setTrainable(setTrainable(t, false), true);
  return { value, grads };
}

function compare(model: CausalLM, tensors: ReadonlyMap<string, Tensor>): void {
  const want = gradients(tensors, () => fromLogits(model));
  const got = gradients(tensors, () => model.loss(batchBelow(model.vocabSize)).loss);
  assert.ok(Math.abs(got.value - want.value) < 1e-5 * want.value, `${got.value}, ${want.value}`);
  for (const [name, grad] of want.grads) {
    expectClose(got.grads.get(name) as number[], grad, 2e-4, name);
  }
}

/** Bytes of [rows, V] logits. */
const logitsOf = (rows: number) => 4 * rows * VOCABULARY;

function peak(backend: Backend, run: () => void): number {
  const before = backend.memory().total;
  backend.resetPeak();
  run();
  return backend.memory().totalPeak - before;
}

onEachBackend(test, 'the chunked loss is that of the logits, and less is in memory', (backend) => {
  const model = buildCausalLM(CONFIG, randomParameters(1, 1, backend));
  const base = new Map(model.namedParameters());
  for (const t of base.values()) setTrainable(t, false);
  const lora = new LoraAdapters(model).add('a', { rank: 2, targetModules: ['c_attn'] }, 1);
  const tensors = lora.tensors('a');
  compare(model, tensors);
  const labelled = 2 * ROWS * (LENGTH / 3) - ROWS;
  const most = peak(backend, () =>
    gradients(tensors, () => model.loss(batchBelow(model.vocabSize)).loss),
  );
  assert.ok(most < logitsOf(labelled), `${most} bytes of ${logitsOf(labelled)}`);
  const evaluated = peak(backend, () =>
    noGrad(() => scope(() => model.loss(batchBelow(model.vocabSize)).loss.item())),
  );
  assert.ok(evaluated < logitsOf(labelled), `${evaluated} bytes evaluating`);
  // Every parameter, the tied table of the head among them.
  for (const t of base.values()) setTrainable(t, true);
  lora.setActive(null);
  compare(model, base);
  model.dispose();
});

onEachBackend(test, 'an adapter on the head or on the table is in the loss', (backend) => {
  const small = { ...CONFIG, vocab_size: 97 };
  for (const [tied, targets] of [
    [false, ['lm_head']],
    [false, ['c_attn']],
    [true, ['wte']],
  ] as const) {
    const model = buildCausalLM(
      { ...small, tie_word_embeddings: tied },
      randomParameters(1, 1, backend),
    );
    for (const [, t] of model.namedParameters()) setTrainable(t, false);
    const config = { rank: 2, targetModules: [...targets] };
    const tensors = new LoraAdapters(model).add('a', config, 1).tensors('a');
    for (const t of tensors.values()) {
      const values = Float32Array.from({ length: t.size }, (_, i) => 0.3 * Math.sin(i + 1));
      t.setBytes(new Uint8Array(values.buffer));
    }
    compare(model, tensors);
    model.dispose();
  }
});

test.run();
