import { setTimeout as sleep } from 'node:timers/promises';
import { failure } from '../tensor/errors.js';
import { quoted } from './safetensors-header.js';

/** Codes of failures that may pass by themselves. */
const PASSING = new Set([
  'ECONNRESET',
  'ETIMEDOUT',
  'EAI_AGAIN',
  'EPIPE',
  'UND_ERR_SOCKET',
  'UND_ERR_CONNECT_TIMEOUT',
  'UND_ERR_HEADERS_TIMEOUT',
  'UND_ERR_BODY_TIMEOUT',
]);
const PASSING_STATUS = new Set([429, 500, 502, 503, 504]);

/** The Hub could not be reached. */
export class NetworkError extends Error {}

/** A failure that another attempt would meet again. */
export class FinalError extends Error {}

/** The code of a failed connection, such as ENOTFOUND. */
function codeOf(error: unknown): string {
  for (let e = error as { code?: unknown; cause?: unknown } | undefined; e; ) {
    if (typeof e.code === 'string') return e.code;
    e = e.cause as typeof e;
  }
  return error instanceof Error ? error.message : String(error);
}

/** What a request is about, for messages. */
export interface Subject {
  readonly name: string;
  readonly revision: string;
  readonly token: string | undefined;
}

/**
 * `fetch` for one repository of one Hub: adds the token where it belongs, tries again what may
 * pass, and turns failures into messages.
 */
export class HubClient {
  /** Seconds before another attempt. */
  static delays: readonly number[] = [0.5, 2, 5];
  readonly #origin: string;

  constructor(
    readonly endpoint: string,
    readonly subject: Subject,
    readonly signal?: AbortSignal,
  ) {
    this.#origin = new URL(endpoint).origin;
  }

  readonly fetch: typeof fetch = async (input, init) => {
    const url = new URL(input instanceof Request ? input.url : String(input));
    const ours = url.origin === this.#origin;
    const headers = new Headers(init?.headers);
    headers.set('User-Agent', 'lowrank');
    const { token } = this.subject;
    // Other hosts (storage that the Hub redirects to) have their own signed addresses.
    if (token && ours) headers.set('Authorization', `Bearer ${token}`);
    const signal = this.signal ?? init?.signal ?? null;
    for (let attempt = 0; ; attempt++) {
      const delay = HubClient.delays[attempt];
      let response: Response;
      try {
        response = await fetch(input, { ...init, headers, signal });
      } catch (error) {
        this.signal?.throwIfAborted();
        if (delay === undefined || !PASSING.has(codeOf(error))) throw this.unreachable(url, error);
        await sleep(delay * 1000);
        continue;
      }
      if (!ours) return response;
      if (response.ok) return this.#checked(url, response);
      if (delay === undefined || !PASSING_STATUS.has(response.status)) {
        throw new FinalError((await this.#refused(response)).message);
      }
      await response.body?.cancel();
      await sleep(delay * 1000);
    }
  };

  /** The error for a server that could not be reached, or that went away. */
  unreachable(url: URL, error: unknown): NetworkError {
    const proxy = process.env.HTTPS_PROXY ?? process.env.https_proxy;
    const way =
      'What is in the cache is used without a network; elsewhere, download with lowrank pull ' +
      'and copy the cache folder';
    const hint = proxy ? '. HTTPS_PROXY counts from Node 22.21 on, with NODE_USE_ENV_PROXY=1' : '';
    const { message } = failure(
      `hub ${this.subject.name}`,
      `to reach ${url.origin}`,
      `${codeOf(error)} (no network?)`,
      way + hint,
    );
    return new NetworkError(message, { cause: error });
  }

  /** An answer of the API must be JSON; a captive portal or proxy sends pages. */
  #checked(url: URL, response: Response): Response {
    const type = response.headers.get('Content-Type') ?? 'nothing';
    if (!url.pathname.includes('/api/') || type.includes('json')) return response;
    const place = `hub ${this.subject.name}`;
    const way = 'Something else answers there: a proxy, or a wrong HF_ENDPOINT';
    throw failure(place, `JSON of ${url.origin}`, type, way);
  }

  /** The error for an answer that is a refusal. */
  async #refused(response: Response): Promise<Error> {
    const { status, headers } = response;
    const code = headers.get('X-Error-Code') ?? '';
    const said = headers.get('X-Error-Message') ?? (await messageIn(response));
    const { name, revision, token } = this.subject;
    const place = `hub ${name}`;
    const received = `${status}${said ? ` (${said})` : ''}`;
    const page = `${this.endpoint}/${name}`;
    const tokens = `a token of ${this.endpoint}/settings/tokens in HF_TOKEN`;
    if (code === 'GatedRepo') {
      const ask = `Ask for access at ${page}`;
      const way = token ? `${ask} with the account of your token` : `${ask}, then give ${tokens}`;
      return failure(place, 'a repository that is open to you', `${received}, it is gated`, way);
    }
    if (code === 'RevisionNotFound') {
      return failure(place, `a revision ${quoted(revision)}`, received, `See ${page}/commits`);
    }
    if (code === 'EntryNotFound') {
      return failure(place, 'a file that is listed', `${received} for ${response.url}`);
    }
    if (code === 'DisabledRepo') {
      return failure(place, 'a repository that can be read', `${received}, it is disabled`);
    }
    if (status === 401 && token && /invalid.*(credential|token|user)/i.test(said)) {
      const way = `Give ${tokens}, or none`;
      return failure(place, 'a token that the Hub accepts', received, way);
    }
    if (status === 404 || status === 401 || status === 403) {
      const way = token
        ? `Check the name; if it is private, your token must be allowed to read it`
        : `Check the name; if it is private or gated, give ${tokens}`;
      return failure(place, 'a repository of that name', received, way);
    }
    if (status === 429) return failure(place, 'an answer', received, 'Try again in some minutes');
    return failure(place, `an answer of ${this.endpoint}`, received, 'Try again later');
  }
}

async function messageIn(response: Response): Promise<string> {
  try {
    const text = await response.text();
    const { error } = JSON.parse(text) as { error?: unknown };
    return typeof error === 'string' ? error : '';
  } catch {
    return '';
  }
}
