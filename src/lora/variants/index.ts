import type { Variant } from '../branch.js';
import { enabledParts, type FullLoraConfig } from '../config.js';
import type { Site } from '../site.js';
import { dora } from './dora.js';
import { fused } from './fused.js';
import { plain } from './plain.js';

/** Every variant by its name in the settings. */
export const VARIANTS: Readonly<Record<FullLoraConfig['variant'], Variant>> = { lora: plain, dora };

/** How a configuration uses A and B on one layer. */
export function variantOn(site: Site, config: FullLoraConfig): Variant {
  return enabledParts(config, site.path) ? fused : VARIANTS[config.variant];
}

export { DoraBranch } from './dora.js';
export { FusedBranch } from './fused.js';
export { LoraBranch } from './plain.js';
