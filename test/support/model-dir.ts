/** A tiny model directory with the bundled tokenizer, and data files, for tests. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { randomParameters } from '../../src/models/init.js';
import { buildCausalLM } from '../../src/models/load.js';
import { saveModel } from '../../src/models/save.js';
import { getBackend } from '../../src/tensor/registry.js';

/** config.json of the tiny model: one layer, the bundled tokenizer's 4096 tokens. */
export const TINY_CONFIG: Readonly<Record<string, unknown>> = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_act: 'silu',
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 8,
  vocab_size: 4096,
  max_position_embeddings: 96,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
  bos_token_id: 0,
  eos_token_id: 0,
};

/** Writes the tiny model with random bf16 weights. */
export function writeTinyModel(dir: string, seed = 1): void {
  const model = buildCausalLM(TINY_CONFIG, randomParameters(seed, 1, getBackend('reference')));
  try {
    saveModel(dir, {
      tensors: new Map(model.namedParameters()),
      config: TINY_CONFIG,
      tokenizerDir: 'assets/base',
      dtype: 'bf16',
    });
  } finally {
    model.dispose();
  }
}

/** Writes objects as JSON Lines. */
export function writeLines(path: string, lines: readonly object[]): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, lines.map((l) => `${JSON.stringify(l)}\n`).join(''));
  return path;
}

const ANIMALS = ['whale', 'shark', 'mouse', 'eagle', 'horse', 'snail', 'crab', 'tiger'];
const HOMES = ['the sea', 'the sky', 'a house', 'the forest'];

/** Prompts with completions that a model can learn. */
export function pairs(count: number): { prompt: string; completion: string }[] {
  return Array.from({ length: count }, (_, i) => ({
    prompt: `Where does the ${ANIMALS[i % ANIMALS.length]} number ${i} live? It lives in`,
    completion: ` ${HOMES[i % HOMES.length]}`,
  }));
}

/** The usual files of a test folder: model/, train.jsonl, eval.jsonl, text.jsonl. */
export function writeWorkspace(root: string): void {
  writeTinyModel(join(root, 'model'));
  writeLines(join(root, 'train.jsonl'), pairs(24));
  writeLines(join(root, 'eval.jsonl'), pairs(6));
  writeLines(
    join(root, 'text.jsonl'),
    ANIMALS.map((a) => ({
      text: `The ${a} swam slowly around the ship and then was seen no more.`,
    })),
  );
}
