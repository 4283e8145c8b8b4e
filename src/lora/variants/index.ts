import type { Variant } from '../branch.js';
import type { FullLoraConfig } from '../config.js';
import { dora } from './dora.js';
import { plain } from './plain.js';

/** Every variant by its name in the settings. */
export const VARIANTS: Readonly<Record<FullLoraConfig['variant'], Variant>> = { lora: plain, dora };

export { DoraBranch } from './dora.js';
export { LoraBranch } from './plain.js';
