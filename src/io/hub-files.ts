import { failure } from '../tensor/errors.js';
import type { HubId, HubKind } from './hub-cache.js';

/** A file of a repository, as the Hub lists it. */
export interface ListedFile {
  readonly path: string;
  readonly size: number;
  /** Its name among the cache's blobs: SHA-256 of a large file, git's hash of another. */
  readonly etag: string;
  readonly hash: 'sha256' | 'git';
}

export const INDEX = 'model.safetensors.index.json';
const WEIGHTS = 'model.safetensors';
const ADAPTER = 'adapter_model.safetensors';
const TOKENIZER = 'tokenizer.json';

/** Small files that a model or adapter is read with, here or by transformers. */
const COMPANIONS: ReadonlySet<string> = new Set([
  'config.json',
  'generation_config.json',
  'adapter_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'vocab.txt',
  'merges.txt',
  'tokenizer.model',
  'sentencepiece.bpe.model',
  'spiece.model',
  'chat_template.jinja',
  'chat_template.json',
]);

const PICKLE = /\.(bin|pt|pth|ckpt|pkl|pickle)$/i;
const PICKLED_WEIGHTS = /^(pytorch_model|adapter_model|model|consolidated)\b.*$/i;

const WAY_OUT =
  'Pickle files can run code when read. Often the Hub has a converted copy among the ' +
  "repository's pull requests (--revision refs/pr/1), else convert it in Python: " +
  'AutoModel.from_pretrained(ID).save_pretrained(OUT), and give OUT';

/** What of a repository is needed. */
export interface Wanted {
  readonly companions: readonly ListedFile[];
  /** Files of weights; the shards of an index come on top. */
  readonly weights: readonly ListedFile[];
  readonly index: ListedFile | undefined;
}

/**
 * Chooses the files that are needed: settings, tokenizer, safetensors; nothing else.
 * @param listing the files in the root of the repository
 * @throws when there are no safetensors, naming what there is instead
 */
export function chooseFiles(listing: readonly ListedFile[], id: HubId, kind: HubKind): Wanted {
  const files = new Map(listing.map((f) => [f.path, f]));
  const companions = listing.filter((f) => COMPANIONS.has(f.path));
  if (kind === 'tokenizer') {
    if (!files.has(TOKENIZER)) throw nothing(`hub ${id.name}`, TOKENIZER, [...files.keys()]);
    return { companions, weights: [], index: undefined };
  }
  const whole = kind === 'adapter' ? undefined : files.get(WEIGHTS);
  const index = kind === 'adapter' || whole ? undefined : files.get(INDEX);
  const adapter = kind === 'model' ? undefined : files.get(ADAPTER);
  const weights = [whole, adapter].filter((f) => f !== undefined);
  if (weights.length === 0 && !index) throw noWeights(files, id, kind);
  const settings = whole || index ? 'config.json' : 'adapter_config.json';
  if (!files.has(settings)) {
    const place = `hub ${id.name}`;
    throw failure(place, `${settings} beside the weights`, 'none at that revision');
  }
  return { companions, weights, index };
}

function noWeights(files: ReadonlyMap<string, ListedFile>, id: HubId, kind: HubKind): Error {
  const place = `hub ${id.name}`;
  if (kind === 'model' && files.has('adapter_config.json')) {
    return failure(place, 'a model', 'an adapter', 'Give it as the adapter, beside its base model');
  }
  if (kind === 'adapter' && files.has('config.json') && !files.has('adapter_config.json')) {
    return failure(place, 'an adapter (adapter_config.json)', 'a model');
  }
  const names = [...files.keys()];
  const expected = kind === 'adapter' ? ADAPTER : `${WEIGHTS} or ${INDEX}`;
  const pickles = names.filter((n) => PICKLE.test(n));
  const pickle = pickles.find((n) => PICKLED_WEIGHTS.test(n)) ?? pickles[0];
  if (pickle) return failure(place, expected, `the pickle file ${pickle}`, WAY_OUT);
  const gguf = names.find((n) => /\.gguf$/i.test(n));
  if (gguf) {
    const way = 'Use the repository of the original checkpoint, not its GGUF';
    return failure(place, expected, gguf, way);
  }
  const other = names.filter((n) => /\.(safetensors|onnx|h5|msgpack)$/i.test(n));
  return nothing(place, expected, other.length > 0 ? other : names);
}

function nothing(place: string, expected: string, names: readonly string[]): Error {
  const some = names.slice(0, 5).join(', ');
  return failure(place, expected, names.length === 0 ? 'an empty repository' : `only ${some}`);
}

/**
 * The shards that an index names, among the repository's files.
 * @param text the index, JSON
 * @throws when it is no index, or names a file that the repository does not have
 */
export function shardFiles(
  text: string,
  listing: readonly ListedFile[],
  id: HubId,
): readonly ListedFile[] {
  const place = `hub ${id.name}, ${INDEX}`;
  let map: unknown;
  try {
    map = JSON.parse(text).weight_map;
  } catch {
    throw failure(place, 'JSON', 'something else');
  }
  if (typeof map !== 'object' || map === null) {
    throw failure(place, 'an object weight_map', String(map));
  }
  return [...new Set(Object.values(map))].map((name) => {
    const file = listing.find((f) => f.path === name);
    if (file?.path.endsWith('.safetensors')) return file;
    const pickle = PICKLE.test(String(name));
    const received = file || pickle ? 'another file' : 'none';
    throw failure(place, `a safetensors file ${String(name)}`, received, pickle ? WAY_OUT : '');
  });
}
