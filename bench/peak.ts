/** What lives when a step's memory is at its peak: buffers by purpose, kernel and shape. */
import type { Handle, Purpose } from '../src/tensor/backend.js';
import { shapeText } from '../src/tensor/errors.js';
import type { NativeBackend } from '../src/tensor/native.js';

/** Buffers of one kind that are alive at the peak. */
export interface PeakEntry {
  readonly purpose: Purpose;
  /** The kernel that wrote them first; what a kernel takes for itself is not seen. */
  readonly kernel: string;
  readonly shape: string;
  readonly count: number;
  readonly bytes: number;
}

interface Held {
  readonly bytes: number;
  purpose: Purpose;
  kernel: string;
  shape: string;
}

/** Runs a step and answers what was alive at its peak and had not been there before. */
export function peakOf(backend: NativeBackend, step: () => void): PeakEntry[] {
  const { run, allocate, free, retag } = backend;
  const held = new Map<Handle, Held>();
  let total = 0;
  let most = 0;
  let kernel = '';
  let atPeak: Held[] = [];
  const note = () => {
    if (total <= most) return;
    most = total;
    atPeak = [...held.values()].map((h) => (h.kernel ? h : { ...h, kernel, shape: '' }));
  };
  backend.run = (name, tensors, attrs) => {
    kernel = name;
    for (const t of tensors) {
      const h = held.get(t.storage.handle);
      if (h && h.kernel === '') Object.assign(h, { kernel: name, shape: shapeText(t.shape) });
    }
    note();
    run.call(backend, name, tensors, attrs);
  };
  backend.allocate = (bytes, purpose) => {
    const handle = allocate.call(backend, bytes, purpose);
    held.set(handle, { bytes, purpose, kernel: '', shape: '' });
    total += bytes;
    return handle;
  };
  backend.free = (handle) => {
    total -= held.get(handle)?.bytes ?? 0;
    held.delete(handle);
    free.call(backend, handle);
  };
  backend.retag = (handle, purpose) => {
    const h = held.get(handle);
    if (h) h.purpose = purpose;
    retag.call(backend, handle, purpose);
  };
  try {
    step();
  } finally {
    Object.assign(backend, { run, allocate, free, retag });
  }
  const entries = new Map<string, PeakEntry>();
  for (const { purpose, kernel: by, shape, bytes } of atPeak) {
    const key = `${purpose} ${by} ${shape}`;
    const e = entries.get(key) ?? { purpose, kernel: by, shape, count: 0, bytes: 0 };
    entries.set(key, { ...e, count: e.count + 1, bytes: e.bytes + bytes });
  }
  return [...entries.values()].sort((a, b) => b.bytes - a.bytes);
}

/** The entries as lines of text. */
export function peakText(entries: readonly PeakEntry[]): string {
  const total = entries.reduce((n, e) => n + e.bytes, 0);
  const mb = (bytes: number) => `${(bytes / 1e6).toFixed(2).padStart(8)} MB`;
  return [
    ...entries.map(
      (e) =>
        `${mb(e.bytes)} ${String(e.count).padStart(4)} ×  ` +
        `${e.purpose.padEnd(11)}${e.kernel.padEnd(20)}${e.shape}`,
    ),
    `${mb(total)} made by the step and alive at its peak`,
  ].join('\n');
}
