import { mkdirSync } from 'node:fs';
import { saveCheckpoint } from '../src/io/checkpoint-writer.js';
import type { WriteEntry } from '../src/io/safetensors.js';

/** A size of Llama whose weights are about 500 MB in its dtype. */
export interface LlamaSize {
  readonly dtype: 'f32' | 'bf16';
  readonly hidden: number;
  readonly intermediate: number;
  readonly layers: number;
  readonly heads: number;
}

/** 134 M parameters in f32, and 270 M in bf16: 540 MB each. */
export const SIZES: readonly LlamaSize[] = [
  { dtype: 'f32', hidden: 768, intermediate: 2048, layers: 12, heads: 12 },
  { dtype: 'bf16', hidden: 1024, intermediate: 2816, layers: 16, heads: 16 },
];

const VOCABULARY = 32000;

function* shapesOf(s: LlamaSize): Generator<readonly [string, number[]]> {
  const { hidden: C, intermediate: M } = s;
  yield ['model.embed_tokens.weight', [VOCABULARY, C]];
  yield ['lm_head.weight', [VOCABULARY, C]];
  yield ['model.norm.weight', [C]];
  for (let i = 0; i < s.layers; i++) {
    const layer = `model.layers.${i}`;
    for (const p of ['q', 'k', 'v', 'o']) yield [`${layer}.self_attn.${p}_proj.weight`, [C, C]];
    for (const p of ['gate', 'up']) yield [`${layer}.mlp.${p}_proj.weight`, [M, C]];
    yield [`${layer}.mlp.down_proj.weight`, [C, M]];
    yield [`${layer}.input_layernorm.weight`, [C]];
    yield [`${layer}.post_attention_layernorm.weight`, [C]];
  }
}

/** Small numbers of either sign, the same ones over and over, as the bytes of a tensor. */
function bytesOf(dtype: LlamaSize['dtype'], elements: number): Uint8Array {
  const wide = Float32Array.from({ length: 4096 }, (_, i) => Math.sin(i * 12.9898) * 0.05);
  const all = Buffer.from(wide.buffer);
  // The upper half of an f32 is a bf16.
  const pattern =
    dtype === 'f32' ? all : Buffer.from(Uint8Array.from(all.filter((_, i) => i % 4 > 1)));
  return Buffer.alloc(elements * (dtype === 'f32' ? 4 : 2), pattern);
}

/** Writes a model of this size. @returns the bytes of its weights */
export function writeLlama(dir: string, size: LlamaSize): number {
  const tensors = Array.from(shapesOf(size), ([name, shape]): WriteEntry => {
    const elements = shape.reduce((n, d) => n * d, 1);
    return { name, dtype: size.dtype, shape, bytes: () => bytesOf(size.dtype, elements) };
  });
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_act: 'silu',
    hidden_size: size.hidden,
    intermediate_size: size.intermediate,
    num_hidden_layers: size.layers,
    num_attention_heads: size.heads,
    vocab_size: VOCABULARY,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: false,
  };
  mkdirSync(dir, { recursive: true });
  return saveCheckpoint(dir, { config, tensors }).bytes;
}
