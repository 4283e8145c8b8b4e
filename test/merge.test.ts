import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { openCheckpoint } from '../src/io/checkpoint.js';
import { SafetensorsFile } from '../src/io/safetensors.js';
import { LoraAdapters, loadAdapter } from '../src/lora/index.js';
import type { CausalLM } from '../src/models/causal-lm.js';
import { openModel } from '../src/models/load.js';
import { type MergeOptions, mergeAdapters } from '../src/models/merge.js';
import { numberToBf16 } from '../src/tensor/dtype.js';
import { onEachBackend, onNative, reference } from './backends.js';
import { numbersOf, writeAdapter, writeCompanions, writeModel } from './support/merge-dirs.js';
import { logitsOf, relativeDifference, TINY, tinyBatch, tinyConfig } from './support/tiny.js';

let root = '';
const at = (name: string) => join(root, name);
test.before.each(() => {
  root = mkdtempSync(join(tmpdir(), 'lowrank-merge-'));
});
test.after.each(() => rmSync(root, { recursive: true, force: true }));

const Q = 'model.layers.0.self_attn.q_proj';
const HEAD = 'lm_head.weight';
const TABLE = 'model.embed_tokens.weight';
const BATCH = tinyBatch(3, [6, 4], TINY.vocab);

const merge = (adapters: MergeOptions['adapters'], more: Partial<MergeOptions> = {}) =>
  mergeAdapters({
    ...{ modelDir: at('model'), adapters, out: at('out'), backend: reference },
    ...more,
  });

/** W + Σ weight·scaling·B A of one layer, in float64 from the files. */
function expected(base: string, layer: string, parts: [dir: string, share: number][]): number[] {
  const sum = numbersOf(base, `${layer}.weight`);
  for (const [dir, share] of parts) {
    const file = SafetensorsFile.open(join(dir, 'adapter_model.safetensors'));
    const read = (part: string) => {
      const name = `base_model.model.${layer}.${part}.weight`;
      const bytes = file.bytes(name);
      return { v: new Float32Array(bytes.buffer), shape: file.entry(name).shape };
    };
    const a = read('lora_A');
    const b = read('lora_B');
    const [rank, inner] = a.shape as [number, number];
    for (let o = 0; o < (b.shape[0] as number); o++) {
      for (let i = 0; i < inner; i++) {
        for (let r = 0; r < rank; r++) {
          sum[o * inner + i] =
            (sum[o * inner + i] as number) +
            share * (b.v[o * rank + r] as number) * (a.v[r * inner + i] as number);
        }
      }
    }
  }
  return sum;
}

function logits(dir: string, adapter?: string): Float32Array {
  using model = openModel(dir, { task: 'causal-lm', backend: reference, untied: true });
  if (adapter) loadAdapter(new LoraAdapters(model), 'a', adapter);
  return logitsOf(model as CausalLM, BATCH);
}

const json = (path: string) => JSON.parse(readFileSync(path, 'utf8'));

onEachBackend(test, 'adapters add up by weight; all else keeps its bytes', (backend) => {
  const before = backend.memory();
  const model = writeModel(at('model'));
  const style = writeAdapter(at('style'), model, { rank: 2, alpha: 6, targetModules: ['qv'] }, 1);
  const facts = writeAdapter(
    at('facts'),
    model,
    { rank: 3, alpha: 3, targetModules: ['q_proj', 'up_proj'] },
    2,
  );
  const seen: string[] = [];
  const result = merge([style, { dir: facts, weight: -0.5 }], {
    backend,
    onTensor: ({ name, tensor, bytes, totalBytes }) => {
      assert.is(tensor, seen.length);
      assert.ok(bytes < totalBytes);
      seen.push(name);
    },
  });
  const { tensors } = openCheckpoint(model);
  assert.equal([...openCheckpoint(at('out')).tensors.keys()].sort(), [...tensors.keys()].sort());
  assert.equal(seen.sort(), [...tensors.keys()].sort());
  assert.is(result.changed, 6);
  assert.is(result.tensors, tensors.size);
  assert.equal(result.weights, ['model.safetensors']);
  assert.is(result.untied, false);
  // 3 = 6 / 2 is the first one's scaling, 1 the second's.
  const want = expected(model, Q, [
    [style, 3],
    [facts, -0.5],
  ]);
  assert.ok(relativeDifference(numbersOf(at('out'), `${Q}.weight`), want) < 1e-6);
  for (const name of [TABLE, HEAD, 'model.layers.1.self_attn.o_proj.weight']) {
    assert.equal(openCheckpoint(at('out')).bytes(name), openCheckpoint(model).bytes(name), name);
  }
  const after = backend.memory();
  assert.is(after.handles, before.handles, 'all is freed');
  assert.is(after.total, before.total);
});

test('another storage is rounded to once, from the f32 sum', () => {
  const model = writeModel(at('model'), { dtype: 'f16' });
  const adapter = writeAdapter(at('a'), model, { rank: 2, targetModules: ['q_proj'] }, 1);
  merge([adapter], { dtype: 'f32', out: at('wide') });
  merge([adapter], { dtype: 'bf16', out: at('narrow') });
  const wide = numbersOf(at('wide'), `${Q}.weight`);
  const bits = openCheckpoint(at('narrow')).bytes(`${Q}.weight`);
  assert.equal(new Uint16Array(bits.buffer), Uint16Array.from(wide, numberToBf16));
  assert.is(json(at('narrow/config.json')).dtype, 'bfloat16');
  assert.is(json(at('wide/config.json')).dtype, 'float32');
  merge([adapter], { out: at('own') });
  assert.ok([...openCheckpoint(at('own')).tensors.values()].every((t) => t.dtype === 'F16'));
});

test('config.json: the old spelling of the dtype follows, all else stays', () => {
  const config = { ...tinyConfig(TINY), torch_dtype: 'float32', custom: { deep: [1, null] } };
  const model = writeModel(at('model'), {}, config);
  const adapter = writeAdapter(at('a'), model, { rank: 1, targetModules: ['q_proj'] }, 1);
  merge([adapter], { dtype: 'f16' });
  assert.equal(json(at('out/config.json')), {
    ...config,
    dtype: 'float16',
    torch_dtype: 'float16',
  });
});

test('shards by size, with an index, hold the same tensors', () => {
  const model = writeModel(at('model'));
  const adapter = writeAdapter(at('a'), model, { rank: 2, targetModules: ['all-linear'] }, 1);
  merge([adapter], { out: at('one') });
  const { weights, bytes } = merge([adapter], { maxShardBytes: 1500 });
  assert.ok(weights.length > 3);
  assert.is(weights.at(-1), 'model.safetensors.index.json');
  assert.match(weights[0] as string, /^model-00001-of-0000\d\.safetensors$/);
  const index = json(at('out/model.safetensors.index.json'));
  assert.is(index.metadata.total_size, bytes);
  assert.is(index.metadata.total_parameters, bytes / 4);
  const one = openCheckpoint(at('one'));
  const many = openCheckpoint(at('out'));
  assert.equal(Object.keys(index.weight_map), [...one.tensors.keys()].sort());
  for (const name of one.tensors.keys()) assert.equal(many.bytes(name), one.bytes(name), name);
  for (const file of many.files) assert.ok(file.fileBytes < 1500 + 1024);
});

test('a tied head that an adapter changes is untied; one it leaves stays tied', () => {
  const model = writeModel(at('model'), { tied: true });
  const plain = writeAdapter(at('plain'), model, { rank: 2, targetModules: ['q_proj'] }, 1);
  const head = writeAdapter(at('head'), model, { rank: 2, targetModules: ['lm_head'] }, 2);
  const table = writeAdapter(
    at('table'),
    model,
    { rank: 2, targetModules: ['q_proj'], modulesToSave: ['embed_tokens'] },
    3,
  );
  assert.is(merge([plain]).untied, false);
  assert.not.ok(openCheckpoint(at('out')).has(HEAD));
  assert.is(json(at('out/config.json')).tie_word_embeddings, true);
  const old = openCheckpoint(model).bytes(TABLE);
  for (const adapter of [head, table]) {
    const result = merge([adapter]);
    assert.is(result.untied, true);
    const out = openCheckpoint(at('out'));
    assert.is(out.config.tie_word_embeddings, false);
    const [changed, same] = adapter === head ? [HEAD, TABLE] : [TABLE, HEAD];
    assert.equal(out.bytes(same), old);
    assert.not.equal(out.bytes(changed), old);
    assert.ok(relativeDifference(logits(at('out')), logits(model, adapter)) < 1e-5);
  }
});

const BERT = {
  architectures: ['BertForSequenceClassification'],
  model_type: 'bert',
  hidden_size: 8,
  num_attention_heads: 2,
  num_hidden_layers: 1,
  intermediate_size: 12,
  vocab_size: 13,
  max_position_embeddings: 14,
  type_vocab_size: 2,
  pad_token_id: 0,
  id2label: { 0: 'a', 1: 'b', 2: 'c' },
};

test('modules held whole replace the base’s: weight 1 only, and from one adapter', () => {
  const model = writeModel(at('model'), {}, BERT);
  const make = (name: string, seed: number) =>
    writeAdapter(at(name), model, { rank: 1, targetModules: ['query'] }, seed);
  const [a, b] = [make('a', 1), make('b', 2)];
  assert.is(merge([a]).changed, 3);
  const file = SafetensorsFile.open(join(a, 'adapter_model.safetensors'));
  assert.equal(
    openCheckpoint(at('out')).bytes('classifier.weight'),
    file.bytes('base_model.model.classifier.weight'),
  );
  rmSync(at('out'), { recursive: true });
  assert.throws(
    () => merge([{ dir: a, weight: 0.5 }]),
    /weight 1, as it holds classifier\.\w+ whole \(modules_to_save\), received 0\.5\. A module in/,
  );
  assert.throws(
    () => merge([a, b]),
    /one adapter that holds classifier\.\w+ whole .*\/a and .*\/b\. Each/,
  );
  assert.not.ok(existsSync(at('out')));
});

test('a head that the base does not have comes from the adapter, with its labels', () => {
  const model = writeModel(at('whole'), {}, BERT);
  const adapter = writeAdapter(at('a'), model, { rank: 1, targetModules: ['query'] }, 1);
  writeFileSync(
    join(adapter, 'labels.json'),
    JSON.stringify({ id2label: { 0: 'no', 1: 'maybe', 2: 'yes' }, problem_type: null }),
  );
  // The same encoder as it comes before any classifier.
  const { architectures: _, id2label: __, ...bare } = BERT;
  const config = { ...bare, architectures: ['BertForMaskedLM'] };
  using encoder = openModel(model, { backend: reference });
  const tensors = [...encoder.namedParameters()].filter(([n]) => !n.startsWith('classifier.'));
  writeModel(at('model'), {}, BERT, { tensors: new Map(tensors), config });
  merge([adapter]);
  const out = openCheckpoint(at('out'));
  assert.equal(out.config.architectures, ['BertForSequenceClassification']);
  assert.equal(out.config.id2label, { 0: 'no', 1: 'maybe', 2: 'yes' });
  const file = SafetensorsFile.open(join(adapter, 'adapter_model.safetensors'));
  assert.equal(out.bytes('classifier.weight'), file.bytes('base_model.model.classifier.weight'));
  // Without a pooler the base leaves numbers open that this adapter does not hold.
  const short = tensors.filter(([n]) => !n.includes('pooler'));
  rmSync(at('model'), { recursive: true });
  writeModel(at('model'), {}, BERT, { tensors: new Map(short), config });
  assert.throws(
    () => merge([adapter]),
    /an adapter that holds pooler whole .*received no bert\.pool/,
  );
});

test('the base’s small files go along; weights, pickles, adapter and hidden files do not', () => {
  const model = writeModel(at('model'));
  const adapter = writeAdapter(at('a'), model, { rank: 1, targetModules: ['q_proj'] }, 1);
  const { kept, dropped } = writeCompanions(model);
  const { leftOut } = merge([adapter]);
  for (const name of kept) {
    assert.equal(readFileSync(at(`out/${name}`)), readFileSync(at(`model/${name}`)), name);
  }
  for (const name of dropped) assert.not.ok(existsSync(at(`out/${name}`)), name);
  assert.equal(leftOut, ['onnx/']);
  writeFileSync(at('secret'), 'x');
  symlinkSync(at('secret'), at('model/notes.txt'));
  assert.throws(
    () => merge([adapter]),
    /"notes\.txt" to lie in the model directory, received a link/,
  );
});

test('a merge that fails leaves nothing behind, and old files as they were', () => {
  const model = writeModel(at('model'));
  const fine = writeAdapter(at('fine'), model, { rank: 1, targetModules: ['q_proj'] }, 1);
  const huge = writeAdapter(at('huge'), model, { rank: 1, targetModules: ['v_proj'] }, 1, 3e30);
  const large = writeAdapter(at('large'), model, { rank: 1, targetModules: ['v_proj'] }, 1, 1e3);
  const refused =
    /\[merge\] expected finite weights, received NaN or Inf in model\.layers\.\d\.self/;
  assert.throws(() => merge([huge], { maxShardBytes: 1000 }), refused);
  assert.not.ok(existsSync(at('out')));
  merge([fine], { maxShardBytes: 2000 });
  const before = readdirSync(at('out')).map((n) => [n, readFileSync(at(`out/${n}`))]);
  assert.throws(() => merge([huge], { maxShardBytes: 1000 }), refused);
  assert.throws(
    () => merge([large], { dtype: 'f16' }),
    /Half floats end at 65504: try bf16 or f32/,
  );
  assert.equal(
    readdirSync(at('out')).map((n) => [n, readFileSync(at(`out/${n}`))]),
    before,
  );
  merge([large], { dtype: 'bf16' });
  assert.equal(readdirSync(at('out')).sort(), ['config.json', 'model.safetensors']);
});

test('a NaN in the base is refused, wherever it is', () => {
  const model = writeModel(at('model'));
  const adapter = writeAdapter(at('a'), model, { rank: 1, targetModules: ['q_proj'] }, 1);
  const path = join(model, 'model.safetensors');
  const file = readFileSync(path);
  const { byteOffset } = SafetensorsFile.open(path).entry('model.norm.weight');
  file.writeUInt32LE(0x7fc00000, byteOffset);
  writeFileSync(path, file);
  assert.throws(
    () => merge([adapter]),
    /finite weights, received NaN or Inf in model\.norm\.weight/,
  );
  assert.not.ok(existsSync(at('out')));
});

test('misuse is refused before anything is written', () => {
  const model = writeModel(at('model'));
  const adapter = writeAdapter(at('a'), model, { rank: 1, targetModules: ['q_proj'] }, 1);
  assert.throws(() => merge([]), /at least one adapter, received none/);
  assert.throws(() => merge([adapter, `${adapter}/`]), /each adapter once.*Give it once/);
  for (const weight of [0, Number.NaN, Number.POSITIVE_INFINITY]) {
    assert.throws(() => merge([{ dir: adapter, weight }]), /a finite weight other than 0/);
  }
  assert.throws(() => merge([adapter], { maxShardBytes: 0 }), /more than 0/);
  assert.throws(() => merge([at('none')]), /expected a file .*none, received none; .*PEFT adapter/);
  assert.not.ok(existsSync(at('out')));
  mkdirSync(at('out'));
  assert.throws(() => merge([adapter], { maxShardBytes: 0 }), /more than 0/);
  assert.equal(readdirSync(at('out')), []);
});

onNative(
  test,
  'a merge holds a few arrays of the largest layer at most, not a model',
  (backend) => {
    const settings = { layers: 6, hidden: 64, ffn: 96, dtype: 'bf16' as const };
    const model = writeModel(at('model'), settings);
    const adapter = writeAdapter(at('a'), model, { rank: 1, targetModules: ['all-linear'] }, 1);
    backend.resetPeak();
    const before = backend.memory();
    merge([adapter], { backend });
    const { peak, live, mapped } = backend.memory();
    const bytes = [...openCheckpoint(model).tensors.values()].map((t) => t.byteLength);
    const whole = bytes.reduce((n, b) => n + b, 0);
    const largest = 2 * Math.max(...bytes);
    // f32 sum, update and their sum; the adapter itself; nothing of the model but the mapped file.
    assert.ok(
      peak.activation - before.live.activation <= 4 * largest,
      `${peak.activation} ${largest}`,
    );
    const frozen = peak.frozen - before.live.frozen;
    assert.ok(frozen < whole + 16384 + 4 * largest, `${frozen} of ${whole}`);
    assert.is(mapped, before.mapped);
    assert.equal(live, before.live);
  },
);

test.run();
