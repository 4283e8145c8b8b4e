/** Tiny model and adapter directories for the tests of merging. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint } from '../../src/io/checkpoint.js';
import { LoraAdapters, type LoraConfig, saveAdapter } from '../../src/lora/index.js';
import { buildModel, openModel } from '../../src/models/load.js';
import { type SaveModelOptions, saveModel } from '../../src/models/save.js';
import { bf16ToNumber, f16ToNumber, viewOf } from '../../src/tensor/dtype.js';
import { reference } from '../backends.js';
import { randomize, TINY, type TinySettings, tinyConfig, tinySource } from './tiny.js';

/** Writes a tiny random model of a config.json, and answers its directory. */
export function writeModel(
  dir: string,
  settings: Partial<TinySettings> = {},
  config: Record<string, unknown> = tinyConfig({ ...TINY, ...settings }),
  options: Partial<SaveModelOptions> = {},
): string {
  const model = buildModel(config, tinySource({ ...TINY, ...settings }, reference));
  try {
    const tensors = new Map(model.namedParameters());
    if (!existsSync(dir)) mkdirSync(dir, { recursive: true });
    saveModel(dir, { tensors, config, tokenizerDir: dir, ...options });
  } finally {
    model.dispose();
  }
  return dir;
}

/** Writes a random adapter of the model in `modelDir`, and answers its directory. */
export function writeAdapter(
  dir: string,
  modelDir: string,
  config: LoraConfig,
  seed: number,
  size = 0.2,
): string {
  // Only a head that is a layer of its own can have a branch.
  const untied = config.targetModules.includes('lm_head');
  using model = openModel(modelDir, { backend: reference, untied });
  using adapters = new LoraAdapters(model);
  adapters.add('a', config, seed);
  randomize(adapters, 'a', seed, size);
  saveAdapter(adapters, 'a', dir);
  return dir;
}

/** The numbers of a tensor of a model directory, widened. */
export function numbersOf(dir: string, name: string): number[] {
  const checkpoint = openCheckpoint(dir);
  const { dtype } = checkpoint.fileOf(name).entry(name);
  const bytes = checkpoint.bytes(name);
  const own = { F32: 'f32', BF16: 'bf16', F16: 'f16' }[dtype as 'F32'] as 'f32' | 'bf16' | 'f16';
  const view = viewOf(own, bytes.buffer, 0, bytes.length / (own === 'f32' ? 4 : 2));
  const widen = { f32: (x: number) => x, bf16: bf16ToNumber, f16: f16ToNumber }[own];
  return Array.from(view as Float32Array, widen);
}

/** Small files of a model directory: some belong to a merged model, some do not. */
export function writeCompanions(dir: string): { kept: string[]; dropped: string[] } {
  const kept = [
    'tokenizer.json',
    'tokenizer_config.json',
    'chat_template.jinja',
    'generation_config.json',
    'README.md',
    'additional_chat_templates/tools.jinja',
  ];
  const dropped = [
    '.gitattributes',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
    'training_args.bin',
    'model.gguf',
    'flax_model.msgpack',
    'other.safetensors',
    'adapter_config.json',
    'adapter_model.safetensors',
    'training.json',
    'onnx/model.onnx',
  ];
  for (const name of [...kept, ...dropped]) {
    const path = join(dir, name);
    mkdirSync(join(path, '..'), { recursive: true });
    if (!existsSync(path)) writeFileSync(path, `{"of":"${name}"}`);
  }
  return { kept, dropped };
}
