import type { HubEvent } from '../io/hub.js';
import { bytesText, note, plural } from './output.js';

/** Shows a download on standard error: a bar on a terminal, else a line for every file. */
export interface DownloadView {
  show(event: HubEvent): void;
  end(): void;
}

/** Seconds between two lines about the same file where there is no terminal. */
const LINE_EVERY = 10;

/** Columns that the bar's text takes at most; the bar has the rest. */
const TEXT_WIDTH = 70;

/** The bar of `cli-progress` that is used. */
interface Bar {
  start(total: number, from: number, payload: object): void;
  update(value: number, payload?: object): void;
  stop(): void;
}

/** A view that shows nothing before the first event, and no bar where nothing is to come. */
export async function downloadView(): Promise<DownloadView> {
  const bar = process.stderr.isTTY ? await makeBar() : undefined;
  let total = 0;
  let at = 0;
  let came = 0;
  let started = 0;
  let printed = 0;
  let running = false;
  const payload = (path: string) => {
    const seconds = (performance.now() - started) / 1000;
    const speed = came > 0 && seconds > 0.2 ? `${bytesText(came / seconds)}/s` : '…';
    return { path, speed, done: bytesText(at), all: bytesText(total) };
  };
  const start = (e: Extract<HubEvent, { type: 'start' }>) => {
    total = e.bytes;
    at = e.cached;
    started = performance.now();
    printed = started;
    const left = total - at;
    if (left === 0) return;
    const kept = at > 0 ? `, ${bytesText(at)} of them in the cache` : '';
    note(
      `Downloading ${e.id} at ${revisionText(e)}: ${plural(e.files, 'file')}, ${bytesText(total)}${kept}`,
    );
    running = bar !== undefined;
    if (running) bar?.start(total, at, payload(''));
  };
  const progress = (e: Extract<HubEvent, { type: 'progress' }>) => {
    at += e.received;
    came += e.received;
    if (running) bar?.update(at, payload(e.path));
    if (bar || performance.now() - printed < 1000 * LINE_EVERY) return;
    printed = performance.now();
    const { done, all, speed } = payload(e.path);
    note(`${e.path}: ${done} of ${all}, ${speed}`);
  };
  return {
    show(event) {
      if (event.type === 'start') start(event);
      else if (event.type === 'progress') progress(event);
      else if (!bar && !event.cached) note(`${event.path} (${bytesText(event.bytes)})`);
    },
    end() {
      if (running) bar?.stop();
      running = false;
    },
  };
}

function revisionText({ revision, commit }: { revision: string; commit: string }): string {
  const short = commit.slice(0, 7);
  return revision === commit ? short : `${revision} (${short})`;
}

async function makeBar(): Promise<Bar> {
  const { default: cliProgress } = await import('cli-progress');
  return new cliProgress.SingleBar({
    format: '{bar} {percentage}%  {done} of {all}  {speed}  {path}',
    stream: process.stderr,
    barsize: Math.max(4, Math.min(24, (process.stderr.columns ?? 80) - TEXT_WIDTH)),
    barCompleteChar: '█',
    barIncompleteChar: '░',
    gracefulExit: false,
    // Cuts long lines; the other ways leave the terminal changed when Ctrl-C ends the process.
    linewrap: true,
  });
}
