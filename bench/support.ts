import { execFileSync } from 'node:child_process';
import { cpus } from 'node:os';
import { Bench } from 'tinybench';
import type { NativeBackend } from '../src/tensor/native.js';
import { getBackend } from '../src/tensor/registry.js';

/** One measured figure. */
export interface Result {
  /** What ran, shapes included. */
  readonly name: string;
  readonly threads: number;
  /** Median time of one run. */
  readonly milliseconds: number;
  readonly runs: number;
  /** Of the counted multiply-adds, two operations each. */
  readonly gflops?: number;
  /** gflops over the fused multiply-adds a second that this machine's registers reach. */
  readonly shareOfPeak?: number;
  readonly note?: string;
}

/** A benchmark file: `bench/<name>.bench.ts` exports `run`. */
export interface BenchFile {
  run(): Promise<Result[]>;
}

/** The native backend; benchmarks of the reference one would say nothing. */
export function native(): NativeBackend {
  return getBackend('cpu') as NativeBackend;
}

/** Threads to measure with: one, and all cores. */
export function threadCounts(): number[] {
  return [...new Set([1, cpus().length])];
}

let peaks: Map<number, number> | undefined;

/** GFLOP/s that fused multiply-adds on registers reach with so many threads, measured once a process. */
export function peakGflops(threads: number): number {
  peaks ??= new Map();
  let peak = peaks.get(threads);
  if (peak === undefined) {
    native().setThreads(threads);
    peak = Math.max(...Array.from({ length: 5 }, () => native().fmaPeak()));
    peaks.set(threads, peak);
  }
  return peak;
}

/** Runs `fn` for about `time` milliseconds (after a warm-up) and answers the median time of a run. */
export async function measure(
  name: string,
  threads: number,
  flops: number | undefined,
  fn: () => void,
  time = 500,
): Promise<Result> {
  const bench = new Bench({ time, warmupTime: time / 5, iterations: 5 });
  native().setThreads(threads);
  bench.add(name, fn);
  await bench.run();
  const result = bench.tasks[0]?.result;
  if (result?.state !== 'completed') {
    throw result?.state === 'errored' ? result.error : new Error(`[bench] ${name} did not run`);
  }
  const milliseconds = result.latency.p50;
  const gflops = flops === undefined ? undefined : flops / milliseconds / 1e6;
  return {
    name,
    threads,
    milliseconds,
    runs: result.latency.samplesCount,
    ...(gflops === undefined ? {} : { gflops, shareOfPeak: gflops / peakGflops(threads) }),
  };
}

/** The machine and the state of the tree that figures belong to. */
export function machine(): Record<string, unknown> {
  const git = (args: string[]) => {
    try {
      return execFileSync('git', args, { encoding: 'utf8' }).trim();
    } catch {
      return 'unknown';
    }
  };
  const info = native().info();
  return {
    date: new Date().toISOString().slice(0, 10),
    cpu: cpus()[0]?.model.trim(),
    cores: cpus().length,
    isa: info.isa,
    node: process.version,
    commit: git(['rev-parse', '--short', 'HEAD']),
    peakGflops: Object.fromEntries(threadCounts().map((t) => [t, Math.round(peakGflops(t))])),
  };
}

/** Results as an aligned table. */
export function tableOf(results: readonly Result[]): string {
  const rows = results.map((r) => [
    r.name,
    String(r.threads),
    r.milliseconds < 0.1
      ? `${(r.milliseconds * 1000).toFixed(2)} µs`
      : `${r.milliseconds.toFixed(3)} ms`,
    r.gflops === undefined ? '' : r.gflops.toFixed(0),
    r.shareOfPeak === undefined ? '' : `${(100 * r.shareOfPeak).toFixed(0)} %`,
    r.note ?? '',
  ]);
  const head = ['what', 'threads', 'median', 'GFLOP/s', 'of peak', ''];
  const widths = head.map((h, i) =>
    Math.max(h.length, ...rows.map((r) => (r[i] as string).length)),
  );
  const line = (cells: readonly string[]) =>
    cells
      .map((c, i) =>
        i === 0 || i === 5 ? c.padEnd(widths[i] as number) : c.padStart(widths[i] as number),
      )
      .join('  ')
      .trimEnd();
  return [line(head), ...rows.map(line)].join('\n');
}
