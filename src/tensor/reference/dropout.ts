import { philox } from '../random.js';
import type { Call, Kernels } from './call.js';

/** y = x / (1 − p) where the element's uniform number is p or more, else 0. */
function dropout(call: Call): void {
  call.counts(2, 4);
  call.expectSame(0, 1);
  const p = call.attr(0);
  const seed = call.integer(1, 0, 2 ** 53);
  const stream = call.integer(2, 0, 2 ** 32 - 1);
  const step = call.integer(3, 0, 2 ** 32 - 1);
  if (!(p >= 0 && p <= 1)) throw call.error('p of 0…1', String(p));
  const x = call.floats(0);
  const y = call.activations(1);
  const k0 = seed >>> 0;
  const k1 = Math.floor(seed / 2 ** 32) >>> 0;
  const words = new Uint32Array(4);
  const keep = 1 - p;
  for (let i = 0; i < y.length; i++) {
    if (i % 4 === 0) {
      const block = i / 4;
      words[0] = block >>> 0;
      words[1] = Math.floor(block / 2 ** 32);
      words[2] = stream;
      words[3] = step;
      philox(words, k0, k1);
    }
    y[i] = (words[i % 4] as number) / 2 ** 32 >= p ? (x[i] as number) / keep : 0;
  }
}

export const dropoutKernels: Kernels = { dropout };
