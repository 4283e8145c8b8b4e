import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { buildModel } from '../src/models/load.js';

/**
 * What becomes of a field of config.json: it is read (and then must be of its kind), it changes
 * nothing, or any value but the given ones is refused by name.
 */
type Fate = 'read' | 'neutral' | { readonly only: readonly unknown[]; readonly not: unknown };

/** Fields of every configuration of transformers 5.18. */
const COMMON: Readonly<Record<string, Fate>> = {
  _name_or_path: 'neutral',
  architectures: 'read',
  chunk_size_feed_forward: 'neutral',
  dtype: 'neutral',
  is_encoder_decoder: { only: [false], not: true },
  label2id: 'neutral',
  output_attentions: 'neutral',
  output_hidden_states: 'neutral',
  return_dict: 'neutral',
  torch_dtype: 'neutral',
  transformers_version: 'neutral',
  per_layer_config: { only: [null, {}], not: { 0: { num_attention_heads: 1 } } },
  quantization_config: { only: [null], not: { load_in_4bit: true } },
  add_cross_attention: { only: [false, null], not: true },
  is_decoder: { only: [false], not: true },
  pruned_heads: { only: [{}, null], not: { 0: [1] } },
  bos_token_id: 'neutral',
  eos_token_id: 'neutral',
  initializer_range: 'neutral',
  use_cache: 'neutral',
  temperature: 'neutral',
  vocab_size: 'read',
};

const CLASSIFIER: Readonly<Record<string, Fate>> = {
  id2label: 'read',
  pad_token_id: 'read',
  problem_type: { only: ['regression', 'multi_label_classification', null], not: 'ranking' },
};

const CAUSAL: Readonly<Record<string, Fate>> = {
  id2label: 'neutral',
  pad_token_id: 'neutral',
  problem_type: 'neutral',
  tie_word_embeddings: 'read',
};

const LLAMA: Readonly<Record<string, Fate>> = {
  ...COMMON,
  ...CAUSAL,
  attention_dropout: 'read',
  head_dim: 'read',
  hidden_act: { only: ['silu', 'gelu', 'relu2'], not: 'xielu' },
  hidden_size: 'read',
  intermediate_size: 'read',
  max_position_embeddings: 'read',
  num_attention_heads: 'read',
  num_hidden_layers: 'read',
  num_key_value_heads: 'read',
  partial_rotary_factor: { only: [1, null], not: 0.5 },
  rms_norm_eps: 'read',
  rope_interleaved: { only: [false], not: true },
  rope_parameters: 'read',
  rope_scaling: 'read',
  rope_theta: 'read',
};

const WINDOWS: Readonly<Record<string, Fate>> = {
  layer_types: 'read',
  max_window_layers: 'read',
  sliding_window: 'read',
  use_mrope: { only: [false], not: true },
  use_sliding_window: 'read',
};

const BERT: Readonly<Record<string, Fate>> = {
  ...COMMON,
  ...CLASSIFIER,
  attention_probs_dropout_prob: 'read',
  classifier_dropout: 'read',
  hidden_act: { only: ['gelu', 'relu'], not: 'prelu' },
  hidden_dropout_prob: 'read',
  hidden_size: 'read',
  intermediate_size: 'read',
  layer_norm_eps: 'read',
  max_position_embeddings: 'read',
  num_attention_heads: 'read',
  num_hidden_layers: 'read',
  position_embedding_type: { only: ['absolute', null], not: 'relative_key_query' },
  tie_word_embeddings: 'neutral',
  type_vocab_size: 'read',
};

const TYPES: Readonly<Record<string, Readonly<Record<string, Fate>>>> = {
  llama: {
    ...LLAMA,
    attention_bias: 'read',
    layer_types: { only: [['full_attention'], null], not: ['sliding_attention'] },
    mlp_bias: 'read',
    pretraining_tp: 'neutral',
  },
  mistral: {
    ...LLAMA,
    layer_types: { only: [['sliding_attention'], null], not: ['full_attention'] },
    sliding_window: 'read',
  },
  qwen2: { ...LLAMA, ...WINDOWS },
  qwen3: { ...LLAMA, ...WINDOWS, attention_bias: 'read' },
  gpt2: {
    ...COMMON,
    ...CAUSAL,
    activation_function: { only: ['gelu_new', 'relu', 'laplace'], not: 'prelu' },
    attn_pdrop: 'read',
    embd_pdrop: 'read',
    layer_norm_epsilon: 'read',
    n_ctx: 'neutral',
    n_embd: 'read',
    n_head: 'read',
    n_inner: 'read',
    n_layer: 'read',
    n_positions: 'read',
    reorder_and_upcast_attn: 'neutral',
    resid_pdrop: 'read',
    scale_attn_by_inverse_layer_idx: 'read',
    scale_attn_weights: 'read',
    summary_activation: 'neutral',
    summary_first_dropout: 'neutral',
    summary_proj_to_labels: 'neutral',
    summary_type: 'neutral',
    summary_use_proj: 'neutral',
    // Their names in other models, which transformers takes as well.
    hidden_size: 'read',
    max_position_embeddings: 'read',
    num_attention_heads: 'read',
    num_hidden_layers: 'read',
  },
  bert: BERT,
  roberta: BERT,
};

/** A small configuration of a type, enough to be built. */
function base(type: string): Record<string, unknown> {
  if (type === 'gpt2') return { model_type: type, n_embd: 8, n_head: 2, n_layer: 1, vocab_size: 9 };
  const encoder = type === 'bert' || type === 'roberta';
  return {
    model_type: type,
    hidden_size: 8,
    intermediate_size: 8,
    num_attention_heads: 2,
    ...(encoder ? {} : { num_key_value_heads: 2 }),
    num_hidden_layers: 1,
    vocab_size: 9,
  };
}

/** Builds until the first parameter is asked for; what stderr got meanwhile. */
function configure(config: Record<string, unknown>): string[] {
  const lines: string[] = [];
  const { error } = console;
  console.error = (...words: unknown[]) => lines.push(words.join(' '));
  const first = new Error('the configuration is read');
  try {
    buildModel(config, () => {
      throw first;
    });
  } catch (e) {
    if (e !== first) throw e;
  } finally {
    console.error = error;
  }
  return lines;
}

/** Values of every kind. */
const ANY = [null, true, false, 0, 3, 0.5, 'text', [], ['a'], { a: 1 }];

for (const [type, fields] of Object.entries(TYPES)) {
  test(`config.json of ${type}: every field is read, known to change nothing, or refused`, () => {
    assert.equal(configure(base(type)), []);
    for (const [field, fate] of Object.entries(fields)) {
      const withField = (value: unknown) => configure({ ...base(type), [field]: value });
      const where = (value: unknown) => `${field}: ${JSON.stringify(value)}`;
      if (fate === 'neutral') {
        for (const value of ANY) assert.equal(withField(value), [], where(value));
      } else if (fate === 'read') {
        // No field is of both these kinds; one that is an alias is named by its own name.
        const wrong = field === 'id2label' || field.startsWith('rope_p') ? 7 : { a: 1 };
        const kind = field === 'rope_scaling' ? 7 : wrong;
        assert.throws(() => withField(kind), /\[config of /, where(kind));
      } else {
        for (const value of fate.only) assert.equal(withField(value), [], where(value));
        assert.throws(() => withField(fate.not), new RegExp(`\\[config of ${type}.*${field}`));
      }
    }
  });
}

test('an unknown field is told of once, on stderr, and ignored', () => {
  const config = { ...base('llama'), logit_scale: 2, rope_parameters: { mrope_section: [1] } };
  const lines = configure(config);
  assert.equal(lines.map((l) => /unknown field "(\w+)" is ignored/.exec(l)?.[1]).sort(), [
    'logit_scale',
    'mrope_section',
  ]);
  assert.equal(configure(config), []);
});

test('heads that are neither a language model’s nor a scorer’s are refused', () => {
  const names =
    (...architectures: string[]) =>
    () =>
      configure({ ...base('llama'), architectures });
  names('LlamaForCausalLM')();
  names('LlamaModel')();
  names('LlamaForSequenceClassification')();
  assert.throws(names('LlamaForTokenClassification'), /architectures.*no other head/);
  assert.throws(names('LlamaForQuestionAnswering'), /architectures.*no other head/);
});

test.run();
