import { createHash, type Hash } from 'node:crypto';
import { existsSync } from 'node:fs';
import {
  type FileHandle,
  mkdir,
  open,
  readFile,
  rename,
  rm,
  statfs,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { failure } from '../tensor/errors.js';
import {
  absentFile,
  type HubId,
  type HubKind,
  isCommit,
  isYes,
  repositoryDir,
} from './hub-cache.js';
import { FinalError, HubClient } from './hub-client.js';
import { chooseFiles, type ListedFile, shardFiles } from './hub-files.js';
import { active, hashFile, link, partialFile } from './hub-partial.js';
import { MAX_HEADER_BYTES } from './safetensors-header.js';

/** What goes along with headers. */
const SETTINGS: ReadonlySet<string> = new Set(['config.json', 'adapter_config.json']);

/** Bytes of a safetensors file that are asked for to see its header: most are shorter. */
const FIRST_BYTES = 2 ** 17;

/** What happens while a repository is downloaded. */
export type HubEvent =
  | {
      readonly type: 'start';
      readonly id: string;
      readonly revision: string;
      /** The full hash that the revision stands for. */
      readonly commit: string;
      readonly dir: string;
      readonly files: number;
      /** Bytes of all files. */
      readonly bytes: number;
      /** Bytes that are in the cache already. */
      readonly cached: number;
    }
  /** Bytes that came, partial files of an earlier try included. */
  | { readonly type: 'progress'; readonly path: string; readonly received: number }
  | {
      readonly type: 'file';
      readonly path: string;
      readonly bytes: number;
      /** Whether it was in the cache before. */
      readonly cached: boolean;
    };

/** How {@link downloadRepository} downloads; everything is given. */
export interface DownloadSettings {
  readonly id: HubId;
  readonly kind: HubKind;
  readonly cacheDir: string;
  readonly endpoint: string;
  readonly token: string | undefined;
  readonly onEvent: (event: HubEvent) => void;
  readonly signal?: AbortSignal;
  /** Fetches of safetensors the headers alone: the files have their size, and holes for tensors. */
  readonly headersOnly?: boolean;
}

/** What a download came to. */
export interface Downloaded {
  /** The snapshot: a directory in the Hub's own form. */
  readonly dir: string;
  readonly commit: string;
  readonly files: number;
  /** Bytes of all files. */
  readonly bytes: number;
  /** Bytes that this download brought. */
  readonly received: number;
}

/**
 * Downloads what is needed of a repository into Hugging Face's cache. Files are checked against
 * their hashes; one that is in the cache is not asked for again, one that broke off is continued.
 * @throws with a way out: no network, no such repository or revision, no access, a full disk; what
 *   came before stays in the cache
 */
export async function downloadRepository(settings: DownloadSettings): Promise<Downloaded> {
  return new Download(settings).run();
}

class Download {
  readonly #client: HubClient;
  readonly #repository: string;
  #received = 0;

  constructor(readonly settings: DownloadSettings) {
    const { id, token, endpoint, signal, cacheDir } = settings;
    this.#client = new HubClient(endpoint, { ...id, token }, signal);
    this.#repository = repositoryDir(cacheDir, id.name);
  }

  /** What every call of the Hub's library takes. */
  get #hub() {
    return { hubUrl: this.settings.endpoint, fetch: this.#client.fetch };
  }

  async run(): Promise<Downloaded> {
    const { id, kind, onEvent } = this.settings;
    const { listFiles, modelInfo } = await import('@huggingface/hub');
    const { name, revision } = id;
    const { sha } = await modelInfo({ ...this.#hub, name, revision, additionalFields: ['sha'] });
    const commit = this.#checkedName(sha, 40);
    const listing: ListedFile[] = [];
    for await (const f of listFiles({ ...this.#hub, repo: name, revision: commit })) {
      if (f.type === 'file') listing.push(this.#listed(f));
    }
    const { weights, index, ...wanted } = chooseFiles(listing, id, kind);
    const companions = this.settings.headersOnly
      ? wanted.companions.filter((f) => SETTINGS.has(f.path))
      : wanted.companions;
    const dir = join(this.#repository, 'snapshots', commit);
    let chosen = [...companions, ...weights];
    // The index is small, and says which files there are to count.
    if (index) {
      await this.#file(index, dir, commit);
      const text = await readFile(join(dir, index.path), 'utf8');
      chosen = [...companions, ...shardFiles(text, listing, id), ...weights];
    }
    const cached = chosen.filter((f) => existsSync(join(dir, f.path)) || this.#hasBlob(f));
    const sum = (files: readonly ListedFile[]) => files.reduce((n, f) => n + f.size, 0);
    const bytes = sum(chosen);
    onEvent({
      ...{ type: 'start', id: name, revision, commit, dir, files: chosen.length },
      ...{ bytes, cached: sum(cached) },
    });
    if (!this.settings.headersOnly) await this.#checkSpace(bytes - sum(cached));
    for (const file of chosen) {
      const there = await this.#file(file, dir, commit);
      onEvent({ type: 'file', path: file.path, bytes: file.size, cached: there });
    }
    await this.#record(commit, listing);
    const files = chosen.length + (index ? 1 : 0);
    return { dir, commit, files, bytes, received: this.#received };
  }

  /** A name made by the server that becomes a file name here. */
  #checkedName(name: string | undefined, length: number): string {
    if (name !== undefined && /^[0-9a-f]+$/.test(name) && name.length === length) return name;
    const place = `hub ${this.settings.id.name}`;
    throw failure(place, `a hash of ${length} hexadecimal digits`, JSON.stringify(name) ?? 'none');
  }

  #listed(f: { path: string; size: number; oid?: string; lfs?: { oid: string; size: number } }) {
    const { path } = f;
    if (!f.lfs) {
      return { path, size: f.size, etag: this.#checkedName(f.oid, 40), hash: 'git' } as const;
    }
    const etag = this.#checkedName(f.lfs.oid, 64);
    return { path, size: f.lfs.size, etag, hash: 'sha256' } as const;
  }

  #blob(file: ListedFile): string {
    return join(this.#repository, 'blobs', file.etag);
  }

  #hasBlob(file: ListedFile): boolean {
    return existsSync(this.#blob(file));
  }

  async #checkSpace(bytes: number): Promise<void> {
    const { cacheDir } = this.settings;
    await this.#writing(cacheDir, () => mkdir(cacheDir, { recursive: true }));
    const { bavail, bsize } = await statfs(cacheDir);
    if (bytes <= bavail * bsize) return;
    const mb = (n: number) => `${Math.ceil(n / 1e6).toLocaleString('en-US')} MB`;
    throw failure(
      `hub ${this.settings.id.name}`,
      `${mb(bytes)} of space in ${cacheDir}`,
      mb(bavail * bsize),
      'Make room, or set HF_HUB_CACHE to a folder on another disk',
    );
  }

  /** Brings a file into the snapshot. @returns whether it was in the cache before */
  async #file(file: ListedFile, dir: string, commit: string): Promise<boolean> {
    const path = join(dir, file.path);
    if (existsSync(path)) return true;
    const blob = this.#blob(file);
    const there = this.#hasBlob(file);
    await this.#writing(blob, async () => {
      await mkdir(dirname(blob), { recursive: true });
      await mkdir(dir, { recursive: true });
    });
    const peek = this.settings.headersOnly && file.path.endsWith('.safetensors');
    if (!there) await (peek ? this.#peek : this.#download).call(this, file, blob, commit);
    await this.#writing(path, () => link(blob, path));
    return there;
  }

  async #download(file: ListedFile, blob: string, commit: string): Promise<void> {
    const temporary = await this.#writing(blob, () => partialFile(blob));
    active.add(temporary);
    const hash = createHash(file.hash === 'sha256' ? 'sha256' : 'sha1');
    if (file.hash === 'git') hash.update(`blob ${file.size}\0`);
    const handle = await this.#writing(temporary, () => open(temporary, 'a'));
    try {
      await this.#append(file, handle, await hashFile(temporary, hash), hash, commit);
      await this.#writing(temporary, () => handle.sync());
    } finally {
      await handle.close();
      active.delete(temporary);
    }
    const found = hash.digest('hex');
    if (found !== file.etag) {
      await rm(temporary, { force: true });
      throw failure(
        `hub ${this.settings.id.name}`,
        `${file.path} with the hash ${file.etag}`,
        found,
        'It was damaged on the way: try again',
      );
    }
    await this.#writing(blob, () => rename(temporary, blob));
  }

  /** A file of the right size that begins with the header of safetensors; the rest are holes. */
  async #peek(file: ListedFile, blob: string, commit: string): Promise<void> {
    const remote = await this.#open(file, commit, false);
    const bytesOf = async (from: number, to: number) =>
      new Uint8Array(await remote.slice(from, Math.min(to, file.size)).arrayBuffer());
    const start = await bytesOf(0, FIRST_BYTES);
    const length = start.length < 8 ? 0n : new DataView(start.buffer).getBigUint64(0, true);
    // A length that cannot be is left to the reader to tell.
    const end = 8 + (length > BigInt(MAX_HEADER_BYTES) ? 0 : Number(length));
    const parts = [start, ...(end > start.length ? [await bytesOf(start.length, end)] : [])];
    await this.#writing(blob, async () => {
      await writeFile(blob, Buffer.concat(parts));
      await truncate(blob, file.size);
    });
  }

  /** Adds what is missing, in several attempts where the network breaks off. */
  async #append(
    file: ListedFile,
    handle: FileHandle,
    have: number,
    hash: Hash,
    commit: string,
  ): Promise<void> {
    const { onEvent } = this.settings;
    let at = have;
    if (at > 0) onEvent({ type: 'progress', path: file.path, received: at });
    for (let attempt = 0; at < file.size; attempt++) {
      const before = at;
      try {
        for await (const chunk of await this.#stream(file, at, attempt, commit)) {
          await this.#writing(file.path, () => handle.appendFile(chunk));
          hash.update(chunk);
          at += chunk.length;
          this.#received += chunk.length;
          onEvent({ type: 'progress', path: file.path, received: chunk.length });
        }
        if (at < file.size) throw new Error('the end came too early');
      } catch (error) {
        this.settings.signal?.throwIfAborted();
        if (error instanceof FinalError) throw error;
        // As long as something comes, it goes on.
        if (at > before) attempt = 0;
        const delay = HubClient.delays[attempt];
        if (delay === undefined) throw this.#broken(file, at, error);
        await sleep(delay * 1000);
      }
    }
  }

  /** The bytes of a file from `at` on. */
  async #stream(
    file: ListedFile,
    at: number,
    attempt: number,
    commit: string,
  ): Promise<AsyncIterable<Uint8Array>> {
    // The newer protocol first; plain HTTP where that has failed or is not wanted.
    const blob = await this.#open(file, commit, attempt === 0);
    const rest = at === 0 ? blob : blob.slice(at, file.size);
    return rest.stream() as unknown as AsyncIterable<Uint8Array>;
  }

  /** A file of the Hub, whose bytes come when they are asked for. */
  async #open(file: ListedFile, commit: string, xet: boolean): Promise<Blob> {
    const { downloadFile } = await import('@huggingface/hub');
    const blob = await downloadFile({
      ...this.#hub,
      repo: this.settings.id.name,
      path: file.path,
      revision: commit,
      xet: xet && !isYes(process.env.HF_HUB_DISABLE_XET),
    });
    if (!blob) throw failure(`hub ${this.settings.id.name}`, `a file ${file.path}`, 'none');
    return blob;
  }

  #broken(file: ListedFile, at: number, error: unknown): Error {
    const said = error instanceof Error ? error.message : String(error);
    return failure(
      `hub ${this.settings.id.name}`,
      `${file.path} of ${file.size} bytes`,
      `${at} bytes, then: ${said}`,
      'What came is kept: the same command goes on from there',
    );
  }

  /** Notes what the revision stands for, and that there is no tokenizer, as Python does. */
  async #record(commit: string, listing: readonly ListedFile[]): Promise<void> {
    const { revision } = this.settings.id;
    const notes: [string, string][] = [];
    if (!listing.some((f) => f.path === 'tokenizer.json')) {
      notes.push([absentFile(this.#repository, commit, 'tokenizer.json'), '']);
    }
    if (!isCommit(revision)) {
      notes.push([join(this.#repository, 'refs', ...revision.split('/')), commit]);
    }
    for (const [path, text] of notes) {
      await this.#writing(path, async () => {
        await mkdir(dirname(path), { recursive: true });
        await writeFile(path, text);
      });
    }
  }

  /** Runs a step that writes; a failure says what of the disk is wrong. */
  async #writing<T>(path: string, step: () => Promise<T>): Promise<T> {
    try {
      return await step();
    } catch (error) {
      const { message } = failure(
        `hub ${this.settings.id.name}`,
        `to write ${path}`,
        (error as Error).message,
        'What came is kept. Make room or give leave there, or set HF_HUB_CACHE to another folder',
      );
      throw new FinalError(message, { cause: error });
    }
  }
}
