import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { readJsonObject } from '../src/io/files.js';
import { writeSafetensors } from '../src/io/safetensors.js';
import { LoraAdapters, loadAdapter, saveAdapter } from '../src/lora/index.js';
import type { CausalLM } from '../src/models/causal-lm.js';
import { gpt2Config } from '../src/models/gpt2.js';
import { buildCausalLM, openModel } from '../src/models/load.js';
import { withTraining } from '../src/nn/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { full } from '../src/tensor/create.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, reference } from './backends.js';
import { withFolder } from './support/temp.js';
import {
  logitsOf,
  randomize,
  relativeDifference,
  TINY,
  tinyBatch,
  tinySource,
} from './support/tiny.js';

const CONFIG = {
  model_type: 'gpt2',
  n_embd: 8,
  n_head: 2,
  n_layer: 2,
  n_positions: 16,
  vocab_size: 13,
  embd_pdrop: 0,
  attn_pdrop: 0,
  resid_pdrop: 0,
};

const make = (backend: Backend, change: object = {}): CausalLM =>
  buildCausalLM({ ...CONFIG, ...change }, tinySource(TINY, backend));

function withCheckpoint(
  rename: (name: string) => string,
  body: (dir: string, model: CausalLM) => void,
  extra: Record<string, Tensor> = {},
): void {
  withFolder((dir) => {
    using model = make(reference);
    const all = [...model.namedParameters()].map(([name, t]) => [rename(name), t] as const);
    const tensors = new Map([...all, ...Object.entries(extra)]);
    writeSafetensors(join(dir, 'model.safetensors'), tensors, { format: 'pt' });
    writeFileSync(join(dir, 'config.json'), JSON.stringify(CONFIG));
    body(dir, model);
  });
}

test('config.json: defaults of transformers, and what is refused', () => {
  const read = gpt2Config({});
  assert.is(read.hiddenSize, 768);
  assert.is(read.innerSize, 3072);
  assert.is(read.attentionDropout, 0.1);
  assert.is(read.scales[11], 1 / 8);
  const scaled = gpt2Config({ scale_attn_by_inverse_layer_idx: true, scale_attn_weights: false });
  assert.is(scaled.scales[3], 1 / 4);
  const wrong: [object, RegExp][] = [
    [{ activation_function: 'xielu' }, /activation_function.*gelu_new.*"xielu"/],
    [{ add_cross_attention: true }, /add_cross_attention/],
    [{ n_head: 5 }, /n_embd a multiple of n_head/],
    [{ attn_pdrop: 1 }, /attn_pdrop.*received 1/],
    [{ n_inner: 0 }, /n_inner/],
  ];
  for (const [change, message] of wrong) assert.throws(() => gpt2Config({ ...change }), message);
});

test('checkpoints with and without the prefix, with mask buffers and a second head', () => {
  const buffers = {
    'h.0.attn.bias': full([1, 1, 4, 4], 1, { backend: reference }),
    'h.0.attn.masked_bias': full([], -1e4, { backend: reference }),
    'lm_head.weight': tinySource(TINY, reference)('transformer.wte.weight', [13, 8]),
  };
  const batch = tinyBatch(1, [5, 3], 13);
  const same = (dir: string, model: CausalLM) => {
    using loaded = openModel(dir, { task: 'causal-lm', backend: reference });
    assert.equal(logitsOf(loaded, batch), logitsOf(model, batch));
  };
  withCheckpoint((name) => name, same);
  withCheckpoint((name) => name.replace('transformer.', ''), same, buffers);
  withCheckpoint(
    (name) => name,
    (dir) =>
      assert.throws(
        () => openModel(dir, { task: 'causal-lm', backend: reference }),
        /1 others: h\.9\.x/,
      ),
    { 'h.9.x': buffers['h.0.attn.bias'] },
  );
  for (const t of Object.values(buffers)) t.dispose();
});

onEachBackend(
  test,
  'LoRA on Conv1D: merged equals unmerged, saved as PEFT lays it out',
  (backend) => {
    using model = make(backend);
    using adapters = new LoraAdapters(model);
    const batch = tinyBatch(2, [6, 4], 13);
    const base = logitsOf(model, batch);
    adapters.add('a', { rank: 3, targetModules: ['c_attn', 'c_proj', 'c_fc'] }, 1);
    assert.equal(logitsOf(model, batch), base, 'B = 0 is the base');
    randomize(adapters, 'a', 4);
    const shapes = [...adapters.tensors('a')].map(([, t]) => t.shape.join());
    assert.equal(shapes.slice(0, 2), ['3,8', '24,3']);
    const changed = logitsOf(model, batch);
    assert.ok(relativeDifference(changed, base) > 0.01);
    using merged = buildCausalLM(CONFIG, adapters.mergedSource(['a']));
    assert.ok(relativeDifference(logitsOf(merged, batch), changed) < 1e-5);
    withFolder((dir) => {
      saveAdapter(adapters, 'a', dir);
      assert.is(readJsonObject(join(dir, 'adapter_config.json')).fan_in_fan_out, true);
      loadAdapter(adapters, 'b', dir);
      assert.equal(logitsOf(model, batch), changed);
    });
  },
);

test('dropout is on while training only, and the same for the same step', () => {
  using model = make(reference, { attn_pdrop: 0.2, resid_pdrop: 0.2, embd_pdrop: 0.2 });
  using plain = make(reference);
  const batch = tinyBatch(3, [6, 4], 13);
  assert.equal(logitsOf(model, batch), logitsOf(plain, batch));
  const at = (m: CausalLM, step: number) =>
    withTraining({ seed: 5, step }, () => noGrad(() => scope(() => m.logits(batch).toNumbers())));
  assert.equal(at(model, 1), at(model, 1));
  assert.not.equal(at(model, 1), at(model, 2));
  assert.not.equal(at(model, 1), at(plain, 1));
  for (const only of ['attn_pdrop', 'resid_pdrop', 'embd_pdrop']) {
    using one = make(reference, { [only]: 0.3 });
    assert.not.equal(at(one, 1), at(plain, 1), only);
  }
});

test('attention written out for dropout is the attention of the kernel', () => {
  // So small a probability that no element falls to it: what is left is the other path.
  using rare = make(reference, { attn_pdrop: 1e-9 });
  using plain = make(reference);
  const batch = tinyBatch(3, [6, 4], 13);
  const dropped = withTraining({ seed: 1, step: 0 }, () =>
    noGrad(() => scope(() => rare.logits(batch).toNumbers())),
  );
  const expected = Array.from(logitsOf(plain, batch));
  const counts = (_: number, i: number) => batch.attentionMask[Math.floor(i / 13)] === 1;
  assert.ok(relativeDifference(dropped.filter(counts), expected.filter(counts)) < 1e-5);
});

test.run();
