import { Bench } from 'tinybench';
import { native, type Result } from './support.js';

/** Length of a task's turn in milliseconds; a run that takes longer is a turn of its own. */
const TURN = 3;
const MIN_TURNS = 7;

function samplesOf(tasks: ReadonlyMap<string, () => void>, runs: ReadonlyMap<string, number>) {
  const out = new Map<string, readonly number[]>();
  for (const [name, fn] of tasks) {
    const iterations = runs.get(name) ?? 1;
    const bench = new Bench({ iterations, time: 0, warmup: false, retainSamples: true });
    bench.add(name, fn);
    const [task] = bench.runSync();
    const result = task?.result;
    if (result?.state !== 'completed') {
      throw result?.state === 'errored' ? result.error : new Error(`[bench] ${name} did not run`);
    }
    out.set(name, result.latency.samples ?? []);
  }
  return out;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((x, y) => x - y);
  return sorted[sorted.length >> 1] as number;
}

/** A difference of two tasks, in milliseconds. */
export interface Added {
  readonly median: number;
  readonly error: number;
}

/** Results of tasks that ran in turns. */
export interface Turns {
  readonly results: ReadonlyMap<string, Result>;
  /**
   * What a task took beyond another: the median over all turns, in milliseconds, and its standard
   * error. Each turn gives one difference, of runs of the same moment, so that much of what else
   * the machine does falls out.
   */
  added(task: string, than: string): Added;
}

/**
 * Runs tasks in turns, a few milliseconds each, for about `time` milliseconds altogether and at
 * least seven turns: figures that are to be compared see the same state of the machine.
 */
export function alternate(
  tasks: ReadonlyMap<string, () => void>,
  threads: number,
  time = 700,
): Turns {
  native().setThreads(threads);
  // Two rounds warm up; the second says how often a task fits into its turn.
  samplesOf(tasks, new Map());
  const runs = new Map<string, number>();
  for (const [name, samples] of samplesOf(tasks, new Map())) {
    runs.set(name, Math.max(1, Math.min(500, Math.floor(TURN / (samples[0] as number)))));
  }
  const turns = new Map([...tasks.keys()].map((name) => [name, [] as number[]]));
  const all = new Map([...tasks.keys()].map((name) => [name, [] as number[]]));
  const start = performance.now();
  for (let round = 0; round < MIN_TURNS || performance.now() - start < time; round++) {
    for (const [name, samples] of samplesOf(tasks, runs)) {
      turns.get(name)?.push(median(samples));
      all.get(name)?.push(...samples);
    }
  }
  const results = new Map(
    [...all].map(([name, samples]): [string, Result] => [
      name,
      { name, threads, milliseconds: median(samples), runs: samples.length },
    ]),
  );
  return {
    results,
    added(task, than) {
      const other = turns.get(than) as number[];
      const all = (turns.get(task) as number[]).map((t, i) => t - (other[i] as number));
      const middle = median(all);
      // A normal deviation is 1.4826 × the median one; a median's error 1.2533 × a mean's.
      const spread = 1.4826 * median(all.map((d) => Math.abs(d - middle)));
      return { median: middle, error: (1.2533 * spread) / Math.sqrt(all.length) };
    },
  };
}
