import { failure } from '../tensor/errors.js';
import { normal, streamOf, uniform } from '../tensor/random.js';
import { numel } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { oloraFactors, orthogonalStart, pissaFactors } from './algebra/starts.js';
import type { Site } from './site.js';

/** What a start is made for. */
export interface StartRequest {
  readonly site: Site;
  readonly rank: number;
  readonly scaling: number;
  readonly seed: number;
}

/** A [r, in] and B [out, r] of a new branch, row-major or as f32 tensors. */
export interface Start {
  readonly a: Float32Array | Tensor;
  readonly b: Float32Array | Tensor;
}

/** A way to begin. */
type StartMaker = (request: StartRequest) => Start;

/** Ways to begin by their names in PEFT's `init_lora_weights`; `kaiming` is `true` there. */
const MAKERS: Readonly<Record<string, StartMaker>> = {
  kaiming,
  gaussian,
  orthogonal,
  pissa: (request) => pissaFactors(request.site.weight, weightOptions(request)),
  olora: (request) => oloraFactors(request.site.weight, weightOptions(request)),
};

/** PiSSA by a randomised decomposition of N power iterations. */
const NITER = /^pissa_niter_(\d+)$/;

/** Every name that there is a way to begin for. */
export function initNames(): string[] {
  return [...Object.keys(MAKERS), 'pissa_niter_N'];
}

/** Whether there is a way to begin of this name. */
export function isInit(name: string): boolean {
  return Object.hasOwn(MAKERS, name) || NITER.test(name);
}

/**
 * Whether a way to begin takes A and B out of the weight, so that the base loses scaling·B A for
 * them and training starts at the base all the same.
 */
export function takesFromWeight(init: string): boolean {
  return init === 'olora' || init.startsWith('pissa');
}

/** A and B of a new branch. */
export function start(init: string, request: StartRequest): Start {
  const niter = NITER.exec(init);
  if (niter) {
    const options = { ...weightOptions(request), iterations: Number(niter[1]) };
    return pissaFactors(request.site.weight, options);
  }
  const make = MAKERS[init];
  if (!make) throw failure('lora init', initNames().join(' or '), `"${init}"`);
  return make(request);
}

function weightOptions({ site, rank, scaling, seed }: StartRequest) {
  if (site.kind !== 'dense') {
    throw failure('lora init', 'kaiming or gaussian', `a start from the weight of ${site.path}`);
  }
  return { rank, scaling, seed, transposed: site.transposed };
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
  return { a, b: new Float32Array(numel(request.site.shapes(request.rank).b)) };
}

// Kaiming uniform with slope √5, as loralib and PEFT: bound 1/√in.
function kaiming(request: StartRequest): Start {
  const { site, rank } = request;
  if (site.kind === 'embedding') return embeddingStart(request);
  const bound = 1 / Math.sqrt(site.inFeatures);
  const u = uniform(random(request, 'A'), rank * site.inFeatures);
  return zeroB(
    request,
    Float32Array.from(u, (v) => (2 * v - 1) * bound),
  );
}

// Normal with a standard deviation of 1/r, as PEFT.
function gaussian(request: StartRequest): Start {
  const { site, rank } = request;
  if (site.kind === 'embedding') return embeddingStart(request);
  const z = normal(random(request, 'A'), rank * site.inFeatures);
  return zeroB(
    request,
    Float32Array.from(z, (v) => v / rank),
  );
}

// A and B random over orthogonal halves of the rank, as PEFT: B A is 0 though neither is.
function orthogonal(request: StartRequest): Start {
  const { site, rank } = request;
  if (site.kind === 'embedding') {
    throw failure('lora init orthogonal', 'dense layers', `the embedding ${site.path}`);
  }
  if (site.groups > 1) {
    const received = `${site.path} of ${site.groups} groups`;
    throw failure('lora init orthogonal', 'a convolution of one group', received);
  }
  return orthogonalStart(rank, site.inFeatures, site.outFeatures, random(request, 'A'));
}
