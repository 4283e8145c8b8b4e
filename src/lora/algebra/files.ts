import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { jsonBytes, readJsonObject, writeFilesAtomic } from '../../io/files.js';
import { SafetensorsFile, safetensorsParts, type WriteEntry } from '../../io/safetensors.js';
import { failure, nearest, shapeText } from '../../tensor/errors.js';
import { getBackend } from '../../tensor/registry.js';
import { numel } from '../../tensor/shape.js';
import { endPattern } from '../config.js';
import { BASE_HASH, PARTS, PEFT_PREFIX } from '../peft.js';
import type { Adapter, AdapterModule, ExtraTensor } from './adapter.js';
import { settingsOf } from './config.js';

export const CONFIG = 'adapter_config.json';
const WEIGHTS = 'adapter_model.safetensors';

/** PEFT's names of the factors: of a dense layer or a convolution, and of an embedding. */
const FACTOR = /^(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)$/;

/** A tensor of a file as f32. */
export function readF32(file: SafetensorsFile, name: string): Float32Array {
  const t = file.load(name, { backend: getBackend('reference'), dtype: 'f32' });
  try {
    return t.toArray() as Float32Array;
  } finally {
    t.dispose();
  }
}

/** A tensor of a file as it is. */
export function readExtra(file: SafetensorsFile, name: string): ExtraTensor {
  const { dtype, shape } = file.entry(name);
  return { dtype, shape, bytes: file.bytes(name) };
}

/** A row-major f32 matrix as an entry to be written. */
export function f32Entry(name: string, values: Float32Array, shape: readonly number[]): WriteEntry {
  const bytes = () => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return { name, dtype: 'f32', shape, bytes };
}

/** Names of A and B that a layer's tensors have in the file. */
interface Pair {
  a?: string;
  b?: string;
  kind: AdapterModule['kind'];
}

function readModule(
  file: SafetensorsFile,
  path: string,
  pair: Pair,
  config: Readonly<Record<string, unknown>>,
): AdapterModule {
  const place = `adapter ${file.path}, ${path}`;
  if (pair.a === undefined || pair.b === undefined) {
    throw failure(place, 'both A and B', pair.a ?? pair.b ?? 'neither');
  }
  const [a, b] = [file.entry(pair.a).shape, file.entry(pair.b).shape];
  const { rank, scaling } = settingsOf(config, path);
  const convolution = a.length > 2;
  const groups = rank / (b[1] as number);
  if (convolution && a[0] === rank && groups > 1 && Number.isInteger(groups)) {
    const wayOut = 'An adapter of such a layer can only be used with its model';
    throw failure(place, 'a convolution of one group', String(groups), wayOut);
  }
  const fits =
    a.length >= 2 &&
    b.length === a.length &&
    a[0] === rank &&
    b[1] === rank &&
    b.slice(2).every((d) => d === 1);
  if (!fits) {
    const wanted = `A [${rank}, in] and B [out, ${rank}] by its settings`;
    throw failure(place, wanted, `${shapeText(a)} and ${shapeText(b)}`);
  }
  return {
    kind: pair.kind,
    a: readF32(file, pair.a),
    b: readF32(file, pair.b),
    rank,
    inFeatures: numel(a.slice(1)),
    outFeatures: b[0] as number,
    scaling,
    ...(convolution ? { convolution: a.slice(1) } : {}),
  };
}

/**
 * Reads a PEFT adapter directory, without a model.
 * @throws when it is no LoRA adapter, a layer lacks A or B, or a shape is not that of its settings
 */
export function readAdapter(dir: string): Adapter {
  const path = join(dir, CONFIG);
  const config = readJsonObject(path, 'adapter');
  if (config.peft_type !== 'LORA') {
    throw failure(
      `adapter ${path}`,
      'peft_type LORA',
      JSON.stringify(config.peft_type) ?? 'none',
      config.lora_parameters ? 'This is mlx-lm’s layout: lowrank adapters convert' : undefined,
    );
  }
  const file = SafetensorsFile.open(join(dir, WEIGHTS));
  const pairs = new Map<string, Pair>();
  const extras = new Map<string, ExtraTensor>();
  for (const key of file.tensors.keys()) {
    if (!key.startsWith(PEFT_PREFIX)) {
      throw failure(`adapter ${file.path}`, `names that begin with ${PEFT_PREFIX}`, key);
    }
    const name = key.slice(PEFT_PREFIX.length);
    const found = FACTOR.exec(name);
    if (!found) {
      extras.set(name, readExtra(file, key));
      continue;
    }
    const [, layer, factor] = found as unknown as [string, string, string];
    const kind = factor.startsWith('lora_embedding') ? 'embedding' : 'linear';
    const pair = pairs.get(layer) ?? { kind };
    if (factor.includes('_A')) pair.a = key;
    else pair.b = key;
    pairs.set(layer, pair);
  }
  if (pairs.size === 0) {
    const near = nearest('lora_A.weight', file.tensors.keys(), 1).join('');
    throw failure(`adapter ${file.path}`, 'tensors lora_A and lora_B', near || 'no tensors');
  }
  const modules = new Map<string, AdapterModule>();
  for (const [layer, pair] of pairs) modules.set(layer, readModule(file, layer, pair, config));
  const parts = notedParts(file, modules.keys());
  const base = file.metadata.get(BASE_HASH);
  return {
    ...{ config, modules, extras },
    ...(base === undefined ? {} : { base }),
    ...(parts.size > 0 ? { parts } : {}),
  };
}

/** The parts of fused layers that an adapter was trained on, where it says so. */
function notedParts(file: SafetensorsFile, paths: Iterable<string>) {
  const text = file.metadata.get(PARTS);
  const out = new Map<string, readonly boolean[]>();
  if (text === undefined) return out;
  const { enableLora = {} } = JSON.parse(text) as { enableLora?: Record<string, boolean[]> };
  const patterns = Object.entries(enableLora).map(([p, on]) => [endPattern(p), on] as const);
  for (const path of paths) {
    const on = patterns.find(([pattern]) => pattern.test(path))?.[1];
    if (on) out.set(path, on);
  }
  return out;
}

/** The names and shapes under which PEFT keeps a module's A and B. */
function factorEntries(path: string, m: AdapterModule): WriteEntry[] {
  const name = (letter: string) =>
    m.kind === 'embedding' ? `lora_embedding_${letter}` : `lora_${letter}.weight`;
  const ones = (m.convolution ?? []).slice(1).map(() => 1);
  const inner = m.convolution ?? [m.inFeatures];
  return [
    f32Entry(`${PEFT_PREFIX}${path}.${name('A')}`, m.a, [m.rank, ...inner]),
    f32Entry(`${PEFT_PREFIX}${path}.${name('B')}`, m.b, [m.outFeatures, m.rank, ...ones]),
  ];
}

/** An extra tensor as an entry to be written. */
export function extraEntry(name: string, { dtype, shape, bytes }: ExtraTensor): WriteEntry {
  return { name, dtype: dtype as WriteEntry['dtype'], shape, bytes: () => bytes };
}

/**
 * Writes an adapter as PEFT does; factors are f32. Both files are replaced, or neither.
 * @param dir made if it does not exist
 */
export function writeAdapter(dir: string, adapter: Adapter): void {
  const entries = [
    ...[...adapter.modules].flatMap(([path, m]) => factorEntries(path, m)),
    ...[...adapter.extras].map(([name, t]) => extraEntry(PEFT_PREFIX + name, t)),
  ];
  const config = Object.entries({ ...adapter.config, inference_mode: true }).sort(([a], [b]) =>
    a < b ? -1 : 1,
  );
  const { base } = adapter;
  const metadata = { format: 'pt', ...(base === undefined ? {} : { [BASE_HASH]: base }) };
  mkdirSync(dir, { recursive: true });
  writeFilesAtomic(dir, [
    [WEIGHTS, safetensorsParts(entries, metadata)],
    [CONFIG, [jsonBytes(Object.fromEntries(config))]],
  ]);
}
