import type { DType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { type Shape, sameShape } from '../tensor/shape.js';
import type { GraphNode, Tensor } from '../tensor/tensor.js';
import type { OpSpec } from './op.js';

/** Shape and dtype of a tensor, without its elements. */
export interface Meta {
  readonly shape: Shape;
  readonly dtype: DType;
}

let created = 0;

/** The node of a trainable tensor: where its gradient is accumulated. */
export class LeafNode implements GraphNode {
  readonly id = created++;
  grad: Tensor | null = null;
  #refs = 1;

  constructor(readonly meta: Meta) {}

  retain(): void {
    this.#refs++;
  }

  release(): void {
    if (--this.#refs > 0) return;
    this.grad?.dispose();
    this.grad = null;
  }
}

/** A tensor, or the node that can compute it again. */
type Saved = { readonly tensor: Tensor; readonly version: number } | { readonly source: OpNode };

/** What a saved tensor was to its op; `kept` is what the op's own forward kept. */
export type Role = 'input' | 'output' | 'kept';

/**
 * One recorded op. It holds the nodes of its inputs, and aliases of only those tensors that its
 * needed gradients read; of one that is cheap to compute again, only the way to it. Its id is the order of creation, which is a topological order.
 */
export class OpNode implements GraphNode {
  readonly id = created++;
  readonly grad = null;
  #refs = 1;
  #spent = false;
  // By place; where nothing is saved there are holes.
  readonly #saved: Record<Role, Saved[]> = { input: [], output: [], kept: [] };
  /** Computes output 0 again from saved inputs; null where it is not worth it, or not possible. */
  remake: (() => Tensor) | null = null;
  #remade: Tensor | null = null;

  constructor(
    readonly spec: OpSpec<unknown>,
    readonly attrs: unknown,
    readonly inputs: readonly Meta[],
    readonly parents: readonly (GraphNode | null)[],
    readonly output: Meta,
  ) {
    for (const p of parents) p?.retain();
  }

  save(role: Role, i: number, tensor: Tensor): void {
    const { node } = tensor;
    if (node instanceof OpNode && node !== this && node.remake) {
      // A parent, which is walked after this node: what it saved is still there.
      this.#saved[role][i] = { source: node };
      return;
    }
    const alias = tensor.alias(tensor.shape, false);
    this.#saved[role][i] = { tensor: alias, version: tensor.storage.version };
  }

  /** A saved tensor, unchanged since it was saved. */
  saved(role: Role, i: number): Tensor {
    this.checkUnspent();
    const held = this.#saved[role][i];
    const name = this.spec.name;
    if (!held) {
      throw failure(`backward of ${name}`, `${role} ${i} among its reads`, 'one not declared');
    }
    if ('source' in held) return held.source.again();
    if (held.version !== held.tensor.storage.version) {
      throw failure(
        `backward of ${name}`,
        `${role} ${i} as it was in the forward pass`,
        `a tensor ${shapeText(held.tensor.shape)} changed in place since`,
      );
    }
    return held.tensor;
  }

  /** Output 0, computed again at the first call; it lives until the walk has passed this node. */
  again(): Tensor {
    const made = this.#remade;
    if (made) return made;
    this.checkUnspent();
    const again = (this.remake as () => Tensor)();
    this.#remade = again.keep();
    return again;
  }

  /** Throws where the node was walked before. */
  checkUnspent(): void {
    if (!this.#spent) return;
    throw failure(
      `backward of ${this.spec.name}`,
      'a graph that is walked once',
      'a second walk',
      'Compute the loss again before the second backward()',
    );
  }

  retain(): void {
    this.#refs++;
  }

  /** Gives up one hold. The chain behind is released in a loop, not by recursion: it may be long. */
  release(): void {
    const queue: OpNode[] = [this];
    for (let node = queue.pop(); node; node = queue.pop()) {
      if (--node.#refs > 0) continue;
      node.freeSaved();
      for (const p of node.parents) {
        if (p instanceof OpNode) queue.push(p);
        else p?.release();
      }
    }
  }

  /** Frees the saved tensors; the node cannot be walked again. */
  freeSaved(): void {
    this.#spent = true;
    const { input, output, kept } = this.#saved;
    for (const list of [input, output, kept]) {
      for (const held of list) if (held && 'tensor' in held) held.tensor.dispose();
      list.length = 0;
    }
    this.#remade?.dispose();
    this.#remade = null;
  }
}

/** Throws unless a gradient has its tensor's shape. */
export function checkGradient(where: string, grad: Tensor, shape: Shape): void {
  if (!sameShape(grad.shape, shape)) {
    throw failure(where, `a gradient ${shapeText(shape)}`, shapeText(grad.shape));
  }
}
