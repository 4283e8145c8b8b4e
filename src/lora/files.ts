import { mkdirSync } from 'node:fs';
import { noGrad, scope } from '../autograd/index.js';
import { adapterFile } from '../io/adapter-dir.js';
import { jsonBytes, readJsonObject, writeFilesAtomic } from '../io/files.js';
import { SafetensorsFile, safetensorsParts } from '../io/safetensors.js';
import { Dense, type Module, PlainDense } from '../nn/index.js';
import { cast } from '../ops/index.js';
import type { DType } from '../tensor/dtype.js';
import { failure, nearest, shapeText } from '../tensor/errors.js';
import { getBackend } from '../tensor/registry.js';
import { type Shape, sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import type { FileNotes, LoraAdapters } from './adapters.js';
import {
  type FullLoraConfig,
  fullConfig,
  type LoraConfig,
  regex,
  writtenConfig,
} from './config.js';
import { baseFingerprint } from './fingerprint.js';
import { takesFromWeight } from './init.js';
import { peftTask } from './making.js';
import { BASE_HASH, PARTS, PEFT_PREFIX, peftConfig, readPeftConfig } from './peft.js';
import { savedRoot } from './saved.js';
import {
  chooseLayers,
  hasName,
  peftTargets,
  plainLayer,
  type Target,
  targetLayers,
} from './targets.js';
import { untiedHead } from './ties.js';

const CONFIG = 'adapter_config.json';
const WEIGHTS = 'adapter_model.safetensors';

/** The settings that {@link writtenConfig} spells otherwise for parts of fused layers. */
const PART_SETTINGS = ['enableLora', 'rankPattern', 'alphaPattern'] as const;

function partsMetadata(config: FullLoraConfig): Record<string, string> {
  if (Object.keys(config.enableLora).length === 0) return {};
  return { [PARTS]: JSON.stringify(Object.fromEntries(PART_SETTINGS.map((k) => [k, config[k]]))) };
}

/** The settings with those of {@link partsMetadata}, where a file has them. */
function withParts(config: FullLoraConfig, file: SafetensorsFile, dir: string): FullLoraConfig {
  const text = file.metadata.get(PARTS);
  if (text === undefined) return config;
  try {
    return fullConfig({ ...config, ...JSON.parse(text) });
  } catch (error) {
    const reason = (error as Error).message;
    throw failure(`adapter ${dir}`, `settings in the metadata ${PARTS}`, `${text}: ${reason}`);
  }
}

/** Modules whose tables PEFT writes along when they have A and B, by its fixed names. */
const TABLES = ['embed_tokens', 'lm_head'];

/** Whether PEFT, seeing these targets, writes tables along. */
function writesTables(
  { targetModules, trainableTokens }: FullLoraConfig,
  model: Target[],
): boolean {
  if (Object.keys(trainableTokens).length > 0) return false;
  if (typeof targetModules !== 'string') return TABLES.some((n) => targetModules.includes(n));
  if (targetModules === 'all-linear') return false;
  const pattern = regex(targetModules);
  return model.some(({ path }) => TABLES.some((n) => path.endsWith(n)) && pattern.test(path));
}

/** The tables of the base that PEFT would write along with an adapter, by key. */
function tablesOf(adapters: LoraAdapters, config: FullLoraConfig, own: readonly Target[]) {
  const all = targetLayers(adapters.model);
  const out = new Map<string, Tensor>();
  if (!writesTables(config, all)) return out;
  // The table of tokens is the first of a model; the head answers its vocabulary.
  const tokens = all.find((t) => !(t.layer instanceof Dense));
  for (const target of own) {
    if (target.path !== tokens?.path && target.name !== 'lm_head') continue;
    out.set(`${PEFT_PREFIX}${target.path}.base_layer.weight`, plainLayer(target).weight);
  }
  return out;
}

/**
 * Names of modules as PEFT understands them: any end of a path counts there, even in the middle of
 * a name, so that `norm` would also take `input_layernorm`. Where that takes more than ours, the
 * paths are written.
 */
function peftModules(adapters: LoraAdapters, names: readonly string[]): string[] {
  const paths = [...adapters.model.namedModules()].map((m) => m.path).filter((p) => p !== '');
  return names.flatMap((name) => {
    const ours = paths.filter((p) => hasName(p, name));
    const theirs = paths.filter((p) => p.endsWith(name));
    return theirs.length === ours.length ? [name] : ours;
  });
}

/**
 * The base's hash without what an adapter holds whole, which an adapter does not look at, and
 * without a head that its checkpoint ties to the table: the base is the same where it is untied.
 */
function fingerprint(adapters: LoraAdapters, name: string): string {
  const left = new Set(adapters.wholeParameters(name));
  const tie = untiedHead(adapters.model);
  if (tie) left.add(tie.head);
  return baseFingerprint(adapters.baseParameters(), left);
}

/**
 * PEFT's `fan_in_fan_out`: each layer that it wraps sets the flag to its own, true for Conv1D, so
 * that the last one's stands; embeddings leave it.
 */
function transposedFlag(layers: readonly Module[]): boolean {
  return layers.filter((l) => l instanceof PlainDense).at(-1)?.transposed ?? false;
}

/**
 * Writes an adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`, both or
 * neither replaced. The metadata of the weights also holds a hash of the base.
 * @param dir made if it does not exist
 * @param baseName recorded as the base model's name or path
 */
export function saveAdapter(
  adapters: LoraAdapters,
  name: string,
  dir: string,
  baseName: string | null = null,
): void {
  const notes = adapters.notes(name);
  const asRead = notes.fromWeight === true;
  const own = adapters.targets(name);
  const full = adapters.config(name);
  const paths = own.map((t) => t.path);
  const config = asRead ? full : writtenConfig(full, paths);
  const peft = peftConfig(config, {
    targets: peftTargets(adapters.model, config),
    modulesToSave: notes.modulesToSave ?? peftModules(adapters, config.modulesToSave),
    baseName,
    transposed: transposedFlag(own.map(plainLayer)),
    task: peftTask(adapters.model),
  });
  const json = notes.init === undefined ? peft : { ...peft, init_lora_weights: notes.init };
  mkdirSync(dir, { recursive: true });
  scope(() => {
    const tensors = asRead ? adapters.tensors(name) : adapters.writtenTensors(name);
    for (const [key, t] of echoesOf(adapters, name)) tensors.set(key, t);
    for (const [key, table] of tablesOf(adapters, config, own)) {
      const dtype = notes.tables?.get(key) ?? table.dtype;
      tensors.set(
        key,
        noGrad(() => cast(table, dtype)),
      );
    }
    const sorted = new Map([...tensors].sort(([x], [y]) => (x < y ? -1 : 1)));
    const parts = partsMetadata(full);
    const metadata = { format: 'pt', [BASE_HASH]: fingerprint(adapters, name), ...parts };
    writeFilesAtomic(dir, [
      [WEIGHTS, safetensorsParts(sorted, metadata)],
      [CONFIG, [jsonBytes(json)]],
    ]);
  });
}

/**
 * Reads the settings of a PEFT adapter directory.
 * @throws naming a setting that changes the arithmetic and is not supported
 */
export function readAdapterConfig(dir: string): LoraConfig {
  const path = adapterFile(dir, CONFIG);
  return readPeftConfig(readJsonObject(path, 'adapter'), path);
}

/**
 * The settings of a file for this model, and what to say again when it is saved. PEFT's rule for
 * `modules_to_save` may have taken more modules than ours would: those in the file are named.
 */
function settle(
  adapters: LoraAdapters,
  config: FullLoraConfig,
  file: SafetensorsFile,
): { config: FullLoraConfig; notes: FileNotes } {
  const { modulesToSave } = config;
  const stored = new Set<string>();
  for (const key of file.tensors.keys()) stored.add(key.slice(PEFT_PREFIX.length));
  const more: string[] = [];
  for (const name of adapters.baseParameters().keys()) {
    const path = name.replace(/\.[^.]*$/, '');
    const caught = modulesToSave.some((n) => path.endsWith(n) && !hasName(path, n));
    if (caught && stored.has(name) && !more.includes(path)) more.push(path);
  }
  if (more.length === 0) return { config, notes: {} };
  return {
    config: { ...config, modulesToSave: [...modulesToSave, ...more] },
    notes: { modulesToSave },
  };
}

const STORED: Readonly<Record<string, DType>> = { F32: 'f32', F16: 'f16', BF16: 'bf16' };

/**
 * Takes the copies of the base's tables out of what a file holds, by key with their dtypes.
 * @param problems gets those that are not the base's own
 */
function takeTables(
  adapters: LoraAdapters,
  config: FullLoraConfig,
  file: SafetensorsFile,
  left: Set<string>,
  problems: string[],
): Map<string, DType> {
  const found = new Map<string, DType>();
  for (const target of chooseLayers(adapters.model, config, false)) {
    const key = `${PEFT_PREFIX}${target.path}.base_layer.weight`;
    const entry = file.tensors.get(key);
    if (!entry || !left.delete(key)) continue;
    const base = plainLayer(target).weight;
    const shapes = `expected ${shapeText(base.shape)}, received ${shapeText(entry.shape)}`;
    const same = scope(() => {
      if (!sameShape(entry.shape, base.shape)) return false;
      const read = file.load(key, { backend: base.backend });
      return Buffer.from(noGrad(() => cast(read, base.dtype)).bytes()).equals(base.bytes());
    });
    if (same) found.set(key, STORED[entry.dtype] ?? 'f32');
    else {
      const what = 'a table of the base itself, and it is not this base’s';
      problems.push(sameShape(entry.shape, base.shape) ? `${key}: ${what}` : `${key}: ${shapes}`);
    }
  }
  return found;
}

/**
 * What PEFT writes besides with `bias: all` and modules saved whole, so that its files are ours: a
 * bias of such a module a second time, and that of the module it stands in for. Nothing uses them.
 */
function echoesOf(adapters: LoraAdapters, name: string): Map<string, Tensor> {
  const out = new Map<string, Tensor>();
  const { bias, modulesToSave } = adapters.config(name);
  if (bias !== 'all') return out;
  const own = adapters.tensors(name);
  for (const parameter of adapters.wholeParameters(name)) {
    const root = savedRoot(parameter, modulesToSave);
    if (root === undefined || !parameter.endsWith('.bias')) continue;
    const end = parameter.slice(root.length + 1);
    const at = (part: string) => `${PEFT_PREFIX}${root}.${part}.${end}`;
    // PEFT leaves its own adapter's name where the module has parts.
    const second = at(end === 'bias' ? 'modules_to_save' : 'modules_to_save.default');
    out.set(second, own.get(PEFT_PREFIX + parameter) as Tensor);
    const base = adapters.baseParameters().get(parameter) as Tensor;
    out.set(
      at('original_module'),
      noGrad(() => cast(base, 'f32')),
    );
  }
  return out;
}

/** The tensor that one of {@link echoesOf} goes with; undefined for any other. */
function echoed(key: string, all: ReadonlySet<string>): string | undefined {
  if (!key.endsWith('.bias')) return undefined;
  const plain = [
    key.replace(/\.(original_module|modules_to_save)\./, '.'),
    key.replace(/\.modules_to_save\.[^.]+\./, '.'),
  ];
  return plain.find((p) => p !== key && all.has(p));
}

/** Takes the echoes out of what a file holds. @param problems gets those that say something else */
function takeEchoes(file: SafetensorsFile, left: Set<string>, problems: string[]): void {
  const bytes = (key: string) =>
    scope(() => file.load(key, { backend: getBackend('reference'), dtype: 'f32' }).bytes());
  for (const key of [...left]) {
    const plain = echoed(key, left);
    if (plain === undefined) continue;
    left.delete(key);
    if (key.includes('.original_module.')) continue;
    if (Buffer.from(bytes(key)).equals(bytes(plain))) continue;
    problems.push(`${key}: expected the numbers of ${plain}, received others`);
  }
}

/** Where a file's tensors are not those expected, a line each. */
function tensorProblems(
  file: SafetensorsFile,
  expected: ReadonlyMap<string, Shape>,
  left: ReadonlySet<string>,
): string[] {
  const problems: string[] = [];
  for (const [key, shape] of expected) {
    const entry = file.tensors.get(PEFT_PREFIX + key);
    if (!entry) problems.push(`missing ${PEFT_PREFIX}${key} ${shapeText(shape)}`);
    else if (!sameShape(entry.shape, shape)) {
      const [want, got] = [shapeText(shape), shapeText(entry.shape)];
      problems.push(`${PEFT_PREFIX}${key}: expected ${want}, received ${got}`);
    }
  }
  const names = [...expected.keys()].map((key) => PEFT_PREFIX + key);
  for (const key of left) {
    if (!key.startsWith(PEFT_PREFIX) || !expected.has(key.slice(PEFT_PREFIX.length))) {
      problems.push(`surplus ${key} (nearest: ${nearest(key, names, 1).join('')})`);
    }
  }
  return problems;
}

/** Warns if a file was made for another base of the same shapes. */
function checkBase(adapters: LoraAdapters, name: string, dir: string, stored?: string): void {
  if (stored === undefined) return;
  const own = fingerprint(adapters, name);
  if (own === stored) return;
  console.error(
    `lowrank: WARNING: the adapter ${dir} was trained on another base than this one.\n` +
      `  The shapes fit, but the weights differ: it records ${stored}, this base has ${own}.\n` +
      '  Its outputs will hardly be what they were in training.',
  );
}

/**
 * Adds an adapter from a PEFT directory to a model, frozen and active. The file's tensors must be
 * exactly those of the layers that the settings choose. An adapter of ours that was trained on
 * another base is loaded with a warning on stderr.
 * @throws listing every tensor that is missing, surplus or misshapen; the model is then unchanged
 */
export function loadAdapter(adapters: LoraAdapters, name: string, dir: string): void {
  const settings = fullConfig(readAdapterConfig(dir));
  const file = SafetensorsFile.open(adapterFile(dir, WEIGHTS));
  const { config, notes } = settle(adapters, withParts(settings, file, dir), file);
  const left = new Set(file.tensors.keys());
  const wrong: string[] = [];
  takeEchoes(file, left, wrong);
  const expected = adapters.expected(config);
  const tables = takeTables(adapters, config, file, left, wrong);
  const problems = [...wrong, ...tensorProblems(file, expected, left)];
  if (problems.length > 0) {
    const layers = chooseLayers(adapters.model, config, false).length;
    throw failure(
      `adapter ${dir}`,
      `the tensors of rank ${config.rank} on ${layers} layers`,
      `${problems.length} problems:\n  ${problems.join('\n  ')}`,
    );
  }
  const [any] = adapters.baseParameters().values();
  if (!any) throw failure('adapter', 'a model with parameters', 'none');
  const options = { backend: any.backend, dtype: 'f32', purpose: 'activation' } as const;
  const read = (key: string) => file.load(PEFT_PREFIX + key, options);
  const fromWeight = takesFromWeight(config.init);
  const begun = readJsonObject(adapterFile(dir, CONFIG), 'adapter').init_lora_weights;
  const init = begun === false || begun === 'eva' ? { init: begun } : {};
  adapters.addTensors(name, config, read, { ...notes, tables, fromWeight, ...init });
  checkBase(adapters, name, dir, file.metadata.get(BASE_HASH));
}
