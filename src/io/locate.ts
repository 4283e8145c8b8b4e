import { existsSync } from 'node:fs';
import type { HubKind, HubOptions } from './hub.js';

/** Where models and adapters that are no local directories are looked for; see `resolveModel`. */
export type LocateOptions = Omit<HubOptions, 'kind'>;

/** The names of {@link LocateOptions}. */
export const HUB_SETTINGS: readonly string[] = Object.keys({
  cacheDir: true,
  endpoint: true,
  token: true,
  offline: true,
  onEvent: true,
  signal: true,
} satisfies Record<keyof LocateOptions, true>);

/**
 * The local directory of a model or adapter: a path that is there, or `org/name[@revision]` of the
 * Hugging Face Hub, from its cache or by download. What deals with the Hub is loaded only then.
 * @throws where there is neither
 */
export async function locate(
  idOrDir: string,
  kind: HubKind,
  options: LocateOptions = {},
): Promise<string> {
  if (existsSync(idOrDir)) return idOrDir;
  const { resolveModel } = await import('./hub.js');
  return resolveModel(idOrDir, { ...options, kind });
}

/** The options of {@link LocateOptions}, and the others. */
export function splitOptions<O extends LocateOptions>(
  options: O,
): { hub: LocateOptions; rest: Omit<O, keyof LocateOptions> } {
  const { cacheDir, endpoint, token, offline, onEvent, signal, ...rest } = options;
  const all = { cacheDir, endpoint, token, offline, onEvent, signal };
  const given = Object.entries(all).filter(([, value]) => value !== undefined);
  return { hub: Object.fromEntries(given) as LocateOptions, rest };
}
