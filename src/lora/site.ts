import { Convolution, Embedding, PlainDense } from '../nn/index.js';
import {
  broadcastTo,
  concat,
  conv1d,
  conv2d,
  embedding,
  gather,
  linear,
  matmul,
  mul,
  reshape,
  transpose,
} from '../ops/index.js';
import { tensor } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import { numel, type Shape } from '../tensor/shape.js';
import { Tensor } from '../tensor/tensor.js';

/**
 * A layer as a LoRA branch sees it: a weight W [out, in], however it is stored, and the two narrow
 * products beside it. One for each kind of layer, so that no variant asks what it stands on.
 */
export interface Site {
  readonly kind: 'dense' | 'embedding' | 'conv';
  /** Of the layer in the model; addresses its random numbers. */
  readonly path: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** The stored weight. */
  readonly weight: Tensor;
  /** Whether it is stored [in, out]. */
  readonly transposed: boolean;
  readonly bias: Tensor | null;
  /** Of a convolution: groups of channels that do not see each other; else 1. */
  readonly groups: number;
  /** Of the weight with B A in it: the stored one's, of a grouped convolution that of one group. */
  readonly mergedShape: Shape;
  /** Ends of PEFT's names of A and B. */
  readonly names: { readonly a: string; readonly b: string };
  /** Shapes of A and B at a rank: [r, in] and [out, r], and 1s as PEFT has them. */
  shapes(rank: number): { readonly a: Shape; readonly b: Shape };
  /** PEFT's shape of a number for each output. */
  readonly magnitudeShape: Shape;
  /** x Aᵀ. @param x the layer's input */
  down(x: Tensor, a: Tensor): Tensor;
  /** h Bᵀ + c. @param h what {@link down} gave @param c [out] or none */
  up(h: Tensor, b: Tensor, c: Tensor | null): Tensor;
  /** x Wᵀ, without the bias. */
  plain(x: Tensor): Tensor;
  /** B as a matrix [out, r], of which ΔW is B A with A as [r, in]. */
  matrixB(b: Tensor): Tensor;
  /** A number for each output [out], shaped to meet the layer's output. */
  onOutput(v: Tensor): Tensor;
  /** The same, shaped to meet the stored weight. */
  onWeight(v: Tensor): Tensor;
}

/** What a layer whose rows are vectors has; `transposed` says how W is stored. */
abstract class VectorSite {
  abstract readonly inFeatures: number;
  abstract readonly outFeatures: number;
  abstract readonly transposed: boolean;
  abstract readonly weight: Tensor;
  readonly groups: number = 1;

  get mergedShape(): Shape {
    return this.weight.shape;
  }

  matrixB(b: Tensor): Tensor {
    return b;
  }

  shapes(rank: number): { a: Shape; b: Shape } {
    return { a: [rank, this.inFeatures], b: [this.outFeatures, rank] };
  }

  get magnitudeShape(): Shape {
    return [this.outFeatures];
  }

  up(h: Tensor, b: Tensor, c: Tensor | null): Tensor {
    return linear(h, b, c);
  }

  onOutput(v: Tensor): Tensor {
    return v;
  }

  onWeight(v: Tensor): Tensor {
    return reshape(v, this.transposed ? [1, -1] : [-1, 1]);
  }
}

class DenseSite extends VectorSite implements Site {
  readonly kind = 'dense';
  readonly names = { a: 'lora_A.weight', b: 'lora_B.weight' };

  constructor(
    readonly path: string,
    private readonly layer: PlainDense,
  ) {
    super();
  }

  get inFeatures(): number {
    return this.layer.inFeatures;
  }

  get outFeatures(): number {
    return this.layer.outFeatures;
  }

  get weight(): Tensor {
    return this.layer.weight;
  }

  get transposed(): boolean {
    return this.layer.transposed;
  }

  get bias(): Tensor | null {
    return this.layer.bias;
  }

  down(x: Tensor, a: Tensor): Tensor {
    return linear(x, a);
  }

  plain(x: Tensor): Tensor {
    if (!this.transposed) return linear(x, this.weight);
    const y = matmul(reshape(x, [-1, this.inFeatures]), this.weight);
    return reshape(y, [...x.shape.slice(0, -1), this.outFeatures]);
  }
}

/** Elements turned in the time that one is picked by its index. */
const PICKED = 8;

/** An embedding is a dense layer on one-hot rows: in = V, out = C, W stored [in, out]. */
class EmbeddingSite extends VectorSite implements Site {
  readonly kind = 'embedding';
  readonly names = { a: 'lora_embedding_A', b: 'lora_embedding_B' };
  readonly transposed = true;
  readonly bias = null;

  constructor(
    readonly path: string,
    private readonly layer: Embedding,
  ) {
    super();
  }

  get inFeatures(): number {
    return this.layer.weight.shape[0] as number;
  }

  get outFeatures(): number {
    return this.layer.weight.shape[1] as number;
  }

  get weight(): Tensor {
    return this.layer.weight;
  }

  down(ids: Tensor, a: Tensor): Tensor {
    const [rank, vocab] = a.shape as [number, number];
    // A's columns one by one, where turning all of A would take longer. Either way the same bits.
    if (ids.size * PICKED >= vocab) return embedding(transpose(a), ids);
    const index = broadcastTo(reshape(ids, [1, ids.size]), [rank, ids.size]);
    return reshape(transpose(gather(a, index, 1)), [...ids.shape, rank]);
  }

  plain(ids: Tensor): Tensor {
    return embedding(this.weight, ids);
  }
}

/**
 * A convolution is a dense layer on the taps of each place: A walks as W does, from the channels to
 * r, and B is a kernel of one tap. Of a grouped one A sees the channels of all groups, and each
 * group's outputs see r / groups of its hidden channels, as in PEFT: ΔW joins what W keeps apart.
 */
class ConvSite implements Site {
  readonly kind = 'conv';
  readonly names = { a: 'lora_A.weight', b: 'lora_B.weight' };
  readonly transposed = false;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly #ones: readonly number[];

  constructor(
    readonly path: string,
    private readonly layer: Convolution,
  ) {
    this.outFeatures = layer.weight.shape[0] as number;
    this.inFeatures = numel(this.mergedShape.slice(1));
    this.#ones = layer.weight.shape.slice(2).map(() => 1);
  }

  get weight(): Tensor {
    return this.layer.weight;
  }

  get bias(): Tensor | null {
    return this.layer.bias;
  }

  get groups(): number {
    return this.layer.groups;
  }

  get mergedShape(): Shape {
    const [out, inner, ...kernel] = this.weight.shape as [number, number, ...number[]];
    return [out, inner * this.groups, ...kernel];
  }

  shapes(rank: number): { a: Shape; b: Shape } {
    const { groups } = this;
    if (rank % groups !== 0) {
      const expected = `a multiple of the ${groups} groups of ${this.path}`;
      throw failure('lora rank', expected, String(rank), 'PEFT has no other either');
    }
    const kernel = this.mergedShape.slice(1);
    return { a: [rank, ...kernel], b: [this.outFeatures, rank / groups, ...this.#ones] };
  }

  get magnitudeShape(): Shape {
    return [1, this.outFeatures, ...this.#ones];
  }

  down(x: Tensor, a: Tensor): Tensor {
    return this.layer.convolve(x, a, null, 1);
  }

  up(h: Tensor, b: Tensor, c: Tensor | null): Tensor {
    const { groups } = this;
    return this.#ones.length === 1 ? conv1d(h, b, c, { groups }) : conv2d(h, b, c, { groups });
  }

  plain(x: Tensor): Tensor {
    return this.layer.convolve(x, this.weight);
  }

  matrixB(b: Tensor): Tensor {
    const { groups, outFeatures: out } = this;
    const own = reshape(b, [out, -1]);
    if (groups === 1) return own;
    // Ones where an output meets the hidden channels of its own group.
    const [inner, outer] = [own.shape[1] as number, out / groups];
    const ones = new Float32Array(out * groups * inner);
    for (let o = 0; o < out; o++) {
      const at = (o * groups + Math.floor(o / outer)) * inner;
      ones.fill(1, at, at + inner);
    }
    const side = new Array<Tensor>(groups).fill(own);
    return mul(concat(side, 1), tensor(ones, [out, groups * inner], { backend: b.backend }));
  }

  onOutput(v: Tensor): Tensor {
    return reshape(v, this.magnitudeShape);
  }

  onWeight(v: Tensor): Tensor {
    return reshape(v, [this.outFeatures, 1, ...this.#ones]);
  }
}

/** A grouped convolution's weight over the channels of all groups, with zeros for the others'. */
function spread({ weight, groups, inFeatures, outFeatures }: Site): Tensor {
  const bytes = weight.bytes();
  const row = bytes.length / outFeatures;
  const wide = new Uint8Array(bytes.length * groups);
  for (let o = 0; o < outFeatures; o++) {
    const group = Math.floor((o * groups) / outFeatures);
    wide.set(bytes.subarray(o * row, (o + 1) * row), (o * groups + group) * row);
  }
  const { backend, dtype } = weight;
  const out = Tensor.empty(backend, [outFeatures, inFeatures], dtype, 'workspace');
  out.setBytes(wide);
  return out;
}

/**
 * The weight as a matrix: [out, in], or [in, out] where it is `transposed`. Of a grouped convolution
 * a new tensor, else the stored numbers.
 */
export function weightMatrix(site: Site): Tensor {
  const { weight, transposed, inFeatures, outFeatures } = site;
  if (site.groups > 1) return spread(site);
  return reshape(weight, transposed ? [inFeatures, outFeatures] : [outFeatures, inFeatures]);
}

/** Rows of {@link weightMatrix}. */
export function matrixRows({ transposed, inFeatures, outFeatures }: Site): number {
  return transposed ? inFeatures : outFeatures;
}

/** How LoRA sees a plain layer. @throws for a layer of a kind that it cannot stand on */
export function siteOf(path: string, layer: unknown): Site {
  if (layer instanceof PlainDense) return new DenseSite(path, layer);
  if (layer instanceof Embedding) return new EmbeddingSite(path, layer);
  if (layer instanceof Convolution) return new ConvSite(path, layer);
  const name = (layer as object).constructor.name;
  throw failure(`lora, ${path}`, 'a dense layer, an embedding or a convolution', name);
}
