import { noGrad, scope } from '../autograd/index.js';
import { embedding, reshape, slice, writeInto } from '../ops/index.js';
import { tensor } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { KvCache } from './causal-lm.js';

/**
 * Makes row b of a cache what row `rows[b]` of another, or of itself, is: so beams go on from each
 * other, a prompt's keys serve all of its beams, and a cache that is full goes on in a larger one.
 * @param rows [B of `into`], rows of `from`
 * @param start places before this one are the same in both rows already
 * @throws when the places filled in `from` do not fit
 */
export function takeRows(into: KvCache, from: KvCache, rows: Int32Array, start = 0): void {
  const [B, places] = into.shape;
  const [, fromPlaces] = from.shape;
  const { length } = from;
  if (rows.length !== B || length > places) {
    const received = `${rows.length} rows of ${length} places`;
    throw failure('cache', `${B} rows of at most ${places} places`, received);
  }
  if (into === from && rows.every((r, b) => r === b)) return;
  if (length > start) {
    noGrad(() => {
      into.keys.forEach((t, layer) => {
        copyRows(t, from.keys[layer] as Tensor, rows, start, length);
        copyRows(into.values[layer] as Tensor, from.values[layer] as Tensor, rows, start, length);
      });
    });
  }
  const mask = from.mask.slice();
  const counts = from.counts.slice();
  rows.forEach((r, b) => {
    into.mask.set(mask.subarray(r * fromPlaces, r * fromPlaces + length), b * places);
    into.counts[b] = counts[r] as number;
  });
  into.length = length;
}

/** Places start … end − 1 of rows of one buffer [B, places, heads, D], into another. */
function copyRows(into: Tensor, from: Tensor, rows: Int32Array, start: number, end: number): void {
  scope(() => {
    const [B, , G, D] = from.shape as [number, number, number, number];
    const ids = tensor(rows, [rows.length], { backend: from.backend, dtype: 'i32' });
    const part = reshape(slice(from, 1, start, end), [B, (end - start) * G * D]);
    const taken = reshape(embedding(part, ids), [rows.length, end - start, G, D]);
    writeInto(into, taken, [0, start, 0, 0]);
  });
}
