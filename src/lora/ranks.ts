import { failure } from '../tensor/errors.js';
import type { LoraAdapters } from './adapters.js';
import { enabledParts, type FullLoraConfig, settingsOf } from './config.js';
import { type Site, siteOf } from './site.js';
import { plainLayer } from './targets.js';

/** A layer whose rank is above its smaller side: that side's rank reaches every ΔW, too. */
export interface WideRank {
  readonly path: string;
  readonly rank: number;
  /** min(in, out) of the layer, or of one of its parts. */
  readonly most: number;
}

/** Sides of what one pair of A and B changes: of a layer, or of one part of a fused one. */
function sides({ path, inFeatures, outFeatures }: Site, config: FullLoraConfig): [number, number] {
  return [inFeatures, outFeatures / (enabledParts(config, path)?.length ?? 1)];
}

/** A rank that people give whatever the layer is: no slip, though it is too large for a tiny one. */
const USUAL = 256;

/**
 * Throws on a rank that is a slip: above in + out, where A and B alone hold more than four times the
 * layer's numbers. Before anything of that rank is allocated.
 */
export function checkRanks(sites: Iterable<Site>, config: FullLoraConfig): void {
  for (const site of sites) {
    const { rank } = settingsOf(config, site.path);
    const [inner, outer] = sides(site, config);
    const limit = Math.max(inner + outer, USUAL);
    if (rank <= limit) continue;
    const most = Math.min(inner, outer);
    throw failure(
      'lora rank',
      `at most ${limit} for ${site.path} [${outer}, ${inner}]`,
      String(rank),
      `Rank ${most} reaches every change of that layer`,
    );
  }
}

/** The layers of an adapter on which a part of the rank is wasted, as PEFT lets it be. */
export function wideRanks(adapters: LoraAdapters, name: string): WideRank[] {
  const config = adapters.config(name);
  return adapters.targets(name).flatMap((target) => {
    const site = siteOf(target.path, plainLayer(target));
    const { rank } = settingsOf(config, site.path);
    const most = Math.min(...sides(site, config));
    return rank > most ? [{ path: site.path, rank, most }] : [];
  });
}
