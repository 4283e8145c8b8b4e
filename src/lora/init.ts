import { failure } from '../tensor/errors.js';
import { normal, streamOf, uniform } from '../tensor/random.js';
import type { Site } from './site.js';

/** What a start is made for. */
export interface StartRequest {
  readonly site: Site;
  readonly rank: number;
  readonly scaling: number;
  readonly seed: number;
}

/** A and B of a new branch, as their layer's site shapes them. */
export interface Start {
  readonly a: Float32Array;
  readonly b: Float32Array;
  /**
   * Whether the base loses scaling·B A for them (PiSSA, OLoRA), so that training starts at the
   * base all the same. The base itself is not written: the branch subtracts its start.
   */
  readonly residual?: boolean;
}

/** A way to begin. */
export type StartMaker = (request: StartRequest) => Start;

const makers = new Map<string, StartMaker>();

/** Adds a way to begin under a name of PEFT's `init_lora_weights`. */
export function registerInit(name: string, make: StartMaker): void {
  makers.set(name, make);
}

/** Every name that there is a way to begin for. */
export function initNames(): string[] {
  return [...makers.keys()];
}

/** A and B of a new branch. */
export function start(init: string, request: StartRequest): Start {
  const make = makers.get(init);
  if (!make) throw failure('lora init', initNames().join(' or '), `"${init}"`);
  return make(request);
}

/** Random numbers of a layer's A, or B where that is the random one. */
function random({ site, seed }: StartRequest, part: 'A' | 'B') {
  return { seed, stream: streamOf(`${site.path}.lora_${part}`) };
}

/** An embedding begins the other way round: A is zero and B standard normal (loralib, PEFT). */
function embeddingStart(request: StartRequest): Start {
  const { site, rank } = request;
  return {
    a: new Float32Array(rank * site.inFeatures),
    b: Float32Array.from(normal(random(request, 'B'), rank * site.outFeatures)),
  };
}

function zeroB(request: StartRequest, a: Float32Array): Start {
  return { a, b: new Float32Array(request.site.outFeatures * request.rank) };
}

// Kaiming uniform with slope √5, as loralib and PEFT: bound 1/√in.
registerInit('kaiming', (request) => {
  const { site, rank } = request;
  if (site.kind === 'embedding') return embeddingStart(request);
  const bound = 1 / Math.sqrt(site.inFeatures);
  const u = uniform(random(request, 'A'), rank * site.inFeatures);
  return zeroB(
    request,
    Float32Array.from(u, (v) => (2 * v - 1) * bound),
  );
});

// Normal with a standard deviation of 1/r, as PEFT.
registerInit('gaussian', (request) => {
  const { site, rank } = request;
  if (site.kind === 'embedding') return embeddingStart(request);
  const z = normal(random(request, 'A'), rank * site.inFeatures);
  return zeroB(
    request,
    Float32Array.from(z, (v) => v / rank),
  );
});

/** Rows that are orthonormal, from a random square matrix by Gram and Schmidt, twice for accuracy. */
function orthonormalRows(values: Float64Array, n: number): Float64Array[] {
  const rows = Array.from({ length: n }, (_, i) => values.slice(i * n, (i + 1) * n));
  rows.forEach((row, i) => {
    for (let pass = 0; pass < 2; pass++) {
      for (const done of rows.slice(0, i)) {
        const along = done.reduce((sum, v, k) => sum + v * (row[k] as number), 0);
        for (let k = 0; k < n; k++) row[k] = (row[k] as number) - along * (done[k] as number);
      }
    }
    const length = Math.sqrt(row.reduce((sum, v) => sum + v * v, 0));
    for (let k = 0; k < n; k++) row[k] = (row[k] as number) / length;
  });
  return rows;
}

// A and B random over orthogonal halves of the rank, a tenth in size, as PEFT: B A is 0 though
// neither is. q: rows of a random orthogonal [r, r]; A = (x q_odd)ᵀ / 10, B = y q_even / 10.
registerInit('orthogonal', (request) => {
  const { site, rank, seed } = request;
  if (site.kind === 'embedding') {
    throw failure('lora init orthogonal', 'dense layers', `the embedding ${site.path}`);
  }
  const half = rank / 2;
  const at = (what: string) => ({ seed, stream: streamOf(`${site.path}.lora_${what}`) });
  const q = orthonormalRows(normal(at('Q'), rank * rank), rank);
  const product = (width: number, what: 'A' | 'B', first: 0 | 1): Float64Array => {
    const x = normal(at(what), width * half);
    const out = new Float64Array(width * rank);
    for (let i = 0; i < width; i++) {
      for (let h = 0; h < half; h++) {
        const v = (x[i * half + h] as number) / 10;
        const row = q[2 * h + first] as Float64Array;
        for (let k = 0; k < rank; k++) {
          out[i * rank + k] = (out[i * rank + k] as number) + v * (row[k] as number);
        }
      }
    }
    return out;
  };
  const wide = product(site.inFeatures, 'A', 0);
  const a = new Float32Array(wide.length);
  for (let i = 0; i < site.inFeatures; i++) {
    for (let k = 0; k < rank; k++) a[k * site.inFeatures + i] = wide[i * rank + k] as number;
  }
  return { a, b: Float32Array.from(product(site.outFeatures, 'B', 1)) };
});
