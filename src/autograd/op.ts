import type { Backend } from '../tensor/backend.js';
import { isFloat } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { popTracker, pushTracker } from '../tensor/lifetime.js';
import { sameShape } from '../tensor/shape.js';
import { type Meta, Tensor } from '../tensor/tensor.js';
import { LeafNode, OpNode } from './graph.js';
import { gradEnabled, setRecording } from './mode.js';
import { endScope } from './scope.js';

/** What a gradient may look at. */
export interface BackwardContext<A> {
  /** The gradient of output 0. */
  readonly grad: Tensor;
  /** Whether that is known to be 1, as of the loss itself. */
  readonly unit: boolean;
  readonly attrs: A;
  /** Shape and dtype of every input. */
  readonly inputs: readonly Meta[];
  /** Which inputs need a gradient; the others' entries are ignored and should be null. */
  readonly needs: readonly boolean[];
  /** Input `i` as it was; it must be among the op's `reads`. */
  input(i: number): Tensor;
  /** Output `i` as it was; it must be among the op's `reads`. */
  output(i: number): Tensor;
  /** Tensor `i` of what the op's own `forward` kept. */
  kept(i: number): Tensor;
  /**
   * An earlier gradient of input `i` that this op may add its own to, in place, and then answer as
   * the gradient; null where there is none, or someone else holds it.
   */
  earlier(i: number): Tensor | null;
}

/** What an op answers that runs several kernels. */
export interface Forward {
  readonly output: Tensor;
  /** What its gradients will read, in any order; see {@link BackwardContext.kept}. */
  readonly kept?: readonly Tensor[];
}

/** Which tensors the needed gradients read. */
export interface Reads {
  readonly inputs?: readonly number[];
  readonly outputs?: readonly number[];
}

/** One input of a sample: a shape to be filled with random floats, or given values. */
export interface SampleInput {
  readonly shape: readonly number[];
  /** Given values (indices, masks, or floats that must avoid a kink); else standard normal × scale + shift. */
  readonly values?: readonly number[];
  /** Default f32 (f64 where the table asks for it). */
  readonly dtype?: 'i32' | 'u8';
  readonly scale?: number;
  readonly shift?: number;
}

/** Inputs and attributes on which the op table tries an op. */
export interface Sample<A> {
  /** What it shows, in two or three words. */
  readonly label: string;
  readonly inputs: readonly SampleInput[];
  readonly attrs: A;
}

/**
 * An op: shape rule, kernel, gradient and samples together. Output 0 is differentiable; further
 * outputs are what the gradient wants kept (an index, a log-sum-exp) and are constants.
 */
export interface OpSpec<A> {
  /** The kernel's name too. */
  readonly name: string;
  /** Shapes and dtypes of the outputs; throws on inputs that do not fit. */
  infer(inputs: readonly Meta[], attrs: A): readonly Meta[];
  /** The kernel's attributes; default none. */
  encode?(attrs: A, inputs: readonly Meta[]): readonly number[];
  /**
   * For ops that run several kernels in place of one of their name. It runs outside the graph and
   * in a scope.
   * @param needs which inputs' gradients will be asked for
   * @param outputs what `infer` answered
   */
  forward?(
    inputs: readonly Tensor[],
    attrs: A,
    needs: readonly boolean[],
    outputs: readonly Meta[],
  ): Forward;
  /** For ops that only look at the same elements in another shape. */
  view?(input: Tensor, attrs: A): Tensor;
  /** What the gradients that are needed read; default nothing. */
  reads?(needs: readonly boolean[], attrs: A): Reads;
  /**
   * Output 0 takes little to compute: where another op's gradient reads it, and this op's own
   * gradient keeps the inputs of its size anyway, it is computed again instead of kept.
   */
  readonly cheap?: boolean;
  /**
   * Output 0 from what the op's own `forward` kept, where it takes little to compute; see `cheap`.
   * It runs outside the graph.
   */
  again?(kept: readonly Tensor[], attrs: A): readonly Tensor[];
  /** Gradients of the inputs; null where none is needed. Absent: not differentiable. */
  backward?(ctx: BackwardContext<A>): readonly (Tensor | null)[];
  /** The same result from basic ops: the fallback where a backend lacks the kernel, and the oracle. */
  composed?(inputs: readonly Tensor[], attrs: A): Tensor;
  readonly samples: readonly Sample<A>[];
}

/** A defined op; call it with its inputs and attributes. */
export interface Op<A> {
  (inputs: readonly Tensor[], attrs: A): Tensor[];
  readonly spec: OpSpec<A>;
}

const registry = new Map<string, Op<unknown>>();

/** Every op defined so far, by name; the op table runs over it. */
export function definedOps(): ReadonlyMap<string, Op<unknown>> {
  return registry;
}

/** The one backend of all inputs. */
function backendOf(name: string, inputs: readonly Tensor[]): Backend {
  const { backend } = inputs[0] as Tensor;
  for (let i = 0; i < inputs.length; i++) {
    const t = inputs[i] as Tensor;
    t.check(name);
    if (t.backend !== backend) {
      throw failure(name, `inputs on one backend (${backend.name})`, t.backend.name);
    }
  }
  return backend;
}

const NOTHING: Reads = {};
const NO_TENSORS: readonly Tensor[] = [];
const NO_ATTRS: readonly number[] = [];

function record<A>(
  spec: OpSpec<A>,
  inputs: readonly Tensor[],
  outputs: readonly Tensor[],
  attrs: A,
  own: readonly Tensor[],
  needs: readonly boolean[],
): void {
  const output = outputs[0] as Tensor;
  // Integers have no gradient: what a cast to them answers is a constant.
  if (!spec.backward || !isFloat(output.dtype)) return;
  const count = inputs.length;
  const metas = new Array<Meta>(count);
  const parents = new Array<Tensor['node']>(count);
  for (let i = 0; i < count; i++) {
    const t = inputs[i] as Tensor;
    metas[i] = t.meta;
    parents[i] = t.node;
  }
  const node = new OpNode(spec as OpSpec<unknown>, attrs, metas, parents, needs, output.meta);
  const reads = spec.reads ? spec.reads(needs, attrs) : NOTHING;
  const again = spec.cheap === true && keepsLarge(inputs, output, reads);
  if (again) for (let i = 0; i < count; i++) node.save('input', i, inputs[i] as Tensor);
  else if (reads.inputs) {
    for (let k = 0; k < reads.inputs.length; k++) {
      const i = reads.inputs[k] as number;
      node.save('input', i, inputs[i] as Tensor);
    }
  }
  if (reads.outputs) {
    for (let k = 0; k < reads.outputs.length; k++) {
      const i = reads.outputs[k] as number;
      node.save('output', i, outputs[i] as Tensor);
    }
  }
  for (let i = 0; i < own.length; i++) node.save('kept', i, own[i] as Tensor);
  if (again) {
    const { backend } = output;
    const encoded = spec.encode?.(attrs, inputs);
    const made = [node.output];
    node.remake = () => {
      const from = metas.map((_, i) => node.saved('input', i));
      return runKernel(backend, spec.name, from, made, encoded)[0] as Tensor;
    };
  } else if (spec.again && own.length > 0) {
    const { again: from } = spec;
    const { length } = own;
    node.remake = () => {
      const saved = Array.from({ length }, (_, i) => node.saved('kept', i));
      return from(saved, attrs)[0] as Tensor;
    };
  } else if (spec.view) {
    const source = node.parents[0];
    const { shape } = node.output;
    if (source instanceof OpNode && source.remake) {
      node.remake = () => source.again().alias(shape);
    }
  }
  output.node = node;
}

/** Whether every input of the output's size or more is read by the gradient anyway. */
function keepsLarge(inputs: readonly Tensor[], output: Tensor, { inputs: read }: Reads): boolean {
  for (let i = 0; i < inputs.length; i++) {
    if ((inputs[i] as Tensor).size >= output.size && !read?.includes(i)) return false;
  }
  return true;
}

/** Runs the kernel of an op into new outputs, without recording. */
export function runKernel(
  backend: Backend,
  name: string,
  inputs: readonly Tensor[],
  outputs: readonly Meta[],
  attrs: readonly number[] = NO_ATTRS,
): Tensor[] {
  const given = inputs.length;
  const made = new Array<Tensor>(outputs.length);
  const all = new Array<Tensor>(given + made.length);
  let at = 0;
  try {
    for (let i = 0; i < given; i++) all[i] = inputs[i] as Tensor;
    for (; at < made.length; at++) {
      const { shape, dtype } = outputs[at] as Meta;
      const t = Tensor.empty(backend, shape, dtype);
      made[at] = t;
      all[given + at] = t;
    }
    backend.run(name, all, attrs);
  } catch (error) {
    for (let i = 0; i < at; i++) (made[i] as Tensor).dispose();
    throw error;
  }
  return made;
}

/** The op's own forward in a scope and outside the graph, written out: it runs at most calls. */
function runForward<A>(
  spec: OpSpec<A>,
  inputs: readonly Tensor[],
  attrs: A,
  needs: readonly boolean[],
  outputs: readonly Meta[],
): Forward {
  const tracker = pushTracker();
  const before = setRecording(false);
  let made: Forward;
  try {
    made = (spec.forward as NonNullable<typeof spec.forward>)(inputs, attrs, needs, outputs);
  } catch (error) {
    endScope(tracker, undefined);
    throw error;
  } finally {
    setRecording(before);
  }
  const around = popTracker();
  made.output.handOver(tracker, around);
  if (made.kept) for (const t of made.kept) t.handOver(tracker, around);
  Tensor.disposeAll(tracker);
  return made;
}

/**
 * Defines an op and registers it for the table test. The gradient is recorded only if an input
 * needs one and recording is on; only what the needed gradients read is kept.
 */
export function defineOp<A>(spec: OpSpec<A>): Op<A> {
  if (registry.has(spec.name)) throw failure('defineOp', 'a new name', `"${spec.name}" again`);
  const apply = (inputs: readonly Tensor[], attrs: A): Tensor[] => {
    const backend = backendOf(spec.name, inputs);
    const metas = spec.infer(inputs, attrs);
    const enabled = gradEnabled();
    const needs = new Array<boolean>(inputs.length);
    let recording = false;
    for (let i = 0; i < inputs.length; i++) {
      const need = enabled && (inputs[i] as Tensor).node !== null;
      needs[i] = need;
      if (need) recording = true;
    }
    let outputs: Tensor[];
    let kept = NO_TENSORS;
    if (spec.forward) {
      const made = runForward(spec, inputs, attrs, needs, metas);
      outputs = [made.output];
      kept = made.kept ?? NO_TENSORS;
    } else if (spec.view) outputs = [spec.view(inputs[0] as Tensor, attrs)];
    else if (!backend.kernels.has(spec.name) && spec.composed) {
      return [spec.composed(inputs, attrs)];
    } else {
      outputs = runKernel(backend, spec.name, inputs, metas, spec.encode?.(attrs, inputs));
    }
    if (recording) record(spec, inputs, outputs, attrs, kept, needs);
    for (let i = 0; i < kept.length; i++) (kept[i] as Tensor).dispose();
    return outputs;
  };
  const op = Object.assign(apply, { spec });
  registry.set(spec.name, op as Op<unknown>);
  return op;
}

/** The first output of an op's result; the others are let go (the graph holds what it saved). */
export function first(outputs: readonly Tensor[]): Tensor {
  for (let i = 1; i < outputs.length; i++) (outputs[i] as Tensor).dispose();
  return outputs[0] as Tensor;
}

/**
 * Makes a tensor trainable (a leaf of the graph) or a constant again; its purpose in the memory
 * books follows. Idempotent.
 * @throws for integer tensors, and for results of ops
 */
export function setTrainable(tensor: Tensor, trainable: boolean): Tensor {
  tensor.check('setTrainable');
  if (tensor.node instanceof OpNode) {
    throw failure('setTrainable', 'a tensor that no op computed', 'a result of the graph');
  }
  if (trainable && !tensor.isFloat) throw failure('setTrainable', 'floats', tensor.dtype);
  if (trainable && tensor.node === null) {
    tensor.node = new LeafNode(tensor.meta);
  }
  if (!trainable) {
    clearGradient(tensor);
    tensor.node = null;
  }
  tensor.storage.retag(trainable ? 'trainable' : 'frozen');
  return tensor;
}

/** A tensor over the same elements that the graph does not know. */
export function detach(tensor: Tensor): Tensor {
  return tensor.alias();
}

/** Gives a trainable tensor the gradient of an earlier backward, of its shape; it is not consumed. */
export function setGradient(tensor: Tensor, gradient: Tensor): void {
  if (!(tensor.node instanceof LeafNode) || !sameShape(tensor.shape, gradient.shape)) {
    const received = `${shapeText(gradient.shape)} for ${shapeText(tensor.shape)}`;
    throw failure('setGradient', 'a trainable tensor and a gradient of its shape', received);
  }
  clearGradient(tensor);
  tensor.node.grad = gradient.alias(gradient.shape, false);
}

/** Frees the accumulated gradient of a trainable tensor; the next backward makes a new one. */
export function clearGradient(tensor: Tensor): void {
  if (!(tensor.node instanceof LeafNode)) return;
  tensor.node.grad?.dispose();
  tensor.node.grad = null;
}
