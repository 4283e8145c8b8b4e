import { failure } from '../../tensor/errors.js';
import { checkRank } from '../rank-limit.js';
import { type Adapter, type AdapterModule, decompose, moduleOfSvd } from './adapter.js';
import { type Combined, lossOf, type RankReport } from './combine.js';
import { checkAlgebra, madeFrom } from './config.js';

/** How far an adapter is cut: to one rank, or in each layer to a share of ‖ΔW‖²_F. */
export type ResizeTarget = { readonly rank: number } | { readonly energy: number };

/** The smallest rank that keeps this share of the squares. */
function rankFor(s: Float64Array, energy: number): number {
  for (let rank = 1; rank < s.length; rank++) if (lossOf(s, rank).energy >= energy) return rank;
  return s.length;
}

/**
 * The nearest adapter of another rank, layer by layer (Eckart and Young): exact where the rank is
 * not below that of ΔW. By energy each layer has its own rank, named in `rank_pattern`.
 * @throws for a rank below 1 or absurdly large, an energy outside 0 … 1, and adapters that are no sums of B A
 */
export function resize(adapter: Adapter, target: ResizeTarget): Combined {
  checkAlgebra(adapter, 'resize');
  if ('rank' in target && !(Number.isSafeInteger(target.rank) && target.rank >= 1)) {
    throw failure('resize rank', 'a whole number of 1 or more', String(target.rank));
  }
  if ('energy' in target && !(target.energy > 0 && target.energy <= 1)) {
    throw failure('resize energy', 'a share of more than 0, at most 1', String(target.energy));
  }
  const modules = new Map<string, AdapterModule>();
  const layers: RankReport[] = [];
  for (const [path, m] of adapter.modules) {
    if ('rank' in target) {
      checkRank('resize rank', path, target.rank, [m.inFeatures, m.outFeatures]);
    }
    const svd = decompose(m, 'rank' in target ? target.rank : m.rank);
    const rank = 'rank' in target ? target.rank : rankFor(svd.s, target.energy);
    modules.set(path, moduleOfSvd(m, svd, Math.min(rank, svd.s.length), rank));
    layers.push({ path, from: m.rank, to: rank, ...lossOf(svd.s, rank, svd.rest) });
  }
  return { adapter: madeFrom([adapter], modules), layers };
}
