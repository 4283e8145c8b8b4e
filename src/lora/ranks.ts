import type { LoraAdapters } from './adapters.js';
import { enabledParts, type FullLoraConfig, settingsOf } from './config.js';
import { checkRank } from './rank-limit.js';
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

/** Throws on a rank that is a slip: see {@link checkRank}. */
export function checkRanks(sites: Iterable<Site>, config: FullLoraConfig): void {
  for (const site of sites) {
    const { rank } = settingsOf(config, site.path);
    checkRank('lora rank', site.path, rank, sides(site, config));
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
