import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { writeSafetensors } from '../src/io/safetensors.js';
import { generate } from '../src/models/generate.js';
import { isSilu, llamaConfig } from '../src/models/llama-config.js';
import { buildCausalLM, openModel } from '../src/models/load.js';
import { saveModel } from '../src/models/save.js';
import { full, tensor } from '../src/tensor/create.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, reference } from './backends.js';
import { withFolder } from './support/temp.js';
import {
  forTinyCases,
  logitBytes,
  sameBytes,
  TINY,
  type TinySettings,
  tinyBatch,
  tinyConfig,
  tinyModel,
  tinySource,
} from './support/tiny.js';

const CONFIG = tinyConfig(TINY);

test('config.json: every setting that shapes the model, and the defaults of transformers', () => {
  const { head_dim: _, num_key_value_heads: __, ...plain } = CONFIG;
  const read = llamaConfig({ ...plain, tie_word_embeddings: undefined });
  const { rope, activation, ...numbers } = read;
  assert.ok(isSilu(activation));
  assert.equal(Array.from(rope.frequencies(5)), [1, Math.fround(0.01)]);
  assert.is(rope.factor, 1);
  assert.equal(numbers, {
    vocabSize: 13,
    hiddenSize: 8,
    intermediateSize: 12,
    layers: 2,
    heads: 2,
    keyValueHeads: 2,
    headSize: 4,
    maxPositions: 64,
    normEps: 1e-6,
    tiedHead: false,
    queryBias: false,
    outputBias: false,
    mlpBias: false,
    headNorms: false,
    windows: [0, 0],
    attentionDropout: 0,
  });
  assert.is(llamaConfig({ ...CONFIG, head_dim: 6 }).headSize, 6);
  assert.is(llamaConfig({ ...CONFIG, head_dim: null }).headSize, 4);
  const newer = { rope_theta: 1e6, rope_type: 'default' };
  const { rope: other } = llamaConfig({
    ...CONFIG,
    rope_theta: undefined,
    rope_parameters: newer,
  });
  assert.equal(Array.from(other.frequencies(5)), [1, Math.fround(0.001)]);
});

test('config.json: what is missing or changes the arithmetic is refused by name', () => {
  const wrong: [Record<string, unknown>, RegExp][] = [
    [{ hidden_size: undefined }, /hidden_size.*received nothing/],
    [{ vocab_size: 0 }, /vocab_size.*received 0/],
    [{ num_hidden_layers: 1.5 }, /num_hidden_layers.*1\.5/],
    [{ num_attention_heads: '2' }, /num_attention_heads.*"2"/],
    [{ num_attention_heads: 3, num_key_value_heads: 2 }, /multiple of num_key_value_heads/],
    [{ head_dim: 3 }, /even head_dim/],
    [{ head_dim: null, hidden_size: 9 }, /hidden_size a multiple of num_attention_heads/],
    [{ hidden_act: 'xielu' }, /hidden_act.*"xielu"/],
    [{ attention_dropout: 1.5 }, /attention_dropout.*1\.5/],
    [{ rope_scaling: { rope_type: 'linear' } }, /rope_scaling.*factor.*nothing/],
    [{ rope_scaling: { type: 'longrope', factor: 2 } }, /rope_type.*"longrope"/],
    [{ rope_parameters: { rope_type: 'llama3', factor: 2 } }, /low_freq_factor.*nothing/],
    [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor.*0\.5/],
    [{ quantization_config: { bits: 4 } }, /quantization_config/],
    [{ layer_types: ['sliding_attention'] }, /layer_types/],
    [{ rms_norm_eps: 'x' }, /rms_norm_eps.*"x"/],
    [{ tie_word_embeddings: 'no' }, /tie_word_embeddings.*"no"/],
  ];
  for (const [change, message] of wrong) {
    assert.throws(() => llamaConfig({ ...CONFIG, ...change }), message, JSON.stringify(change));
  }
});

test('an unknown architecture names those there are', () => {
  const none = () => {
    throw new Error('no parameter is asked for');
  };
  assert.throws(
    () => buildCausalLM({ ...CONFIG, model_type: 'lama' }, none),
    /\[model_type\] expected one of llama.*"lama".*Nearest: llama/,
  );
  assert.throws(() => buildCausalLM({}, none), /\[model_type\]/);
});

test('a build that fails frees what it had got', () => {
  const before = reference.memory().handles;
  let asked = 0;
  assert.throws(
    () =>
      buildCausalLM(CONFIG, (_, shape) => {
        if (++asked === 5) throw new Error('no more');
        return full(shape, 1, { backend: reference });
      }),
    /no more/,
  );
  assert.throws(
    () =>
      buildCausalLM(CONFIG, (name, shape) =>
        full(name === 'model.norm.weight' ? [9] : shape, 1, { backend: reference }),
      ),
    /\[parameter model\.norm\.weight\] expected \[8\], received \[9\]/,
  );
  assert.is(reference.memory().handles, before);
});

/** Writes a tiny model as a checkpoint, with changes to its tensors or config. */
function withCheckpoint(
  body: (dir: string) => void,
  {
    tensors = {},
    config = {},
    settings = TINY as TinySettings,
  }: {
    tensors?: Record<string, Tensor | null>;
    config?: Record<string, unknown>;
    settings?: TinySettings;
  } = {},
): void {
  withFolder((dir) => {
    using model = tinyModel(settings, reference);
    const all = new Map(model.namedParameters());
    for (const [name, t] of Object.entries(tensors)) {
      if (t) all.set(name, t);
      else assert.ok(all.delete(name));
    }
    writeSafetensors(join(dir, 'model.safetensors'), all, { format: 'pt' });
    writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...tinyConfig(settings), ...config }));
    body(dir);
  });
}

onEachBackend(
  test,
  'saved and loaded: the same parameters and outputs, frozen, in their dtype',
  (backend) => {
    forTinyCases(10, (c) => {
      using model = tinyModel(c.settings, backend);
      const parameters = new Map(model.namedParameters());
      withFolder((dir) => {
        saveModel(dir, { tensors: parameters, config: tinyConfig(c.settings), tokenizerDir: dir });
        using loaded = openModel(dir, { task: 'causal-lm', backend });
        const again = new Map(loaded.namedParameters());
        assert.equal([...again.keys()], [...parameters.keys()]);
        for (const [name, p] of again) {
          assert.is(p.dtype, c.settings.dtype);
          assert.is(p.requiresGrad, false);
          assert.is(p.storage.purpose, 'frozen');
          assert.ok(sameBytes(p.bytes(), (parameters.get(name) as Tensor).bytes()), name);
        }
        const batch = tinyBatch(1, c.lengths, c.settings.vocab);
        assert.ok(sameBytes(logitBytes(loaded, batch), logitBytes(model, batch)));
        // Wider storage of the same numbers answers the same: widening is exact.
        using wide = openModel(dir, { task: 'causal-lm', backend, dtype: 'f32' });
        for (const [, p] of wide.namedParameters()) assert.is(p.dtype, 'f32');
        const difference = logitBytes(wide, batch);
        assert.is(difference.length, logitBytes(model, batch).length);
      });
    });
  },
);

onEachBackend(test, 'loaded for full training: every parameter f32 and trainable', (backend) => {
  withCheckpoint(
    (dir) => {
      using model = openModel(dir, { task: 'causal-lm', backend, trainable: true });
      for (const [, p] of model.namedParameters()) {
        assert.is(p.dtype, 'f32');
        assert.is(p.requiresGrad, true);
        assert.is(p.storage.purpose, 'trainable');
      }
    },
    { settings: { ...TINY, dtype: 'bf16' } },
  );
});

test('a checkpoint with a tensor missing, misshapen or without a home is refused, and freed', () => {
  const { handles } = reference.memory();
  const fails = (message: RegExp, change: Parameters<typeof withCheckpoint>[1]) => {
    withCheckpoint((dir) => {
      assert.throws(() => openModel(dir, { task: 'causal-lm', backend: reference }), message);
    }, change);
    for (const t of Object.values(change?.tensors ?? {})) t?.dispose();
  };
  const t = (shape: number[]) => full(shape, 1, { backend: reference });
  fails(/model\.norm\.weight/, { tensors: { 'model.norm.weight': null } });
  fails(/parameter lm_head\.weight\] expected \[13, 8\], received \[8, 13\]/, {
    tensors: { 'lm_head.weight': t([8, 13]) },
  });
  fails(
    /only tensors of a llama model, received 1 others: model\.layers\.2\.mlp\.up_proj\.weight/,
    {
      tensors: { 'model.layers.2.mlp.up_proj.weight': t([12, 8]) },
    },
  );
  fails(/self_attn\.q_proj\.bias/, { tensors: { 'model.layers.0.self_attn.q_proj.bias': t([8]) } });
  assert.is(reference.memory().handles, handles);
});

test('tensors that follow from others may be there', () => {
  const freq = tensor([1, 0.1], [2], { backend: reference });
  withCheckpoint((dir) => openModel(dir, { task: 'causal-lm', backend: reference }).dispose(), {
    tensors: { 'model.layers.0.self_attn.rotary_emb.inv_freq': freq },
  });
  const other = full([13, 8], 9, { backend: reference });
  const tied = { ...TINY, tied: true };
  const source = tinySource(tied, reference);
  const head = source('model.embed_tokens.weight', [13, 8]);
  withCheckpoint(
    (dir) => {
      using model = openModel(dir, { task: 'causal-lm', backend: reference });
      using plain = tinyModel(tied, reference);
      const batch = tinyBatch(1, [4], TINY.vocab);
      assert.ok(sameBytes(logitBytes(model, batch), logitBytes(plain, batch)));
    },
    { settings: tied, tensors: { 'lm_head.weight': head } },
  );
  withCheckpoint(
    (dir) =>
      assert.throws(
        () => openModel(dir, { task: 'causal-lm', backend: reference }),
        /lm_head\.weight equal to model\.embed_tokens\.weight.*tie_word_embeddings to false/,
      ),
    { settings: tied, tensors: { 'lm_head.weight': other } },
  );
  for (const t of [freq, head, other]) t.dispose();
});

test('batches that do not fit are refused', () => {
  using model = tinyModel(TINY, reference);
  const good = tinyBatch(1, [4, 3], TINY.vocab);
  const logits = (change: object) => () =>
    noGrad(() => scope(() => model.logits({ ...good, ...change })));
  const ids = (at: number, id: number) => {
    const inputIds = good.inputIds.slice();
    inputIds[at] = id;
    return { inputIds };
  };
  assert.throws(logits(ids(2, 13)), /\[model\] expected token ids of 0…12, received 13.*tokenizer/);
  assert.throws(logits(ids(0, -1)), /received -1/);
  assert.throws(logits({ length: 3 }), /\[model\] expected arrays of \[2, 3\].*received 8, 8, 8/);
  assert.throws(logits({ attentionMask: new Uint8Array(3) }), /arrays of \[2, 4\]/);
  assert.throws(logits({ batch: 0 }), /at least 1/);
  // Rotary positions have no table that ends; a cache has its places.
  logits(tinyBatch(1, [65], TINY.vocab))();
  const labels = good.labels.slice();
  labels[2] = 13;
  assert.throws(() => scope(() => model.loss({ ...good, labels })), /\[crossEntropy\].*13/);
  labels[2] = -7;
  assert.throws(() => scope(() => model.loss({ ...good, labels })), /\[crossEntropy\].*-7/);
  const { labels: _, ...unlabelled } = good;
  assert.throws(() => model.loss(unlabelled), /\[loss\] expected a batch with labels/);
  const short = { ...good, labels: new Int32Array(8).fill(-100), inputIds: new Int32Array(3) };
  assert.throws(() => model.loss(short), /arrays of \[2, 4\]/, 'even where no label counts');
});

onEachBackend(test, 'a key-value cache gives what the whole sequence gives', (backend) => {
  forTinyCases(10, (c) => {
    using model = tinyModel(c.settings, backend);
    const prompt = Array.from(tinyBatch(3, [4], c.settings.vocab).inputIds);
    const options = { maxNewTokens: 8 };
    const cached = [...generate(model, prompt, options)];
    const whole = [...generate(model, prompt, { ...options, useCache: false })];
    assert.equal(cached, whole);
    assert.is(cached.length, 8);
  });
});

onEachBackend(test, 'a cache that is full, or meets a gap, is an error', (backend) => {
  using model = tinyModel(TINY, backend);
  using cache = model.makeCache(1, 3);
  const step = (n: number) => () =>
    noGrad(() =>
      scope(() =>
        model.lastLogits({ inputIds: new Int32Array(n), batch: 1, length: n }, cache).bytes(),
      ),
    );
  step(2)();
  assert.throws(step(2), /\[model\] expected at most 3 positions, received 4/);
  step(1)();
  assert.throws(step(1), /at most 3 positions/);
  using other = model.makeCache(2, 8);
  const padded = tinyBatch(1, [3, 2], TINY.vocab);
  scope(() => model.lastLogits(padded, other));
  assert.throws(() => scope(() => model.lastLogits(padded, other)), /padding before the tokens/);
  assert.throws(() => scope(() => model.lastLogits(padded, cache)), /expected 1 rows/);
});

test.run();
