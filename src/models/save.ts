import { mkdirSync } from 'node:fs';
import { noGrad, scope } from '../autograd/index.js';
import { type SavedCheckpoint, saveCheckpoint } from '../io/checkpoint-writer.js';
import { companionFiles } from '../io/companions.js';
import type { Parts } from '../io/files.js';
import { entryBytes, type WriteEntry } from '../io/safetensors.js';
import { cast } from '../ops/index.js';
import { type DType, isFloat } from '../tensor/dtype.js';
import { failure } from '../tensor/errors.js';
import { firstNonFinite } from '../tensor/finite.js';
import type { Shape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';

type Json = Readonly<Record<string, unknown>>;

/** Bytes fetched from a backend at once. A multiple of every element size. */
const PIECE = 4 * 2 ** 20;

/** A tensor of a model that is made when its turn to be written comes, and then freed. */
export interface LazyTensor {
  readonly name: string;
  readonly shape: Shape;
  /** Of what is written; what `make` gives is cast to it. */
  readonly dtype: DType;
  /** Called once; the tensor is disposed when its bytes are written. */
  make(): Tensor;
}

/** How far a save is. */
export interface SaveProgress {
  /** The tensor that is written next. */
  readonly name: string;
  /** Tensors and bytes before it, and of all. */
  readonly tensor: number;
  readonly tensors: number;
  readonly bytes: number;
  readonly totalBytes: number;
}

/** How {@link saveModel} writes. */
export interface SaveModelOptions {
  /** Tensors by the checkpoint's names, or tensors that are made one by one. */
  readonly tensors: ReadonlyMap<string, Tensor> | readonly LazyTensor[];
  /** The contents of config.json; its `dtype` is set to the storage. */
  readonly config: Json;
  /** A directory whose tokenizer files go along. */
  readonly tokenizerDir: string;
  /** Whether its other small files (model card, licence) go along, too. Default false. */
  readonly keepAll?: boolean;
  /** Storage of the weights, rounded to once; default each tensor's own. */
  readonly dtype?: 'f32' | 'f16' | 'bf16';
  /** The most bytes of tensors in one file; more makes shards. Default 5·10⁹. */
  readonly maxShardBytes?: number;
  /** Called before each tensor is made. */
  readonly onTensor?: (progress: SaveProgress) => void;
}

/** What {@link saveModel} has written. */
export interface SavedModel extends SavedCheckpoint {
  /** Files and folders of `tokenizerDir`, not weights, that did not go along: too large, unknown. */
  readonly leftOut: readonly string[];
}

const TORCH_NAMES = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' } as const;

/** config.json with the dtype of the weights under the names that transformers reads. */
function withDType(config: Json, dtypes: ReadonlySet<DType>): Json {
  // Weights of several dtypes: what config.json said of them stays.
  const [only] = dtypes;
  const name = dtypes.size === 1 ? TORCH_NAMES[only as 'f32'] : undefined;
  if (name === undefined) return config;
  const { torch_dtype: old, ...rest } = config;
  return { ...rest, dtype: name, ...(old === undefined ? {} : { torch_dtype: name }) };
}

/** The bytes of a tensor in pieces of `buffer`, each to be written before the next is asked for. */
function* pieces(t: Tensor, buffer: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at < t.byteLength; at += buffer.length) {
    const piece = buffer.subarray(0, Math.min(buffer.length, t.byteLength - at));
    t.backend.download(t.storage.handle, t.byteOffset + at, piece);
    yield piece;
  }
}

function* finitePieces(name: string, t: Tensor, buffer: Uint8Array): Generator<Uint8Array> {
  for (const piece of pieces(t, buffer)) {
    if (firstNonFinite(piece, t.dtype) >= 0) {
      throw failure(
        'save',
        'finite weights',
        `NaN or Inf in ${name}`,
        t.dtype === 'f16' ? 'Half floats end at 65504: try bf16 or f32' : undefined,
      );
    }
    yield piece;
  }
}

function* lazyBytes({ name, dtype, make }: LazyTensor, buffer: Uint8Array): Parts {
  const made = make();
  let written = made;
  try {
    if (made.dtype !== dtype) {
      written = noGrad(() => scope(() => cast(made, dtype))).keep();
      made.dispose();
    }
    yield* finitePieces(name, written, buffer);
  } finally {
    written.dispose();
    made.dispose();
  }
}

/** The same entries, whose bytes are announced before they are made. */
function watched(
  entries: readonly WriteEntry[],
  onTensor: SaveModelOptions['onTensor'],
): readonly WriteEntry[] {
  if (!onTensor) return entries;
  const totalBytes = entries.reduce((n, e) => n + entryBytes(e), 0);
  let tensor = 0;
  let bytes = 0;
  return entries.map((entry) => ({
    ...entry,
    bytes() {
      onTensor({ name: entry.name, tensor, tensors: entries.length, bytes, totalBytes });
      tensor++;
      bytes += entryBytes(entry);
      return entry.bytes();
    },
  }));
}

/**
 * Writes a model as a Hugging Face directory that transformers loads. Makes the directory.
 * @throws when a weight is NaN or infinite or a file cannot be written; old files then still stand
 *   and nothing new is left behind
 */
export function saveModel(dir: string, options: SaveModelOptions): SavedModel {
  const { tensors, tokenizerDir, maxShardBytes } = options;
  const list: readonly LazyTensor[] =
    tensors instanceof Map
      ? Array.from(tensors as ReadonlyMap<string, Tensor>, ([name, t]) => {
          return { name, shape: t.shape, dtype: t.dtype, make: () => t.alias() };
        })
      : (tensors as readonly LazyTensor[]);
  // One for all tensors: a new one for each would wait for the garbage collector.
  const buffer = new Uint8Array(PIECE);
  const entries = list.map((t): WriteEntry => {
    const dtype = isFloat(t.dtype) ? (options.dtype ?? t.dtype) : t.dtype;
    return { name: t.name, shape: t.shape, dtype, bytes: () => lazyBytes({ ...t, dtype }, buffer) };
  });
  const { files, leftOut } = companionFiles(tokenizerDir, options.keepAll ? 'all' : 'tokenizer');
  const config = withDType(options.config, new Set(entries.map((e) => e.dtype as DType)));
  mkdirSync(dir, { recursive: true });
  const saved = saveCheckpoint(dir, {
    ...{ config, tensors: watched(entries, options.onTensor), extraFiles: files },
    ...(maxShardBytes === undefined ? {} : { maxShardBytes }),
  });
  return { ...saved, leftOut };
}
