import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, scope } from '../src/autograd/index.js';
import { LoraAdapters, type LoraConfig, saveAdapter } from '../src/lora/index.js';
import { buildCausalLM } from '../src/models/load.js';
import type { Module } from '../src/nn/index.js';
import { AdamW } from '../src/optim/index.js';
import { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';
import { GPT2_124M, LLAMA_1B } from './support/big-shapes.js';
import { ShapesBackend } from './support/shapes-backend.js';
import { withFolder } from './support/temp.js';
import { TINY, tinyBatch, tinyModel } from './support/tiny.js';

/** A layer of a block: inputs and outputs. */
type Size = readonly [inFeatures: number, outFeatures: number];

/** A model by its config.json, with the sizes of the layers in each of its blocks. */
interface Shape {
  readonly json: Record<string, unknown>;
  readonly blocks: number;
  readonly layers: Readonly<Record<string, Size>>;
  /** Parameters of the base. */
  readonly parameters: number;
}

const GPT2: Shape = {
  json: GPT2_124M,
  blocks: 12,
  layers: {
    'attn.c_attn': [768, 3 * 768],
    'attn.c_proj': [768, 768],
    'mlp.c_fc': [768, 4 * 768],
    'mlp.c_proj': [4 * 768, 768],
  },
  parameters: 124_439_808,
};

const LLAMA: Shape = {
  json: LLAMA_1B,
  blocks: 16,
  layers: {
    q_proj: [2048, 2048],
    k_proj: [2048, 8 * 64],
    v_proj: [2048, 8 * 64],
    o_proj: [2048, 2048],
    gate_proj: [2048, 8192],
    up_proj: [2048, 8192],
    down_proj: [8192, 2048],
  },
  parameters: 1_235_814_400,
};

/** Ranks that a case is counted at: every one takes random numbers for all of A. */
const RANKS = [1, 3, 8];
const EVERY = Array.from({ length: 16 }, (_, i) => i + 1);

/** Settings but for the rank, the layers that they choose, and what each adds to r·(in + out). */
interface Case {
  readonly name: string;
  readonly shape: Shape;
  readonly config: Omit<LoraConfig, 'rank'>;
  readonly layers: readonly string[];
  readonly ranks?: readonly number[];
  /** Trained beside A and B, of a layer. */
  readonly more?: (size: Size) => number;
  /** r·(in + out), where another formula holds. */
  readonly product?: (rank: number, size: Size) => number;
}

const all = (shape: Shape) => Object.keys(shape.layers);

const CASES: readonly Case[] = [
  {
    name: 'GPT-2 124M, c_attn',
    shape: GPT2,
    config: { targetModules: ['c_attn'] },
    layers: ['attn.c_attn'],
    ranks: EVERY,
  },
  {
    // loralib's MergedLinear: A and B of each part that is on.
    name: 'GPT-2 124M, q and v of c_attn',
    shape: GPT2,
    config: { targetModules: ['c_attn'], enableLora: { c_attn: [true, false, true] } },
    layers: ['attn.c_attn'],
    product: (r, [inF, outF]) => 2 * r * (inF + outF / 3),
  },
  {
    name: 'GPT-2 124M, all-linear',
    shape: GPT2,
    config: { targetModules: ['all-linear'] },
    layers: all(GPT2),
  },
  {
    name: 'GPT-2 124M, attention',
    shape: GPT2,
    config: { targetModules: ['attention'] },
    layers: ['attn.c_attn', 'attn.c_proj'],
  },
  {
    name: 'GPT-2 124M, attention with DoRA',
    shape: GPT2,
    config: { targetModules: ['attention'], variant: 'dora' },
    layers: ['attn.c_attn', 'attn.c_proj'],
    more: ([, outF]) => outF,
  },
  {
    name: 'GPT-2 124M, c_attn with a bias of B and its own',
    shape: GPT2,
    config: { targetModules: ['c_attn'], loraBias: true, bias: 'lora_only' },
    layers: ['attn.c_attn'],
    more: ([, outF]) => 2 * outF,
  },
  {
    name: 'Llama 1B, q and v',
    shape: LLAMA,
    config: { targetModules: ['qv'] },
    layers: ['q_proj', 'v_proj'],
  },
  {
    name: 'Llama 1B, attention, rsLoRA',
    shape: LLAMA,
    config: { targetModules: ['attention'], scaling: 'rslora' },
    layers: ['q_proj', 'k_proj', 'v_proj', 'o_proj'],
  },
  {
    name: 'Llama 1B, all-linear',
    shape: LLAMA,
    config: { targetModules: ['all-linear'] },
    layers: all(LLAMA),
  },
  {
    name: 'Llama 1B, all-linear with DoRA',
    shape: LLAMA,
    config: { targetModules: ['all-linear'], variant: 'dora' },
    layers: all(LLAMA),
    more: ([, outF]) => outF,
  },
];

function countOf({ shape, layers, more, product }: Case, rank: number): number {
  const of = (name: string) => {
    const size = shape.layers[name] as Size;
    return (product?.(rank, size) ?? rank * (size[0] + size[1])) + (more?.(size) ?? 0);
  };
  return shape.blocks * layers.reduce((n, name) => n + of(name), 0);
}

const sizeOf = (tensors: Iterable<Tensor>) => [...tensors].reduce((n, t) => n + t.size, 0);

/** A model whose weights are numbers in a book: nothing is allocated. */
function shapeModel(backend: ShapesBackend, { json, parameters }: Shape): Module {
  const model = buildCausalLM(json, (_, shape) => Tensor.empty(backend, shape, 'f32', 'frozen'));
  assert.is(sizeOf([...model.namedParameters()].map(([, p]) => p)), parameters);
  return model;
}

/** Bytes of an adapter's two files. */
function savedBytes(adapters: LoraAdapters, name: string): number {
  let bytes = 0;
  withFolder((dir) => {
    saveAdapter(adapters, name, dir);
    for (const file of ['adapter_model.safetensors', 'adapter_config.json']) {
      bytes += statSync(join(dir, file)).size;
    }
  });
  return bytes;
}

for (const c of CASES) {
  test(`${c.name}: trainables at several ranks, and nothing of the base`, () => {
    const backend = new ShapesBackend();
    const model = shapeModel(backend, c.shape);
    const adapters = new LoraAdapters(model);
    const frozen = backend.memory().live.frozen;
    // Llama holds its rotary frequencies beside the parameters.
    assert.ok(frozen >= 4 * c.shape.parameters && frozen < 4 * c.shape.parameters + 512);
    for (const rank of c.ranks ?? RANKS) {
      const count = countOf(c, rank);
      adapters.add('a', { ...c.config, rank }, 1);
      assert.is(sizeOf(adapters.tensors('a').values()), count, `rank ${rank}`);
      assert.is(backend.memory().live.trainable, 4 * count);
      assert.is(backend.memory().live.frozen, frozen);
      assert.ok([...adapters.baseParameters().values()].every((p) => !p.requiresGrad));
      adapters.remove('a');
    }
    assert.is(backend.memory().live.trainable, 0);
    adapters.dispose();
    model.dispose();
    assert.is(backend.memory().handles, 0);
  });
}

/** Choices whose files are counted: every preset, and the variant of more tensors. */
const FILES = [
  'GPT-2 124M, c_attn',
  'GPT-2 124M, all-linear',
  'GPT-2 124M, attention',
  'GPT-2 124M, attention with DoRA',
  'Llama 1B, q and v',
  'Llama 1B, attention, rsLoRA',
  'Llama 1B, all-linear',
  'Llama 1B, all-linear with DoRA',
];

test('a checkpoint is within 2% of 4 bytes a trainable from rank 2 on, within 3.3% at rank 1', () => {
  for (const name of FILES) {
    const c = CASES.find((other) => other.name === name) as Case;
    const backend = new ShapesBackend();
    const model = shapeModel(backend, c.shape);
    const adapters = new LoraAdapters(model);
    for (const rank of [1, 2, 4, 8]) {
      adapters.add('a', { ...c.config, rank }, 1);
      const ratio = savedBytes(adapters, 'a') / (4 * countOf(c, rank));
      const most = { 1: 1.033, 2: 1.02, 4: 1.01 }[rank] ?? 1.006;
      assert.ok(ratio > 1 && ratio <= most, `${name}, rank ${rank}: ${ratio}`);
      adapters.remove('a');
    }
    adapters.dispose();
    model.dispose();
  }
});

test('a file has no byte that its layout does not ask for', () => {
  const backend = new ShapesBackend();
  const model = shapeModel(backend, GPT2);
  const adapters = new LoraAdapters(model).add('a', { targetModules: ['c_attn'], rank: 1 }, 1);
  withFolder((dir) => {
    saveAdapter(adapters, 'a', dir);
    const file = readFileSync(join(dir, 'adapter_model.safetensors'));
    const length = Number(file.readBigUInt64LE(0));
    const text = file.toString('utf8', 8, 8 + length);
    const header = JSON.parse(text) as Record<string, Record<string, unknown>>;
    // Compact JSON of names, dtypes, shapes and offsets; padded so that the data are aligned.
    assert.is(text.trimEnd(), JSON.stringify(header));
    assert.ok(text.length - text.trimEnd().length < 8);
    const { __metadata__: metadata = {}, ...entries } = header;
    assert.equal(Object.keys(metadata).sort(), ['format', 'lowrank_base']);
    assert.ok(JSON.stringify(metadata).length <= 120);
    for (const entry of Object.values(entries)) {
      assert.equal(Object.keys(entry), ['dtype', 'shape', 'data_offsets']);
    }
    assert.is(Object.keys(entries).length, 2 * GPT2.blocks);
    assert.is(file.length - 8 - length, 4 * GPT2.blocks * (768 + 3 * 768));
  });
  adapters.dispose();
  model.dispose();
});

/** Ways to train a tiny model, and the trainables of each beside A and B. */
const TRAINED: readonly LoraConfig[] = [
  { targetModules: ['all-linear'], rank: 3 },
  { targetModules: ['qv'], rank: 2, variant: 'dora' },
  { targetModules: ['embed_tokens', 'q_proj'], rank: 2 },
  { targetModules: ['q_proj'], rank: 2, loraBias: true, bias: 'lora_only' },
  { targetModules: ['up_proj'], rank: 2, enableLora: { up_proj: [true, false, true] } },
  { targetModules: ['q_proj'], rank: 2, modulesToSave: ['norm'], trainableTokens: [1, 5] },
  { targetModules: ['o_proj'], rank: 2, init: 'pissa' },
];

onEachBackend(
  test,
  'trained: 4 bytes of gradient and 8 of moments a trainable, none of the base',
  (backend) => {
    for (const config of TRAINED) {
      const before = backend.memory().live;
      using model = tinyModel({ ...TINY, bias: true, dtype: 'bf16' }, backend);
      using adapters = new LoraAdapters(model);
      const start = backend.memory().live;
      const live = () => {
        const now = backend.memory().live;
        return {
          frozen: now.frozen - start.frozen,
          trainable: now.trainable - start.trainable,
          gradient: now.gradient - before.gradient,
          optimizer: now.optimizer - before.optimizer,
          activation: now.activation - before.activation,
        };
      };
      adapters.add('a', config, 1);
      const count = sizeOf(adapters.tensors('a').values());
      // What PiSSA takes out of the weight is a constant of the size of A and B.
      const frozen = config.init === 'pissa' ? 4 * count : 0;
      const none = { gradient: 0, optimizer: 0, activation: 0 };
      const own = { ...none, frozen, trainable: 4 * count };
      assert.equal(live(), own, JSON.stringify(config));
      using optimizer = new AdamW([{ parameters: adapters.tensors('a') }], { lr: 0.01 });
      for (let step = 0; step < 2; step++) {
        scope(() => backward(model.loss(tinyBatch(1, [6, 4], TINY.vocab)).loss));
        assert.is(live().gradient, 4 * count, JSON.stringify(config));
        for (const [path, p] of adapters.baseParameters()) assert.is(p.grad, null, path);
        optimizer.update();
        optimizer.zeroGrad();
        assert.equal(live(), { ...own, optimizer: 8 * count }, JSON.stringify(config));
      }
    }
  },
);

test.run();
