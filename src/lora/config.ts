import { failure, nearest } from '../tensor/errors.js';

/** How a new adapter's A begins: B is zero, so that either starts at the base model. */
export type LoraInit = 'kaiming' | 'gaussian';

/** Settings of a LoRA adapter. */
export interface LoraConfig {
  /** Rank r of the update: A is [r, in], B is [out, r]. Default 8. */
  readonly rank?: number;
  /** The update is scaled by alpha / rank. Default 2 × rank. */
  readonly alpha?: number;
  /** Layers by full path or last part of it (`q_proj`), or a preset: `attention`, `qv`, `all-linear`. */
  readonly targetModules: readonly string[];
  /** Dropout on the adapter's input while training. Default 0. */
  readonly dropout?: number;
  /** Default kaiming, as PEFT's. */
  readonly init?: LoraInit;
  /**
   * Modules by full path or last part of it that are trained and saved whole, such as a
   * classifier's new head. Default none.
   */
  readonly modulesToSave?: readonly string[];
}

/** A configuration with every default filled and checked. */
export type FullLoraConfig = Required<LoraConfig>;

const SETTINGS: readonly string[] = [
  'rank',
  'alpha',
  'targetModules',
  'dropout',
  'init',
  'modulesToSave',
];

/** Fills the defaults. @throws naming the setting that is unknown or out of range */
export function fullConfig(config: LoraConfig): FullLoraConfig {
  for (const key of Object.keys(config)) {
    if (SETTINGS.includes(key)) continue;
    const near = nearest(key.replaceAll('_', ''), SETTINGS, 1).join('');
    throw failure('lora', `settings of ${SETTINGS.join(', ')}`, `"${key}"`, `Nearest: ${near}`);
  }
  const rank = config.rank ?? 8;
  const full: FullLoraConfig = {
    rank,
    alpha: config.alpha ?? 2 * rank,
    targetModules: config.targetModules,
    dropout: config.dropout ?? 0,
    init: config.init ?? 'kaiming',
    modulesToSave: config.modulesToSave ?? [],
  };
  if (!Number.isSafeInteger(rank) || rank < 1) {
    throw failure('lora rank', 'a whole number of 1 or more', String(rank));
  }
  if (!Number.isFinite(full.alpha)) throw failure('lora alpha', 'a number', String(full.alpha));
  if (!(full.dropout >= 0 && full.dropout < 1)) {
    throw failure('lora dropout', '0 ≤ p < 1', String(full.dropout));
  }
  const targets: unknown = full.targetModules;
  if (!Array.isArray(targets) || !targets.every((t) => typeof t === 'string')) {
    throw failure('lora targetModules', 'a list of names', JSON.stringify(targets) ?? 'nothing');
  }
  if (targets.length === 0) throw failure('lora targetModules', 'at least one name', 'none');
  const saved: unknown = full.modulesToSave;
  if (!Array.isArray(saved) || !saved.every((t) => typeof t === 'string' && t !== '')) {
    throw failure('lora modulesToSave', 'a list of names', JSON.stringify(saved));
  }
  if (full.init !== 'kaiming' && full.init !== 'gaussian') {
    throw failure('lora init', 'kaiming or gaussian', `"${full.init}"`);
  }
  return full;
}
