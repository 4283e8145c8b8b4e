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

/** Profiles steps; the median step counts. The clock is read twice a call, about 0.1 µs. */
export function profileSteps(backend: NativeBackend, step: () => void, count: number): StepProfile {
  const ns = callCost(backend);
  const { run, allocate, free } = backend;
  const all: Omit<StepProfile, 'ns_per_call' | 'overhead_share'>[] = [];
  let kernels = new Map<string, { calls: number; ms: number }>();
  let allocations = 0;
  let allocator_ms = 0;
  backend.run = (kernel, tensors, attrs) => {
    const start = performance.now();
    run.call(backend, kernel, tensors, attrs);
    const taken = performance.now() - start;
    const entry = kernels.get(kernel) ?? { calls: 0, ms: 0 };
    entry.calls++;
    entry.ms += taken;
    kernels.set(kernel, entry);
  };
  backend.allocate = (bytes, purpose) => {
    allocations++;
    const start = performance.now();
    const handle = allocate.call(backend, bytes, purpose);
    allocator_ms += performance.now() - start;
    return handle;
  };
  backend.free = (handle) => {
    const start = performance.now();
    free.call(backend, handle);
    allocator_ms += performance.now() - start;
  };
  try {
    for (let i = 0; i < count; i++) {
      kernels = new Map();
      allocations = 0;
      allocator_ms = 0;
      const start = performance.now();
      step();
      const step_ms = performance.now() - start;
      const list = [...kernels].map(([kernel, e]) => ({ kernel, ...e }));
      const calls = list.reduce((n, e) => n + e.calls, 0);
      const js_ms = step_ms - allocator_ms - list.reduce((n, e) => n + e.ms, 0);
      const sorted = list.sort((a, b) => b.ms - a.ms);
      all.push({ step_ms, kernels: sorted, calls, allocations, allocator_ms, js_ms });
    }
  } finally {
    Object.assign(backend, { run, allocate, free });
  }
  const median = all.sort((a, b) => a.step_ms - b.step_ms)[count >> 1] as (typeof all)[0];
  const overhead = median.js_ms + median.allocator_ms + (median.calls * ns) / 1e6;
  return { ...median, ns_per_call: ns, overhead_share: overhead / median.step_ms };
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
