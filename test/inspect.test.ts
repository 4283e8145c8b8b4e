// time-limit: 120
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { type WriteEntry, writeSafetensors } from '../src/io/safetensors.js';
import {
  type AdapterInspection,
  type FileInspection,
  inspect,
  type ModelInspection,
} from '../src/models/inspect.js';
import { modelTypes } from '../src/models/load.js';
import { events, inside } from './support/cli.js';

const test = suite('inspect');
const root = mkdtempSync(join(tmpdir(), 'lowrank-inspect-'));
test.after(() => rmSync(root, { recursive: true, force: true }));

const GOLDEN = 'test/golden/cases';
const BITS: Record<string, number> = { F32: 32, BF16: 16, F8_E4M3: 8, U8: 8, I64: 64 };

let folders = 0;
function folder(): string {
  const dir = join(root, `d${folders++}`);
  mkdirSync(dir);
  return dir;
}

type Tensors = Record<string, [dtype: string, ...shape: number[]]>;

/** Writes a file of zeros. */
function write(path: string, tensors: Tensors, metadata: Record<string, string> = {}): void {
  const entries = Object.entries(tensors).map(([name, [dtype, ...shape]]) => {
    const elements = shape.reduce((n, d) => n * d, 1);
    const bytes = () => new Uint8Array((elements * (BITS[dtype] as number)) / 8);
    return { name, dtype, shape, bytes } as WriteEntry;
  });
  writeSafetensors(path, entries, metadata);
}

function writeModel(config: Record<string, unknown>, tensors: Tensors): string {
  const dir = folder();
  writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
  write(join(dir, 'model.safetensors'), tensors);
  return dir;
}

function writeAdapter(config: Record<string, unknown>, tensors: Tensors): string {
  const dir = folder();
  const all = { peft_type: 'LORA', r: 4, lora_alpha: 8, target_modules: ['q_proj'], ...config };
  writeFileSync(join(dir, 'adapter_config.json'), JSON.stringify(all));
  write(join(dir, 'adapter_model.safetensors'), tensors);
  return dir;
}

const modelOf = async (dir: string) => (await inspect(dir)) as ModelInspection;
const adapterOf = async (dir: string) => (await inspect(dir)) as AdapterInspection;

test('a model says its shape, its dtypes and that it can be run', async () => {
  const m = await modelOf('assets/base');
  assert.is(m.kind, 'model');
  assert.equal([m.modelType, m.architectures], ['llama', ['LlamaForCausalLM']]);
  assert.equal([m.supported, m.reason], [true, undefined]);
  const shape = [m.layers, m.hidden, m.intermediate, m.heads, m.keyValueHeads, m.headSize];
  assert.equal(shape, [5, 192, 512, 6, 2, 32]);
  assert.equal([m.vocabulary, m.positions, m.tiedHead, m.labels], [4096, 256, true, null]);
  assert.equal(m.rope, { theta: 10000, type: 'default', factor: null });
  assert.is(m.parameters, 2_754_624);
  assert.equal(m.dtypes, [
    { dtype: 'BF16', tensors: 47, elements: m.parameters, bytes: 2 * m.parameters },
  ]);
  assert.equal([m.bytes, m.list], [2 * m.parameters, undefined]);
  assert.equal(
    m.files.map((f) => f.name),
    ['model.safetensors'],
  );
  assert.ok((m.files[0]?.bytes as number) > m.bytes);
});

test('scaled RoPE and windows in the new spelling, and every golden case, are read', async () => {
  const m = await modelOf(`${GOLDEN}/qwen3-window-yarn`);
  assert.equal(m.rope, { theta: 10000, type: 'yarn', factor: 4 });
  assert.equal([m.window, m.tiedHead, m.supported], [4, false, true]);
  const tied = await modelOf(`${GOLDEN}/llama-gqa-bias-tied`);
  assert.equal([tied.tiedHead, tied.supported], [true, true]);
});

test('neither buffers nor a stored copy of a tied head count as parameters', async () => {
  const config = { model_type: 'gpt2', architectures: ['GPT2LMHeadModel'], n_layer: 1, n_embd: 8 };
  const tensors: Tensors = {
    'wte.weight': ['F32', 10, 8],
    'lm_head.weight': ['F32', 10, 8],
    'h.0.attn.bias': ['U8', 1, 1, 4, 4],
    'h.0.attn.masked_bias': ['F32', 1],
    'h.0.attn.c_attn.bias': ['F32', 24],
  };
  const m = await modelOf(writeModel({ ...config, tie_word_embeddings: true }, tensors));
  assert.is(m.parameters, 10 * 8 + 24);
  assert.is(m.tensors, 5);
  const free = await modelOf(writeModel({ ...config, tie_word_embeddings: false }, tensors));
  assert.equal([free.parameters, free.tiedHead], [2 * 10 * 8 + 24, false]);
  const { 'lm_head.weight': _, ...rest } = tensors;
  assert.is((await modelOf(writeModel(config, rest))).tiedHead, true, 'what the tensors say');
});

test('a model that cannot be run is told with the reason, not refused', async () => {
  const unknown = await modelOf(
    writeModel(
      {
        model_type: 'mamba',
        architectures: ['MambaForCausalLM'],
        num_hidden_layers: 3,
        hidden_size: 16,
      },
      { 'backbone.x': ['F8_E4M3', 16, 16], 'backbone.y': ['BF16', 16] },
    ),
  );
  assert.is(unknown.supported, false);
  assert.match(unknown.reason as string, /model_type\] expected one of llama.*received "mamba"/);
  assert.equal([unknown.layers, unknown.hidden, unknown.heads, unknown.rope], [3, 16, null, null]);
  assert.equal(
    unknown.dtypes.map((d) => [d.dtype, d.elements, d.bytes]),
    [
      ['F8_E4M3', 256, 256],
      ['BF16', 16, 32],
    ],
  );

  const parts = await modelOf(
    writeModel(
      {
        model_type: 'gemma3',
        text_config: { num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4 },
        quantization_config: { quant_method: 'gptq' },
        num_local_experts: 8,
      },
      { w: ['F32', 1] },
    ),
  );
  assert.equal([parts.layers, parts.hidden, parts.headSize], [2, 32, 8]);
  assert.equal([parts.quantization, parts.experts, parts.supported], ['gptq', 8, false]);

  const config = JSON.parse(readFileSync('assets/base/config.json', 'utf8'));
  const odd = await modelOf(writeModel({ ...config, hidden_act: 'odd' }, { w: ['F32', 1] }));
  assert.is(odd.supported, false);
  assert.match(odd.reason as string, /hidden_act/);
  assert.ok(modelTypes().includes(odd.modelType as string));

  const strange = { model_type: 7, architectures: 'x', hidden_size: '16', rope_scaling: [] };
  const m = await modelOf(writeModel(strange, { w: ['F32', 1] }));
  assert.equal([m.modelType, m.hidden, m.rope, m.supported], [null, null, null, false]);
});

test('labels are those of a classifier', async () => {
  const config = { model_type: 'bert', id2label: { 0: 'no', 1: 'yes' } };
  const classifier = { ...config, architectures: ['BertForSequenceClassification'] };
  const m = await modelOf(writeModel(classifier, { w: ['F32', 1] }));
  assert.equal([m.labels, m.tiedHead], [['no', 'yes'], null]);
  const masked = { ...config, architectures: ['BertForMaskedLM'] };
  assert.is((await modelOf(writeModel(masked, { w: ['F32', 1] }))).labels, null);
});

test('shards are counted together, and tensors listed with their file', async () => {
  const dir = folder();
  const [a, b] = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'] as const;
  write(join(dir, a), { x: ['F32', 2, 3] });
  write(join(dir, b), { y: ['BF16', 4] });
  writeFileSync(join(dir, 'config.json'), '{"model_type": "llama"}');
  const index = { weight_map: { x: a, y: b } };
  writeFileSync(join(dir, 'model.safetensors.index.json'), JSON.stringify(index));
  const m = (await inspect(dir, { list: true })) as ModelInspection;
  assert.equal([m.parameters, m.bytes, m.files.length], [10, 32, 2]);
  assert.equal(m.list, [
    { name: 'x', dtype: 'F32', shape: [2, 3], bytes: 24, file: a },
    { name: 'y', dtype: 'BF16', shape: [4], bytes: 8, file: b },
  ]);
});

test('an adapter says its rank, scaling, layers and variants', async () => {
  const plain = await adapterOf(`${GOLDEN}/llama-mlp-bf16/adapter`);
  assert.equal([plain.kind, plain.peftType, plain.supported], ['adapter', 'LORA', true]);
  assert.equal(plain.variants, {});
  const config = JSON.parse(
    readFileSync(`${GOLDEN}/llama-mlp-bf16/adapter/adapter_config.json`, 'utf8'),
  );
  assert.is(plain.scaling, config.lora_alpha / config.r);
  assert.equal(plain.ranks, [config.r]);
  assert.equal(Object.keys(plain.layers).sort(), [...config.target_modules].sort());

  const dir = writeAdapter(
    {
      r: 16,
      lora_alpha: 8,
      use_rslora: true,
      lora_dropout: 0.1,
      rank_pattern: { k_proj$: 2 },
      init_lora_weights: 'pissa',
      loftq_config: {},
      modules_to_save: ['classifier'],
      base_model_name_or_path: 'org/base',
      lowrank_base: 'abc',
    },
    {
      'base_model.model.l.0.q_proj.lora_A.weight': ['F32', 16, 8],
      'base_model.model.l.0.q_proj.lora_B.weight': ['F32', 8, 16],
      'base_model.model.l.0.k_proj.lora_A.weight': ['F32', 2, 8],
      'base_model.model.l.0.k_proj.lora_B.weight': ['F32', 8, 2],
      'base_model.model.emb.lora_embedding_A': ['F32', 16, 10],
      'base_model.model.emb.lora_embedding_B': ['F32', 8, 16],
      'base_model.model.classifier.weight': ['F32', 2, 8],
    },
  );
  const a = await adapterOf(dir);
  assert.equal([a.rank, a.alpha, a.scaling, a.dropout], [16, 8, 2, 0.1]);
  assert.equal(a.ranks, [2, 16]);
  assert.equal(a.layers, { q_proj: 1, k_proj: 1, emb: 1 });
  assert.equal([a.baseModel, a.modulesToSave], ['org/base', ['classifier']]);
  assert.equal(a.variants, {
    use_rslora: true,
    rank_pattern: { k_proj$: 2 },
    init_lora_weights: 'pissa',
  });
  assert.is(a.parameters, 16 * 8 * 2 + 2 * 8 * 2 + 16 * 10 + 8 * 16 + 16);
});

test('an adapter of another method is told so; a pickled one has a way out', async () => {
  const other = await adapterOf(writeAdapter({ peft_type: 'IA3' }, { x: ['F32', 1] }));
  assert.equal([other.peftType, other.supported], ['IA3', false]);
  assert.match(other.reason as string, /peft_type LORA/);
  const dir = folder();
  writeFileSync(join(dir, 'adapter_config.json'), '{}');
  writeFileSync(join(dir, 'adapter_model.bin'), 'x');
  const message = await inspect(dir).then(String, String);
  assert.match(message, /received the pickle file adapter_model\.bin\. Pickle files can run/);
});

test('a file says its metadata and its tensors', async () => {
  const path = join(folder(), 'x.safetensors');
  write(path, { 'a.b': ['F32', 2, 2], c: ['I64', 3] }, { format: 'pt', note: 'long '.repeat(50) });
  const f = (await inspect(path)) as FileInspection;
  assert.equal([f.kind, f.tensors, f.elements, f.bytes], ['safetensors', 2, 7, 40]);
  assert.is(f.metadata.format, 'pt');
  const { stdout, code } = await inside('inspect', path, '--tensors');
  assert.is(code, 0);
  assert.match(stdout, /tensors {7}2 of 7 elements/);
  assert.match(stdout, /metadata {6}note: long long .*…$/m);
  assert.match(stdout, /^a\.b {2}F32 {2}\[2, 2\] {2}16 B$/m);
  assert.match(stdout, /^c {4}I64 {2}\[3\] {5}24 B$/m);
});

test('the command prints for people, and one object with --json', async () => {
  const shown = await inside('inspect', 'assets/base');
  assert.is(shown.code, 0, shown.stderr);
  for (const line of [
    /^assets\/base$/m,
    /architecture {2}LlamaForCausalLM \(llama\)/,
    /supported {5}yes/,
    /parameters {4}2,754,624 in 47 tensors/,
    /weights {7}5\.5 MB as BF16, model\.safetensors/,
    /shape {9}5 layers, hidden 192, MLP 512, 6 heads of 32, 2 of keys and values/,
    /vocabulary {4}4,096 tokens, head tied to the embedding/,
    /positions {5}256, RoPE of theta 10,000/,
  ]) {
    assert.match(shown.stdout, line);
  }
  const { stdout } = await inside('inspect', 'assets/base', '--json', '--tensors');
  const [done, ...more] = events(stdout) as [Record<string, unknown>];
  assert.equal(more, []);
  assert.equal([done.type, done.kind, done.parameters], ['done', 'model', 2_754_624]);
  assert.is((done.list as unknown[]).length, 47);

  const dir = writeAdapter({ use_dora: true }, { 'l.q_proj.lora_A.weight': ['F32', 4, 8] });
  const adapter = await inside('inspect', dir);
  assert.match(adapter.stdout, /rank {10}4\n {2}alpha {9}8 \(the update is scaled by 2\)/);
  assert.match(adapter.stdout, /targets {7}q_proj × 1\n {2}variants {6}use_dora/);
});

test('names in a file cannot steer the terminal', async () => {
  const path = join(folder(), 'x.safetensors');
  write(path, { 'a\u001b[31m': ['F32', 1] }, { '\u001b]0;title': 'x\nsupported yes' });
  const { stdout } = await inside('inspect', path, '--tensors');
  assert.not.match(stdout, '\u001b');
  assert.match(stdout, 'a\\u001b[31m');
  assert.match(stdout, '\\u001b]0;title: x\\u000asupported yes');
});

test('what is missing or malformed fails with the reader’s message, exit code 1', async () => {
  const broken = join(root, 'broken');
  cpSync(`${GOLDEN}/llama-mlp-bf16`, broken, { recursive: true });
  const weights = readFileSync(join(broken, 'model.safetensors'));
  writeFileSync(join(broken, 'model.safetensors'), weights.subarray(0, weights.length - 1));
  writeFileSync(join(root, 'text.safetensors'), 'version https://git-lfs.github.com/spec/v1\n');
  const empty = folder();
  const cases: [string, RegExp][] = [
    [broken, /\[safetensors .*broken\/model\.safetensors.*expected/],
    [join(root, 'text.safetensors'), /git-lfs pointer/],
    [empty, /\[checkpoint\] expected a file .*config\.json/],
    ['assets/base/config.json', /Give the directory that it lies in/],
    ['assets/base/none', /\[model\] expected a file assets\/base\/none, received none/],
  ];
  for (const [path, message] of cases) {
    const { code, stderr } = await inside('inspect', path);
    assert.is(code, 1, path);
    assert.match(stderr, message);
  }
  assert.is((await inside('inspect')).code, 2);
  assert.is((await inside('inspect', 'assets/base', 'more')).code, 2);
});

test.run();
