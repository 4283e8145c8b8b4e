/** Comparing what we compute with the expected tensors of a golden case, and adapter directories. */
import { join } from 'node:path';
import { scope } from '../../src/autograd/index.js';
import { readJsonObject } from '../../src/io/files.js';
import { SafetensorsFile } from '../../src/io/safetensors.js';
import { getBackend } from '../../src/tensor/registry.js';

/** How far one tensor of ours is from the expected one. */
export interface Figure {
  readonly name: string;
  /** Largest difference of two elements. */
  readonly absolute: number;
  /** The same over the largest expected magnitude. */
  readonly relative: number;
  /** The largest `relative` that passes. */
  readonly tolerance: number;
  /**
   * Where the tolerance is wider than asked for: how far rounding alone moves this, of the largest
   * expected magnitude.
   */
  readonly sensitivity?: number;
  readonly ok: boolean;
}

/** How {@link Comparison.compare} compares. */
export interface CompareOptions {
  /** The expected tensor's name, where it is not the figure's. */
  readonly against?: string;
  /** Whether the element at a flat index counts; default all. */
  readonly counts?: (index: number) => boolean;
  /** Differences are over at least this magnitude. Default 0. */
  readonly scale?: number;
}

/** The largest difference of two lists, NaN if a NaN stands against anything. */
export function largestDifference(
  a: readonly number[],
  b: readonly number[],
  counts: (index: number) => boolean = () => true,
): number {
  // Math.max answers NaN for NaN, which no tolerance accepts.
  return a.reduce(
    (most, x, i) => (counts(i) ? Math.max(most, Math.abs(x - (b[i] as number))) : most),
    0,
  );
}

/** The expected tensors of a case as numbers, and the figures and problems found so far. */
export class Comparison {
  readonly figures: Figure[] = [];
  readonly problems: string[] = [];
  /** What to know about how the figures came about. */
  readonly notes: string[] = [];
  readonly #file: SafetensorsFile;
  readonly #read = new Map<string, number[]>();

  constructor(dir: string) {
    this.#file = SafetensorsFile.open(join(dir, 'expected.safetensors'));
  }

  shape(name: string): readonly number[] {
    return this.#file.entry(name).shape;
  }

  isFloat(name: string): boolean {
    return /^(F|BF)/.test(this.#file.entry(name).dtype.toUpperCase());
  }

  expected(name: string): number[] {
    let values = this.#read.get(name);
    if (!values) {
      const backend = getBackend('reference');
      values = scope(() => this.#file.load(name, { backend }).toNumbers());
      this.#read.set(name, values);
    }
    return values;
  }

  names(prefix: string): string[] {
    return [...this.#file.tensors.keys()].filter((n) => n.startsWith(prefix));
  }

  /** The largest magnitude of an expected tensor's elements that count. */
  largest(name: string, counts: (index: number) => boolean = () => true): number {
    return this.expected(name).reduce((n, e, i) => (counts(i) ? Math.max(n, Math.abs(e)) : n), 0);
  }

  /** Adds the figure of one tensor. */
  compare(
    name: string,
    received: readonly number[],
    tolerance: number,
    { against = name, counts = () => true, scale = 0 }: CompareOptions = {},
  ): void {
    const expected = this.expected(against);
    if (expected.length !== received.length) {
      this.problems.push(`${name}: expected ${expected.length} elements, not ${received.length}`);
      return;
    }
    const absolute = largestDifference(expected, received, counts);
    const relative = absolute === 0 ? 0 : absolute / Math.max(scale, this.largest(against, counts));
    this.figures.push({ name, absolute, relative, tolerance, ok: relative <= tolerance });
  }

  /** Widens the tolerance of a figure by what rounding alone does to it. */
  widen(name: string, sensitivity: number, factor: number): void {
    const at = this.figures.findIndex((f) => f.name === name);
    const figure = this.figures[at];
    if (!figure || figure.ok) return;
    const tolerance = Math.max(figure.tolerance, factor * sensitivity);
    const ok = figure.relative <= tolerance;
    this.figures[at] = { ...figure, tolerance, sensitivity, ok };
  }
}

/** Order means nothing in these lists: PEFT keeps them as sets. */
const UNORDERED = ['target_modules', 'exclude_modules'];

/** Compares two adapter directories: tensors bit for bit, settings but for the order of sets. */
export function adapterDifferences(expectedDir: string, receivedDir: string): string[] {
  const out: string[] = [];
  const [want, got] = [expectedDir, receivedDir].map((d) =>
    SafetensorsFile.open(join(d, 'adapter_model.safetensors')),
  ) as [SafetensorsFile, SafetensorsFile];
  for (const name of new Set([...want.tensors.keys(), ...got.tensors.keys()])) {
    const [w, g] = [want.tensors.get(name), got.tensors.get(name)];
    if (!w || !g) out.push(`${name}: ${w ? 'missing' : 'surplus'}`);
    else if (w.dtype !== g.dtype || `${w.shape}` !== `${g.shape}`) {
      out.push(`${name}: expected ${w.dtype} [${w.shape}], received ${g.dtype} [${g.shape}]`);
    } else if (!Buffer.from(want.bytes(name)).equals(got.bytes(name))) {
      out.push(`${name}: other bytes`);
    }
  }
  // Ours records the base's hash there, too.
  const metadata = [...got.metadata].filter(([key]) => key !== 'lowrank_base');
  if (JSON.stringify([...want.metadata]) !== JSON.stringify(metadata)) {
    out.push(`metadata: ${JSON.stringify(metadata)}`);
  }
  const [a, b] = [expectedDir, receivedDir].map((d) =>
    readJsonObject(join(d, 'adapter_config.json')),
  ) as [Record<string, unknown>, Record<string, unknown>];
  for (const key of new Set([...Object.keys(a), ...Object.keys(b)])) {
    const text = (json: Record<string, unknown>) => {
      const value = json[key];
      if (!(key in json)) return 'no such key';
      return JSON.stringify(
        UNORDERED.includes(key) && Array.isArray(value) ? [...value].sort() : value,
      );
    };
    if (text(a) !== text(b)) {
      out.push(`adapter_config.json, ${key}: expected ${text(a)}, received ${text(b)}`);
    }
  }
  return out;
}
