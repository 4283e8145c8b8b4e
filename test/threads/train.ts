import { createHash } from 'node:crypto';
import type { Backend } from '../../src/tensor/backend.js';
import { TinyRun } from '../support/run.js';
import { TINY, type TinySettings, tinyBatch } from '../support/tiny.js';

/** Wide enough that the kernels have work for several threads. */
const WIDE: TinySettings = {
  ...TINY,
  hidden: 96,
  ffn: 168,
  heads: 6,
  keyValueHeads: 2,
  headSize: 16,
  vocab: 400,
};

/** Trains a small model for a few steps; answers its losses and a digest of each of its tensors. */
export async function trainingBits(backend: Backend, seed: number): Promise<readonly string[]> {
  const config = { targetModules: ['all-linear'], rank: 8, dropout: 0.1 };
  using run = new TinyRun(backend, { ...WIDE, seed }, config);
  const source = {
    batch: (step: number, micro: number) =>
      tinyBatch(100 * seed + 10 * step + micro, [40, 7, 64, 33], WIDE.vocab),
  };
  const events = await run.train(4, { seed }, source);
  return [
    ...events.map((e) => `${e.loss}`),
    ...[...run.bits()].map(
      ([name, bytes]) => `${name} ${createHash('sha256').update(bytes).digest('hex')}`,
    ),
  ];
}
