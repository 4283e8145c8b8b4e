/** A Hub on 127.0.0.1 with repositories from memory, for tests: nothing is fetched from outside. */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

type Headers = Record<string, string>;

/** A repository of the fake Hub. */
export interface FakeRepository {
  readonly files: ReadonlyMap<string, Uint8Array>;
  /** Revisions by name; `main` is there. */
  readonly commit: string;
  readonly branches?: readonly string[];
  /** A token that must be given. */
  readonly token?: string;
  /** Files are open only to those who asked for access. */
  readonly gated?: boolean;
  /** A size that is claimed of every large file. */
  readonly claimed?: number;
}

/** What the fake Hub was asked for. */
export interface Asked {
  readonly path: string;
  readonly token: string | undefined;
  readonly range: string | undefined;
}

/** Files of this size on are kept in large file storage, as the Hub does with safetensors. */
const LARGE = 2000;

/** A running fake Hub. */
export class FakeHub {
  readonly repositories = new Map<string, FakeRepository>();
  readonly asked: Asked[] = [];
  readonly storageAsked: Asked[] = [];
  /** Connections to the storage that are cut after so many bytes, one by one. */
  cuts: number[] = [];
  /** Bytes after which the storage sends nothing more, without an end. */
  stalls: number | undefined;
  /** Answers every request with this instead. */
  answer: ((response: ServerResponse) => void) | undefined;
  /** Changes the bytes of large files on the way. */
  damage = false;

  private constructor(
    readonly server: Server,
    readonly storage: Server,
  ) {
    server.on('request', (q, r) => this.#hub(q, r));
    storage.on('request', (q, r) => this.#storage(q, r));
  }

  static async start(): Promise<FakeHub> {
    const servers = [createServer(), createServer()] as const;
    for (const s of servers) await new Promise<void>((ok) => s.listen(0, '127.0.0.1', ok));
    return new FakeHub(...servers);
  }

  get endpoint(): string {
    return addressOf(this.server);
  }

  stop(): void {
    for (const s of [this.server, this.storage]) {
      s.close();
      s.closeAllConnections();
    }
  }

  /** Paths asked for since the last call. */
  taken(): string[] {
    return this.asked.splice(0).map((a) => a.path);
  }

  #hub(request: IncomingMessage, response: ServerResponse): unknown {
    const asked = note(request);
    this.asked.push(asked);
    if (this.answer) return this.answer(response);
    const path = decodeURIComponent(asked.path.replace(/\?.*/, ''));
    const api = /^\/api\/models\/(.+?)\/(revision|tree)\/(.+)$/.exec(path);
    const file = /^\/(.+?)\/resolve\/([^/]+)\/(.+)$/.exec(path);
    const name = (api ?? file)?.[1] ?? '';
    const repository = this.repositories.get(name);
    const wrongToken = repository?.token && asked.token !== repository.token;
    if (!repository || wrongToken) {
      if (asked.token && asked.token !== repository?.token && wrongToken) {
        return refuse(response, 401, '', 'Invalid credentials in Authorization header');
      }
      return refuse(response, 401, 'RepoNotFound', 'Repository not found');
    }
    const revision = (api?.[3] ?? file?.[2]) as string;
    if (![repository.commit, 'main', ...(repository.branches ?? [])].includes(revision)) {
      return refuse(response, 404, 'RevisionNotFound', `Invalid rev id: ${revision}`);
    }
    if (api?.[2] === 'revision') return this.#info(response, name, repository);
    if (api) return this.#tree(request, response, repository);
    if (repository.gated) return refuse(response, 403, 'GatedRepo', 'Access is restricted');
    return this.#resolve(request, response, name, repository, (file as RegExpExecArray)[3] ?? '');
  }

  #info(response: ServerResponse, id: string, { commit }: FakeRepository): void {
    const lastModified = '2026-01-01T00:00:00.000Z';
    json(response, { _id: '1', id, sha: commit, private: false, likes: 0, lastModified });
  }

  /** The list of files, in pages of three. */
  #tree(request: IncomingMessage, response: ServerResponse, repository: FakeRepository): void {
    const { files, claimed } = repository;
    const url = new URL(request.url ?? '', this.endpoint);
    const from = Number(url.searchParams.get('cursor') ?? 0);
    const all = [...files].filter(([path]) => !path.includes('/'));
    const page = all.slice(from, from + 3).map(([path, bytes]) => ({
      ...{ type: 'file', path, oid: gitHash(bytes), size: bytes.length },
      ...(bytes.length < LARGE
        ? {}
        : { lfs: { oid: sha256(bytes), size: claimed ?? bytes.length, pointerSize: 134 } }),
    }));
    url.searchParams.set('cursor', String(from + 3));
    const more = from + 3 < all.length;
    const folder = { type: 'directory', path: 'onnx', oid: '0'.repeat(40), size: 0 };
    json(response, more ? page : [...page, folder], more ? { Link: `<${url}>; rel="next"` } : {});
  }

  #resolve(
    request: IncomingMessage,
    response: ServerResponse,
    name: string,
    { files, commit }: FakeRepository,
    path: string,
  ): unknown {
    const bytes = files.get(path);
    if (!bytes) return refuse(response, 404, 'EntryNotFound', 'Entry not found');
    response.setHeader('X-Repo-Commit', commit);
    response.setHeader('ETag', `"${gitHash(bytes)}"`);
    if (bytes.length < LARGE) return send(request, response, bytes, undefined);
    response.setHeader('X-Linked-ETag', `"${sha256(bytes)}"`);
    response.setHeader('X-Linked-Size', String(bytes.length));
    const Location = `${addressOf(this.storage)}/${name}/${path}`;
    return response.writeHead(302, { Location }).end();
  }

  #storage(request: IncomingMessage, response: ServerResponse): void {
    const asked = note(request);
    this.storageAsked.push(asked);
    const [org, repo, path] = asked.path.slice(1).split('/');
    const stored = this.repositories.get(`${org}/${repo}`)?.files.get(path ?? '') as Uint8Array;
    const bytes = this.damage ? stored.map((b, i) => (i === 7 ? b ^ 1 : b)) : stored;
    response.setHeader('ETag', `"${sha256(stored)}"`);
    const probe = asked.range === 'bytes=0-0';
    if (this.stalls !== undefined && !probe) {
      response.writeHead(200, { 'Content-Length': String(bytes.length) });
      response.write(bytes.subarray(0, this.stalls));
      return;
    }
    send(request, response, bytes, probe ? undefined : this.cuts.shift());
  }
}

function addressOf(server: Server): string {
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function note({ url, headers }: IncomingMessage): Asked {
  const token = headers.authorization?.replace('Bearer ', '');
  return { path: url ?? '', token, range: headers.range };
}

function json(response: ServerResponse, value: unknown, headers: Headers = {}): void {
  response.writeHead(200, { 'Content-Type': 'application/json', ...headers });
  response.end(JSON.stringify(value));
}

function refuse(response: ServerResponse, status: number, code: string, message: string): void {
  const headers: Headers = { 'X-Error-Message': message, 'Content-Type': 'application/json' };
  if (code) headers['X-Error-Code'] = code;
  response.writeHead(status, headers).end(JSON.stringify({ error: message }));
}

/** Sends bytes or the range asked for; cut off after `cut` bytes where that is given. */
function send(
  request: IncomingMessage,
  response: ServerResponse,
  bytes: Uint8Array,
  cut: number | undefined,
): void {
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
  const [from, to] = range ? [Number(range[1]), Number(range[2]) + 1] : [0, bytes.length];
  const part = bytes.subarray(from, to);
  const headers: Headers = { 'Content-Length': String(part.length) };
  if (range) headers['Content-Range'] = `bytes ${from}-${to - 1}/${bytes.length}`;
  response.writeHead(range ? 206 : 200, headers);
  if (request.method === 'HEAD') response.end();
  else if (cut === undefined) response.end(part);
  else response.write(part.subarray(0, cut), () => response.destroy());
}

/** The name of a large file's bytes. */
export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** The name that git gives a file's bytes. */
export function gitHash(bytes: Uint8Array): string {
  return createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');
}
