import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { checkCut } from './shape.js';

/**
 * Copies x into the part of `into` that begins at `starts`, in place and outside the graph (a
 * key-value cache grows by it).
 * @throws when the part is not inside, the dtypes differ, or `into` is part of the graph
 */
export function writeInto(into: Tensor, x: Tensor, starts: readonly number[]): void {
  into.check('write');
  x.check('write');
  if (into.node) throw failure('write', 'a target outside the graph', 'one with a gradient');
  if (x.dtype !== into.dtype || x.backend !== into.backend) {
    throw failure(
      'write',
      `${into.dtype} on ${into.backend.name}`,
      `${x.dtype} ${shapeText(x.shape)}`,
    );
  }
  checkCut('write', into.shape, { starts, sizes: x.shape });
  into.storage.version++;
  into.backend.run('write', [x, into], starts);
}
