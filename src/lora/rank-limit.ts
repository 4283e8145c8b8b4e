import { failure } from '../tensor/errors.js';

/** A rank that people give whatever the layer is: no slip, though it is too large for a tiny one. */
const USUAL = 256;

/**
 * Throws on a rank that is a slip: above in + out, where A and B alone hold more than four times the
 * layer's numbers. To be asked before anything of that rank is allocated.
 * @param where for the message
 * @param path of the layer
 * @param sides its inputs and outputs
 */
export function checkRank(
  where: string,
  path: string,
  rank: number,
  [inner, outer]: readonly [inFeatures: number, outFeatures: number],
): void {
  const limit = Math.max(inner + outer, USUAL);
  if (rank <= limit) return;
  const expected = `at most ${limit} for ${path} [${outer}, ${inner}]`;
  const wayOut = `Rank ${Math.min(inner, outer)} reaches every change of that layer`;
  throw failure(where, expected, String(rank), wayOut);
}
