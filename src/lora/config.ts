import { failure, nearest } from '../tensor/errors.js';
import { initNames, isInit, takesFromWeight } from './init.js';

/** How a new adapter's A and B begin; each starts at the base model. */
export type LoraInit =
  | 'kaiming'
  | 'gaussian'
  | 'orthogonal'
  | 'pissa'
  | `pissa_niter_${number}`
  | 'olora';

/** Settings of a LoRA adapter. */
export interface LoraConfig {
  /** Rank r of the update: A is [r, in], B is [out, r]. Default 8. */
  readonly rank?: number;
  /** The update is scaled by alpha / rank. Default 2 × rank. */
  readonly alpha?: number;
  /**
   * Layers by full path or last part of it (`q_proj`), or presets: `attention`, `qv`,
   * `all-linear`. A string is one preset, or a regular expression that a whole path must match.
   */
  readonly targetModules: readonly string[] | string;
  /** Layers not to take, though `targetModules` names them: names, or a regular expression. */
  readonly excludeModules?: readonly string[] | string;
  /** Numbers of the blocks whose layers are taken (`layers.3`). Default all. */
  readonly layersToTransform?: readonly number[] | number;
  /** Names of the lists of blocks that `layersToTransform` counts in. Default any. */
  readonly layersPattern?: readonly string[] | string;
  /** Other ranks, by name or regular expression of the end of a layer's path; the first counts. */
  readonly rankPattern?: Readonly<Record<string, number>>;
  /** Other alphas, in the same way. */
  readonly alphaPattern?: Readonly<Record<string, number>>;
  /**
   * Parts of fused projections that have A and B, by name or pattern of the end of the layer's
   * path: `{ c_attn: [true, false, true] }` for GPT-2's q and v. Default: the whole layer.
   */
  readonly enableLora?: Readonly<Record<string, readonly boolean[]>>;
  /** Dropout on the adapter's input while training. Default 0. */
  readonly dropout?: number;
  /**
   * Default `kaiming`, as PEFT's. `pissa` and `olora` take A and B out of the weight (its singular
   * vectors, its QR); what they take is subtracted beside the base, which is not written.
   */
  readonly init?: LoraInit;
  /** What is done with A and B: `lora`, or `dora` (Liu et al., 2024). Default lora. */
  readonly variant?: 'lora' | 'dora';
  /** `rslora` scales by alpha / √rank (Kalajdzievski, 2023). Default `lora`: alpha / rank. */
  readonly scaling?: 'lora' | 'rslora';
  /** Whether B has a bias of its own. Default false. */
  readonly loraBias?: boolean;
  /** Biases of the model that are trained along: of every module, of the chosen layers. Default none. */
  readonly bias?: 'none' | 'all' | 'lora_only';
  /**
   * Modules by full path or last part of it that are trained and saved whole, such as a
   * classifier's new head. Default none.
   */
  readonly modulesToSave?: readonly string[];
  /**
   * Tokens whose rows are trained: of the model's table of tokens, or of embeddings by name.
   * Default none.
   */
  readonly trainableTokens?: readonly number[] | Readonly<Record<string, readonly number[]>>;
}

/** A configuration with every default filled and checked. */
export type FullLoraConfig = Required<LoraConfig>;

const DEFAULTS = {
  rank: 8,
  excludeModules: [],
  layersToTransform: [],
  layersPattern: [],
  rankPattern: {},
  alphaPattern: {},
  enableLora: {},
  dropout: 0,
  init: 'kaiming',
  variant: 'lora',
  scaling: 'lora',
  loraBias: false,
  bias: 'none',
  modulesToSave: [],
  trainableTokens: [],
} as const satisfies Partial<FullLoraConfig>;

const SETTINGS: readonly string[] = ['targetModules', 'alpha', ...Object.keys(DEFAULTS)];

const CHOICES = {
  variant: ['lora', 'dora'],
  scaling: ['lora', 'rslora'],
  bias: ['none', 'all', 'lora_only'],
  loraBias: [true, false],
} as const;

const isWhole = (value: unknown, least: number) =>
  Number.isSafeInteger(value) && (value as number) >= least;

function checkNames(key: string, value: unknown, text: boolean): void {
  const names = text && typeof value === 'string' ? [value] : value;
  if (Array.isArray(names) && names.every((n) => typeof n === 'string' && n !== '')) return;
  const expected = text ? 'a list of names, or a regular expression as text' : 'a list of names';
  throw failure(`lora ${key}`, expected, JSON.stringify(value) ?? 'nothing');
}

function checkPattern(key: string, value: unknown, fits: (v: unknown) => boolean, what: string) {
  const received = JSON.stringify(value);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw failure(`lora ${key}`, `${what} by pattern`, received);
  }
  for (const [pattern, v] of Object.entries(value)) {
    if (pattern === '' || !fits(v)) {
      throw failure(`lora ${key}`, `${what} for "${pattern}"`, JSON.stringify(v) ?? 'nothing');
    }
  }
}

/** The settings that fit or not alone. */
function checkValues(full: FullLoraConfig): void {
  const { rank, alpha, dropout } = full;
  if (!isWhole(rank, 1)) {
    throw failure('lora rank', 'a whole number of 1 or more', String(rank));
  }
  if (!Number.isFinite(alpha)) throw failure('lora alpha', 'a number', String(alpha));
  if (!(dropout >= 0 && dropout < 1)) {
    throw failure('lora dropout', '0 ≤ p < 1', String(dropout));
  }
  checkNames('targetModules', full.targetModules, true);
  if (full.targetModules.length === 0) {
    throw failure('lora targetModules', 'at least one name', 'none');
  }
  if (full.excludeModules !== '') checkNames('excludeModules', full.excludeModules, true);
  checkNames('layersPattern', full.layersPattern, true);
  checkNames('modulesToSave', full.modulesToSave, false);
  const layers = [full.layersToTransform].flat();
  if (!layers.every((n) => isWhole(n, 0))) {
    throw failure('lora layersToTransform', 'a list of numbers of blocks', JSON.stringify(layers));
  }
  checkPattern('rankPattern', full.rankPattern, (v) => isWhole(v, 1), 'a rank of 1 or more');
  checkPattern('alphaPattern', full.alphaPattern, (v) => Number.isFinite(v), 'a number');
  const parts = (v: unknown) =>
    Array.isArray(v) && v.every((p) => typeof p === 'boolean') && v.includes(true);
  checkPattern('enableLora', full.enableLora, parts, 'a list of true and false, one of them true');
  const ids = (v: unknown) =>
    Array.isArray(v) &&
    v.length > 0 &&
    v.every((n) => isWhole(n, 0)) &&
    new Set(v).size === v.length;
  const tokens = full.trainableTokens;
  const none = Array.isArray(tokens) && tokens.length === 0;
  const byName = none ? {} : Array.isArray(tokens) ? { embedding: tokens } : tokens;
  checkPattern('trainableTokens', byName, ids, 'a list of token ids, each once');
  if (!isInit(full.init)) {
    throw failure('lora init', initNames().join(' or '), JSON.stringify(full.init));
  }
  for (const [key, choices] of Object.entries(CHOICES)) {
    const value = full[key as keyof typeof CHOICES];
    if ((choices as readonly unknown[]).includes(value)) continue;
    throw failure(`lora ${key}`, choices.join(' or '), JSON.stringify(value) ?? 'nothing');
  }
}

/** The settings that do not go together. */
function checkTogether(full: FullLoraConfig): void {
  const { layersToTransform, layersPattern, targetModules, loraBias, variant, init, rank } = full;
  const plain = variant === 'lora' && !loraBias && (init === 'kaiming' || init === 'gaussian');
  if (Object.keys(full.enableLora).length > 0 && !plain) {
    const received = `${variant}, init ${init}${loraBias ? ', loraBias' : ''}`;
    throw failure('lora enableLora', 'plain LoRA, init kaiming or gaussian', received);
  }
  const blocks = [layersToTransform].flat();
  if (typeof targetModules === 'string' && blocks.length > 0) {
    throw failure(
      'lora layersToTransform',
      'targetModules as a list of names',
      `the regular expression "${targetModules}"`,
      'Say in the expression which blocks it means',
    );
  }
  if (layersPattern.length > 0 && blocks.length === 0) {
    throw failure('lora layersPattern', 'layersToTransform with it', 'none');
  }
  if (loraBias && variant !== 'lora') {
    throw failure('lora loraBias', 'the variant lora', variant, 'PEFT has no other either');
  }
  if (loraBias && init !== 'kaiming') {
    throw failure('lora loraBias', 'the init kaiming', init, 'PEFT has no other either');
  }
  if (takesFromWeight(init) && variant !== 'lora') {
    throw failure(`lora init ${init}`, 'the variant lora', variant);
  }
  const ranks = [rank, ...Object.values(full.rankPattern)];
  const odd = ranks.find((r) => r % 2 !== 0);
  if (init === 'orthogonal' && odd !== undefined) {
    throw failure('lora init orthogonal', 'an even rank', String(odd));
  }
}

/** Fills the defaults. @throws naming the setting that is unknown or out of range */
export function fullConfig(config: LoraConfig): FullLoraConfig {
  for (const key of Object.keys(config)) {
    if (SETTINGS.includes(key)) continue;
    const near = nearest(key.replaceAll('_', ''), SETTINGS, 1).join('');
    throw failure('lora', `settings of ${SETTINGS.join(', ')}`, `"${key}"`, `Nearest: ${near}`);
  }
  const given = Object.fromEntries(Object.entries(config).filter(([, v]) => v !== undefined));
  const full = { ...DEFAULTS, ...given } as unknown as FullLoraConfig;
  const settled = { ...full, alpha: config.alpha ?? 2 * full.rank };
  checkValues(settled);
  checkTogether(settled);
  return settled;
}

/** The settings of a configuration that differ from the defaults, and rank, alpha and targets. */
export function sparseConfig(full: FullLoraConfig): LoraConfig {
  const same = (key: string) =>
    JSON.stringify(full[key as keyof FullLoraConfig]) ===
    JSON.stringify(DEFAULTS[key as keyof typeof DEFAULTS]);
  const always = ['rank', 'dropout', 'init'];
  const entries = Object.entries(full).filter(([key]) => always.includes(key) || !same(key));
  return Object.fromEntries(entries) as unknown as LoraConfig;
}

/** The settings of an adapter with parts: plain LoRA of n times the rank at the same scaling. */
function writtenParts(config: FullLoraConfig, paths: Iterable<string>): FullLoraConfig {
  const ranks: Record<string, number> = {};
  const alphas: Record<string, number> = {};
  for (const path of paths) {
    const n = enabledParts(config, path)?.filter((p) => p).length;
    if (n === undefined) continue;
    ranks[path] = n * settingsOf(config, path).rank;
    const alpha = patternValue(config.alphaPattern, path) ?? config.alpha;
    alphas[path] = alpha * (config.scaling === 'rslora' ? Math.sqrt(n) : n);
  }
  // A layer's own path comes before the patterns, of which the first counts.
  return {
    ...config,
    enableLora: {},
    rankPattern: { ...ranks, ...config.rankPattern },
    alphaPattern: { ...alphas, ...config.alphaPattern },
  };
}

/**
 * The settings of an adapter as it is written: one that began from the weight is written as plain
 * LoRA of twice the rank, s·(B A − B₀ A₀) = s·[B, −B₀] [A; A₀] at the same scaling.
 * @param paths of its layers
 */
export function writtenConfig(config: FullLoraConfig, paths: Iterable<string>): FullLoraConfig {
  if (Object.keys(config.enableLora).length > 0) return writtenParts(config, paths);
  if (!takesFromWeight(config.init)) return config;
  const factor = config.scaling === 'rslora' ? Math.SQRT2 : 2;
  const times = (patterns: Readonly<Record<string, number>>, n: number) =>
    Object.fromEntries(Object.entries(patterns).map(([pattern, v]) => [pattern, v * n]));
  return {
    ...config,
    init: 'kaiming',
    rank: 2 * config.rank,
    alpha: factor * config.alpha,
    rankPattern: times(config.rankPattern, 2),
    alphaPattern: times(config.alphaPattern, factor),
  };
}

/** Rank and scaling of one layer: the settings' own, or the first pattern's that its path ends with. */
export function settingsOf(
  config: FullLoraConfig,
  path: string,
): { readonly rank: number; readonly scaling: number } {
  const rank = patternValue(config.rankPattern, path) ?? config.rank;
  const alpha = patternValue(config.alphaPattern, path) ?? config.alpha;
  return { rank, scaling: alpha / (config.scaling === 'rslora' ? Math.sqrt(rank) : rank) };
}

/** Which parts of a fused layer have A and B; undefined for a layer that is taken whole. */
export function enabledParts(config: FullLoraConfig, path: string): readonly boolean[] | undefined {
  return patternValue(config.enableLora, path);
}

function patternValue<T>(patterns: Readonly<Record<string, T>>, path: string): T | undefined {
  for (const [pattern, value] of Object.entries(patterns)) {
    if (endPattern(pattern).test(path)) return value;
  }
  return undefined;
}

/** A regular expression for the end of a path, from the start of one of its parts. */
export function endPattern(pattern: string): RegExp {
  return regex(`(?:.*\\.)?(?:${pattern})`);
}

/**
 * A regular expression, as Python writes it too, that a whole text must match.
 * @throws naming the expression that is none
 */
export function regex(source: string): RegExp {
  const inline = /^((?:\(\?:\.\*\\\.\)\?\(\?:)?)\(\?i\)/.exec(source);
  const own = (inline ? (inline[1] as string) + source.slice(inline[0].length) : source)
    .replaceAll('(?P<', '(?<')
    .replaceAll(/\(\?P=(\w+)\)/g, '\\k<$1>');
  try {
    return new RegExp(`^(?:${own})$`, inline ? 'i' : '');
  } catch (error) {
    throw failure(
      'lora pattern',
      'a regular expression',
      `"${source}": ${(error as Error).message}`,
    );
  }
}
