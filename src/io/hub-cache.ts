import { existsSync, readFileSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { failure } from '../tensor/errors.js';
import { quoted } from './safetensors-header.js';

/** Environment variables, as `process.env` has them. */
export type Env = Readonly<Record<string, string | undefined>>;

/** What is looked for: a model directory, an adapter directory, either, or a tokenizer alone. */
export type HubKind = 'model' | 'adapter' | 'either' | 'tokenizer';

/** A repository of models on the Hub, at a revision. */
export interface HubId {
  /** `org/name`, or `name` alone for the oldest models. */
  readonly name: string;
  /** A branch, a tag or a commit; `main` where none was given. */
  readonly revision: string;
}

/** A revision of a repository in the cache. */
export interface Snapshot {
  readonly dir: string;
  /** The full commit hash. */
  readonly commit: string;
  /** Whether what is looked for is there: of a model its settings and every file of weights. */
  readonly whole: boolean;
  /** Whether the tokenizer is there, or known not to be in the repository. */
  readonly tokenizer: boolean;
}

const COMMIT = /^[0-9a-f]{40}$/;

/** Whether a text is a full commit hash. */
export function isCommit(revision: string): boolean {
  return COMMIT.test(revision);
}

/** A path with `~` and `$NAME` filled in, as Python's expanduser and expandvars do. */
function expanded(path: string, env: Env): string {
  const home = env.HOME || homedir();
  return path
    .replace(/^~(?=$|[/\\])/, () => home)
    .replace(/\$(?:(\w+)|\{(\w+)\})/g, (whole, plain, braced) => env[plain ?? braced] ?? whole);
}

/** Hugging Face's own folder: HF_HOME, or `huggingface` in XDG_CACHE_HOME or `~/.cache`. */
function hubHome(env: Env): string {
  const cache = env.XDG_CACHE_HOME || '~/.cache';
  return expanded(env.HF_HOME || join(cache, 'huggingface'), env);
}

/**
 * The folder of downloaded repositories, the one that Python's huggingface_hub uses: HF_HUB_CACHE,
 * else HUGGINGFACE_HUB_CACHE, else `hub` in HF_HOME, else `huggingface/hub` in XDG_CACHE_HOME or
 * `~/.cache`.
 */
export function hubCacheDir(env: Env = process.env): string {
  const given = env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE;
  return given ? expanded(given, env) : join(hubHome(env), 'hub');
}

/** Whether a variable says yes, as huggingface_hub reads it. */
export function isYes(value: string | undefined): boolean {
  return ['1', 'ON', 'YES', 'TRUE'].includes((value ?? '').toUpperCase());
}

/** Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network. */
export function hubOffline(env: Env = process.env): boolean {
  return isYes(env.HF_HUB_OFFLINE || env.TRANSFORMERS_OFFLINE);
}

/**
 * The access token: HF_TOKEN, else HUGGING_FACE_HUB_TOKEN, else the file that `hf auth login`
 * writes (HF_TOKEN_PATH, or `token` in HF_HOME). None where HF_HUB_DISABLE_IMPLICIT_TOKEN is set.
 */
export function hubToken(env: Env = process.env): string | undefined {
  if (isYes(env.HF_HUB_DISABLE_IMPLICIT_TOKEN)) return undefined;
  const clean = (text: string | undefined) => text?.replace(/[\r\n]/g, '').trim() || undefined;
  const given = clean(env.HF_TOKEN) ?? clean(env.HUGGING_FACE_HUB_TOKEN);
  if (given) return given;
  const path = env.HF_TOKEN_PATH ? expanded(env.HF_TOKEN_PATH, env) : join(hubHome(env), 'token');
  return existsSync(path) ? clean(readFileSync(path, 'utf8')) : undefined;
}

/** The address of the Hub: HF_ENDPOINT, else https://huggingface.co. @throws if it is none */
export function hubEndpoint(env: Env = process.env): string {
  const text = (env.HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, '');
  if (!/^https?:\/\//.test(text) || !URL.canParse(text)) {
    throw failure('HF_ENDPOINT', 'an address like https://huggingface.co', quoted(text));
  }
  return text;
}

/** One part of a repository's name, as the Hub allows it. */
function isNamePart(part: string): boolean {
  return /^\w(?:[\w.-]*\w)?$/.test(part) && !/--|\.\./.test(part);
}

/**
 * Reads `org/name`, `org/name@revision`, or `name` alone.
 * @returns undefined for what cannot be the name of a repository
 */
export function parseHubId(text: string): HubId | undefined {
  const at = text.indexOf('@');
  const name = at < 0 ? text : text.slice(0, at);
  const revision = at < 0 ? 'main' : text.slice(at + 1);
  const parts = name.split('/');
  if (parts.length > 2 || name.length > 96 || name.endsWith('.git')) return undefined;
  if (!parts.every(isNamePart) || !isRevision(revision)) return undefined;
  return { name, revision };
}

/** Whether a text can name a branch, a tag or a commit, and is safe below a folder. */
export function isRevision(text: string): boolean {
  const parts = text.split('/');
  return parts.every((p) => /^[\w.+-]+$/.test(p) && p !== '.' && p !== '..');
}

/** The folder of a repository in the cache. */
export function repositoryDir(cacheDir: string, name: string): string {
  return join(cacheDir, `models--${name.replace('/', '--')}`);
}

function hasFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() === true;
}

function hasModel(dir: string): boolean {
  if (!hasFile(join(dir, 'config.json'))) return false;
  if (hasFile(join(dir, 'model.safetensors'))) return true;
  const index = join(dir, 'model.safetensors.index.json');
  if (!hasFile(index)) return false;
  return shardsOf(index).every((file) => hasFile(join(dir, file)));
}

/** The files an index names, or one that cannot exist where it is not an index at all. */
function shardsOf(index: string): string[] {
  try {
    const { weight_map } = JSON.parse(readFileSync(index, 'utf8'));
    return [...new Set(Object.values(weight_map as Record<string, string>).map(String))];
  } catch {
    return [''];
  }
}

function hasAdapter(dir: string): boolean {
  return (
    hasFile(join(dir, 'adapter_config.json')) && hasFile(join(dir, 'adapter_model.safetensors'))
  );
}

/** The commit that a branch or tag stood for when it was downloaded. */
function cachedCommit(repository: string, revision: string): string | undefined {
  if (isCommit(revision)) return revision;
  const ref = join(repository, 'refs', ...revision.split('/'));
  if (!hasFile(ref)) return undefined;
  const commit = readFileSync(ref, 'utf8').trim();
  return isCommit(commit) ? commit : undefined;
}

/** Where the cache notes that a revision has no such file. */
export function absentFile(repository: string, commit: string, file: string): string {
  return join(repository, '.no_exist', commit, file);
}

/** Looks a repository up in the cache; no network. @returns undefined where it is not there */
export function cachedSnapshot(
  cacheDir: string,
  { name, revision }: HubId,
  kind: HubKind = 'either',
): Snapshot | undefined {
  const repository = repositoryDir(cacheDir, name);
  const commit = cachedCommit(repository, revision);
  if (commit === undefined) return undefined;
  const dir = join(repository, 'snapshots', commit);
  if (!statSync(dir, { throwIfNoEntry: false })?.isDirectory()) return undefined;
  const own = hasFile(join(dir, 'tokenizer.json'));
  if (kind === 'tokenizer') return { dir, commit, whole: own, tokenizer: own };
  const model = kind !== 'adapter' && hasModel(dir);
  const adapter = kind !== 'model' && hasAdapter(dir);
  const tokenizer = own || existsSync(absentFile(repository, commit, 'tokenizer.json'));
  // An adapter is read without a tokenizer: its model has one.
  return { dir, commit, whole: model || adapter, tokenizer: tokenizer || !model };
}
