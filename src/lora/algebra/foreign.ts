import { failure } from '../../tensor/errors.js';
import type { Adapter, AdapterModule } from './adapter.js';
import { checkPlainBase } from './config.js';

/** Layers whose weight is a table of rows, by the names models give them. */
export const EMBEDDING = /(^|\.)(embed_tokens|wte|wpe|word_embeddings|embeddings?)$/;

/** Where a path's layer number ends, the number, and the name within the block. */
export function blockOf(path: string): { block: number; name: string } | null {
  const found = /^.*?\.(\d+)\.(.+)$/.exec(path);
  return found ? { block: Number(found[1]), name: found[2] as string } : null;
}

/** Target modules of PEFT for these paths: short names where they choose just these. */
function targetsOf(paths: readonly string[]): Record<string, unknown> {
  const places = paths.map(blockOf);
  const names = [...new Set(places.map((p) => p?.name))];
  const blocks = [...new Set(places.map((p) => p?.block))].sort((a, b) => Number(a) - Number(b));
  if (places.includes(null) || names.length * blocks.length !== paths.length) {
    return { target_modules: [...paths] };
  }
  const lasts = names.map((n) => (n as string).split('.').at(-1));
  const targets = new Set(lasts).size === names.length ? lasts : names;
  const all = blocks.every((b, i) => b === i);
  return { target_modules: targets, layers_to_transform: all ? null : blocks };
}

/** The configuration of an adapter that came without PEFT's. */
export function peftConfigOf(
  modules: ReadonlyMap<string, AdapterModule>,
  rest: Record<string, unknown>,
) {
  const first = [...modules.values()][0] as AdapterModule;
  const ranks = [...modules].filter(([, m]) => m.rank !== first.rank);
  const alphaOf = (m: AdapterModule) => m.scaling * m.rank;
  const alphas = [...modules].filter(([, m]) => alphaOf(m) !== alphaOf(first));
  return {
    base_model_name_or_path: null,
    bias: 'none',
    fan_in_fan_out: false,
    init_lora_weights: true,
    lora_dropout: 0,
    modules_to_save: null,
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    use_dora: false,
    use_rslora: false,
    r: first.rank,
    lora_alpha: alphaOf(first),
    rank_pattern: Object.fromEntries(ranks.map(([p, m]) => [p, m.rank])),
    alpha_pattern: Object.fromEntries(alphas.map(([p, m]) => [p, alphaOf(m)])),
    ...targetsOf([...modules.keys()]),
    ...rest,
  };
}

/** B multiplied so that the module has another scaling: the same ΔW. */
export function withScaling(m: AdapterModule, scaling: number): AdapterModule {
  if (m.scaling === scaling) return m;
  const factor = m.scaling / scaling;
  return { ...m, b: m.b.map((x) => factor * x), scaling };
}

/** Throws for what only PEFT's layout can hold. */
export function checkForeign(adapter: Adapter, layout: string): void {
  checkPlainBase(adapter, `convert to ${layout}`);
  for (const [path, m] of adapter.modules) {
    if (m.convolution)
      throw failure(`convert to ${layout}`, 'dense layers', `${path}, a convolution`);
  }
}
