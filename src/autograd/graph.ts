import { failure, shapeText } from '../tensor/errors.js';
import { type Shape, sameShape } from '../tensor/shape.js';
import type { GraphNode, Meta, Tensor } from '../tensor/tensor.js';
import type { OpSpec } from './op.js';

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

/** What a saved tensor was to its op; `kept` is what the op's own forward kept. */
export type Role = 'input' | 'output' | 'kept';

/** A tensor, or in its place the node that can compute it again. */
interface Saved {
  readonly role: Role;
  /** Its place among those of its role. */
  readonly place: number;
  readonly tensor: Tensor | null;
  readonly version: number;
  readonly source: OpNode | null;
  readonly next: Saved | null;
}

/**
 * One recorded op. It holds the nodes of its inputs, and aliases of only those tensors that its
 * needed gradients read; of one that is cheap to compute again, only the way to it. Its id is the order of creation, which is a topological order.
 */
export class OpNode implements GraphNode {
  readonly id = created++;
  readonly grad = null;
  #refs = 1;
  #spent = false;
  // A list, last saved first: most nodes have one or two.
  #saved: Saved | null = null;
  /** Computes output 0 again from saved inputs; null where it is not worth it, or not possible. */
  remake: (() => Tensor) | null = null;
  #remade: Tensor | null = null;
  /** The gradient that a walk has gathered so far. */
  pending: Tensor | null = null;
  /** The walk that has seen the node. */
  seenBy = 0;

  /** @param needs which inputs have a parent, and so need a gradient */
  constructor(
    readonly spec: OpSpec<unknown>,
    readonly attrs: unknown,
    readonly inputs: readonly Meta[],
    readonly parents: readonly (GraphNode | null)[],
    readonly needs: readonly boolean[],
    readonly output: Meta,
  ) {
    for (let i = 0; i < parents.length; i++) parents[i]?.retain();
  }

  save(role: Role, place: number, tensor: Tensor): void {
    const { node } = tensor;
    const next = this.#saved;
    if (node instanceof OpNode && node !== this && node.remake) {
      // A parent, which is walked after this node: what it saved is still there.
      this.#saved = { role, place, tensor: null, version: 0, source: node, next };
      return;
    }
    const { version } = tensor.storage;
    const alias = tensor.alias(tensor.shape, false);
    this.#saved = { role, place, tensor: alias, version, source: null, next };
  }

  #find(role: Role, place: number): Saved | null {
    let held = this.#saved;
    while (held && (held.place !== place || held.role !== role)) held = held.next;
    return held;
  }

  /** A saved tensor, unchanged since it was saved. */
  saved(role: Role, i: number): Tensor {
    this.checkUnspent();
    const held = this.#find(role, i);
    if (!held) {
      const where = `backward of ${this.spec.name}`;
      throw failure(where, `${role} ${i} among its reads`, 'one not declared');
    }
    if (held.source) return held.source.again();
    const tensor = held.tensor as Tensor;
    if (held.version !== tensor.storage.version) {
      throw failure(
        `backward of ${this.spec.name}`,
        `${role} ${i} as it was in the forward pass`,
        `a tensor ${shapeText(tensor.shape)} changed in place since`,
      );
    }
    return tensor;
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
    if (--this.#refs > 0) return;
    const dead: OpNode[] = [this];
    for (let node = dead.pop(); node; node = dead.pop()) {
      node.freeSaved();
      const { parents } = node;
      for (let i = 0; i < parents.length; i++) {
        const p = parents[i];
        if (!(p instanceof OpNode)) p?.release();
        else if (--p.#refs === 0) dead.push(p);
      }
    }
  }

  /** Frees the saved tensors; the node cannot be walked again. */
  freeSaved(): void {
    this.#spent = true;
    for (let held = this.#saved; held; held = held.next) held.tensor?.dispose();
    this.#saved = null;
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
