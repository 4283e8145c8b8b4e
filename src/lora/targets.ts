import { Convolution, Dense, Embedding, type Module, PlainDense } from '../nn/index.js';
import { failure, nearest } from '../tensor/errors.js';
import { type FullLoraConfig, type LoraConfig, regex } from './config.js';
import { isWrapper, type LoraConv, type LoraEmbedding } from './layer.js';
import { inSaved } from './saved.js';

/** A layer that LoRA can wrap, and where it hangs. */
export interface Target<
  L extends Module = Dense | Embedding | Convolution | LoraEmbedding | LoraConv,
> {
  readonly path: string;
  readonly layer: L;
  readonly parent: Module;
  /** Its property in the parent. */
  readonly name: string;
}

/** What of a configuration chooses layers. */
export type Choice = Pick<FullLoraConfig, 'targetModules'> &
  Partial<
    Pick<
      FullLoraConfig,
      | 'excludeModules'
      | 'layersToTransform'
      | 'layersPattern'
      | 'modulesToSave'
      | 'rankPattern'
      | 'alphaPattern'
    >
  >;

/** Layers that answer the vocabulary or the classes; `all-linear` leaves them out, as PEFT does. */
const OUTPUT_LAYERS = new Set(['lm_head', 'classifier', 'score']);

/**
 * Names that stand for several: the paper's choices, by the names that models give those layers.
 * Of the lists of one preset that counts which the model has.
 */
export const PRESETS: Readonly<Record<string, readonly (readonly string[])[]>> = {
  attention: [
    ['q_proj', 'k_proj', 'v_proj', 'o_proj'],
    ['query', 'key', 'value', 'attention.output.dense'],
    ['attn.c_attn', 'attn.c_proj'],
  ],
  qv: [
    ['q_proj', 'v_proj'],
    ['query', 'value'],
    // GPT-2's query, key and value are one layer: it is adapted whole, as PEFT does by default;
    // `enableLora` takes parts of it.
    ['attn.c_attn'],
  ],
};

/** Every dense layer of a model, those already wrapped too, but not the ones inside a wrapper. */
export function denseLayers(model: Module): Target<Dense>[] {
  return targetLayers(model).filter((t) => t.layer instanceof Dense) as Target<Dense>[];
}

function isLayer(module: Module): module is Dense | Embedding | Convolution {
  return module instanceof Dense || module instanceof Embedding || module instanceof Convolution;
}

/** Every layer that LoRA can stand on: the dense ones, embeddings and convolutions. */
export function targetLayers(model: Module): Target[] {
  const out: Target[] = [];
  for (const { path, module, parent, name } of model.namedModules()) {
    const fits = isLayer(module) || isWrapper(module);
    if (fits && parent && !(parent instanceof Dense) && !isWrapper(parent)) {
      out.push({ path, layer: module, parent, name });
    }
  }
  return out;
}

/** Whether a path is a name or ends with it, from the start of one of its parts. */
export function hasName(path: string, name: string): boolean {
  return path === name || path.endsWith(`.${name}`);
}

function matchesNothing(setting: string, text: string, known: Iterable<string>): Error {
  return failure(
    `lora ${setting}`,
    'names of layers of the model',
    `"${text}", which matches none`,
    text === 'lm_head'
      ? 'A head that is tied to the table is a layer once the model is loaded with untied: true'
      : `Nearest: ${nearest(text, known).join(', ')}`,
  );
}

const isLinear = ({ layer, name }: Target) => layer instanceof Dense && !OUTPUT_LAYERS.has(name);

/** Whether a model has an output layer of its own, and does not answer by its table of embeddings. */
export function hasOutputLayer(model: Module): boolean {
  return denseLayers(model).some((t) => OUTPUT_LAYERS.has(t.name));
}

/** Whether settings name the head, which a model that ties it to its table has only `untied`. */
export function namesHead({ targetModules, modulesToSave = [] }: LoraConfig): boolean {
  if (modulesToSave.includes('lm_head')) return true;
  if (typeof targetModules !== 'string') return targetModules.includes('lm_head');
  return !isPreset(targetModules) && regex(targetModules).test('lm_head');
}

const isPreset = (name: string) => name === 'all-linear' || Object.hasOwn(PRESETS, name);

/** The names of layers that a preset stands for in this model; the first list where none is there. */
function presetNames(preset: string, layers: readonly Target[]): readonly string[] {
  const lists = PRESETS[preset] as readonly (readonly string[])[];
  const there = (list: readonly string[]) =>
    list.every((n) => layers.some((t) => hasName(t.path, n)));
  return lists.find(there) ?? (lists[0] as readonly string[]);
}

/**
 * The layers that names and presets, or a regular expression, choose.
 * @param spare layers that are not for choosing, but whose names are no mistake
 */
function named(
  setting: string,
  names: readonly string[] | string,
  layers: readonly Target[],
  spare: readonly Target[] = [],
): Set<Target> {
  const chosen = new Set<Target>();
  const take = (name: string, test: (t: Target) => boolean) => {
    const hits = layers.filter(test);
    if (hits.length === 0 && !spare.some(test)) {
      const known = [...layers.map((t) => t.name), ...Object.keys(PRESETS), 'all-linear'];
      throw matchesNothing(setting, name, known);
    }
    for (const t of hits) chosen.add(t);
  };
  if (typeof names === 'string' && !isPreset(names)) {
    const pattern = regex(names);
    if (layers.some((t) => pattern.test(t.path))) take(names, (t) => pattern.test(t.path));
    else {
      throw failure(
        `lora ${setting}`,
        'a regular expression that matches whole paths of layers',
        `"${names}", which matches none`,
        `Paths look like ${layers[0]?.path}; names of layers go in a list`,
      );
    }
    return chosen;
  }
  for (const name of typeof names === 'string' ? [names] : names) {
    if (name === 'all-linear') take(name, isLinear);
    else if (isPreset(name)) {
      for (const n of presetNames(name, layers)) take(n, (t) => hasName(t.path, n));
    } else take(name, (t) => hasName(t.path, name));
  }
  return chosen;
}

/** Paths in a list of blocks of this name. */
const inList = (list: string) => new RegExp(`^(?:|.*?\\.)(?:${list})\\.(\\d+)\\.`);

/** The number of the block that a layer lies in, as PEFT finds it; undefined outside of blocks. */
function blockOf(path: string, lists: readonly string[]): number | undefined {
  const forms = lists.length === 0 ? [/^.*?\.[^.]*\.(\d+)\./] : lists.map(inList);
  for (const form of forms) {
    const found = form.exec(path);
    if (found) return Number(found[1]);
  }
  return undefined;
}

/** Throws if one of these names is no list of blocks that chosen layers lie in. */
function checkLists(lists: readonly string[], chosen: readonly Target[]): void {
  for (const list of lists) {
    if (chosen.some((t) => inList(list).test(t.path))) continue;
    const known = chosen.flatMap((t) => /([^.]+)\.\d+\./.exec(t.path)?.[1] ?? []);
    const near = nearest(list, known).join(', ');
    throw failure(
      'lora layersPattern',
      'names of lists of blocks with such layers',
      `"${list}", which matches none`,
      ...(near === '' ? [] : [`Nearest: ${near}`]),
    );
  }
}

/** Those of the chosen layers that lie in the blocks asked for. */
function inBlocks(chosen: readonly Target[], choice: Choice, strict: boolean): readonly Target[] {
  const layersToTransform = [choice.layersToTransform ?? []].flat();
  const layersPattern = [choice.layersPattern ?? []].flat();
  if (layersToTransform.length === 0) return chosen;
  if (strict) checkLists(layersPattern, chosen);
  const blocks = new Map(chosen.map((t) => [t, blockOf(t.path, layersPattern)]));
  const there = [...new Set(blocks.values())].filter((n) => n !== undefined);
  for (const n of layersToTransform) {
    if (there.includes(n)) continue;
    const expected = `numbers of blocks with such layers: ${there.join(', ') || 'none'}`;
    const lists = layersPattern.length > 0 ? ` (layersPattern ${layersPattern.join(', ')})` : '';
    throw failure('lora layersToTransform', `${expected}${lists}`, String(n));
  }
  return chosen.filter((t) => layersToTransform.includes(blocks.get(t) as number));
}

/**
 * The layers that a configuration chooses: by a whole path, the last parts of one (`q_proj`,
 * `mlp.down_proj`), a preset (`attention`, `qv`, `all-linear`) or a regular expression; without
 * the excluded ones, those of other blocks, and those in modules that are saved whole.
 * @param strict whether every name excluded must match a layer, and every name one that is not
 *   saved whole: the rule for what a user asks for; a file may say more than it needs
 * @throws when a name chooses nothing, with the nearest names there are
 */
export function chooseLayers(model: Module, choice: Choice, strict = true): Target[] {
  const { targetModules, excludeModules = [], modulesToSave = [] } = choice;
  const all = targetLayers(model);
  const layers = all.filter((t) => !inSaved(t.path, modulesToSave));
  // PEFT writes all-linear as names, those of a head that it saves whole among them.
  const spare = strict ? [] : all.filter((t) => !layers.includes(t));
  const names = named('targetModules', targetModules, layers, spare);
  const left = excluded(excludeModules, all, strict);
  const chosen = inBlocks(
    layers.filter((t) => names.has(t) && !left.has(t)),
    choice,
    strict,
  );
  if (chosen.length > 0) return [...chosen];
  throw failure('lora excludeModules', 'to leave a layer', 'every layer excluded');
}

function excluded(names: readonly string[] | string, layers: readonly Target[], strict: boolean) {
  if (names.length === 0) return new Set<Target>();
  if (strict) return named('excludeModules', names, layers);
  const test =
    typeof names === 'string'
      ? (path: string) => regex(names).test(path)
      : (path: string) => names.some((n) => hasName(path, n));
  return new Set(layers.filter((t) => test(t.path)));
}

/** {@link chooseLayers} by names alone. @param saved names of modules that are saved whole */
export function chooseTargets(
  model: Module,
  names: readonly string[] | string,
  saved: readonly string[] = [],
): Target[] {
  return chooseLayers(model, { targetModules: names, modulesToSave: saved });
}

/**
 * The same choice in PEFT's words: a preset becomes the names of the layers it stands for, each
 * once; where those names would take other layers too, the paths.
 */
export function peftTargets(model: Module, choice: Choice): string[] | string {
  const { targetModules, modulesToSave = [] } = choice;
  if (typeof targetModules === 'string' && !isPreset(targetModules)) return targetModules;
  const list = typeof targetModules === 'string' ? [targetModules] : targetModules;
  const layers = targetLayers(model).filter((t) => !inSaved(t.path, modulesToSave));
  if (!list.some(isPreset)) return [...new Set(list)];
  const spelled = new Set(
    list.flatMap((name) => {
      if (name === 'all-linear') return layers.filter(isLinear).map((t) => t.name);
      return isPreset(name) ? presetNames(name, layers) : [name];
    }),
  );
  const meant = named('targetModules', list, layers);
  const caught = layers.filter((t) => [...spelled].some((n) => hasName(t.path, n)));
  if (caught.every((t) => meant.has(t))) return [...spelled];
  return layers.filter((t) => meant.has(t)).map((t) => t.path);
}

/** The plain layer of a target, wrapped or not. */
export function plainLayer({ layer }: Target): PlainDense | Embedding | Convolution {
  if (isWrapper(layer)) return layer.base;
  if (layer instanceof Embedding || layer instanceof PlainDense) return layer;
  if (layer instanceof Convolution) return layer;
  throw failure('lora', 'a layer with one weight', layer.constructor.name);
}
