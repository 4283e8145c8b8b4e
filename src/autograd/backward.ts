import type { Backend } from '../tensor/backend.js';
import { computeDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { pushTracker } from '../tensor/lifetime.js';
import { sameShape } from '../tensor/shape.js';
import { type Meta, Tensor } from '../tensor/tensor.js';
import { checkGradient, LeafNode, OpNode } from './graph.js';
import { noGrad } from './mode.js';
import { type BackwardContext, runKernel } from './op.js';
import { endScope, scope } from './scope.js';

/** Walks so far; each marks the nodes it has seen with its number. */
let walks = 0;

/** The nodes behind `root`, newest first: a node comes before everything it was computed from. */
function walkOrder(root: OpNode): OpNode[] {
  const walk = ++walks;
  const order: OpNode[] = [];
  const stack: OpNode[] = [root];
  let oldest = root.id;
  root.seenBy = walk;
  for (let node = stack.pop(); node; node = stack.pop()) {
    order.push(node);
    if (node.id < oldest) oldest = node.id;
    const { parents } = node;
    for (let i = 0; i < parents.length; i++) {
      const p = parents[i];
      if (p instanceof OpNode && p.seenBy !== walk) {
        p.seenBy = walk;
        stack.push(p);
      }
    }
  }
  return newestFirst(order, root.id, root.id - oldest + 1);
}

/** Sorted by falling id: each in its own place where their ids lie close together. */
function newestFirst(nodes: OpNode[], newest: number, span: number): OpNode[] {
  if (span > 8 * nodes.length) return nodes.sort((a, b) => b.id - a.id);
  const places = new Array<OpNode | null>(span).fill(null);
  for (let i = 0; i < nodes.length; i++) {
    const node = nodes[i] as OpNode;
    places[newest - node.id] = node;
  }
  let at = 0;
  for (let i = 0; i < span; i++) {
    const node = places[i];
    if (node) nodes[at++] = node;
  }
  return nodes;
}

/** a + b, into one that nobody else holds and that is no narrower. Both are consumed. */
function add(a: Tensor, b: Tensor): Tensor {
  if (a.dtype === 'bf16' && b.dtype === 'f32') return add(b, a);
  if (a.storage.refs === 1 && (a.dtype === b.dtype || a.dtype === 'f32')) {
    a.backend.run('accumulate', [b, a], []);
    b.dispose();
    return a;
  }
  const [sum] = runKernel(
    a.backend,
    'add',
    [a, b],
    [{ shape: a.shape, dtype: computeDType([a.dtype, b.dtype]) }],
  );
  a.dispose();
  b.dispose();
  return sum as Tensor;
}

/** Adds a gradient to a leaf; the leaf's buffer is its own and counted as gradient. */
function accumulate(leaf: LeafNode, grad: Tensor): void {
  if (leaf.grad) {
    leaf.grad.backend.run('accumulate', [grad, leaf.grad], []);
    leaf.grad.storage.version++;
    grad.dispose();
    return;
  }
  let own = grad;
  // An activation's gradient may be rounded; that of a parameter is not kept so.
  if (grad.dtype === 'bf16' && leaf.meta.dtype !== 'bf16') {
    own = Tensor.empty(grad.backend, grad.shape, 'f32');
    grad.backend.run('cast', [grad, own], []);
    grad.dispose();
  } else if (
    grad.storage.refs > 1 ||
    grad.byteOffset > 0 ||
    grad.byteLength !== grad.storage.bytes
  ) {
    own = Tensor.empty(grad.backend, grad.shape, grad.dtype);
    grad.backend.run('copy', [grad, own], []);
    grad.dispose();
  }
  own.storage.retag('gradient');
  leaf.grad = own.keep();
}

/**
 * A walk through a graph. It is what every gradient on the way looks at, one node after another:
 * one object for all, as a step has hundreds of nodes.
 */
class Walk implements BackwardContext<unknown> {
  #node: OpNode;
  grad: Tensor;
  unit = false;
  attrs: unknown = undefined;
  inputs: readonly Meta[] = [];
  needs: readonly boolean[] = [];
  // The gradients of the node's inputs.
  readonly #made: (Tensor | null)[] = [];

  /** @param start gradient of `root`, whether or not it is 1 */
  constructor(root: OpNode, start: Tensor) {
    this.#node = root;
    this.grad = start;
  }

  // Gradients take these apart from the context, so that each is bound to it.
  readonly input = (i: number): Tensor => this.#node.saved('input', i);
  readonly output = (i: number): Tensor => this.#node.saved('output', i);
  readonly kept = (i: number): Tensor => this.#node.saved('kept', i);
  readonly earlier = (i: number): Tensor | null => {
    const { parents, inputs } = this.#node;
    const parent = parents[i];
    if (!parent || parents.indexOf(parent) !== parents.lastIndexOf(parent)) return null;
    const found = parent instanceof OpNode ? parent.pending : parent.grad;
    if (!found || found.storage.refs > 1) return null;
    return sameShape(found.shape, (inputs[i] as Meta).shape) ? found : null;
  };

  /** Takes a node's gradient to its parents. @param unit whether it is known to be 1 */
  pass(node: OpNode, grad: Tensor, unit: boolean): void {
    this.#node = node;
    this.grad = grad;
    this.unit = unit;
    this.attrs = node.attrs;
    this.inputs = node.inputs;
    this.needs = node.needs;
    let handed: boolean;
    try {
      handed = this.#gradients();
    } catch (error) {
      grad.dispose();
      throw error;
    }
    if (!handed) grad.dispose();
    node.freeSaved();
    const { parents } = node;
    for (let i = 0; i < parents.length; i++) {
      const parent = parents[i];
      const g = this.#made[i];
      if (!parent || !g) continue;
      if (parent instanceof OpNode) {
        const earlier = parent.pending;
        if (earlier !== g) parent.pending = earlier ? add(earlier, g) : g;
      } else if (parent.grad === g) g.storage.version++;
      else accumulate(parent as LeafNode, g);
    }
  }

  /**
   * The gradients of the node's inputs, held by the scope around. One that is the upstream one
   * itself is handed on once; where it stands again, and so do others, it gets a tensor of its own.
   * @returns whether the upstream one was handed on
   */
  #gradients(): boolean {
    const { grad, needs, inputs } = this;
    const node = this.#node;
    const made = this.#made;
    const { spec } = node;
    node.checkUnspent();
    made.length = 0;
    let handed = false;
    const tracker = pushTracker();
    try {
      const all = (spec.backward as NonNullable<typeof spec.backward>)(this);
      for (let i = 0; i < needs.length; i++) {
        if (!needs[i]) {
          made.push(null);
          continue;
        }
        const g = all[i];
        if (!g) throw failure(`backward of ${spec.name}`, `a gradient of input ${i}`, 'none');
        const { shape } = inputs[i] as Meta;
        if (!sameShape(g.shape, shape)) checkGradient(`backward of ${spec.name}`, g, shape);
        const again = g === grad ? handed : all.indexOf(g) !== i;
        if (g === grad) handed = true;
        made.push(again ? g.alias() : g);
      }
    } catch (error) {
      endScope(tracker, undefined);
      throw error;
    }
    endScope(tracker, made);
    return handed;
  }
}

/**
 * Walks the graph behind `loss` and adds d loss / d leaf to the `grad` of every trainable tensor
 * it was computed from. Saved tensors are freed as the walk passes; the graph can be walked once.
 * @param loss a tensor of one element
 * @param seed the gradient of the loss itself, of its shape; default 1
 * @throws when the loss is not a scalar or depends on nothing trainable
 */
export function backward(loss: Tensor, seed?: Tensor): void {
  loss.check('backward');
  if (!seed && loss.size !== 1) {
    throw failure('backward', 'a loss of one element', shapeText(loss.shape));
  }
  if (seed) checkGradient('backward', seed, loss.shape);
  const root = loss.node;
  if (!root) {
    throw failure(
      'backward',
      'a loss computed from a trainable tensor',
      'a constant',
      'Is every parameter frozen, or was it computed under noGrad()?',
    );
  }
  // The scope holds gradients on their way; those of leaves leave it.
  scope(() =>
    noGrad(() => {
      const start = seed ? seed.alias() : oneLike(loss.backend, loss);
      if (root instanceof LeafNode) accumulate(root, start);
      else walk(root as OpNode, start, !seed);
    }),
  );
}

function oneLike(backend: Backend, like: Tensor): Tensor {
  const t = Tensor.empty(backend, like.shape, like.dtype);
  backend.run('fill', [t], [1]);
  return t;
}

/** @param unit whether `start` is 1 */
function walk(root: OpNode, start: Tensor, unit: boolean): void {
  const order = walkOrder(root);
  const way = new Walk(root, start);
  root.pending = start;
  try {
    for (let i = 0; i < order.length; i++) {
      const node = order[i] as OpNode;
      const grad = node.pending;
      if (!grad) continue;
      node.pending = null;
      way.pass(node, grad, unit && node === root);
    }
  } catch (error) {
    for (const node of order) {
      node.pending?.dispose();
      node.pending = null;
    }
    throw error;
  }
}
