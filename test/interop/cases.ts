/** Writes models and adapters with lowrank, and what it computes with them, for check.py. */
import { join } from 'node:path';
import { noGrad, scope } from '../../src/autograd/index.js';
import { writeSafetensors } from '../../src/io/safetensors.js';
import { LoraAdapters, type LoraConfig, loadAdapter } from '../../src/lora/index.js';
import { CausalLM } from '../../src/models/causal-lm.js';
import { openModel } from '../../src/models/load.js';
import { mergeAdapters } from '../../src/models/merge.js';
import { numel, type Shape } from '../../src/tensor/shape.js';
import { reference } from '../backends.js';
import { writeAdapter, writeModel } from '../support/merge-dirs.js';
import { TINY, type TinySettings, tinyBatch, tinyConfig } from '../support/tiny.js';

/** One thing that Python loads, and the logits it must give. */
export interface InteropCase {
  readonly name: string;
  readonly task: 'CAUSAL_LM' | 'SEQ_CLS';
  readonly model: string;
  readonly adapters?: readonly { readonly dir: string; readonly weight: number }[];
  /** A safetensors file: input_ids, attention_mask, logits. */
  readonly expected: string;
  /** Arguments of from_pretrained. */
  readonly settings?: Readonly<Record<string, unknown>>;
  /** Parts of names of tensors that the base is to lack. */
  readonly new?: readonly string[];
  /** A regular expression of what the libraries may warn of. */
  readonly mayWarn?: string;
}

/** A model, adapters of it, and how they are merged. */
export interface Plan {
  readonly name: string;
  readonly config: Record<string, unknown>;
  readonly settings?: Partial<TinySettings>;
  readonly adapters: readonly (LoraConfig & { readonly weight?: number })[];
  readonly maxShardBytes?: number;
  readonly dtype?: 'f32' | 'f16' | 'bf16';
  readonly mayWarn?: string;
}

const LLAMA = tinyConfig(TINY);
const TIED = tinyConfig({ ...TINY, tied: true });

const GPT2 = {
  architectures: ['GPT2LMHeadModel'],
  model_type: 'gpt2',
  n_embd: 8,
  n_head: 2,
  n_layer: 2,
  n_positions: 32,
  vocab_size: 13,
  bos_token_id: 0,
  eos_token_id: 0,
};

const ROBERTA = {
  architectures: ['RobertaForSequenceClassification'],
  model_type: 'roberta',
  hidden_size: 8,
  num_attention_heads: 2,
  num_hidden_layers: 2,
  intermediate_size: 12,
  vocab_size: 13,
  max_position_embeddings: 24,
  type_vocab_size: 1,
  pad_token_id: 1,
  layer_norm_eps: 1e-5,
  id2label: { 0: 'a', 1: 'b', 2: 'c' },
  label2id: { a: 0, b: 1, c: 2 },
};
const BERT = {
  ...ROBERTA,
  architectures: ['BertForSequenceClassification'],
  model_type: 'bert',
  pad_token_id: 0,
};

const TIES = 'tie_word_embeddings|tied';

export const PLANS: readonly Plan[] = [
  {
    name: 'llama-all-linear-shards',
    config: LLAMA,
    adapters: [{ rank: 3, alpha: 5, targetModules: ['all-linear'] }],
    maxShardBytes: 1500,
  },
  {
    name: 'llama-bias-bf16',
    config: tinyConfig({ ...TINY, bias: true }),
    settings: { dtype: 'bf16', bias: true },
    adapters: [{ rank: 2, alpha: 4, targetModules: ['attention'] }],
    dtype: 'f32',
  },
  {
    name: 'llama-tied',
    config: TIED,
    settings: { tied: true },
    adapters: [{ rank: 2, targetModules: ['qv'] }],
    dtype: 'bf16',
  },
  {
    name: 'llama-tied-head-untied',
    config: TIED,
    settings: { tied: true },
    adapters: [{ rank: 2, targetModules: ['q_proj', 'lm_head'] }],
    mayWarn: TIES,
  },
  {
    name: 'llama-tied-table-saved-shards',
    config: TIED,
    settings: { tied: true },
    adapters: [{ rank: 2, targetModules: ['q_proj'], modulesToSave: ['embed_tokens'] }],
    maxShardBytes: 1000,
    mayWarn: TIES,
  },
  {
    name: 'llama-two-weighted',
    config: LLAMA,
    adapters: [
      { rank: 2, alpha: 6, targetModules: ['qv', 'up_proj'] },
      { rank: 3, alpha: 3, targetModules: ['qv', 'up_proj'], weight: 0.5 },
    ],
  },
  {
    name: 'llama-dora',
    config: LLAMA,
    adapters: [{ rank: 2, alpha: 4, targetModules: ['qv', 'down_proj'], variant: 'dora' }],
  },
  {
    name: 'llama-rslora-patterns',
    config: LLAMA,
    adapters: [
      {
        rank: 4,
        alpha: 6,
        targetModules: ['all-linear'],
        excludeModules: ['k_proj'],
        scaling: 'rslora',
        rankPattern: { 'layers.1.mlp.up_proj': 2, o_proj: 1 },
        alphaPattern: { q_proj: 3 },
      },
    ],
  },
  {
    name: 'llama-lora-bias',
    config: tinyConfig({ ...TINY, bias: true }),
    settings: { bias: true },
    adapters: [{ rank: 2, targetModules: ['qv'], loraBias: true }],
  },
  {
    name: 'llama-bias-all',
    config: tinyConfig({ ...TINY, bias: true }),
    settings: { bias: true },
    adapters: [{ rank: 2, targetModules: ['qv'], bias: 'all' }],
  },
  {
    name: 'llama-embedding',
    config: LLAMA,
    adapters: [{ rank: 2, targetModules: ['embed_tokens', 'lm_head'] }],
  },
  {
    name: 'llama-tied-embedding',
    config: TIED,
    settings: { tied: true },
    adapters: [{ rank: 2, targetModules: ['embed_tokens', 'q_proj'] }],
    mayWarn: TIES,
  },
  {
    name: 'llama-tied-token-rows',
    config: TIED,
    settings: { tied: true },
    adapters: [
      { rank: 2, targetModules: ['q_proj'], trainableTokens: { embed_tokens: [1, 4, 9] } },
    ],
    mayWarn: TIES,
  },
  {
    name: 'gpt2-dora-embedding',
    config: GPT2,
    adapters: [{ rank: 2, targetModules: ['c_attn', 'wte'], variant: 'dora' }],
    mayWarn: TIES,
  },
  {
    name: 'gpt2-conv1d',
    config: GPT2,
    adapters: [{ rank: 2, alpha: 4, targetModules: ['c_attn', 'attn.c_proj', 'mlp.c_fc'] }],
    maxShardBytes: 3000,
  },
  {
    name: 'gpt2-parts',
    config: GPT2,
    adapters: [
      { rank: 2, targetModules: ['attn.c_attn'], enableLora: { c_attn: [true, false, true] } },
    ],
  },
  {
    name: 'roberta-classifier',
    config: ROBERTA,
    adapters: [{ rank: 2, targetModules: ['query', 'value'] }],
  },
  {
    name: 'bert-classifier',
    config: BERT,
    adapters: [{ rank: 2, targetModules: ['query', 'dense'] }],
  },
  {
    name: 'llama-score',
    config: {
      ...tinyConfig(TINY),
      architectures: ['LlamaForSequenceClassification'],
      id2label: { 0: 'a', 1: 'b', 2: 'c' },
      label2id: { a: 0, b: 1, c: 2 },
      pad_token_id: 0,
    },
    adapters: [{ rank: 2, targetModules: ['qv'] }],
  },
];

/** Ids and a mask; padding has the padding's id, which the classifiers look for. */
function batchOf(padId: number) {
  const { inputIds, attentionMask, batch, length } = tinyBatch(5, [9, 6], 11);
  const ids = inputIds.map((id, i) => (attentionMask[i] ? id + 2 : padId));
  return { inputIds: ids, attentionMask, batch, length };
}

/** The logits of a model directory with adapters, or alone, in a file. */
function writeExpected(
  path: string,
  modelDir: string,
  adapters: readonly { dir: string; weight: number }[],
): void {
  using plain = openModel(modelDir, { backend: reference, untied: true });
  const one = adapters.length === 1 ? adapters[0] : undefined;
  if (one) loadAdapter(new LoraAdapters(plain), 'a', one.dir);
  const pad = { bert: 0, roberta: 1 }[String(plain.constructor.name).slice(0, 4).toLowerCase()];
  const batch = batchOf(pad ?? 0);
  const { values, shape } = logitsOf(plain, batch);
  const size = [batch.batch, batch.length];
  const wide = (list: ArrayLike<number>) => BigInt64Array.from(Array.from(list, BigInt));
  const entry = (name: string, dtype: 'I64' | 'F32', s: Shape, data: ArrayBufferView) => ({
    name,
    dtype,
    shape: s,
    bytes: () => new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  });
  writeSafetensors(path, [
    entry('input_ids', 'I64', size, wide(batch.inputIds)),
    entry('attention_mask', 'I64', size, wide(batch.attentionMask)),
    entry('logits', 'F32', shape, values),
  ]);
}

function logitsOf(model: ReturnType<typeof openModel>, batch: ReturnType<typeof batchOf>) {
  if (model instanceof CausalLM) {
    const t = noGrad(() => scope(() => model.logits(batch)));
    const out = { values: new Float32Array(t.bytes().buffer), shape: t.shape };
    t.dispose();
    return out;
  }
  const rows = model.predict(batch);
  const shape = [rows.length, (rows[0] as number[]).length];
  if (numel(shape) !== rows.flat().length) throw new Error('rows of scores of different lengths');
  return { values: Float32Array.from(rows.flat()), shape };
}

/** Writes everything of a plan, and answers what Python is to check. */
export function writeCases(root: string, plan: Plan): InteropCase[] {
  const at = (name: string) => join(root, plan.name, name);
  const { config, name, dtype, maxShardBytes } = plan;
  const model = writeModel(at('model'), plan.settings, config);
  const adapters = plan.adapters.map(({ weight = 1, ...lora }, i) => ({
    dir: writeAdapter(at(`adapter${i}`), model, lora, i + 1),
    weight,
  }));
  const task = String((config.architectures as string[])[0]).endsWith('ForSequenceClassification')
    ? 'SEQ_CLS'
    : 'CAUSAL_LM';
  const merged = at('merged');
  mergeAdapters({
    ...{ modelDir: model, adapters, out: merged, backend: reference },
    ...(dtype ? { dtype } : {}),
    ...(maxShardBytes ? { maxShardBytes } : {}),
  });
  writeExpected(at('merged.expected'), merged, []);
  const alone = { name: `${name}, merged`, task, model: merged, expected: at('merged.expected') };
  // Of several adapters at once lowrank gives the merged model.
  const several = adapters.length > 1;
  const expected = several ? at('merged.expected') : at('adapter.expected');
  if (!several) writeExpected(expected, model, adapters);
  const mayWarn = plan.mayWarn ? { mayWarn: plan.mayWarn } : {};
  const beside = { name: `${name}, adapter`, task, model, adapters, expected, ...mayWarn };
  return [beside as InteropCase, alone as InteropCase];
}
