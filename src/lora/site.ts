import { Embedding, PlainDense } from '../nn/index.js';
import { embedding, linear, matmul, reshape, transpose } from '../ops/index.js';
import { failure } from '../tensor/errors.js';
import type { Shape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';

/**
 * A layer as a LoRA branch sees it: a weight W [out, in], however it is stored, and the two narrow
 * products beside it. One for each kind of layer, so that no variant asks what it stands on.
 */
export interface Site {
  readonly kind: 'dense' | 'embedding';
  /** Of the layer in the model; addresses its random numbers. */
  readonly path: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** The stored weight. */
  readonly weight: Tensor;
  /** Whether it is stored [in, out]. */
  readonly transposed: boolean;
  readonly bias: Tensor | null;
  /** Ends of PEFT's names of A and B. */
  readonly names: { readonly a: string; readonly b: string };
  /** x Aᵀ. @param x the layer's input @param a [r, in] → [.., r] */
  down(x: Tensor, a: Tensor): Tensor;
  /** x Wᵀ, without the bias. */
  plain(x: Tensor): Tensor;
}

/** Shapes of A and B at a rank. */
export function branchShapes(site: Site, rank: number): { a: Shape; b: Shape } {
  return { a: [rank, site.inFeatures], b: [site.outFeatures, rank] };
}

class DenseSite implements Site {
  readonly kind = 'dense';
  readonly names = { a: 'lora_A.weight', b: 'lora_B.weight' };

  constructor(
    readonly path: string,
    private readonly layer: PlainDense,
  ) {}

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

/** An embedding is a dense layer on one-hot rows: in = V, out = C, W stored [in, out]. */
class EmbeddingSite implements Site {
  readonly kind = 'embedding';
  readonly names = { a: 'lora_embedding_A', b: 'lora_embedding_B' };
  readonly transposed = true;
  readonly bias = null;

  constructor(
    readonly path: string,
    private readonly layer: Embedding,
  ) {}

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
    return embedding(transpose(a), ids);
  }

  plain(ids: Tensor): Tensor {
    return embedding(this.weight, ids);
  }
}

/** How LoRA sees a plain layer. @throws for a layer of a kind that it cannot stand on */
export function siteOf(path: string, layer: unknown): Site {
  if (layer instanceof PlainDense) return new DenseSite(path, layer);
  if (layer instanceof Embedding) return new EmbeddingSite(path, layer);
  const name = (layer as object).constructor.name;
  throw failure(`lora, ${path}`, 'a dense layer or an embedding', name);
}
