import { failure } from '../../tensor/errors.js';
import type { Adapter, AdapterModule, ExtraTensor } from './adapter.js';

type Json = Readonly<Record<string, unknown>>;

/** What chooses the layers of an adapter, in PEFT's words. */
const CHOICE = [
  'target_modules',
  'exclude_modules',
  'layers_to_transform',
  'layers_pattern',
] as const;

/** Starts after which the base's weights are no longer the checkpoint's. */
const MUTATING = /^(pissa|olora|corda|loftq|lora_ga)/;

/** The value that a PEFT pattern gives a layer: of the first key that its path ends with. */
function patternValue(pattern: unknown, path: string): unknown {
  if (typeof pattern !== 'object' || pattern === null) return undefined;
  for (const [key, value] of Object.entries(pattern)) {
    if (new RegExp(`^(.*\\.)?(${key})$`).test(path)) return value;
  }
  return undefined;
}

/** The rank and the scaling that a PEFT configuration gives a layer. */
export function settingsOf(config: Json, path: string): { rank: number; scaling: number } {
  const number = (key: string, value: unknown): number => {
    if (typeof value === 'number' && Number.isFinite(value)) return value;
    throw failure(`adapter ${key}`, 'a number', JSON.stringify(value) ?? 'nothing');
  };
  const rank = number('r', patternValue(config.rank_pattern, path) ?? config.r);
  const alpha = number('lora_alpha', patternValue(config.alpha_pattern, path) ?? config.lora_alpha);
  return { rank, scaling: alpha / (config.use_rslora === true ? Math.sqrt(rank) : rank) };
}

/** Throws for an adapter that was trained beside a changed base (PiSSA, OLoRA and their like). */
export function checkPlainBase({ config }: Adapter, doing: string): void {
  const start = config.init_lora_weights;
  if (typeof start === 'string' && MUTATING.test(start)) {
    throw failure(
      doing,
      'an adapter of the unchanged base',
      `init_lora_weights "${start}", which trains beside a changed one`,
      'Convert it with the adapter as it was before training: lowrank adapters convert --initial',
    );
  }
}

/**
 * Throws unless an adapter is what arithmetic on ΔW means: sums of B A on the plain base.
 * @param doing what is asked for, for the message
 */
export function checkAlgebra(adapter: Adapter, doing: string): void {
  checkPlainBase(adapter, doing);
  for (const name of adapter.extras.keys()) {
    if (/\.lora_magnitude_vector(\.weight)?$/.test(name)) {
      throw failure(
        doing,
        'updates that are sums of B A',
        `DoRA (${name}), which rescales the weights`,
        'Merge it into the base instead',
      );
    }
    if (/\.lora_[A-Za-z_]+(\.|$)|token_adapter/.test(name)) {
      throw failure(doing, 'A and B only', name, 'Merge the adapter into the base instead');
    }
  }
}

/** One value if all are the same, else undefined. */
function common<T>(values: readonly T[]): T | undefined {
  return values.every((v) => JSON.stringify(v) === JSON.stringify(values[0]))
    ? values[0]
    : undefined;
}

/** The value that most have; of several the first. */
function usual(values: readonly number[]): number {
  const counts = new Map<number, number>();
  for (const v of values) counts.set(v, (counts.get(v) ?? 0) + 1);
  return [...counts].reduce((best, c) => (c[1] > best[1] ? c : best))[0];
}

/** The values by path that are not the usual one. */
function pattern(values: ReadonlyMap<string, number>, rest: number): Record<string, number> {
  return Object.fromEntries([...values].filter(([, v]) => v !== rest));
}

/** A number as written by people: 16, not 15.999999999999998. */
function tidy(x: number): number {
  const whole = Math.round(x);
  return Math.abs(x - whole) <= 1e-12 * Math.abs(x) ? whole : x;
}

/** How PEFT would name the layers of these modules, kept as the adapters have it where that holds. */
function choiceOf(from: readonly Adapter[], paths: readonly string[]): Record<string, unknown> {
  const whole = from.filter((a) => paths.every((p) => a.modules.has(p)));
  const choice = (a: Adapter) => CHOICE.map((key) => a.config[key] ?? null);
  const first = whole[0] ?? from[0];
  const kept = first && (whole.length > 0 || common(from.map(choice)) !== undefined);
  if (kept && first.modules.size <= paths.length && first.config.target_modules !== undefined) {
    return Object.fromEntries(CHOICE.map((key) => [key, first.config[key] ?? null]));
  }
  return { ...Object.fromEntries(CHOICE.map((key) => [key, null])), target_modules: [...paths] };
}

/**
 * The hash of the base that adapters share, if their files tell; of different ones none, with a
 * warning on stderr. An adapter's hash leaves out what it holds whole: such a one is not compared.
 * @param extras what the result holds whole, of one of them
 */
function commonBase(
  from: readonly Adapter[],
  extras: ReadonlyMap<string, ExtraTensor>,
): string | undefined {
  const plain = from.filter((a) => a.extras.size === 0);
  const hashes = [...new Set(plain.flatMap((a) => a.base ?? []))];
  if (hashes.length > 1) {
    console.error(
      'lowrank: WARNING: these adapters were trained on different bases of the same shapes.\n' +
        `  They record ${hashes.join(' and ')}.\n` +
        '  The sum of their updates means little on any of them.',
    );
    return undefined;
  }
  return extras.size > 0 ? from.find((a) => a.extras === extras)?.base : hashes[0];
}

/**
 * An adapter of new modules, its configuration made to fit: `r` and `lora_alpha` are what most
 * layers have, patterns name the others.
 * @param from the adapters that it came from; the first gives every other setting
 */
export function madeFrom(
  from: readonly Adapter[],
  modules: ReadonlyMap<string, AdapterModule>,
  extras: ReadonlyMap<string, ExtraTensor> = from[0]?.extras ?? new Map(),
): Adapter {
  if (modules.size === 0) throw failure('adapter', 'at least one layer', 'none');
  const paths = [...modules.keys()];
  const ranks = new Map([...modules].map(([p, m]) => [p, m.rank]));
  const alphas = new Map([...modules].map(([p, m]) => [p, tidy(m.scaling * m.rank)]));
  const [rank, alpha] = [usual([...ranks.values()]), usual([...alphas.values()])];
  const config = {
    ...from[0]?.config,
    ...choiceOf(from, paths),
    r: rank,
    lora_alpha: alpha,
    rank_pattern: pattern(ranks, rank),
    alpha_pattern: pattern(alphas, alpha),
    use_rslora: false,
    init_lora_weights: true,
  };
  const base = commonBase(from, extras);
  return { config, modules, extras, ...(base === undefined ? {} : { base }) };
}
