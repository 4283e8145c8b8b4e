import type { Backend } from '../tensor/backend.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import type { GraphNode } from '../tensor/tensor.js';
import { Tensor } from '../tensor/tensor.js';
import { checkGradient, LeafNode, type Meta, OpNode } from './graph.js';
import { noGrad } from './mode.js';
import { type BackwardContext, runKernel } from './op.js';
import { scope } from './scope.js';

/** The nodes behind `root`, newest first: a node comes before everything it was computed from. */
function walkOrder(root: OpNode): OpNode[] {
  const seen = new Set<GraphNode>([root]);
  const order: OpNode[] = [];
  const stack: OpNode[] = [root];
  for (let node = stack.pop(); node; node = stack.pop()) {
    order.push(node);
    for (const p of node.parents) {
      if (p instanceof OpNode && !seen.has(p)) {
        seen.add(p);
        stack.push(p);
      }
    }
  }
  return order.sort((a, b) => b.id - a.id);
}

/** a + b, into a where nobody else holds its storage. Both are consumed. */
function add(a: Tensor, b: Tensor): Tensor {
  if (a.storage.refs === 1 && a.dtype === b.dtype) {
    a.backend.run('accumulate', [b, a], []);
    b.dispose();
    return a;
  }
  const [sum] = runKernel(a.backend, 'add', [a, b], [{ shape: a.shape, dtype: a.dtype }]);
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
  if (grad.storage.refs > 1 || grad.byteOffset > 0 || grad.byteLength !== grad.storage.bytes) {
    own = Tensor.empty(grad.backend, grad.shape, grad.dtype);
    grad.backend.run('copy', [grad, own], []);
    grad.dispose();
  }
  own.storage.retag('gradient');
  leaf.grad = own.keep();
}

/** The gradient that input `i` of a node has so far, if nothing else holds it. */
function earlierOf(
  { parents, inputs }: OpNode,
  i: number,
  pending: ReadonlyMap<GraphNode, Tensor>,
): Tensor | null {
  const parent = parents[i];
  if (!parent || parents.indexOf(parent) !== parents.lastIndexOf(parent)) return null;
  const found = parent instanceof LeafNode ? parent.grad : pending.get(parent);
  if (!found || found.storage.refs > 1) return null;
  return sameShape(found.shape, (inputs[i] as Meta).shape) ? found : null;
}

/** The gradients of one node's inputs, held by the scope around. */
function gradientsOf(
  node: OpNode,
  grad: Tensor,
  pending: ReadonlyMap<GraphNode, Tensor>,
  unit: boolean,
): (Tensor | null)[] {
  const { spec } = node;
  const needs = node.parents.map((p) => p !== null);
  node.checkUnspent();
  const ctx: BackwardContext<unknown> = {
    grad,
    unit,
    attrs: node.attrs,
    inputs: node.inputs,
    needs,
    input: (i) => node.saved('input', i),
    output: (i) => node.saved('output', i),
    kept: (i) => node.saved('kept', i),
    earlier: (i) => earlierOf(node, i, pending),
  };
  return scope(() => {
    const made = (spec.backward as NonNullable<typeof spec.backward>)(ctx);
    return needs.map((need, i) => {
      if (!need) return null;
      const g = made[i];
      if (!g) throw failure(`backward of ${spec.name}`, `a gradient of input ${i}`, 'none');
      checkGradient(`backward of ${spec.name}`, g, (node.inputs[i] as Meta).shape);
      // A gradient that is the upstream one itself, or stands twice, gets a tensor of its own.
      return g === grad || made.indexOf(g) !== i ? g.alias() : g;
    });
  });
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
      const start = seed ? seed.alias() : ones(loss.backend, loss);
      if (root instanceof LeafNode) accumulate(root, start);
      else walk(root as OpNode, start, !seed);
    }),
  );
}

function ones(backend: Backend, like: Tensor): Tensor {
  const t = Tensor.empty(backend, like.shape, like.dtype);
  backend.run('fill', [t], [1]);
  return t;
}

/** @param unit whether `start` is 1 */
function walk(root: OpNode, start: Tensor, unit: boolean): void {
  const pending = new Map<GraphNode, Tensor>([[root, start]]);
  try {
    for (const node of walkOrder(root)) {
      const grad = pending.get(node);
      if (!grad) continue;
      pending.delete(node);
      let grads: (Tensor | null)[];
      try {
        grads = gradientsOf(node, grad, pending, unit && node === root);
      } finally {
        grad.dispose();
      }
      node.freeSaved();
      node.parents.forEach((parent, i) => {
        const g = grads[i];
        if (!parent || !g) return;
        if (parent instanceof LeafNode) {
          if (parent.grad === g) g.storage.version++;
          else accumulate(parent, g);
        } else {
          const earlier = pending.get(parent);
          if (earlier === g) return;
          pending.set(parent, earlier ? add(earlier, g) : g);
        }
      });
    }
  } finally {
    for (const t of pending.values()) t.dispose();
  }
}
