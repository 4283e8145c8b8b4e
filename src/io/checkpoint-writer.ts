import { existsSync, mkdirSync, readdirSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { checkDirectory, INDEX, SHARD, WEIGHTS } from './checkpoint.js';
import { jsonBytes, type Parts, plainName, removeLeftovers, writeFilesAtomic } from './files.js';
import { quoted } from './json-scanner.js';
import {
  entryBytes,
  safetensorsParts,
  tensorEntry,
  type WriteEntries,
  type WriteEntry,
} from './safetensors.js';

/** What {@link saveCheckpoint} writes. */
export interface SaveOptions {
  readonly config: Readonly<Record<string, unknown>>;
  /** Tensors by name, or entries whose bytes are made one by one. */
  readonly tensors: WriteEntries;
  /**
   * Other files by plain name, or by folder and name: tokenizer.json, a model card; text or bytes.
   */
  readonly extraFiles?: Iterable<readonly [string, Uint8Array | string]>;
  /** The most bytes of tensors in one file; more makes shards with an index. Default 5·10⁹. */
  readonly maxShardBytes?: number;
}

/** What {@link saveCheckpoint} has written. */
export interface SavedCheckpoint {
  /** Names of the files that hold the weights, and of their index. */
  readonly weights: readonly string[];
  /** Bytes of the tensors. */
  readonly bytes: number;
}

/** Cuts the entries, in their order, into files of at most `limit` bytes (or one larger tensor). */
function cut(entries: readonly WriteEntry[], limit: number): WriteEntry[][] {
  const shards: WriteEntry[][] = [];
  let held = Number.POSITIVE_INFINITY;
  for (const entry of entries) {
    const bytes = entryBytes(entry);
    if (held + bytes > limit || shards.length === 0) {
      shards.push([]);
      held = 0;
    }
    (shards[shards.length - 1] as WriteEntry[]).push(entry);
    held += bytes;
  }
  return shards.length > 0 ? shards : [[]];
}

/** The files of the weights: one, or shards with their index, named as transformers names them. */
function* weightFiles(shards: readonly WriteEntry[][]): Generator<readonly [string, Parts]> {
  const notes = { format: 'pt' };
  if (shards.length === 1) {
    yield [WEIGHTS, safetensorsParts(shards[0] as WriteEntry[], notes)];
    return;
  }
  const five = (n: number) => String(n).padStart(5, '0');
  const map: [string, string][] = [];
  let bytes = 0;
  let parameters = 0;
  for (const [i, shard] of shards.entries()) {
    const name = `model-${five(i + 1)}-of-${five(shards.length)}.safetensors`;
    yield [name, safetensorsParts(shard, notes)];
    for (const entry of shard) {
      map.push([entry.name, name]);
      bytes += entryBytes(entry);
      parameters += entry.shape.reduce((n, d) => n * d, 1);
    }
  }
  map.sort(([a], [b]) => (a < b ? -1 : 1));
  const index = {
    metadata: { total_parameters: parameters, total_size: bytes },
    weight_map: Object.fromEntries(map),
  };
  yield [INDEX, [jsonBytes(index)]];
}

type Extra = readonly [name: string, bytes: Uint8Array];

/** The other files by their folder ('' for the directory itself), their names checked. */
function extraFolders(files: SaveOptions['extraFiles']): Map<string, Extra[]> {
  const out = new Map<string, Extra[]>([['', []]]);
  for (const [path, contents] of files ?? []) {
    const at = path.indexOf('/');
    const folder = at < 0 ? '' : plainName(path.slice(0, at));
    const name = plainName(path.slice(at + 1));
    const ours = name === 'config.json' || name === WEIGHTS || name === INDEX || SHARD.test(name);
    if (folder === '' && ours) {
      throw failure('extraFiles', 'names that the checkpoint does not use itself', quoted(name));
    }
    const bytes = typeof contents === 'string' ? new TextEncoder().encode(contents) : contents;
    out.set(folder, [...(out.get(folder) ?? []), [name, bytes]]);
  }
  return out;
}

/** The entries, each name once. */
function entriesOf(tensors: WriteEntries): WriteEntry[] {
  const entries =
    tensors instanceof Map
      ? Array.from(tensors as ReadonlyMap<string, Tensor>, ([n, t]) => tensorEntry(n, t))
      : Array.from(tensors as Iterable<WriteEntry>);
  const names = new Set<string>();
  for (const { name } of entries) {
    if (names.has(name)) {
      throw failure('saveCheckpoint', 'each tensor once', `${quoted(name)} twice`);
    }
    names.add(name);
  }
  return entries;
}

/** Throws at once where a large save cannot fit, rather than when the disk is full. */
function checkSpace(dir: string, bytes: number): void {
  const { bavail, bsize } = statfsSync(dir);
  const free = bavail * bsize;
  // Some network file systems tell nothing.
  if (free === 0 || free >= bytes) return;
  throw failure(`save ${dir}`, `${bytes} bytes of free space`, `${free}`);
}

/**
 * Writes a Hugging Face model directory: every file under a temporary name first, and only when
 * all are complete renamed over the old ones, config.json last. Then weights of an older save there
 * are removed (an old `model.safetensors` would win over new shards), and so are the incomplete files
 * of a save that was killed.
 * @param dir an existing directory
 * @throws when a tensor cannot be made or a file not written; all old files are then untouched and
 *   nothing new is left behind
 */
export function saveCheckpoint(dir: string, options: SaveOptions): SavedCheckpoint {
  checkDirectory(dir);
  const { config, tensors, extraFiles, maxShardBytes = 5e9 } = options;
  if (!(maxShardBytes > 0)) throw failure('maxShardBytes', 'more than 0', String(maxShardBytes));
  const folders = extraFolders(extraFiles);
  const entries = entriesOf(tensors);
  const bytes = entries.reduce((n, e) => n + entryBytes(e), 0);
  removeLeftovers(dir);
  checkSpace(dir, bytes);
  const written: string[] = [];
  const weights = function* () {
    for (const file of weightFiles(cut(entries, maxShardBytes))) {
      written.push(file[0]);
      yield file;
    }
  };
  const plain = (folders.get('') as Extra[]).map(([name, b]) => [name, [b]] as const);
  const last = ['config.json', [jsonBytes(config)]] as const;
  writeFilesAtomic(dir, chain(weights(), plain, [last]));
  for (const [folder, files] of folders) {
    if (folder === '') continue;
    mkdirSync(join(dir, folder), { recursive: true });
    const parts = files.map(([name, b]) => [name, [b]] as const);
    writeFilesAtomic(join(dir, folder), parts);
  }
  for (const name of readdirSync(dir)) {
    const weight = name === WEIGHTS || name === INDEX || SHARD.test(name);
    if (weight && !written.includes(name) && existsSync(join(dir, name))) rmSync(join(dir, name));
  }
  return { weights: written, bytes };
}

function* chain<T>(...lists: Iterable<T>[]): Generator<T> {
  for (const list of lists) yield* list;
}
