import { svdOfProduct } from '../../linalg/index.js';
import type { Backend } from '../../tensor/backend.js';
import { failure, shapeText } from '../../tensor/errors.js';
import { defaultBackend } from '../../tensor/registry.js';
import { checkRank } from '../rank-limit.js';
import {
  type Adapter,
  type AdapterModule,
  beside,
  type ExtraTensor,
  leftFactor,
  moduleOfSvd,
  padRank,
  rightFactor,
  sameLayer,
} from './adapter.js';
import { checkAlgebra, madeFrom } from './config.js';
import { mergeDense } from './dense.js';

/**
 * Ways to combine adapters, all on ΔW:
 * - `cat` (also called `linear`, which it is): Σ wᵢ ΔWᵢ exactly, by concatenation; ranks add up.
 * - `svd`: the same sum, cut to a rank by its singular values.
 * - `ties`: prune by magnitude, elect a sign for each element, mean of those that have it
 *   (Yadav et al., 2023), cut to a rank.
 * - `dare`: drop elements at random and rescale the others, sum (Yu et al., 2023), cut to a rank.
 * - `dare-ties`: drop at random, then as ties.
 * - `prune`: prune by magnitude, sum, cut to a rank.
 */
export const COMBINE_METHODS = [
  'cat',
  'linear',
  'svd',
  'ties',
  'dare',
  'dare-ties',
  'prune',
] as const;
export type CombineMethod = (typeof COMBINE_METHODS)[number];

/** How the sign of an element is elected: by the sum of the updates or by their count. */
export type SignRule = 'total' | 'frequency';

/** Settings of {@link combine}. */
export interface CombineOptions {
  /** Default cat. */
  readonly method?: CombineMethod;
  /** Of the result; default the largest of the adapters. Not for cat, whose rank is the sum. */
  readonly rank?: number;
  /** Share of elements that are kept, for ties, dare, dare-ties and prune: 0 < density ≤ 1. */
  readonly density?: number;
  /** For ties and dare-ties; default total. */
  readonly sign?: SignRule;
  /** Of dare's choice; default 0. */
  readonly seed?: number;
  /** Where ΔW is formed, layer by layer, by the methods that need it. */
  readonly backend?: Backend;
}

/** An adapter and its weight in a combination. */
export interface Weighted {
  readonly adapter: Adapter;
  readonly weight: number;
}

/** What a layer lost when its update was cut to a rank. */
export interface RankReport {
  readonly path: string;
  /** Rank before (of the exact update; for formed ones that of the whole layer) and after. */
  readonly from: number;
  readonly to: number;
  /** ‖ΔW − ΔW′‖_F / ‖ΔW‖_F; 0 where ΔW is 0. */
  readonly error: number;
  /** 1 − error²: the share of ‖ΔW‖²_F that is kept. */
  readonly energy: number;
}

/** A new adapter, and what it cost, layer by layer. */
export interface Combined {
  readonly adapter: Adapter;
  readonly layers: readonly RankReport[];
}

/** One layer's modules among the adapters, with their weights. */
export interface Part {
  readonly module: AdapterModule;
  readonly weight: number;
  /** Place of the adapter among those combined. */
  readonly index: number;
}

function partsByPath(parts: readonly Weighted[]): Map<string, Part[]> {
  const out = new Map<string, Part[]>();
  parts.forEach(({ adapter, weight }, index) => {
    for (const [path, module] of adapter.modules) {
      const list = out.get(path) ?? [];
      const first = list[0]?.module;
      if (first && !sameLayer(first, module)) {
        const text = (m: AdapterModule) => `${m.kind} ${shapeText([m.outFeatures, m.inFeatures])}`;
        throw failure(`combine, ${path}`, text(first), text(module), 'They are of other bases');
      }
      list.push({ module, weight, index });
      out.set(path, list);
    }
  });
  return out;
}

/** Modules that are saved whole cannot be added up: one adapter may have them, and keeps them. */
function combinedExtras(parts: readonly Weighted[]): ReadonlyMap<string, ExtraTensor> {
  const holders = parts.filter(({ adapter }) => adapter.extras.size > 0);
  if (holders.length > 1) {
    const names = holders.map(({ adapter }) => [...adapter.extras.keys()][0] as string);
    throw failure(
      'combine',
      'at most one adapter with modules saved whole',
      names.join(' and '),
      'Whole weights are no updates and do not add up',
    );
  }
  const [holder] = holders;
  if (!holder) return new Map();
  checkWhole(holder.adapter, holder.weight, 'combine');
  return holder.adapter.extras;
}

/** Throws where an adapter that holds weights whole is to count other than once, as in a merge. */
function checkWhole({ extras }: Adapter, weight: number, doing: string): void {
  const [name] = extras.keys();
  if (name === undefined || weight === 1) return;
  throw failure(
    doing,
    `weight 1 for the adapter that holds ${name} whole`,
    String(weight),
    'A module in place of the base’s is taken or left; only LoRA updates have a weight',
  );
}

/** Σ wᵢ ΔWᵢ with the ranks added up, weights and scalings multiplied into A. */
function concatenated(parts: readonly Part[]): AdapterModule {
  const first = (parts[0] as Part).module;
  const rank = parts.reduce((n, { module }) => n + module.rank, 0);
  const { inFeatures, outFeatures } = first;
  const a = new Float32Array(rank * inFeatures);
  const b = new Float32Array(outFeatures * rank);
  let at = 0;
  for (const { module: m, weight } of parts) {
    const factor = weight * m.scaling;
    for (let i = 0; i < m.a.length; i++) a[at * inFeatures + i] = factor * (m.a[i] as number);
    for (let i = 0; i < outFeatures; i++) {
      b.set(m.b.subarray(i * m.rank, (i + 1) * m.rank), i * rank + at);
    }
    at += m.rank;
  }
  return { ...first, a, b, rank, scaling: 1 };
}

/**
 * What is lost by keeping the first `rank` of singular values.
 * @param rest Σ of the squares of those that are not among them
 */
export function lossOf(s: Float64Array, rank: number, rest = 0): { error: number; energy: number } {
  let kept = 0;
  let lost = rest;
  s.forEach((x, i) => {
    if (i < rank) kept += x * x;
    else lost += x * x;
  });
  const energy = kept + lost === 0 ? 1 : kept / (kept + lost);
  return { error: kept + lost === 0 ? 0 : Math.sqrt(lost / (kept + lost)), energy };
}

/** The same sum from one decomposition of the concatenated factors. */
function truncated(path: string, parts: readonly Part[], rank: number) {
  const first = (parts[0] as Part).module;
  const b = beside(parts.map(({ module, weight }) => leftFactor(module, weight)));
  const svd = svdOfProduct(b, beside(parts.map(({ module }) => rightFactor(module))), rank);
  const report = { path, from: b.cols, to: rank, ...lossOf(svd.s, rank, svd.rest) };
  return { module: moduleOfSvd(first, svd, rank, rank), report };
}

function checkOptions(parts: readonly Weighted[], options: CombineOptions): void {
  const { method = 'cat', rank, density, seed = 0 } = options;
  if (parts.length === 0) throw failure('combine', 'at least one adapter', 'none');
  for (const { adapter, weight } of parts) {
    checkAlgebra(adapter, 'combine');
    if (!Number.isFinite(weight)) throw failure('combine weight', 'a number', String(weight));
  }
  if (!COMBINE_METHODS.includes(method)) {
    throw failure('combine method', `one of ${COMBINE_METHODS.join(', ')}`, `"${method}"`);
  }
  const exact = method === 'cat' || method === 'linear';
  if (rank !== undefined && (exact || !Number.isSafeInteger(rank) || rank < 1)) {
    const wanted = exact
      ? `none for ${method}, whose rank is the sum`
      : 'a whole number of 1 or more';
    throw failure('combine rank', wanted, String(rank), exact ? 'Use svd for a rank' : undefined);
  }
  const sparse = !exact && method !== 'svd';
  if (sparse && !(density !== undefined && density > 0 && density <= 1)) {
    throw failure('combine density', `0 < density ≤ 1 for ${method}`, String(density ?? 'none'));
  }
  if (!sparse && density !== undefined) {
    throw failure('combine density', `none for ${method}`, String(density));
  }
  const signed = method === 'ties' || method === 'dare-ties';
  const { sign } = options;
  if (sign !== undefined && (!signed || (sign !== 'total' && sign !== 'frequency'))) {
    const wanted = signed ? 'total or frequency' : `none for ${method}`;
    throw failure('combine sign', wanted, String(sign));
  }
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw failure('combine seed', 'a whole number of 0 or more', String(seed));
  }
}

/**
 * A weighted combination of adapters, in ΔW: A and B are never averaged apart, which would mean
 * nothing. An adapter without a layer counts as zero there. Scalings are folded in: the result's
 * `lora_alpha` is its `r`.
 * @throws for adapters of other bases or whose updates are no sums of B A (DoRA, PiSSA as trained),
 *   for a weight other than 1 of one that holds weights whole, and for a setting that the method does
 *   not have
 */
export function combine(parts: readonly Weighted[], options: CombineOptions = {}): Combined {
  checkOptions(parts, options);
  const { method = 'cat', backend = defaultBackend() } = options;
  const extras = combinedExtras(parts);
  const adapters = parts.map(({ adapter }) => adapter);
  const exact = method === 'cat' || method === 'linear';
  const largest = Math.max(...adapters.flatMap((a) => [...a.modules.values()].map((m) => m.rank)));
  const rank = options.rank ?? largest;
  const modules = new Map<string, AdapterModule>();
  const layers: RankReport[] = [];
  for (const [path, list] of partsByPath(parts)) {
    if (exact) {
      const module = concatenated(list);
      modules.set(path, module);
      layers.push({ path, from: module.rank, to: module.rank, error: 0, energy: 1 });
      continue;
    }
    const [{ module: like }] = list as [Part];
    if (options.rank !== undefined) {
      checkRank('combine rank', path, rank, [like.inFeatures, like.outFeatures]);
    }
    const { module, report } =
      method === 'svd'
        ? truncated(path, list, rank)
        : mergeDense(path, list, rank, {
            ...{ method, density: options.density as number, sign: options.sign ?? 'total' },
            ...{ seed: options.seed ?? 0, backend },
          });
    modules.set(path, module);
    layers.push(report);
  }
  // One rank for all, as every loader reads it.
  const most = Math.max(...[...modules.values()].map((m) => m.rank));
  for (const [path, m] of modules) {
    const padded = padRank(m, most);
    modules.set(path, { ...padded, scaling: 1 });
  }
  return { adapter: madeFrom(withHolder(adapters, extras), modules, extras), layers };
}

/** The adapter whose settings are kept comes first: the one with modules saved whole. */
function withHolder(adapters: Adapter[], extras: ReadonlyMap<string, ExtraTensor>): Adapter[] {
  const holder = adapters.find((a) => a.extras === extras);
  return holder ? [holder, ...adapters.filter((a) => a !== holder)] : adapters;
}

/** −ΔW: the update that takes another one back. @throws for one that holds weights whole */
export function negate(adapter: Adapter): Adapter {
  return scaleAdapter(adapter, -1);
}

/**
 * factor · ΔW, in the same rank; A and the settings but alpha stay as they are.
 * @throws for an adapter that holds weights whole, unless the factor is 1
 */
export function scaleAdapter(adapter: Adapter, factor: number): Adapter {
  checkAlgebra(adapter, 'scale adapter');
  checkWhole(adapter, factor, 'scale adapter');
  const modules = new Map<string, AdapterModule>();
  for (const [path, m] of adapter.modules) {
    modules.set(path, { ...m, b: m.b.map((x) => factor * x) });
  }
  return { ...adapter, modules };
}

/** ΔW₁ − ΔW₂, exactly; ranks add up. */
export function subtract(a: Adapter, b: Adapter): Adapter {
  return combine([
    { adapter: a, weight: 1 },
    { adapter: b, weight: -1 },
  ]).adapter;
}
