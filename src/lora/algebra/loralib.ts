import { mkdirSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { writeFilesAtomic } from '../../io/files.js';
import { SafetensorsFile, safetensorsParts } from '../../io/safetensors.js';
import { failure, nearest, shapeText } from '../../tensor/errors.js';
import { hasName } from '../targets.js';
import type { Adapter, AdapterModule } from './adapter.js';
import { checkPlainBase } from './config.js';
import { f32Entry, readF32 } from './files.js';
import { EMBEDDING, peftConfigOf, withScaling } from './foreign.js';
import { type Factors, fromConv, fromParts, toConv, toParts } from './loralib-layers.js';

/** Which parts of its fused layers are on: of all that have several groups, or by layers' names. */
export type EnabledParts = readonly boolean[] | Readonly<Record<string, readonly boolean[]>>;

/** What a loralib file does not say. */
export interface LoralibOptions {
  /** Its `lora_alpha`; default the file's metadata `lora_alpha`. */
  readonly alpha?: number;
  /**
   * `enable_lora` of its MergedLinear layers, such as [true, false, true] for q and v of q,k,v;
   * default the file's metadata `enable_lora`.
   */
  readonly enabled?: EnabledParts;
  /**
   * Sizes of the kernels of its Conv2d layers by name; default the file's metadata `lora_kernel`.
   * Without them such a layer cannot be told from a dense one.
   */
  readonly kernels?: Readonly<Record<string, number>>;
  /** Leave out tensors that are no lora_A or lora_B, such as base weights. Default: an error. */
  readonly dropOthers?: boolean;
}

/** The value for the first name that a layer's path is or ends with. */
function byName<T>(values: Readonly<Record<string, T>>, path: string): T | undefined {
  return Object.entries(values).find(([name]) => hasName(path, name))?.[1];
}

/** An object that the metadata note, from what we wrote. */
function noted<T>(file: SafetensorsFile, key: string): Readonly<Record<string, T>> | undefined {
  const text = file.metadata.get(key);
  if (text === undefined) return undefined;
  try {
    const value = JSON.parse(text) as Readonly<Record<string, T>> | null;
    if (typeof value === 'object' && value !== null) return value;
  } catch {
    // Told of below.
  }
  throw failure(`loralib ${file.path}`, `an object in the metadata ${key}`, text);
}

/**
 * Reads a state dict of the original loralib: `….lora_A` and `….lora_B`. A MergedLinear, whose
 * lora_A has more rows than lora_B has columns, becomes one layer of that larger rank; a Conv2d of
 * kernel k one of rank r·k², or of r where its lora_B is that of {@link writeLoralib}.
 * @throws when alpha is neither given nor noted in the file, or `enabled` or `kernels` do not fit
 */
export function readLoralib(path: string, options: LoralibOptions = {}): Adapter {
  const file = SafetensorsFile.open(path);
  const text = file.metadata.get('lora_alpha');
  const alpha = options.alpha ?? (text === undefined ? Number.NaN : Number(text));
  if (!Number.isFinite(alpha)) {
    const way = 'The file does not hold it: give lora_alpha of the training (--alpha)';
    throw failure(`loralib ${path}`, 'a lora_alpha', String(text ?? 'none'), way);
  }
  const kernels = options.kernels ?? noted<number>(file, 'lora_kernel') ?? {};
  const enabled = options.enabled ?? noted<boolean[]>(file, 'enable_lora') ?? {};
  const modules = new Map<string, AdapterModule>();
  const parts = new Map<string, readonly boolean[]>();
  for (const key of file.tensors.keys()) {
    if (key.endsWith('.lora_B')) continue;
    if (key.endsWith('.lora_A')) {
      const layer = key.slice(0, -'.lora_A'.length);
      const read = readLayer(file, layer, alpha, { kernels, enabled });
      modules.set(layer, read.module);
      if (read.parts) parts.set(layer, read.parts);
    } else if (!options.dropOthers) {
      const way = 'To leave out every other tensor: --drop-others';
      throw failure(`loralib ${path}`, 'names that end in .lora_A or .lora_B', key, way);
    }
  }
  if (modules.size === 0) throw failure(`loralib ${path}`, 'tensors lora_A', 'none');
  checkNames('kernels', Object.keys(kernels), modules.keys());
  if (!Array.isArray(enabled)) checkNames('enabled', Object.keys(enabled), modules.keys());
  else if (parts.size === 0) {
    throw failure('loralib enabled', 'a layer whose lora_A has several groups', 'plain ones only');
  }
  const config = peftConfigOf(modules, {});
  return { config, modules, extras: new Map(), ...(parts.size > 0 ? { parts } : {}) };
}

/** Throws on a name that no layer has. */
function checkNames(setting: string, names: readonly string[], layers: Iterable<string>): void {
  const paths = [...layers];
  const stray = names.find((name) => !paths.some((path) => hasName(path, name)));
  if (stray === undefined) return;
  const near = nearest(stray, paths, 3).join(', ');
  throw failure(`loralib ${setting}`, 'names of layers', `"${stray}"`, `Nearest: ${near}`);
}

interface LayerOptions {
  readonly kernels: Readonly<Record<string, number>>;
  readonly enabled: EnabledParts;
}

function readLayer(file: SafetensorsFile, layer: string, alpha: number, options: LayerOptions) {
  const names = [`${layer}.lora_A`, `${layer}.lora_B`] as const;
  const [a, b] = names.map((n) => file.entry(n).shape) as [readonly number[], readonly number[]];
  const [rows, inFeatures] = a as [number, number];
  const [outFeatures, rank] = b as [number, number];
  if (a.length !== 2 || b.length !== 2 || rank === 0 || rows % rank !== 0) {
    const received = `${shapeText(a)} and ${shapeText(b)}`;
    throw failure(`loralib, ${layer}`, 'lora_A [r, in] and lora_B [out, r]', received);
  }
  const values = { a: readF32(file, names[0]), b: readF32(file, names[1]) };
  const factors = { ...values, rows, outFeatures, rank };
  const kernel = byName(options.kernels, layer);
  if (kernel !== undefined) return { module: readConv(layer, factors, alpha, kernel) };
  const kind = EMBEDDING.test(layer) ? 'embedding' : 'linear';
  const rest = { kind, inFeatures, scaling: alpha / rank } as const;
  const parts = partsOf(layer, factors, options.enabled);
  if (!parts) return { module: { ...rest, ...values, rank, outFeatures } };
  return { module: { ...rest, ...fromParts(factors, parts) }, parts };
}

/** Which parts of a layer are on; undefined for a plain one. */
function partsOf(layer: string, { rows, rank, outFeatures }: Factors, enabled: EnabledParts) {
  const groups = rows / rank;
  const list = Array.isArray(enabled);
  const parts = list
    ? (enabled as readonly boolean[])
    : byName(enabled as Readonly<Record<string, readonly boolean[]>>, layer);
  const on = (parts ?? []).filter(Boolean).length;
  // A list is for every layer of several groups; beside them others may be plain.
  if (groups === 1 && (parts === undefined || (list && on !== 1))) return undefined;
  if (parts && on === groups && outFeatures % groups === 0) return parts;
  throw failure(
    `loralib, ${layer}`,
    `${groups} enabled parts of a MergedLinear`,
    parts ? parts.map((p) => (p ? 'on' : 'off')).join(', ') : 'none named',
    'Name the layer’s parts: --enabled q,-,v for enable_lora [True, False, True]',
  );
}

function readConv(layer: string, factors: Factors, alpha: number, k: number): AdapterModule {
  const { a, rows, outFeatures, rank } = factors;
  const sides = [rows, a.length / rows, outFeatures];
  if (!Number.isSafeInteger(k) || k < 1 || rows !== rank || sides.some((n) => n % k !== 0)) {
    const received = `${shapeText(sides.slice(0, 2))} and ${shapeText([outFeatures, rank])}`;
    const expected = `lora_A [r·${k}, in·${k}] and lora_B [out·${k}, r·${k}] of a Conv2d`;
    throw failure(`loralib, ${layer}`, expected, received);
  }
  const { inner, ...module } = fromConv(factors, k);
  const convolution = [inner, k, k];
  const scaling = alpha / (rank / k);
  return { kind: 'linear', ...module, inFeatures: inner * k * k, scaling, convolution };
}

/** One layer's tensors in loralib's layout, but for the scaling. */
interface Written {
  readonly module: AdapterModule;
  readonly a: readonly number[];
  readonly b: readonly number[];
}

function writtenLayer(path: string, m: AdapterModule, on: readonly boolean[] | undefined): Written {
  if (on && (m.convolution || m.kind === 'embedding')) {
    throw failure('convert to loralib, enabled', 'dense layers', path);
  }
  if (m.convolution) {
    const { a, b, shapes } = toConv(path, m);
    return { module: { ...m, a, b }, ...shapes };
  }
  if (!on) return { module: m, a: [m.rank, m.inFeatures], b: [m.outFeatures, m.rank] };
  const module = toParts(path, m, on);
  const groups = on.filter(Boolean).length;
  const a = [groups * module.rank, m.inFeatures];
  return { module, a, b: [module.outFeatures, module.rank] };
}

/**
 * Writes an adapter under loralib's names in one file, alpha, parts and kernels in its metadata.
 * @param enabled layers that become MergedLinear ones and their parts; default those that the
 *   adapter was trained or read with
 * @throws when a part that is off is changed, or for what loralib has no layer for
 */
export function writeLoralib(path: string, adapter: Adapter, enabled?: EnabledParts): void {
  checkPlainBase(adapter, 'convert to loralib');
  const extra = [...adapter.extras.keys()][0];
  if (extra !== undefined) throw failure('convert to loralib', 'A and B only', extra);
  const own = Object.fromEntries(adapter.parts ?? []);
  const chosen = enabled ?? own;
  if (!Array.isArray(chosen)) {
    checkNames('enabled', Object.keys(chosen), adapter.modules.keys());
  }
  const layers = [...adapter.modules].map(([layer, module]) => {
    const plain = module.convolution !== undefined || module.kind === 'embedding';
    const on = Array.isArray(chosen)
      ? plain
        ? undefined
        : (chosen as readonly boolean[])
      : byName(chosen as Readonly<Record<string, readonly boolean[]>>, layer);
    return { layer, on, kernel: module.convolution?.[1], ...writtenLayer(layer, module, on) };
  });
  const first = (layers[0] as (typeof layers)[number]).module;
  const alpha = first.scaling * first.rank || 1;
  const entries = layers.flatMap(({ layer, module, a, b }) => {
    const m = withScaling(module, alpha / module.rank);
    return [f32Entry(`${layer}.lora_A`, m.a, a), f32Entry(`${layer}.lora_B`, m.b, b)];
  });
  const noteOf = (key: string, values: [string, unknown][]) => {
    const there = values.filter(([, v]) => v !== undefined);
    return there.length > 0 ? { [key]: JSON.stringify(Object.fromEntries(there)) } : {};
  };
  const metadata = {
    ...{ format: 'pt', lora_alpha: String(alpha) },
    ...noteOf(
      'enable_lora',
      layers.map((l) => [l.layer, l.on]),
    ),
    ...noteOf(
      'lora_kernel',
      layers.map((l) => [l.layer, l.kernel]),
    ),
  };
  const dir = dirname(resolve(path));
  mkdirSync(dir, { recursive: true });
  writeFilesAtomic(dir, [[basename(path), safetensorsParts(entries, metadata)]]);
}
