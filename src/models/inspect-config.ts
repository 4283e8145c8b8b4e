/** The object of a config.json. */
export type Json = Readonly<Record<string, unknown>>;

/** The sizes that a config.json names; null where it names none. */
export interface ModelShape {
  readonly modelType: string | null;
  readonly architectures: readonly string[];
  readonly layers: number | null;
  readonly hidden: number | null;
  /** Width of the MLP between its layers. */
  readonly intermediate: number | null;
  readonly heads: number | null;
  readonly keyValueHeads: number | null;
  readonly headSize: number | null;
  readonly vocabulary: number | null;
  readonly positions: number | null;
  /** The window of sliding attention, in tokens. */
  readonly window: number | null;
  readonly experts: number | null;
  /** Names of the labels of a classifier. */
  readonly labels: readonly string[] | null;
  readonly rope: RopeShape | null;
  /** The method of a quantized checkpoint. */
  readonly quantization: string | null;
}

/** Rotary positions. */
export interface RopeShape {
  readonly theta: number | null;
  /** `default`, or the name of a scaling. */
  readonly type: string;
  readonly factor: number | null;
}

/** An object among the fields, or an empty one. */
function objectIn(json: Json, field: string): Json {
  const value = json[field];
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Json)
    : {};
}

/** The first of some fields that is a number. */
function numberIn(json: Json, ...fields: string[]): number | null {
  const found = fields.map((f) => json[f]).find((v) => typeof v === 'number');
  return (found as number | undefined) ?? null;
}

function textIn(json: Json, ...fields: string[]): string | null {
  const found = fields.map((f) => json[f]).find((v) => typeof v === 'string');
  return (found as string | undefined) ?? null;
}

/**
 * What a config.json says of a model's shape, of any architecture: the fields' names vary, and the
 * language part of a model of several parts counts. Nothing is filled in that it does not say, but
 * what follows from it.
 */
export function describeConfig(config: Json): ModelShape {
  const inner = objectIn(config, 'text_config');
  const json = { ...inner, ...config };
  const heads = numberIn(json, 'num_attention_heads', 'n_head', 'num_heads', 'n_heads');
  const hidden = numberIn(json, 'hidden_size', 'n_embd', 'd_model', 'dim');
  const even = heads && hidden && hidden % heads === 0 ? hidden / heads : null;
  const names = config.architectures;
  const quantization = objectIn(json, 'quantization_config');
  return {
    modelType: textIn(config, 'model_type'),
    architectures: Array.isArray(names) ? names.map(String) : [],
    layers: numberIn(json, 'num_hidden_layers', 'n_layer', 'num_layers', 'n_layers'),
    hidden,
    intermediate: numberIn(json, 'intermediate_size', 'n_inner', 'd_ff', 'ffn_dim', 'hidden_dim'),
    heads,
    keyValueHeads: numberIn(json, 'num_key_value_heads', 'n_kv_heads') ?? heads,
    headSize: numberIn(json, 'head_dim', 'd_kv') ?? even,
    vocabulary: numberIn(json, 'vocab_size'),
    positions: numberIn(json, 'max_position_embeddings', 'n_positions', 'n_ctx', 'max_seq_len'),
    window: json.use_sliding_window === false ? null : numberIn(json, 'sliding_window'),
    experts: numberIn(json, 'num_local_experts', 'num_experts', 'n_routed_experts'),
    labels: labelsOf(config),
    rope: ropeOf(json),
    quantization: textIn(quantization, 'quant_method') ?? (quantized(quantization) ? '?' : null),
  };
}

const quantized = (json: Json) => Object.keys(json).length > 0;

/** The labels of a classifier; others have two by transformers' default, which mean nothing. */
function labelsOf(config: Json): string[] | null {
  const names = Array.isArray(config.architectures) ? config.architectures.map(String) : [];
  if (!names.some((n) => n.endsWith('Classification'))) return null;
  const labels = Object.values(objectIn(config, 'id2label')).map(String);
  return labels.length > 0 ? labels : null;
}

/** RoPE in the old spelling (`rope_theta`, `rope_scaling`) or the new one (`rope_parameters`). */
function ropeOf(json: Json): RopeShape | null {
  const settings = { ...objectIn(json, 'rope_scaling'), ...objectIn(json, 'rope_parameters') };
  const theta = numberIn(settings, 'rope_theta') ?? numberIn(json, 'rope_theta');
  if (theta === null && Object.keys(settings).length === 0) return null;
  return {
    theta,
    type: textIn(settings, 'rope_type', 'type') ?? 'default',
    factor: numberIn(settings, 'factor'),
  };
}
