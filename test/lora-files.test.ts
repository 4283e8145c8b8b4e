import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { SafetensorsFile, writeSafetensors } from '../src/io/safetensors.js';
import {
  baseFingerprint,
  LoraAdapters,
  loadAdapter,
  readAdapterConfig,
  saveAdapter,
} from '../src/lora/index.js';
import type { SequenceClassifier } from '../src/models/classifier.js';
import { buildModel } from '../src/models/load.js';
import { tensor } from '../src/tensor/create.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, reference } from './backends.js';
import { encoderConfig } from './support/classifier.js';
import { withFolder } from './support/temp.js';
import {
  forTinyCases,
  logitBytes,
  randomize,
  sameBytes,
  snapshot,
  TINY,
  tinyBatch,
  tinyModel,
  tinySource,
} from './support/tiny.js';

const CONFIG = 'adapter_config.json';
const WEIGHTS = 'adapter_model.safetensors';

/** f32 bit patterns that careless copies change. */
const DELICATE = [
  0x80000000, 0x7fc00001, 0x7f800001, 0xffc12345, 0xff800000, 0x7f800000, 0x00000001, 0x807fffff,
];

onEachBackend(test, 'saved and loaded: every bit, NaN payloads and −0 included', (backend) => {
  forTinyCases(15, (c) => {
    const config = { rank: c.rank, alpha: c.alpha, targetModules: c.targets };
    withFolder((dir) => {
      using model = tinyModel(c.settings, backend);
      using adapters = new LoraAdapters(model);
      adapters.add('a', config, 1);
      randomize(adapters, 'a', 2);
      let n = 0;
      for (const t of adapters.tensors('a').values()) {
        const words = new Uint32Array(t.bytes().buffer);
        for (let i = 0; i < words.length; i += 3)
          words[i] = DELICATE[n++ % DELICATE.length] as number;
        t.setBytes(new Uint8Array(words.buffer));
      }
      const before = snapshot(adapters.tensors('a'));
      saveAdapter(adapters, 'a', dir);
      assert.equal(readdirSync(dir).sort(), [CONFIG, WEIGHTS], 'no temporary file is left');
      using other = tinyModel(c.settings, backend);
      using loaded = new LoraAdapters(other);
      loadAdapter(loaded, 'b', dir);
      assert.equal(snapshot(loaded.tensors('b')), before);
      const { rank, alpha } = loaded.config('b');
      assert.equal({ rank, alpha }, { rank: c.rank, alpha: c.alpha });
      const again = join(dir, 'again');
      saveAdapter(loaded, 'b', again);
      for (const f of [CONFIG, WEIGHTS]) {
        assert.ok(readFileSync(join(again, f)).equals(readFileSync(join(dir, f))), f);
      }
    });
  });
});

onEachBackend(
  test,
  'a loaded adapter answers what the saved one did, and can train on',
  (backend) => {
    forTinyCases(15, (c) => {
      const config = { rank: c.rank, alpha: c.alpha, targetModules: c.targets };
      const batch = tinyBatch(1, c.lengths, c.settings.vocab);
      withFolder((dir) => {
        using model = tinyModel(c.settings, backend);
        using adapters = new LoraAdapters(model);
        adapters.add('a', config, 1);
        randomize(adapters, 'a', 2);
        saveAdapter(adapters, 'a', dir);
        loadAdapter(adapters, 'b', dir);
        assert.is(adapters.active, 'b');
        const loaded = logitBytes(model, batch);
        adapters.setActive('a');
        assert.ok(sameBytes(loaded, logitBytes(model, batch)));
        for (const t of adapters.tensors('b').values()) {
          assert.is(t.requiresGrad, false);
          assert.is(t.storage.purpose, 'frozen');
        }
        adapters.setTrainable('b', true);
        for (const t of adapters.tensors('b').values()) {
          assert.is(t.requiresGrad, true);
          assert.is(t.storage.purpose, 'trainable');
        }
      });
    });
  },
);

/** A saved adapter of q_proj and v_proj in `dir`, and a fresh model to load it into. */
function withSaved(body: (dir: string, adapters: LoraAdapters) => void): void {
  withFolder((dir) => {
    using model = tinyModel(TINY, reference);
    using adapters = new LoraAdapters(model);
    adapters.add('saved', { rank: 2, alpha: 6, targetModules: ['q_proj', 'v_proj'] }, 1);
    saveAdapter(adapters, 'saved', dir, 'some/base');
    adapters.remove('saved');
    body(dir, adapters);
  });
}

function editConfig(dir: string, changes: Record<string, unknown>): void {
  const path = join(dir, CONFIG);
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), ...changes }));
}

/** Rewrites the weights, with tensors dropped (null), replaced or added. */
function editWeights(dir: string, changes: Record<string, Tensor | null>): void {
  const file = SafetensorsFile.open(join(dir, WEIGHTS));
  const tensors = new Map<string, Tensor>();
  for (const name of file.tensors.keys())
    tensors.set(name, file.load(name, { backend: reference }));
  for (const [name, t] of Object.entries(changes)) {
    if (t) tensors.set(name, t);
    else assert.ok(tensors.delete(name), name);
  }
  writeSafetensors(join(dir, WEIGHTS), tensors);
  for (const t of tensors.values()) t.dispose();
}

const KEY = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight';

test('the configuration that is written is the one PEFT reads', () => {
  withSaved((dir) => {
    const json = JSON.parse(readFileSync(join(dir, CONFIG), 'utf8'));
    assert.is(json.peft_type, 'LORA');
    assert.is(json.task_type, 'CAUSAL_LM');
    assert.is(json.r, 2);
    assert.is(json.lora_alpha, 6);
    assert.is(json.base_model_name_or_path, 'some/base');
    assert.is(json.bias, 'none');
    assert.equal(json.target_modules, ['q_proj', 'v_proj']);
    assert.equal(readAdapterConfig(dir), {
      rank: 2,
      alpha: 6,
      dropout: 0,
      targetModules: ['q_proj', 'v_proj'],
      init: 'kaiming',
    });
  });
});

test('presets are written as the layers they chose: PEFT knows none of ours', () => {
  const expected = {
    qv: ['q_proj', 'v_proj'],
    attention: ['k_proj', 'o_proj', 'q_proj', 'v_proj'],
    'all-linear': ['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj'],
  };
  for (const [preset, names] of Object.entries(expected)) {
    withFolder((dir) => {
      using model = tinyModel(TINY, reference);
      using adapters = new LoraAdapters(model);
      adapters.add('a', { rank: 1, targetModules: [preset] }, 1);
      saveAdapter(adapters, 'a', dir);
      const written = JSON.parse(readFileSync(join(dir, CONFIG), 'utf8')).target_modules;
      assert.equal([...written].sort(), names, preset);
      loadAdapter(adapters, 'again', dir);
      assert.equal(
        [...adapters.tensors('again').keys()],
        [...adapters.tensors('a').keys()],
        'the same layers',
      );
    });
  }
});

test('settings that change the arithmetic and are not supported are refused by name', () => {
  const unsupported: Record<string, unknown> = {
    alora_invocation_tokens: [1],
    use_qalora: true,
    ensure_weight_tying: true,
    target_parameters: ['x'],
    layer_replication: [[0, 2]],
    init_lora_weights: 'pissa_niter_4',
    lora_ga_config: { scale: 'stable' },
  };
  for (const [key, value] of Object.entries(unsupported)) {
    withSaved((dir, adapters) => {
      editConfig(dir, { [key]: value });
      assert.throws(() => loadAdapter(adapters, 'x', dir), new RegExp(`${key}.*received`), key);
      assert.equal(adapters.names(), []);
    });
  }
});

test('settings that only the start of training reads are accepted', () => {
  for (const value of [true, false, 'gaussian', 'orthogonal', 'eva']) {
    withSaved((dir, adapters) => {
      editConfig(dir, { init_lora_weights: value, inference_mode: false, revision: 'main' });
      loadAdapter(adapters, 'x', dir);
      assert.is(adapters.config('x').rank, 2);
    });
  }
});

test('a configuration without rank, alpha or targets, or of another kind, is refused', () => {
  const wrong: [Record<string, unknown>, RegExp][] = [
    [{ r: undefined }, /adapter .* expected r\b.*received nothing/],
    [{ lora_alpha: undefined }, /expected lora_alpha\b.*received nothing/],
    [{ r: 0 }, /rank\].*received 0/],
    [{ r: 2.5 }, /rank\].*received 2.5/],
    [{ r: '2' }, /expected r\b.*"2"/],
    [{ lora_alpha: 'x' }, /expected lora_alpha\b.*"x"/],
    [{ lora_dropout: 1 }, /dropout\].*received 1/],
    [{ target_modules: null }, /target_modules/],
    [{ target_modules: [] }, /targetModules\].*none/],
    [{ target_modules: [3] }, /target_modules/],
    [{ target_modules: ['qproj'] }, /"qproj", which matches none. Nearest: q_proj/],
    [{ peft_type: 'IA3' }, /expected peft_type LORA, received "IA3"/],
  ];
  for (const [change, message] of wrong) {
    withSaved((dir, adapters) => {
      editConfig(dir, change);
      assert.throws(() => loadAdapter(adapters, 'x', dir), message);
      assert.equal(adapters.names(), []);
    });
  }
});

test('tensors that are missing, surplus or of another shape are all listed', () => {
  withSaved((dir, adapters) => {
    const t = (shape: number[]) =>
      tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)), shape, { backend: reference });
    editWeights(dir, {
      [KEY]: null,
      [KEY.replace('q_proj', 'v_proj')]: t([3, 8]),
      [KEY.replace('layers.0', 'layers.9')]: t([2, 8]),
      [KEY.replace('q_proj', 'k_proj')]: t([2, 8]),
    });
    let message = '';
    try {
      loadAdapter(adapters, 'x', dir);
    } catch (error) {
      message = (error as Error).message;
    }
    assert.match(message, /4 problems/);
    assert.match(message, `missing ${KEY} [2, 8]`);
    assert.match(message, `${KEY.replace('q_proj', 'v_proj')}: expected [2, 8], received [3, 8]`);
    assert.match(message, `surplus ${KEY.replace('layers.0', 'layers.9')} (nearest: ${KEY})`);
    assert.match(message, `surplus ${KEY.replace('q_proj', 'k_proj')}`);
    assert.equal(adapters.names(), []);
    assert.is(
      [...adapters.model.namedParameters()].some(([n]) => n.includes('.base.')),
      false,
    );
  });
});

test('an adapter of another model is refused whole', () => {
  withSaved((dir) => {
    using model = tinyModel({ ...TINY, hidden: 6 }, reference);
    using adapters = new LoraAdapters(model);
    assert.throws(() => loadAdapter(adapters, 'x', dir), /expected \[2, 6\], received \[2, 8\]/);
    using shallow = tinyModel({ ...TINY, layers: 1 }, reference);
    using fewer = new LoraAdapters(shallow);
    assert.throws(() => loadAdapter(fewer, 'x', dir), /surplus .*layers\.1/);
  });
});

test('narrow adapter files are widened exactly', () => {
  withSaved((dir, adapters) => {
    const values = [1.5, -0.25, 3, 0.0078125, -0, 65280, 2 ** -14, -7];
    const wide = tensor([...values, ...values], [2, 8], { backend: reference, dtype: 'bf16' });
    editWeights(dir, { [KEY]: wide });
    loadAdapter(adapters, 'x', dir);
    const a = adapters.tensors('x').get(KEY) as Tensor;
    assert.is(a.dtype, 'f32');
    assert.equal(a.toNumbers(), [...values, ...values]);
    assert.ok(Object.is(a.toNumbers()[4], -0));
  });
});

test('a failed save leaves the old adapter in place', () => {
  withSaved((dir, adapters) => {
    const before = readFileSync(join(dir, WEIGHTS));
    loadAdapter(adapters, 'x', dir);
    randomize(adapters, 'x', 3);
    for (const t of adapters.tensors('x').values()) t.dispose();
    assert.throws(() => saveAdapter(adapters, 'x', dir), /disposed/);
    assert.ok(readFileSync(join(dir, WEIGHTS)).equals(before));
    assert.equal(readdirSync(dir).sort(), [CONFIG, WEIGHTS]);
    assert.throws(() => saveAdapter(adapters, 'y', dir), /"y". There are: x/);
  });
});

/** What a function writes to stderr through the console. */
function errorsOf(fn: () => void): string {
  const { error } = console;
  const lines: string[] = [];
  console.error = (...words: unknown[]) => void lines.push(words.join(' '));
  try {
    fn();
  } finally {
    console.error = error;
  }
  return lines.join('\n');
}

onEachBackend(test, 'an adapter of another base of the same shapes warns loudly', (backend) => {
  withFolder((dir) => {
    const warning = (settings: Partial<typeof TINY>) => {
      using model = tinyModel({ ...TINY, ...settings }, backend);
      using adapters = new LoraAdapters(model);
      return errorsOf(() => loadAdapter(adapters, 'x', dir));
    };
    using model = tinyModel({ ...TINY, dtype: 'bf16' }, backend);
    using adapters = new LoraAdapters(model);
    adapters.add('a', { rank: 2, targetModules: ['q_proj'] }, 1);
    saveAdapter(adapters, 'a', dir);
    assert.is(warning({ dtype: 'bf16' }), '', 'the same base');
    assert.is(warning({}), '', 'the same, not rounded to bf16');
    const other = warning({ seed: 2 });
    assert.match(other, /WARNING: the adapter .* was trained on another base/);
    assert.match(other, /it records sha256:[0-9a-f]{64}, this base has sha256:[0-9a-f]{64}/);
    // PEFT's adapters record no base.
    editWeights(dir, {});
    assert.is(warning({ seed: 2 }), '');
  });
});

test('the base’s hash leaves out what the adapter holds whole', () => {
  withFolder((dir) => {
    using model = tinyModel(TINY, reference);
    using adapters = new LoraAdapters(model);
    adapters.add('a', { targetModules: ['q_proj'], modulesToSave: ['lm_head'] }, 1);
    saveAdapter(adapters, 'a', dir);
    using other = tinyModel(TINY, reference);
    const head = [...other.namedParameters()].find(([n]) => n === 'lm_head.weight')?.[1] as Tensor;
    head.setBytes(new Uint8Array(head.byteLength));
    using loaded = new LoraAdapters(other);
    assert.is(
      errorsOf(() => loadAdapter(loaded, 'x', dir)),
      '',
    );
    assert.not.equal(
      baseFingerprint(loaded.baseParameters()),
      baseFingerprint(adapters.baseParameters()),
    );
  });
});

test('an unknown key is told of once in a process', () => {
  withSaved((dir, adapters) => {
    editConfig(dir, { some_new_key: 1 });
    assert.match(
      errorsOf(() => loadAdapter(adapters, 'x', dir)),
      /unknown key "some_new_key" is ignored/,
    );
    assert.is(
      errorsOf(() => loadAdapter(adapters, 'y', dir)),
      '',
    );
  });
});

test('a table of the base that came along must be the base’s', () => {
  withFolder((dir) => {
    using model = tinyModel(TINY, reference);
    using adapters = new LoraAdapters(model);
    adapters.add('a', { rank: 1, targetModules: ['embed_tokens', 'q_proj'] }, 1);
    saveAdapter(adapters, 'a', dir);
    const key = 'base_model.model.model.embed_tokens.base_layer.weight';
    assert.ok(SafetensorsFile.open(join(dir, WEIGHTS)).tensors.has(key), 'as PEFT writes it');
    loadAdapter(adapters, 'b', dir);
    editWeights(dir, {
      [key]: tensor(new Float32Array(13 * 8), [13, 8], { backend: reference }),
    });
    assert.throws(() => loadAdapter(adapters, 'c', dir), /base_layer\.weight: a table of the base/);
    editWeights(dir, { [key]: null });
    loadAdapter(adapters, 'c', dir);
    assert.equal(snapshot(adapters.tensors('c')), snapshot(adapters.tensors('a')));
  });
});

test('modules that PEFT’s rule took beyond ours are read, and written by its names again', () => {
  withFolder((dir) => {
    using model = tinyModel(TINY, reference);
    using adapters = new LoraAdapters(model);
    const norms = [0, 1].flatMap((i) =>
      ['input_layernorm', 'post_attention_layernorm'].map((n) => `model.layers.${i}.${n}`),
    );
    const config = { targetModules: ['q_proj'], modulesToSave: ['norm', ...norms] };
    adapters.add('a', config, 1);
    saveAdapter(adapters, 'a', dir);
    editConfig(dir, { modules_to_save: ['norm'] });
    loadAdapter(adapters, 'b', dir);
    assert.equal([...adapters.tensors('b').keys()], [...adapters.tensors('a').keys()]);
    saveAdapter(adapters, 'b', join(dir, 'again'));
    const json = JSON.parse(readFileSync(join(dir, 'again', CONFIG), 'utf8'));
    assert.equal(json.modules_to_save, ['norm']);
    // Our own "norm" alone is spelled so that PEFT takes no other.
    adapters.add('c', { targetModules: ['q_proj'], modulesToSave: ['norm'] }, 1);
    saveAdapter(adapters, 'c', dir);
    const own = JSON.parse(readFileSync(join(dir, CONFIG), 'utf8'));
    assert.equal(own.modules_to_save, ['model.norm']);
  });
});

test('biases of a head saved whole are written as often as PEFT does, and read so', () => {
  withFolder((dir) => {
    const config = encoderConfig({ type: 'roberta', labels: ['a', 'b'] });
    using model = buildModel(config, tinySource(TINY, reference)) as SequenceClassifier;
    using adapters = new LoraAdapters(model);
    const base = adapters.baseParameters().get('classifier.dense.bias')?.bytes() as Uint8Array;
    adapters.add('a', { targetModules: ['query'], bias: 'all' }, 1);
    randomize(adapters, 'a', 1);
    saveAdapter(adapters, 'a', dir);
    const own = adapters.tensors('a');
    const written = SafetensorsFile.open(join(dir, WEIGHTS));
    const head = (end: string) => `base_model.model.classifier.${end}`;
    const bytes = (key: string) => {
      using t = written.load(key, { backend: reference, dtype: 'f32' });
      return t.bytes();
    };
    for (const part of ['dense', 'out_proj']) {
      const trained = own.get(head(`${part}.bias`))?.bytes() as Uint8Array;
      assert.ok(sameBytes(bytes(head(`modules_to_save.default.${part}.bias`)), trained));
    }
    assert.ok(sameBytes(bytes(head('original_module.dense.bias')), base));
    assert.is(written.tensors.size, own.size + 4);
    loadAdapter(adapters, 'b', dir);
    assert.equal(snapshot(adapters.tensors('b')), snapshot(own));
    // PEFT under another name, and one whose two copies differ.
    const second = written.load(head('modules_to_save.default.dense.bias'), { backend: reference });
    editWeights(dir, {
      [head('modules_to_save.default.dense.bias')]: null,
      [head('modules_to_save.mine.dense.bias')]: second,
    });
    loadAdapter(adapters, 'c', dir);
    const other = tensor(new Float32Array(second.size), second.shape, { backend: reference });
    editWeights(dir, { [head('modules_to_save.mine.dense.bias')]: other });
    assert.throws(() => loadAdapter(adapters, 'd', dir), /expected the numbers of .*dense\.bias/);
  });
});

test('missing files are errors with the file’s name', () => {
  withFolder((dir) => {
    using model = tinyModel(TINY, reference);
    using adapters = new LoraAdapters(model);
    assert.throws(() => loadAdapter(adapters, 'x', join(dir, 'none')), /adapter_config\.json/);
    writeFileSync(join(dir, CONFIG), '{');
    assert.throws(() => loadAdapter(adapters, 'x', dir), /adapter_config\.json/);
    writeFileSync(
      join(dir, CONFIG),
      JSON.stringify({ peft_type: 'LORA', r: 1, lora_alpha: 1, target_modules: ['q_proj'] }),
    );
    assert.throws(() => loadAdapter(adapters, 'x', dir), /adapter_model\.safetensors/);
  });
});

test('readAdapterConfig gives back what was saved, for any settings', () => {
  using model = tinyModel(TINY, reference);
  using adapters = new LoraAdapters(model);
  const settings = fc.record({
    rank: fc.integer({ min: 1, max: 4 }),
    alpha: fc.double({ min: -100, max: 100, noNaN: true }).filter((alpha) => alpha !== 0),
    dropout: fc.double({ min: 0, max: 0.99, noNaN: true }),
    init: fc.constantFrom('kaiming' as const, 'gaussian' as const),
  });
  fc.assert(
    fc.property(settings, (s) => {
      withFolder((dir) => {
        const config = { ...s, targetModules: ['up_proj', 'o_proj'] };
        adapters.add('a', config, 1);
        saveAdapter(adapters, 'a', dir);
        adapters.remove('a');
        assert.equal(readAdapterConfig(dir), {
          ...config,
          alpha: s.alpha + 0,
          dropout: s.dropout + 0,
        });
      });
    }),
    { numRuns: 20 },
  );
});

test.run();
