/** Tiny random Llama models, batches and adapters for tests, all a function of their settings. */
import fc from 'fast-check';
import { noGrad, scope } from '../../src/autograd/index.js';
import { LoraAdapters } from '../../src/lora/index.js';
import type { CausalLM, TokenBatch } from '../../src/models/causal-lm.js';
import { buildCausalLM } from '../../src/models/load.js';
import type { ParameterSource } from '../../src/nn/index.js';
import type { Backend } from '../../src/tensor/backend.js';
import { tensor } from '../../src/tensor/create.js';
import { normal, streamOf, uniform } from '../../src/tensor/random.js';
import { numel } from '../../src/tensor/shape.js';
import type { Tensor } from '../../src/tensor/tensor.js';

/** What shapes a tiny model. */
export interface TinySettings {
  readonly seed: number;
  readonly dtype: 'f32' | 'bf16' | 'f16';
  readonly layers: number;
  readonly hidden: number;
  readonly ffn: number;
  readonly heads: number;
  readonly keyValueHeads: number;
  readonly headSize: number;
  readonly vocab: number;
  readonly tied: boolean;
  readonly bias: boolean;
}

export const TINY: TinySettings = {
  seed: 1,
  dtype: 'f32',
  layers: 2,
  hidden: 8,
  ffn: 12,
  heads: 2,
  keyValueHeads: 1,
  headSize: 4,
  vocab: 13,
  tied: false,
  bias: false,
};

/** The contents of a Hugging Face config.json. */
export function tinyConfig(s: TinySettings): Record<string, unknown> {
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_act: 'silu',
    hidden_size: s.hidden,
    intermediate_size: s.ffn,
    num_hidden_layers: s.layers,
    num_attention_heads: s.heads,
    num_key_value_heads: s.keyValueHeads,
    head_dim: s.headSize,
    vocab_size: s.vocab,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    tie_word_embeddings: s.tied,
    attention_bias: s.bias,
    mlp_bias: s.bias,
  };
}

/** Frozen random parameters in the settings' dtype, norms around one. */
export function tinySource(s: TinySettings, backend: Backend): ParameterSource {
  return (name, shape) => {
    const norm = name.includes('norm');
    const size = norm ? 0.1 : name.includes('embed') ? 0.5 : 0.3;
    const values = normal({ seed: s.seed, stream: streamOf(name) }, numel(shape));
    return tensor(
      values.map((z) => (norm ? 1 : 0) + size * z),
      shape,
      { backend, dtype: s.dtype, purpose: 'frozen' },
    );
  };
}

export function tinyModel(s: TinySettings, backend: Backend): CausalLM {
  return buildCausalLM(tinyConfig(s), tinySource(s, backend));
}

/** Random tokens; the rows have these lengths and are padded on the right, without labels there. */
export function tinyBatch(
  seed: number,
  lengths: readonly number[],
  vocab: number,
  padTo = 0,
): Required<TokenBatch> {
  const length = Math.max(padTo, ...lengths);
  const u = uniform({ seed, stream: 77 }, lengths.length * length);
  const batch = lengths.length;
  const inputIds = new Int32Array(batch * length);
  const attentionMask = new Uint8Array(batch * length);
  const labels = new Int32Array(batch * length).fill(-100);
  lengths.forEach((own, b) => {
    // A row's tokens depend on its number and the place only, not on the padding.
    const row = uniform({ seed, stream: 1000 + b }, own);
    for (let t = 0; t < own; t++) {
      const at = b * length + t;
      inputIds[at] = Math.floor((row[t] as number) * vocab);
      attentionMask[at] = 1;
      labels[at] = inputIds[at] as number;
    }
    // What stands in the padding must not matter: random ids.
    for (let t = own; t < length; t++) {
      const at = b * length + t;
      inputIds[at] = Math.floor((u[at] as number) * vocab);
    }
  });
  return { inputIds, attentionMask, labels, batch, length };
}

/** Overwrites an adapter's A and B with random numbers, so that its update is not zero. */
export function randomize(adapters: LoraAdapters, name: string, seed: number, size = 0.2): void {
  for (const [key, t] of adapters.tensors(name)) {
    const values = normal({ seed, stream: streamOf(key) }, t.size);
    setFloats(
      t,
      Float32Array.from(values, (z) => size * z),
    );
  }
}

export function setFloats(t: Tensor, values: Float32Array): void {
  t.setBytes(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
}

/** The bits of logits [B, T, V], computed without a graph. */
export function logitBytes(model: CausalLM, batch: TokenBatch): Uint8Array {
  return noGrad(() => scope(() => model.logits(batch).bytes()));
}

export function logitsOf(model: CausalLM, batch: TokenBatch): Float32Array {
  return new Float32Array(logitBytes(model, batch).buffer);
}

/** Largest difference of two lists of numbers over the largest magnitude of the second. */
export function relativeDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.NaN;
  let difference = 0;
  let largest = 0;
  for (let i = 0; i < b.length; i++) {
    difference = Math.max(difference, Math.abs((a[i] as number) - (b[i] as number)));
    largest = Math.max(largest, Math.abs(b[i] as number));
  }
  return difference === 0 ? 0 : difference / largest;
}

/** Whether two byte arrays are equal. */
export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.from(a.buffer, a.byteOffset, a.length).equals(b);
}

/** The bytes of several tensors by name. */
export function snapshot(tensors: ReadonlyMap<string, Tensor>): Map<string, Buffer> {
  return new Map([...tensors].map(([name, t]) => [name, Buffer.from(t.bytes())]));
}

const LINEARS = [
  'q_proj',
  'k_proj',
  'v_proj',
  'o_proj',
  'gate_proj',
  'up_proj',
  'mlp.down_proj',
  'all-linear',
  'qv',
  'layers.0.self_attn.q_proj',
];

/** A random tiny model, adapter and batch. */
export interface TinyCase {
  readonly settings: TinySettings;
  readonly rank: number;
  readonly alpha: number;
  readonly targets: string[];
  readonly lengths: number[];
}

/** Arbitrary tiny cases: odd sizes, sizes of 1, every dtype of the base, ranks above the width. */
export const tinyCases: fc.Arbitrary<TinyCase> = fc
  .record({
    seed: fc.integer({ min: 0, max: 2 ** 31 }),
    dtype: fc.constantFrom('f32' as const, 'bf16' as const, 'f16' as const),
    layers: fc.integer({ min: 1, max: 2 }),
    hidden: fc.integer({ min: 1, max: 19 }),
    ffn: fc.integer({ min: 1, max: 21 }),
    groups: fc.integer({ min: 1, max: 3 }),
    keyValueHeads: fc.integer({ min: 1, max: 2 }),
    headSize: fc.constantFrom(2, 4, 6),
    vocab: fc.integer({ min: 2, max: 23 }),
    tied: fc.boolean(),
    bias: fc.boolean(),
    rank: fc.integer({ min: 1, max: 9 }),
    alpha: fc.integer({ min: 1, max: 16 }),
    targets: fc.uniqueArray(fc.constantFrom(...LINEARS), { minLength: 1, maxLength: 4 }),
    lengths: fc.array(fc.integer({ min: 2, max: 9 }), { minLength: 1, maxLength: 3 }),
  })
  .map(({ rank, alpha, targets, lengths, groups, ...s }) => ({
    settings: { ...s, heads: groups * s.keyValueHeads },
    rank,
    alpha,
    targets,
    lengths,
  }));

/** Checks a property over tiny cases; a failure prints seed and path to run it again. */
export function forTinyCases(runs: number, property: (c: TinyCase) => void): void {
  fc.assert(
    fc.property(tinyCases, (c) => property(c)),
    { numRuns: runs },
  );
}

/** Runs `body` on a model with a new adapter 'a', and frees both. */
export function withAdapter(
  c: TinyCase,
  backend: Backend,
  body: (model: CausalLM, adapters: LoraAdapters) => void,
): void {
  using model = tinyModel(c.settings, backend);
  using adapters = new LoraAdapters(model);
  const { rank, alpha, targets } = c;
  adapters.add('a', { rank, alpha, targetModules: targets }, c.settings.seed);
  body(model, adapters);
}
