import { existsSync, lstatSync, readdirSync, realpathSync, type Stats, statSync } from 'node:fs';
import { basename, dirname, join, relative, sep } from 'node:path';
import { failure, nearest } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { missingFile, readJsonObject, readText } from './files.js';
import { JsonScanner, quoted } from './json-scanner.js';
import { type LoadOptions, SafetensorsFile, type TensorEntry } from './safetensors.js';

/** The weights in one file. */
export const WEIGHTS = 'model.safetensors';
/** Where each tensor is, for weights in several files. */
export const INDEX = 'model.safetensors.index.json';
/** Names that transformers gives to these files. */
export const SHARD = /^model-\d{5}-of-\d{5}\.safetensors$/;
/** Names of pickle files and of their indexes. */
export const PICKLE = /\.(bin|pt|pth|ckpt|pkl|pickle)(\.index\.json)?$/i;
const CONVERT =
  'Pickle files can run code when read: convert it to safetensors, in Python with ' +
  'AutoModel.from_pretrained(DIR).save_pretrained(OUT), which writes model.safetensors';

/**
 * The folders that the files of a model may lie in after links are followed: its own, or for a
 * snapshot in Hugging Face's cache (models--org--name/snapshots/revision) the model's cache folder
 * and the marked store of large files that newer huggingface_hub shares among models.
 */
function homesOf(dir: string): string[] {
  const home = realpathSync(dir);
  const snapshots = dirname(home);
  const model = dirname(snapshots);
  const cached = basename(snapshots) === 'snapshots' && /^models--/.test(basename(model));
  if (!cached) return [home];
  const store = join(dirname(model), 'blobs');
  return existsSync(join(store, '.huggingface-shared-blobs')) ? [model, store] : [model];
}

function isInside(home: string, path: string): boolean {
  const way = relative(home, path);
  return way !== '..' && !way.startsWith(`..${sep}`) && !/^([/\\]|[a-zA-Z]:)/.test(way);
}

function linkStats(path: string): Stats | undefined {
  return lstatSync(path, { throwIfNoEntry: false });
}

/**
 * The path of a file that a model directory names, checked not to lead out of it.
 * @param where for messages
 * @throws on `..`, absolute names, drive letters, and links out of the model's folder
 */
export function insideFile(dir: string, name: string, where: string): string {
  const parts = name.split('/');
  if (
    name === '' ||
    /[\\:\0]/.test(name) ||
    parts.some((p) => p === '' || p === '.' || p === '..')
  ) {
    const rule = 'a file name within the model directory, without .., \\ or drive letter';
    throw failure(where, rule, quoted(name));
  }
  const path = join(dir, name);
  if (!linkStats(path)) throw missingFile(where, path);
  let real: string;
  try {
    real = realpathSync(path);
  } catch {
    throw failure(where, `a file ${path}`, 'a link that leads nowhere');
  }
  if (!homesOf(dir).some((home) => isInside(home, real))) {
    throw failure(
      where,
      `${quoted(name)} to lie in the model directory`,
      `a link to ${real}`,
      'Copy the file into the directory',
    );
  }
  return path;
}

/** Throws unless `dir` is a directory. */
export function checkDirectory(dir: string): void {
  const stats = statSync(dir, { throwIfNoEntry: false });
  if (!stats)
    throw missingFile('checkpoint', dir, 'Give the path of a Hugging Face model directory');
  if (!stats.isDirectory()) {
    throw failure(
      'checkpoint',
      `a model directory (config.json and ${WEIGHTS})`,
      `the file ${dir}`,
      `Give its directory, ${dirname(dir)}`,
    );
  }
}

/** The weights are not there as safetensors: say what is, and the way out. */
function noWeights(dir: string): Error {
  const place = `checkpoint ${dir}`;
  const names = readdirSync(dir);
  const pickle = names.find((n) => PICKLE.test(n));
  const expected = `${WEIGHTS} or ${INDEX}`;
  if (pickle) return failure(place, expected, `the pickle file ${pickle}`, CONVERT);
  const gguf = names.find((n) => /\.gguf$/i.test(n));
  if (gguf) return failure(place, expected, `${gguf}`, 'Use the original checkpoint, not its GGUF');
  const near = nearest(WEIGHTS, names);
  const there = near.length > 0 ? `neither; the directory has ${near.join(', ')}` : 'nothing';
  return failure(place, expected, there);
}

/** The index's map from tensor name to file name, its form checked. */
function readWeightMap(path: string): Map<string, string> {
  const place = `checkpoint index ${path}`;
  const index = readJsonObject(path, 'checkpoint index');
  // JSON.parse hides a name that is given twice, and takes the last.
  new JsonScanner(readText(path, 'checkpoint index'), place, 'the index').pass('the index');
  const map = index.weight_map;
  if (typeof map !== 'object' || map === null || Array.isArray(map)) {
    const received = map === undefined ? 'none' : JSON.stringify(map).slice(0, 60);
    throw failure(place, 'an object weight_map from tensor names to files', received);
  }
  const out = new Map<string, string>();
  for (const [name, file] of Object.entries(map)) {
    if (typeof file !== 'string') {
      throw failure(place, `a file name for tensor ${quoted(name)}`, JSON.stringify(file));
    }
    if (PICKLE.test(file)) throw failure(place, 'safetensors files', `${quoted(file)}`, CONVERT);
    if (!file.endsWith('.safetensors')) {
      throw failure(place, 'file names that end in .safetensors', quoted(file));
    }
    out.set(name, file);
  }
  if (out.size === 0) throw failure(place, 'a weight_map with tensors', 'an empty one');
  return out;
}

function openShards(dir: string): { files: SafetensorsFile[]; home: Map<string, SafetensorsFile> } {
  const place = `checkpoint index ${join(dir, INDEX)}`;
  const map = readWeightMap(insideFile(dir, INDEX, 'checkpoint'));
  const shards = new Map<string, SafetensorsFile>();
  const home = new Map<string, SafetensorsFile>();
  for (const file of new Set(map.values())) {
    shards.set(file, SafetensorsFile.open(insideFile(dir, file, place)));
  }
  for (const [name, file] of map) {
    const shard = shards.get(file) as SafetensorsFile;
    if (!shard.tensors.has(name)) {
      const other = [...shards].find(([, s]) => s.tensors.has(name))?.[0];
      const received = other ? `it in ${other}` : 'it in none of the files';
      throw failure(place, `tensor ${quoted(name)} in ${file}`, received);
    }
    home.set(name, shard);
  }
  // A shard may hold tensors the index leaves out; they count, so that none is lost in silence.
  for (const [file, shard] of shards) {
    for (const name of shard.tensors.keys()) {
      if (map.has(name)) continue;
      if (home.has(name)) {
        const received = `it in ${basename((home.get(name) as SafetensorsFile).path)} and ${file}`;
        throw failure(place, `tensor ${quoted(name)}, which is not listed, once`, received);
      }
      home.set(name, shard);
    }
  }
  return { files: [...shards.values()], home };
}

/** A Hugging Face model directory: its config, and its tensors wherever they lie. */
export class Checkpoint {
  /** The files that hold the tensors. */
  readonly files: readonly SafetensorsFile[];
  /** Tensors by name over all files. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly #home: ReadonlyMap<string, SafetensorsFile>;

  private constructor(
    readonly dir: string,
    /** The object in config.json. */
    readonly config: Readonly<Record<string, unknown>>,
    found: { files: SafetensorsFile[]; home: Map<string, SafetensorsFile> },
  ) {
    this.files = found.files;
    this.#home = found.home;
    this.tensors = new Map(Array.from(found.home, ([n, f]) => [n, f.entry(n)] as const));
  }

  /**
   * Opens a directory with `config.json` and `model.safetensors` (or shards with an index),
   * reading headers only. Where both are, `model.safetensors` counts, as in transformers.
   * @throws naming the file that is missing, malformed, a pickle, or outside the directory
   */
  static open(dir: string): Checkpoint {
    checkDirectory(dir);
    const config = readJsonObject(
      insideFile(dir, 'config.json', 'checkpoint'),
      'checkpoint config',
    );
    if (linkStats(join(dir, WEIGHTS))) {
      const file = SafetensorsFile.open(insideFile(dir, WEIGHTS, 'checkpoint'));
      const home = new Map(Array.from(file.tensors.keys(), (n) => [n, file] as const));
      return new Checkpoint(dir, config, { files: [file], home });
    }
    if (!linkStats(join(dir, INDEX))) throw noWeights(dir);
    return new Checkpoint(dir, config, openShards(dir));
  }

  has(name: string): boolean {
    return this.#home.has(name);
  }

  /** The file of a tensor; an unknown name is an error with near names. */
  fileOf(name: string): SafetensorsFile {
    const file = this.#home.get(name);
    if (file) return file;
    const near = nearest(name, this.#home.keys()).map(quoted).join(', ');
    throw failure(
      `checkpoint ${this.dir}`,
      `a tensor ${quoted(name)}`,
      `none among ${this.#home.size}`,
      near && `The nearest are ${near}`,
    );
  }

  /** Loads a tensor; see {@link SafetensorsFile.load}. */
  loadTensor(name: string, options: LoadOptions = {}): Tensor {
    return this.fileOf(name).load(name, options);
  }

  /** A copy of a tensor's bytes. */
  bytes(name: string): Uint8Array {
    return this.fileOf(name).bytes(name);
  }
}

/** Opens a Hugging Face model directory; see {@link Checkpoint.open}. */
export function openCheckpoint(dir: string): Checkpoint {
  return Checkpoint.open(dir);
}
