import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { failure } from '../tensor/errors.js';
import { missingFile } from './files.js';
import {
  cachedSnapshot,
  type HubId,
  type HubKind,
  hubCacheDir,
  hubEndpoint,
  hubOffline,
  hubToken,
  isRevision,
  parseHubId,
} from './hub-cache.js';
import type { Downloaded, HubEvent } from './hub-download.js';
import { quoted } from './safetensors-header.js';

export type { HubKind } from './hub-cache.js';
export type { Downloaded, HubEvent } from './hub-download.js';

/** Where {@link pullModel} and {@link resolveModel} look, and whom they tell. */
export interface HubOptions {
  /** What the directory must hold; a model comes with its tokenizer. Default a model or an adapter. */
  readonly kind?: HubKind;
  /** The cache folder; default Hugging Face's own: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME. */
  readonly cacheDir?: string;
  /** The Hub's address; default HF_ENDPOINT or https://huggingface.co. */
  readonly endpoint?: string;
  /** Default HF_TOKEN, or the file that `hf auth login` writes. */
  readonly token?: string;
  /** Never use the network; default as HF_HUB_OFFLINE says. */
  readonly offline?: boolean;
  /** Told what is downloaded. */
  readonly onEvent?: (event: HubEvent) => void;
  /** Ends a download; what came stays, and the next one goes on from there. */
  readonly signal?: AbortSignal;
}

/**
 * Downloads a model or adapter of the Hub into Hugging Face's cache, and answers where it lies.
 * A branch is looked up anew; only files that are needed and not there are fetched. Offline it
 * answers with what is cached.
 * @param id `org/name` or `org/name@revision` (a branch, a tag, a commit)
 * @throws where the network, the repository, the revision, access or space is missing
 */
export async function pullModel(id: string, options: HubOptions = {}): Promise<Downloaded> {
  const parsed = parseHubId(id);
  if (!parsed) {
    const rule = 'a repository as org/name or org/name@revision';
    throw failure('hub', rule, quoted(id), nameHint(id));
  }
  const { cacheDir = hubCacheDir(), kind = 'either' } = options;
  if (options.offline ?? hubOffline()) {
    const found = cachedSnapshot(cacheDir, parsed, kind);
    if (!found?.whole) throw notCached(parsed, cacheDir);
    return { dir: found.dir, commit: found.commit, files: 0, bytes: 0, received: 0 };
  }
  return download(parsed, options);
}

async function download(id: HubId, options: HubOptions, headersOnly = false): Promise<Downloaded> {
  const { downloadRepository } = await import('./hub-download.js');
  return downloadRepository({
    headersOnly,
    id,
    kind: options.kind ?? 'either',
    cacheDir: options.cacheDir ?? hubCacheDir(),
    endpoint: options.endpoint ?? hubEndpoint(),
    token: options.token ?? hubToken(),
    onEvent: options.onEvent ?? (() => {}),
    ...(options.signal ? { signal: options.signal } : {}),
  });
}

/**
 * The directory of a model or adapter. A local path wins; else `org/name[@revision]` is taken from
 * Hugging Face's cache without asking the network, and downloaded where it is not there. A name
 * without `org/` is never downloaded.
 * @throws where there is neither, naming both readings
 */
export async function resolveModel(idOrDir: string, options: HubOptions = {}): Promise<string> {
  return find(idOrDir, options, async (id) => (await download(id, options)).dir);
}

/**
 * Runs `use` on the directory of a model or adapter, found as {@link resolveModel} does. One that
 * is not in the cache is not downloaded whole: `use` is given a passing directory with the small
 * files and, in place of the weights, files of their size that hold their headers alone.
 * @throws as {@link resolveModel}, and as `use`
 */
export async function withHeaders<T>(
  idOrDir: string,
  options: HubOptions,
  use: (dir: string) => Promise<T>,
): Promise<T> {
  let passing: string | undefined;
  try {
    const dir = await find(idOrDir, options, async (id) => {
      passing = mkdtempSync(join(tmpdir(), 'lowrank-hub-'));
      return (await download(id, { ...options, cacheDir: passing }, true)).dir;
    });
    return await use(dir);
  } finally {
    if (passing) rmSync(passing, { recursive: true, force: true });
  }
}

/** A local path, what is cached, or what `fetch` brings. */
async function find(
  idOrDir: string,
  options: HubOptions,
  fetch: (id: HubId) => Promise<string>,
): Promise<string> {
  if (existsSync(idOrDir)) return idOrDir;
  const { kind = 'either', cacheDir = hubCacheDir() } = options;
  const id = parseHubId(idOrDir);
  const what = kind === 'either' ? 'model' : kind;
  if (!id) throw missingFile(what, idOrDir, nameHint(idOrDir));
  const cached = cachedSnapshot(cacheDir, id, kind);
  if (cached?.whole && (cached.tokenizer || kind === 'either')) return cached.dir;
  try {
    if (!id.name.includes('/')) throw bareName(what, idOrDir);
    if (options.offline ?? hubOffline()) throw notCached(id, cacheDir);
    return await fetch(id);
  } catch (error) {
    options.signal?.throwIfAborted();
    // Whoever has the weights may need no tokenizer; whoever does will say so.
    if (cached?.whole) return cached.dir;
    if (!(error instanceof Error) || !id.name.includes('/')) throw error;
    const text = `${error.message}. As a path: there is no ${quoted(idOrDir)} here`;
    throw new Error(text, { cause: error });
  }
}

function nameHint(text: string): string {
  const at = text.indexOf('@');
  if (at > 0 && !isRevision(text.slice(at + 1))) {
    return 'A revision is a branch, a tag or a commit: org/name@main';
  }
  return 'A model of the Hub is named org/name';
}

function bareName(what: string, name: string): Error {
  return failure(
    what,
    `a directory, or org/name of the Hub`,
    `${quoted(name)}: no such directory here, and no org in front`,
    `If it is the name of an old repository, lowrank pull ${name} brings it`,
  );
}

function notCached(id: HubId, cacheDir: string): Error {
  const { name, revision } = id;
  return failure(
    `hub ${name}`,
    `${revision === 'main' ? 'it' : `revision ${revision}`} in the cache ${cacheDir}`,
    'nothing whole there, and HF_HUB_OFFLINE forbids the network',
    `Unset it, or run lowrank pull ${name} where there is one and copy the cache folder`,
  );
}
