/** Where the time of a step goes: each kernel's calls and time, and what is left to JavaScript. */
import type { NativeBackend } from '../src/tensor/native.js';

/** One kernel's part of a step. */
export interface KernelShare {
  readonly kernel: string;
  readonly calls: number;
  readonly ms: number;
}

/** A step's time by kernel. */
export interface StepProfile {
  readonly step_ms: number;
  readonly kernels: readonly KernelShare[];
  /** Calls of kernels, and of the allocator. */
  readonly calls: number;
  readonly allocations: number;
  /** What a call of a kernel costs beside its work: one that fills a single element. */
  readonly ns_per_call: number;
  /** Taking and giving back buffers. */
  readonly allocator_ms: number;
  /** Outside kernels and allocator: graph, shapes, scopes. */
  readonly js_ms: number;
  /** All but the kernels' work, as a share of the step. */
  readonly overhead_share: number;
}

function callCost(backend: NativeBackend): number {
  const handle = backend.allocate(4, 'workspace');
  const t = { storage: { handle }, byteOffset: 0, dtype: 'f32', shape: [1] } as const;
  const time = () => {
    const start = performance.now();
    for (let i = 0; i < 20000; i++) backend.run('fill', [t], [0]);
    return ((performance.now() - start) / 20000) * 1e6;
  };
  const best = Math.min(time(), time(), time());
  backend.free(handle);
  return best;
}

/** What a profiled step noted: each call of a kernel and the milliseconds it took, in order. */
class CallLog {
  readonly #names: string[] = [];
  readonly #times = new Float64Array(1 << 16);
  #count = 0;

  clear(): void {
    this.#count = 0;
  }

  add(kernel: string, ms: number): void {
    this.#names[this.#count] = kernel;
    this.#times[this.#count++] = ms;
  }

  /** By kernel, the longest first. */
  shares(): KernelShare[] {
    const sums = new Map<string, { calls: number; ms: number }>();
    for (let i = 0; i < this.#count; i++) {
      const name = this.#names[i] as string;
      const entry = sums.get(name) ?? { calls: 0, ms: 0 };
      entry.calls++;
      entry.ms += this.#times[i] as number;
      sums.set(name, entry);
    }
    return [...sums].map(([kernel, e]) => ({ kernel, ...e })).sort((x, y) => y.ms - x.ms);
  }
}

const median = (values: readonly number[]) =>
  [...values].sort((x, y) => x - y)[values.length >> 1] as number;

/** The allocator's calls and milliseconds in a step; medians of as many steps. */
function allocatorShare(backend: NativeBackend, step: () => void, count: number) {
  const { allocate, free } = backend;
  let calls = 0;
  let ms = 0;
  backend.allocate = (bytes, purpose) => {
    calls++;
    const start = performance.now();
    const handle = allocate.call(backend, bytes, purpose);
    ms += performance.now() - start;
    return handle;
  };
  backend.free = (handle) => {
    const start = performance.now();
    free.call(backend, handle);
    ms += performance.now() - start;
  };
  const all: number[] = [];
  try {
    for (let i = 0; i < count; i++) {
      calls = 0;
      ms = 0;
      step();
      all.push(ms);
    }
  } finally {
    Object.assign(backend, { allocate, free });
  }
  return { allocations: calls, allocator_ms: median(all) };
}

/**
 * Profiles steps; the median step counts. Kernels and the allocator are timed in steps of their
 * own, as reading the clock twice a call takes time, too: about 0.1 µs once it is in cache.
 */
export function profileSteps(backend: NativeBackend, step: () => void, count: number): StepProfile {
  const ns = callCost(backend);
  const allocator = allocatorShare(backend, step, count);
  const { run } = backend;
  const log = new CallLog();
  const all: { step_ms: number; kernels: KernelShare[] }[] = [];
  backend.run = (kernel, tensors, attrs) => {
    const start = performance.now();
    run.call(backend, kernel, tensors, attrs);
    log.add(kernel, performance.now() - start);
  };
  try {
    for (let i = 0; i < count; i++) {
      log.clear();
      const start = performance.now();
      step();
      const step_ms = performance.now() - start;
      all.push({ step_ms, kernels: log.shares() });
    }
  } finally {
    Object.assign(backend, { run });
  }
  const { step_ms, kernels } = all.sort((a, b) => a.step_ms - b.step_ms)[
    count >> 1
  ] as (typeof all)[0];
  const calls = kernels.reduce((n, k) => n + k.calls, 0);
  const outside = step_ms - kernels.reduce((n, k) => n + k.ms, 0);
  const js_ms = Math.max(0, outside - allocator.allocator_ms);
  const overhead = outside + (calls * ns) / 1e6;
  const overhead_share = overhead / step_ms;
  return { step_ms, kernels, calls, ...allocator, ns_per_call: ns, js_ms, overhead_share };
}

/** A profile as lines of text. */
export function profileText(p: StepProfile): string {
  const line = (a: string, calls: number, ms: number) =>
    `${a.padEnd(24)}${String(calls).padStart(6)}${ms.toFixed(3).padStart(10)} ms` +
    `${((100 * ms) / p.step_ms).toFixed(1).padStart(7)}%`;
  return [
    `${'kernel'.padEnd(24)} calls      time   share`,
    ...p.kernels.map((k) => line(k.kernel, k.calls, k.ms)),
    line('allocator', p.allocations, p.allocator_ms),
    line('JavaScript between', p.calls, p.js_ms),
    line('step', p.calls, p.step_ms),
    `${p.calls} calls, ${p.ns_per_call.toFixed(0)} ns each beside their work and ` +
      `${((1e6 * p.js_ms) / p.calls).toFixed(0)} ns of JavaScript around each; ` +
      `overhead ${(100 * p.overhead_share).toFixed(1)}% of the step`,
  ].join('\n');
}
