import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SIZES, writeLlama } from './load-checkpoint.js';
import type { Result } from './support.js';

/** What load-once.ts prints. */
interface Loaded {
  readonly milliseconds: number;
  readonly privateByLoad: number;
  readonly dirtyByForward: number;
}

const RUNS = 7;
/** Milliseconds that are allowed. */
const LOAD_LIMIT = 500;
const INSPECT_LIMIT = 300;

const root = fileURLToPath(new URL('..', import.meta.url));
const MB = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;

function node(...args: string[]): string {
  const options = { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 26 } as const;
  const { status, stdout, stderr, error } = spawnSync(process.execPath, args, options);
  if (error) throw error;
  if (status !== 0) throw new Error(`[bench load] node ${args.join(' ')} failed:\n${stderr}`);
  return stdout;
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] as number;
}

function limitText(milliseconds: number, limit: number): string {
  return `limit ${limit} ms${milliseconds <= limit ? '' : ', missed'}`;
}

function measureLoad(dir: string, what: string, bytes: number): Result {
  const tsx = import.meta.resolve('tsx');
  const once = () => {
    return JSON.parse(node('--expose-gc', '--import', tsx, 'bench/load-once.ts', dir)) as Loaded;
  };
  const runs = Array.from({ length: RUNS }, once);
  const milliseconds = median(runs.map((r) => r.milliseconds));
  const loaded = median(runs.map((r) => r.privateByLoad));
  const forward = median(runs.map((r) => r.dirtyByForward));
  const share = ((100 * loaded) / bytes).toFixed(1);
  const note =
    `${limitText(milliseconds, LOAD_LIMIT)}; private +${MB(loaded)} (${share} % of the weights), ` +
    `a forward of 8 tokens +${MB(forward)}`;
  return { name: `load ${what}`, threads: 1, milliseconds, runs: RUNS, note };
}

/** Milliseconds of processor time of this process's children that have ended; Linux counts 10 ms. */
function childrenTime(): number {
  const fields = readFileSync('/proc/self/stat', 'utf8')
    .replace(/^.*\) /s, '')
    .split(' ');
  return 10 * (Number(fields[13]) + Number(fields[14]));
}

function measureInspect(dir: string, what: string): Result {
  const main = join(root, 'dist', 'cli', 'main.js');
  if (!existsSync(main)) {
    throw new Error('[bench load] expected dist/ to be built: npm run build:ts');
  }
  const before = childrenTime();
  const times = Array.from({ length: RUNS }, () => {
    const started = performance.now();
    node(main, 'inspect', dir);
    return performance.now() - started;
  });
  const milliseconds = median(times);
  const least = Math.min(...times).toFixed(0);
  const busy = ((childrenTime() - before) / RUNS).toFixed(0);
  const limit = limitText(milliseconds, INSPECT_LIMIT);
  const note = `${limit}; least ${least} ms, processor time ${busy} ms`;
  return { name: `lowrank inspect ${what}`, threads: 1, milliseconds, runs: RUNS, note };
}

/**
 * Checkpoints of 540 MB in f32 and bf16: the time of a load before the first forward and the
 * private memory it takes, each in a process of its own, and `lowrank inspect` as a whole process.
 */
export async function run(): Promise<Result[]> {
  const results: Result[] = [];
  for (const size of SIZES) {
    const dir = mkdtempSync(join(tmpdir(), 'lowrank-load-'));
    try {
      const bytes = writeLlama(dir, size);
      const what = `${MB(bytes)} of ${size.dtype}`;
      results.push(measureLoad(dir, what, bytes), measureInspect(dir, what));
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  }
  return results;
}
