import { cpus } from 'node:os';
import { backward, clearGradient, noGrad, scope, setTrainable } from '../src/autograd/index.js';
import { fullConfig, LoraAdapters, type LoraConfig, LoraLinear } from '../src/lora/index.js';
import { VARIANTS, variantOn } from '../src/lora/variants/index.js';
import { Linear, Module } from '../src/nn/index.js';
import { writeInto } from '../src/ops/index.js';
import { tensor } from '../src/tensor/create.js';
import type { DType } from '../src/tensor/dtype.js';
import { Tensor } from '../src/tensor/tensor.js';
import { type Added, alternate, type Turns } from './alternate.js';
import { native, type Result } from './support.js';

const WIDTHS = [768, 2048, 4096];
const ROWS = [1, 64, 512];
const RANKS = [1, 4, 8, 16, 64];
const THREADS = cpus().length;

/** Small numbers that are not all alike; their values do not matter to the time. */
function filled(shape: readonly number[], dtype: DType = 'f32'): Tensor {
  const size = shape.reduce((n, d) => n * d, 1);
  const values = new Float32Array(size);
  for (let i = 0; i < size; i++) values[i] = (((i * 7919) % 1021) - 510) / 10000;
  return tensor(values, shape, { backend: native(), dtype });
}

/** A square layer with an adapter of each rank, by a name; B is not zero. */
function layerOf(
  width: number,
  ranks: ReadonlyMap<string, number>,
  dtype: DType = 'f32',
): LoraLinear {
  const layer = new LoraLinear(new Linear(filled([width, width], dtype)), 'l');
  for (const [name, rank] of ranks) {
    const config = fullConfig({ rank, targetModules: ['l'] });
    layer.branches.set(
      name,
      VARIANTS.lora.from(layer.site, config, (_, shape) => filled(shape)),
    );
  }
  return layer;
}

const percent = (share: number) => `${Number((100 * share).toPrecision(2))} %`;

/** The bare layer, and the layer with an adapter of each rank, in turns. */
function turnsOf(
  layer: LoraLinear,
  ranks: readonly number[],
  step: () => void,
  time?: number,
): Turns {
  const tasks = new Map<string, () => void>();
  const active = (names: readonly string[], fn: () => void) => () => {
    layer.active = names;
    fn();
  };
  tasks.set('bare', active([], step));
  for (const rank of ranks) tasks.set(`r = ${rank}`, active([String(rank)], step));
  return alternate(tasks, THREADS, time);
}

/** Forward of a layer, and forward with backward, on one input. */
function stepsOf(layer: LoraLinear, rows: readonly number[]) {
  const x = setTrainable(filled([...rows, layer.inFeatures]), true);
  const dy = filled([...rows, layer.outFeatures]);
  for (const branch of layer.branches.values()) branch.setTrainable(true);
  const trained = [x, ...[...layer.branches.values()].flatMap((b) => [...b.tensors().values()])];
  return {
    forward: () => noGrad(() => scope(() => void layer.forward(x))),
    both: () => {
      scope(() => backward(layer.forward(x), dy));
      for (const t of trained) clearGradient(t);
    },
    dispose() {
      for (const t of [x, dy]) t.dispose();
    },
  };
}

/** What explains added time beside arithmetic. */
interface Costs {
  /** What LoRA's calls take, in milliseconds: what rank 1 adds to a layer of 8 × 8. */
  readonly forward: number;
  readonly both: number;
  /** Bytes a millisecond that a copy reads and writes. */
  readonly bandwidth: number;
}

/** Passes over arrays of the input's size that LoRA adds, in memory where they are large. */
const PASSES = {
  // x Aᵀ reads x; the sum is read and written.
  forward: 3,
  // Backward: dh and dB read dy, dA reads x; dh A is written, and read where the layer's dx is added.
  both: 8,
};

function costsOf(): Costs {
  const layer = layerOf(8, new Map([['1', 1]]));
  const steps = stepsOf(layer, [1]);
  const cost = (step: () => void) => turnsOf(layer, [1], step, 1500).added('r = 1', 'bare').median;
  const calls = { forward: cost(steps.forward), both: cost(steps.both) };
  layer.dispose();
  steps.dispose();
  const [from, to] = [filled([4096, 4096]), filled([4096, 4096])];
  const { results } = alternate(new Map([['copy', () => writeInto(to, from, [0, 0])]]), THREADS);
  const bandwidth = (2 * from.byteLength) / (results.get('copy') as Result).milliseconds;
  for (const t of [from, to]) t.dispose();
  return { ...calls, bandwidth };
}

/**
 * The added time over its arithmetic's share of the bare time, and over what that, the calls and
 * the passes through memory make together.
 */
function addedNote(
  { median, error }: Added,
  { bare, share, other }: { bare: number; share: number; other: number },
): string {
  const part = (ms: number) => percent(ms / bare);
  const adds = `adds ${part(median)} ± ${part(error)}`;
  if (median < 2 * error)
    return `${adds}, within the noise; the arithmetic's share ${percent(share)}`;
  const arithmetic = share * bare;
  const all = arithmetic + other;
  return (
    `${adds}: ${(median / arithmetic).toFixed(2)} × the arithmetic's share of ${percent(share)}, ` +
    `${(median / all).toFixed(2)} × that with calls and memory, ${part(all)}`
  );
}

/**
 * LoRA's forward and backward beside the bare layer's. Its arithmetic's share: 4·n·d·r operations
 * to the 2·n·d² of forward; with the bare layer's dx (2·n·d² more) LoRA's dx, dA and dB add
 * 8·n·d·r, so that both have 12·n·d·r to 4·n·d².
 */
function layers(width: number, costs: Costs): Result[] {
  const layer = layerOf(width, new Map(RANKS.map((r) => [String(r), r])));
  const out: Result[] = [];
  for (const rows of ROWS) {
    const steps = stepsOf(layer, [rows]);
    for (const what of ['forward', 'both'] as const) {
      const turns = turnsOf(layer, RANKS, steps[what]);
      const title = what === 'both' ? 'forward + backward' : 'forward';
      const bare = turns.results.get('bare') as Result;
      const flops = (what === 'both' ? 4 : 2) * rows * width * width;
      const gflops = flops / bare.milliseconds / 1e6;
      out.push({ ...bare, name: `${title}, ${rows} × ${width}, bare`, gflops });
      for (const rank of RANKS) {
        const result = turns.results.get(`r = ${rank}`) as Result;
        const share = ((what === 'both' ? 3 : 2) * rank) / width;
        const added = turns.added(`r = ${rank}`, 'bare');
        const bytes = PASSES[what] * rows * width * 4;
        const other = costs[what] + bytes / costs.bandwidth;
        const note = addedNote(added, { bare: bare.milliseconds, share, other });
        out.push({ ...result, name: `${title}, ${rows} × ${width}, r = ${rank}`, note });
      }
    }
    steps.dispose();
  }
  layer.dispose();
  return out;
}

/** Every variant of rank 8 beside the bare layer, forward and backward. */
function variants(width: number, rows: number): Result[] {
  const settings: Record<string, Partial<LoraConfig>> = {
    lora: {},
    'bias of B': { loraBias: true },
    'two of four parts': { enableLora: { l: [true, false, true, false] } },
    olora: { init: 'olora' },
    dora: { variant: 'dora' },
  };
  const layer = layerOf(width, new Map());
  for (const [name, more] of Object.entries(settings)) {
    const config = fullConfig({ rank: 8, targetModules: ['l'], ...more });
    layer.branches.set(name, variantOn(layer.site, config).create(layer.site, config, 1));
  }
  const steps = stepsOf(layer, [rows]);
  const as = (active: readonly string[]) => () => {
    layer.active = active;
    steps.both();
  };
  const tasks = new Map([
    ['bare', as([])],
    ...Object.keys(settings).map((n): [string, () => void] => [n, as([n])]),
  ]);
  const turns = alternate(tasks, THREADS);
  layer.dispose();
  steps.dispose();
  const bare = turns.results.get('bare') as Result;
  return [...turns.results.values()].map((r) => {
    const { median, error } = turns.added(r.name, 'bare');
    const part = (ms: number) => percent(ms / bare.milliseconds);
    const name = `forward + backward, ${rows} × ${width}, ${r.name}`;
    return { ...r, name, note: `adds ${part(median)} ± ${part(error)}` };
  });
}

/**
 * 32 rows of 1 and 16 tokens whose rows name 1, 4 and 32 adapters, beside the same rows with one
 * active: forward, and forward with the gradients of the input and of every A and B.
 */
function mixed(width: number): Result[] {
  const names = Array.from({ length: 32 }, (_, i) => String(i));
  const layer = layerOf(width, new Map(names.map((n) => [n, 8])));
  const out: Result[] = [];
  for (const tokens of [1, 16]) {
    const steps = stepsOf(layer, [32, tokens]);
    for (const what of ['forward', 'both'] as const) {
      const as = (rows: readonly string[] | null, active: readonly string[]) => () => {
        layer.rows = rows;
        layer.active = active;
        steps[what]();
      };
      const tasks = new Map([['one adapter', as(null, ['0'])]]);
      for (const count of [1, 4, 32]) {
        const rows = names.map((_, i) => String(i % count));
        tasks.set(`mixed, ${count} adapter${count > 1 ? 's' : ''}`, as(rows, []));
      }
      const turns = alternate(tasks, THREADS);
      const one = turns.results.get('one adapter') as Result;
      const title = what === 'both' ? 'forward + backward' : 'forward';
      for (const r of turns.results.values()) {
        const share = 1 + turns.added(r.name, 'one adapter').median / one.milliseconds;
        const name = `${title}, 32 rows × ${tokens} × ${width}, r = 8, ${r.name}`;
        out.push({ ...r, name, note: `${share.toFixed(2)} × one adapter` });
      }
    }
    steps.dispose();
  }
  layer.rows = null;
  layer.dispose();
  return out;
}

/** A mixed batch of 8 rows of 64 tokens, of each variant that is not one product. */
function mixedVariants(width: number): Result[] {
  const settings: Record<string, Partial<LoraConfig>> = {
    dora: { variant: 'dora' },
    olora: { init: 'olora' },
    'two of four parts': { enableLora: { l: [true, false, true, false] } },
  };
  const names = Array.from({ length: 8 }, (_, i) => String(i));
  return Object.entries(settings).flatMap(([title, more]) => {
    const layer = layerOf(width, new Map());
    const config = fullConfig({ rank: 8, targetModules: ['l'], ...more });
    for (const name of names) {
      layer.branches.set(name, variantOn(layer.site, config).create(layer.site, config, 1));
    }
    const steps = stepsOf(layer, [8, 64]);
    const as = (rows: readonly string[] | null, active: readonly string[]) => () => {
      layer.rows = rows;
      layer.active = active;
      steps.both();
    };
    const tasks = new Map([['one adapter', as(null, ['0'])]]);
    for (const count of [2, 8]) {
      const rows = names.map((_, i) => String(i % count));
      tasks.set(`mixed, ${count} adapters`, as(rows, []));
    }
    const turns = alternate(tasks, THREADS);
    steps.dispose();
    layer.rows = null;
    layer.dispose();
    const one = turns.results.get('one adapter') as Result;
    return [...turns.results.values()].map((r) => {
      const share = 1 + turns.added(r.name, 'one adapter').median / one.milliseconds;
      const name = `forward + backward, 8 rows × 64 × ${width}, ${title}, ${r.name}`;
      return { ...r, name, note: `${share.toFixed(2)} × one adapter` };
    });
  });
}

/** A model of many small layers. */
class Stack extends Module {
  constructor(readonly layers: Linear[]) {
    super();
  }
}

/** Switching the active adapter of a model as large as Llama 1B: 7 layers in each of 16 blocks. */
function switching(): Result {
  const model = new Stack(Array.from({ length: 112 }, () => new Linear(filled([8, 8]))));
  const adapters = new LoraAdapters(model);
  for (const name of ['a', 'b']) adapters.add(name, { targetModules: ['all-linear'], rank: 2 }, 1);
  let i = 0;
  const task = () => void adapters.setActive(i++ % 2 === 0 ? 'a' : 'b');
  const { results } = alternate(new Map([['switch', task]]), THREADS);
  adapters.dispose();
  model.dispose();
  const result = results.get('switch') as Result;
  return { ...result, name: 'switch the active adapter, 112 layers' };
}

/** W + s·B A of one layer beside a copy of W by the same threads: each reads and writes W once. */
function merging(dtype: DType): Result[] {
  const width = 4096;
  const layer = layerOf(width, new Map([['0', 8]]), dtype);
  const { weight } = layer.base;
  const to = Tensor.empty(native(), weight.shape, dtype, 'workspace').keep();
  const tasks = new Map([
    ['copy', () => writeInto(to, weight, [0, 0])],
    ['merge', () => layer.merged(['0']).dispose()],
  ]);
  const { results } = alternate(tasks, THREADS, 3000);
  layer.dispose();
  to.dispose();
  const bytes = 2 * width * width * (dtype === 'f32' ? 4 : 2);
  const rate = (name: string) => bytes / (results.get(name) as Result).milliseconds / 1e6;
  return [...results].map(([name, result]) => ({
    ...result,
    name: `${name} ${width} × ${width} ${dtype}${name === 'merge' ? ', r = 8' : ''}`,
    note:
      `${rate(name).toFixed(1)} GB/s of W read and written once` +
      (name === 'merge' ? `, ${percent(rate('merge') / rate('copy'))} of the copy` : ''),
  }));
}

/** LoRA beside the bare layer, mixed batches, switching and merging; all on every core. */
export async function run(): Promise<Result[]> {
  const costs = costsOf();
  const calls = (what: 'forward' | 'both', name: string): Result => ({
    ...{ name: `LoRA's calls alone, ${name}`, threads: THREADS },
    ...{ milliseconds: costs[what], runs: 0, note: 'added to a layer of 8 × 8 by r = 1' },
  });
  return [
    calls('forward', 'forward'),
    calls('both', 'forward + backward'),
    ...WIDTHS.flatMap((width) => layers(width, costs)),
    ...variants(2048, 64),
    ...variants(2048, 512),
    ...WIDTHS.flatMap((width) => mixed(width)),
    ...mixedVariants(768),
    switching(),
    ...merging('f32'),
    ...merging('bf16'),
  ];
}
