import { existsSync } from 'node:fs';
import { failure } from '../tensor/errors.js';
import { missingFile } from './files.js';
import {
  cachedSnapshot,
  type HubId,
  type HubKind,
  hubCacheDir,
  hubOffline,
  isRevision,
  parseHubId,
} from './hub-cache.js';
import { quoted } from './safetensors-header.js';

export type { HubKind } from './hub-cache.js';

/** How {@link resolveModel} looks. */
export interface ResolveOptions {
  /** What the directory must hold; default either. */
  readonly kind?: HubKind;
  /** The cache folder; default Hugging Face's own. */
  readonly cacheDir?: string;
  /** Never use the network; default as HF_HUB_OFFLINE says. */
  readonly offline?: boolean;
}

/**
 * The directory of a model or adapter: a local path wins; `org/name[@revision]` is looked up in
 * Hugging Face's cache.
 * @throws where there is neither, naming both readings
 */
export async function resolveModel(idOrDir: string, options: ResolveOptions = {}): Promise<string> {
  if (existsSync(idOrDir)) return idOrDir;
  const { kind = 'either', cacheDir = hubCacheDir() } = options;
  const id = parseHubId(idOrDir);
  if (!id) throw missingFile(kind, idOrDir, howToName(idOrDir));
  const cached = cachedSnapshot(cacheDir, id, kind);
  if (cached?.weights) return cached.dir;
  throw notThere(idOrDir, id, cacheDir, options.offline ?? hubOffline());
}

function howToName(text: string): string {
  const at = text.indexOf('@');
  if (at > 0 && !isRevision(text.slice(at + 1))) return 'Of the Hub: org/name@revision';
  return 'Give a directory, or a model of the Hub as org/name';
}

function notThere(text: string, id: HubId, cacheDir: string, offline: boolean): Error {
  return failure(
    'model',
    `a directory ${quoted(text)}, or a model ${id.name} of the Hub in ${cacheDir}`,
    'neither',
    offline ? 'HF_HUB_OFFLINE forbids to download it' : '',
  );
}
