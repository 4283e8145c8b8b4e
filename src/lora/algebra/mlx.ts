import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { jsonBytes, readJsonObject, writeFilesAtomic } from '../../io/files.js';
import { SafetensorsFile, safetensorsParts, type WriteEntry } from '../../io/safetensors.js';
import { failure, shapeText } from '../../tensor/errors.js';
import { type Adapter, type AdapterModule, type ExtraTensor, padRank } from './adapter.js';
import { CONFIG, extraEntry, f32Entry, readExtra, readF32 } from './files.js';
import { blockOf, checkForeign, EMBEDDING, peftConfigOf, withScaling } from './foreign.js';

export const MLX_WEIGHTS = 'adapters.safetensors';
const MAGNITUDE = '.lora_magnitude_vector';

function transposed(values: Float32Array, rows: number, cols: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) out[j * rows + i] = values[i * cols + j] as number;
  }
  return out;
}

/**
 * Reads an adapter of mlx-lm: `lora_a` [in, r] and `lora_b` [r, out], the scale in
 * `lora_parameters`; DoRA's `m` is PEFT's magnitude vector.
 * Weights beside them are modules saved whole.
 * @throws for models trained without LoRA, and for layers of experts (three dimensions)
 */
export function readMlx(dir: string): Adapter {
  const path = join(dir, CONFIG);
  const json = readJsonObject(path, 'mlx adapter');
  const type = json.fine_tune_type ?? 'lora';
  const lora = json.lora_parameters as Record<string, unknown> | undefined;
  const scaling = lora?.scale;
  if ((type !== 'lora' && type !== 'dora') || typeof scaling !== 'number') {
    const found = `${JSON.stringify(type)} and ${JSON.stringify(scaling) ?? 'no scale'}`;
    throw failure(`mlx adapter ${path}`, 'fine_tune_type lora or dora and a scale', found);
  }
  const file = SafetensorsFile.open(join(dir, MLX_WEIGHTS));
  const modules = new Map<string, AdapterModule>();
  const extras = new Map<string, ExtraTensor>();
  for (const key of file.tensors.keys()) {
    if (key.endsWith('.lora_b')) continue;
    const layer = key.replace(/\.(lora_a|m)$/, '');
    if (layer === key) extras.set(key, readExtra(file, key));
    else if (key.endsWith('.m')) extras.set(layer + MAGNITUDE, readExtra(file, key));
    else modules.set(layer, mlxModule(file, layer, scaling));
  }
  if (modules.size === 0) throw failure(`mlx adapter ${file.path}`, 'tensors lora_a', 'none');
  const config = peftConfigOf(modules, {
    base_model_name_or_path: typeof json.model === 'string' ? json.model : null,
    lora_dropout: typeof lora?.dropout === 'number' ? lora.dropout : 0,
    use_dora: type === 'dora',
    modules_to_save: wholeModules(extras.keys()),
  });
  return { config, modules, extras };
}

/** The modules whose weights are saved whole; null for none, as PEFT writes it. */
function wholeModules(names: Iterable<string>): string[] | null {
  const whole = [...names].filter((name) => !name.endsWith(MAGNITUDE));
  const modules = new Set(whole.map((name) => name.replace(/\.[^.]*$/, '')));
  return modules.size > 0 ? [...modules] : null;
}

function mlxModule(file: SafetensorsFile, layer: string, scaling: number): AdapterModule {
  const names = [`${layer}.lora_a`, `${layer}.lora_b`] as const;
  const [a, b] = names.map((n) => file.entry(n).shape) as [readonly number[], readonly number[]];
  if (a.length !== 2 || b.length !== 2 || a[1] !== b[0]) {
    const received = `${shapeText(a)} and ${shapeText(b)}`;
    throw failure(`mlx adapter, ${layer}`, 'lora_a [in, r] and lora_b [r, out]', received);
  }
  const [inFeatures, rank, outFeatures] = [a[0] as number, a[1] as number, b[1] as number];
  return {
    kind: EMBEDDING.test(layer) ? 'embedding' : 'linear',
    a: transposed(readF32(file, names[0]), inFeatures, rank),
    b: transposed(readF32(file, names[1]), rank, outFeatures),
    ...{ rank, inFeatures, outFeatures, scaling },
  };
}

/**
 * Writes an adapter as mlx-lm reads it. Ranks are padded with zeros to the largest and scalings
 * folded into `lora_b` where they differ, as mlx-lm has one of each.
 * @param dir made if it does not exist
 */
export function writeMlx(dir: string, adapter: Adapter): void {
  checkForeign(adapter, 'mlx');
  const { config, modules, extras } = adapter;
  const rank = Math.max(...[...modules.values()].map((m) => m.rank));
  const scale = ([...modules.values()][0] as AdapterModule).scaling || 1;
  const entries: WriteEntry[] = [];
  for (const [path, module] of modules) {
    const m = padRank(withScaling(module, scale), rank);
    const { inFeatures: i, outFeatures: o } = m;
    entries.push(f32Entry(`${path}.lora_a`, transposed(m.a, rank, i), [i, rank]));
    entries.push(f32Entry(`${path}.lora_b`, transposed(m.b, o, rank), [rank, o]));
  }
  for (const [name, t] of extras) {
    const magnitude = /^(.+)\.lora_magnitude_vector(\.weight)?$/.exec(name);
    // mlx-lm loads weights by their names in the model, and passes over others without a word.
    if (!magnitude && /\.(lora_|token_adapter|base_layer)/.test(name)) {
      const expected = 'A, B, DoRA magnitudes and modules saved whole';
      throw failure('convert to mlx', expected, name, 'Merge the adapter into the base instead');
    }
    entries.push(extraEntry(magnitude ? `${magnitude[1]}.m` : name, t));
  }
  const keys = [...new Set([...modules.keys()].map((p) => blockOf(p)?.name ?? p))];
  const json = {
    fine_tune_type: config.use_dora === true ? 'dora' : 'lora',
    lora_parameters: { keys, rank, scale, dropout: config.lora_dropout ?? 0 },
    ...(typeof config.base_model_name_or_path === 'string'
      ? { model: config.base_model_name_or_path }
      : {}),
    // All blocks: those without tensors here keep the zero B that mlx-lm starts with.
    num_layers: -1,
  };
  mkdirSync(dir, { recursive: true });
  writeFilesAtomic(dir, [
    [MLX_WEIGHTS, safetensorsParts(entries, { format: 'mlx' })],
    [CONFIG, [jsonBytes(json)]],
  ]);
}
