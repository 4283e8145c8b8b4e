/** Random settings of LoRA for tiny models of two architectures, and those models. */
import fc from 'fast-check';
import type { LoraAdapters, LoraConfig } from '../../src/lora/index.js';
import type { CausalLM } from '../../src/models/causal-lm.js';
import { buildCausalLM } from '../../src/models/load.js';
import type { Backend } from '../../src/tensor/backend.js';
import { tensor } from '../../src/tensor/create.js';
import { normal, streamOf } from '../../src/tensor/random.js';
import { numel } from '../../src/tensor/shape.js';
import { setFloats, TINY } from './tiny.js';

export type Dtype = 'f32' | 'bf16' | 'f16';

interface Architecture {
  /** The contents of config.json. */
  readonly json: Record<string, unknown>;
  /** Names of dense layers within the blocks, and in how many equal parts each may be cut. */
  readonly dense: Readonly<Record<string, number>>;
  readonly table: string;
  readonly norm: string;
}

/** Both with heads tied to the table, and with biases. */
const ARCHITECTURES: Readonly<Record<'llama' | 'gpt2', Architecture>> = {
  llama: {
    json: {
      model_type: 'llama',
      hidden_act: 'silu',
      hidden_size: TINY.hidden,
      intermediate_size: TINY.ffn,
      num_hidden_layers: 2,
      num_attention_heads: TINY.heads,
      num_key_value_heads: TINY.keyValueHeads,
      head_dim: TINY.headSize,
      vocab_size: TINY.vocab,
      max_position_embeddings: 32,
      rms_norm_eps: 1e-6,
      rope_theta: 10000,
      tie_word_embeddings: true,
      attention_bias: true,
      mlp_bias: true,
    },
    dense: { q_proj: 2, k_proj: 2, v_proj: 2, o_proj: 2, gate_proj: 3, 'mlp.down_proj': 2 },
    table: 'embed_tokens',
    norm: 'norm',
  },
  gpt2: {
    json: {
      model_type: 'gpt2',
      n_embd: TINY.hidden,
      n_head: TINY.heads,
      n_layer: 2,
      n_positions: 32,
      vocab_size: TINY.vocab,
    },
    dense: { c_attn: 3, 'attn.c_proj': 2, c_fc: 2, 'mlp.c_proj': 2 },
    table: 'wte',
    norm: 'ln_f',
  },
};

export type ArchitectureName = keyof typeof ARCHITECTURES;

/** A tiny model with random frozen weights; its vocabulary is {@link TINY}'s. */
export function randomModel(
  name: ArchitectureName,
  backend: Backend,
  dtype: Dtype,
  seed: number,
): CausalLM {
  return buildCausalLM(ARCHITECTURES[name].json, (path, shape) => {
    const norm = /norm|ln_/.test(path) && path.endsWith('.weight');
    const values = normal({ seed, stream: streamOf(path) }, numel(shape));
    const numbers = values.map((z) => (norm ? 1 + 0.1 * z : 0.3 * z));
    return tensor(numbers, shape, { backend, dtype, purpose: 'frozen' });
  });
}

/** What A and B are used for, and how they begin; each with what does not go with it left out. */
const KINDS = [
  'lora',
  'dora',
  'bias of B',
  'parts',
  'pissa',
  'olora',
  'orthogonal',
  'gaussian',
] as const;

const NO_TABLE: readonly string[] = ['bias of B', 'parts', 'pissa', 'olora', 'orthogonal'];

function settingsOf(kind: (typeof KINDS)[number], parts: LoraConfig['enableLora']) {
  if (kind === 'dora') return { variant: 'dora' } as const;
  if (kind === 'bias of B') return { loraBias: true };
  if (kind === 'parts') return { enableLora: parts ?? {} };
  return kind === 'lora' ? {} : ({ init: kind } as const);
}

/** Settings of every variant, layer, start, scaling, pattern and bias, as they go together. */
export function loraConfigs(name: ArchitectureName): fc.Arbitrary<LoraConfig> {
  const { dense, table, norm } = ARCHITECTURES[name];
  const names = Object.keys(dense);
  const ranks = fc.integer({ min: 1, max: 2 }).map((half) => 2 * half);
  const rest = fc.record({
    kind: fc.constantFrom(...KINDS),
    targets: fc.uniqueArray(fc.constantFrom(...names, table), { minLength: 1, maxLength: 4 }),
    first: fc.constantFrom(...names),
    rank: ranks,
    otherRank: ranks,
    patterns: fc.boolean(),
    part: fc.nat({ max: 2 }),
    alpha: fc.integer({ min: 1, max: 12 }),
    scaling: fc.constantFrom('lora' as const, 'rslora' as const),
    bias: fc.constantFrom('none' as const, 'all' as const, 'lora_only' as const),
    whole: fc.boolean(),
    tokens: fc.boolean(),
  });
  return rest.map((s) => {
    const own = s.targets.filter((t) => t !== table || !NO_TABLE.includes(s.kind));
    // A list of dense layers has the one that patterns name.
    const targetModules = [...new Set([s.first, ...own])];
    const cut = dense[s.first] as number;
    const on = Array.from({ length: cut }, (_, i) => i !== s.part % cut);
    return {
      targetModules,
      rank: s.rank,
      alpha: s.alpha,
      scaling: s.scaling,
      bias: s.bias,
      ...settingsOf(s.kind, { [s.first]: on }),
      ...(s.patterns
        ? { rankPattern: { [s.first]: s.otherRank }, alphaPattern: { [s.first]: s.alpha + 1 } }
        : {}),
      ...(s.whole ? { modulesToSave: [norm] } : {}),
      ...(s.tokens && !targetModules.includes(table) ? { trainableTokens: [1, 4] } : {}),
    };
  });
}

/** A random model of either architecture and so many random settings of adapters for it. */
export function modelCases(adapters: number) {
  const of = (name: 'llama' | 'gpt2') =>
    fc.record({
      name: fc.constant(name),
      dtype: fc.constantFrom('f32' as const, 'bf16' as const, 'f16' as const),
      seed: fc.integer({ min: 0, max: 2 ** 31 }),
      configs: fc.array(loraConfigs(name), { minLength: adapters, maxLength: adapters }),
    });
  return fc.oneof(of('llama'), of('gpt2'));
}

/** Moves all tensors of an adapter away from where they are, as training would. */
export function shake(adapters: LoraAdapters, name: string, seed: number): void {
  for (const [key, t] of adapters.tensors(name)) {
    const before = t.toNumbers();
    const z = normal({ seed, stream: streamOf(key) }, t.size);
    setFloats(
      t,
      Float32Array.from(before, (v, i) => v + 0.15 * (z[i] as number)),
    );
  }
}
