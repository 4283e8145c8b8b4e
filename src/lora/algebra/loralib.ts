import { mkdirSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { writeFilesAtomic } from '../../io/files.js';
import { SafetensorsFile, safetensorsParts } from '../../io/safetensors.js';
import { failure, shapeText } from '../../tensor/errors.js';
import type { Adapter, AdapterModule } from './adapter.js';
import { f32Entry, readF32 } from './files.js';
import { checkForeign, EMBEDDING, peftConfigOf, withScaling } from './foreign.js';

/** What a loralib file does not say. */
export interface LoralibOptions {
  /** Its `lora_alpha`; default the file's metadata `lora_alpha`. */
  readonly alpha?: number;
  /** `enable_lora` of its MergedLinear layers, such as [true, false, true] for q and v of q,k,v. */
  readonly enabled?: readonly boolean[];
  /** Leave out tensors that are no lora_A or lora_B, such as base weights. Default: an error. */
  readonly dropOthers?: boolean;
}

/**
 * Reads a state dict of the original loralib: `….lora_A` and `….lora_B`. A MergedLinear, whose
 * lora_A has more rows than lora_B has columns, becomes one layer of that larger rank.
 * @throws when alpha is neither given nor noted in the file, or `enabled` does not fit
 */
export function readLoralib(path: string, options: LoralibOptions = {}): Adapter {
  const file = SafetensorsFile.open(path);
  const noted = file.metadata.get('lora_alpha');
  const alpha = options.alpha ?? (noted === undefined ? Number.NaN : Number(noted));
  if (!Number.isFinite(alpha)) {
    const way = 'The file does not hold it: give lora_alpha of the training (--alpha)';
    throw failure(`loralib ${path}`, 'a lora_alpha', String(noted ?? 'none'), way);
  }
  const modules = new Map<string, AdapterModule>();
  for (const key of file.tensors.keys()) {
    if (key.endsWith('.lora_B')) continue;
    if (key.endsWith('.lora_A')) {
      const layer = key.slice(0, -'.lora_A'.length);
      modules.set(layer, loralibModule(file, layer, alpha, options.enabled));
    } else if (!options.dropOthers) {
      const way = 'To leave out every other tensor: --drop-others';
      throw failure(`loralib ${path}`, 'names that end in .lora_A or .lora_B', key, way);
    }
  }
  if (modules.size === 0) throw failure(`loralib ${path}`, 'tensors lora_A', 'none');
  return { config: peftConfigOf(modules, {}), modules, extras: new Map() };
}

function loralibModule(
  file: SafetensorsFile,
  layer: string,
  alpha: number,
  enabled: readonly boolean[] | undefined,
): AdapterModule {
  const names = [`${layer}.lora_A`, `${layer}.lora_B`] as const;
  const [a, b] = names.map((n) => file.entry(n).shape) as [readonly number[], readonly number[]];
  const [rows, inFeatures] = a as [number, number];
  const [outFeatures, rank] = b as [number, number];
  if (a.length !== 2 || b.length !== 2 || rank === 0 || rows % rank !== 0) {
    const received = `${shapeText(a)} and ${shapeText(b)}`;
    throw failure(`loralib, ${layer}`, 'lora_A [r, in] and lora_B [out, r]', received);
  }
  const values = { a: readF32(file, names[0]), b: readF32(file, names[1]) };
  const groups = rows / rank;
  const kind = EMBEDDING.test(layer) ? 'embedding' : 'linear';
  const rest = { kind, inFeatures, scaling: alpha / rank } as const;
  if (groups === 1 && !enabled) return { ...rest, ...values, rank, outFeatures };
  const parts = enabled ?? [];
  if (parts.filter(Boolean).length !== groups || outFeatures % groups !== 0) {
    throw failure(
      `loralib, ${layer}`,
      `${groups} enabled parts of a MergedLinear`,
      parts.length > 0 ? parts.map((on) => (on ? 'on' : 'off')).join(', ') : 'none named',
      'Name the layer’s parts: --enabled q,-,v for enable_lora [True, False, True]',
    );
  }
  return { ...rest, ...mergedFactors(values, { rows, outFeatures, rank }, parts) };
}

/** One B [parts · size, r · groups] in which part g meets A's rows of its own group only. */
function mergedFactors(
  { a, b }: { a: Float32Array; b: Float32Array },
  size: { rows: number; outFeatures: number; rank: number },
  parts: readonly boolean[],
) {
  const { rows, outFeatures, rank } = size;
  const part = outFeatures / (rows / rank);
  const wide = new Float32Array(part * parts.length * rows);
  let group = 0;
  parts.forEach((on, p) => {
    if (!on) return;
    for (let i = 0; i < part; i++) {
      const from = (group * part + i) * rank;
      wide.set(b.subarray(from, from + rank), (p * part + i) * rows + group * rank);
    }
    group++;
  });
  // The rank grows by the number of groups, the scaling stays alpha / r.
  return { a, b: wide, rank: rows, outFeatures: part * parts.length };
}

/** Writes an adapter under loralib's names in one file, alpha in its metadata. */
export function writeLoralib(path: string, adapter: Adapter): void {
  checkForeign(adapter, 'loralib');
  const extra = [...adapter.extras.keys()][0];
  if (extra !== undefined) throw failure('convert to loralib', 'A and B only', extra);
  const modules = [...adapter.modules];
  const [, first] = modules[0] as [string, AdapterModule];
  const alpha = first.scaling * first.rank || 1;
  const entries = modules.flatMap(([layer, module]) => {
    const m = withScaling(module, alpha / module.rank);
    return [
      f32Entry(`${layer}.lora_A`, m.a, [m.rank, m.inFeatures]),
      f32Entry(`${layer}.lora_B`, m.b, [m.outFeatures, m.rank]),
    ];
  });
  const dir = dirname(resolve(path));
  mkdirSync(dir, { recursive: true });
  const metadata = { format: 'pt', lora_alpha: String(alpha) };
  writeFilesAtomic(dir, [[basename(path), safetensorsParts(entries, metadata)]]);
}
