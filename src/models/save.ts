import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { noGrad, scope } from '../autograd/index.js';
import { saveCheckpoint } from '../io/checkpoint.js';
import { cast } from '../ops/index.js';
import type { Tensor } from '../tensor/tensor.js';

type Json = Readonly<Record<string, unknown>>;

/** Files of a model directory that go along when it is written again. */
const COMPANIONS = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
];

/** How {@link saveModel} writes. */
export interface SaveModelOptions {
  /** Tensors by the checkpoint's names. */
  readonly tensors: ReadonlyMap<string, Tensor>;
  /** The contents of config.json; its `dtype` is set to the storage. */
  readonly config: Json;
  /** A directory whose tokenizer files go along. */
  readonly tokenizerDir: string;
  /** Storage of the weights, rounded to once; default that of the first tensor. */
  readonly dtype?: 'f32' | 'f16' | 'bf16';
}

const TORCH_NAMES = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' } as const;

/** Writes a model as a Hugging Face directory that transformers loads. Makes the directory. */
export function saveModel(dir: string, options: SaveModelOptions): void {
  const { tensors, tokenizerDir } = options;
  const dtype = options.dtype ?? ([...tensors.values()][0]?.dtype as 'f32');
  const extraFiles = COMPANIONS.filter((f) => existsSync(join(tokenizerDir, f))).map(
    (f) => [f, readFileSync(join(tokenizerDir, f))] as const,
  );
  const entries = [...tensors].map(([name, t]) => ({
    name,
    dtype,
    shape: t.shape,
    bytes: () => noGrad(() => scope(() => cast(t, dtype).bytes())),
  }));
  mkdirSync(dir, { recursive: true });
  const config = { ...options.config, dtype: TORCH_NAMES[dtype] };
  saveCheckpoint(dir, { config, tensors: entries, extraFiles });
}
