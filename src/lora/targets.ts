import { Dense, type Module } from '../nn/index.js';
import { failure, nearest } from '../tensor/errors.js';
import { inSaved } from './saved.js';

/** A dense layer that LoRA can wrap, and where it hangs. */
export interface Target {
  readonly path: string;
  readonly layer: Dense;
  readonly parent: Module;
  /** Its property in the parent. */
  readonly name: string;
}

/** Layers that answer the vocabulary or the classes; `all-linear` leaves them out, as PEFT does. */
const OUTPUT_LAYERS = new Set(['lm_head', 'classifier', 'score']);

/** Names that stand for several: the paper's choices, by the names models give those layers. */
export const PRESETS: Readonly<Record<string, readonly string[]>> = {
  attention: ['q_proj', 'k_proj', 'v_proj', 'o_proj'],
  qv: ['q_proj', 'v_proj'],
};

/** Every dense layer of a model, those already wrapped too, but not the ones inside a wrapper. */
export function denseLayers(model: Module): Target[] {
  const out: Target[] = [];
  for (const { path, module, parent, name } of model.namedModules()) {
    if (module instanceof Dense && parent && !(parent instanceof Dense)) {
      out.push({ path, layer: module, parent, name });
    }
  }
  return out;
}

/**
 * The layers that these names choose: a whole path, the last parts of one (`q_proj`,
 * `mlp.down_proj`), or a preset (`attention`, `qv`, `all-linear`).
 * @param saved names of modules that are saved whole: no layer in them is chosen
 * @throws when a name chooses nothing, with the nearest names there are
 */
export function chooseTargets(
  model: Module,
  names: readonly string[],
  saved: readonly string[] = [],
): Target[] {
  const layers = denseLayers(model).filter((t) => !inSaved(t.path, saved));
  const chosen = new Set<Target>();
  const take = (name: string, test: (t: Target) => boolean) => {
    const hits = layers.filter(test);
    if (hits.length === 0) {
      const known = [...layers.map((t) => t.name), ...Object.keys(PRESETS), 'all-linear'];
      throw failure(
        'lora targetModules',
        'names of dense layers of the model',
        `"${name}", which matches none`,
        `Nearest: ${nearest(name, known).join(', ')}`,
      );
    }
    for (const t of hits) chosen.add(t);
  };
  for (const name of names) {
    if (name === 'all-linear') take(name, (t) => !OUTPUT_LAYERS.has(t.name));
    else {
      for (const n of PRESETS[name] ?? [name]) {
        take(n, (t) => t.path === n || t.path.endsWith(`.${n}`));
      }
    }
  }
  return layers.filter((t) => chosen.has(t));
}

/**
 * The same choice in PEFT's words: a preset becomes the names of the layers it stands for.
 * Each name once.
 */
export function peftTargets(
  model: Module,
  names: readonly string[],
  saved: readonly string[] = [],
): string[] {
  const layers = denseLayers(model)
    .filter((t) => !inSaved(t.path, saved))
    .map((t) => t.name);
  const spelled = names.flatMap((name) =>
    name === 'all-linear' ? layers.filter((n) => !OUTPUT_LAYERS.has(n)) : (PRESETS[name] ?? [name]),
  );
  return [...new Set(spelled)];
}
