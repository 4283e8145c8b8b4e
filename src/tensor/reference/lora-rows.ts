import type { Shape } from '../shape.js';
import { type Call, type Floats, type Kernels, rowsOf } from './call.js';

/** A row of a batch and the adapter that it names; −1 for none. */
type EachRow = (row: number, group: number) => void;

/** Calls `body` for every row of a batch whose adapters are the attributes from `first` on. */
function eachRow(call: Call, first: number, adapters: number, body: EachRow): void {
  const { rows } = rowsOf(call, 0);
  const batch = call.shape(0)[0] ?? 0;
  const groups = Array.from({ length: batch }, (_, b) => call.integer(first + b, -1, adapters - 1));
  for (let row = 0; row < rows; row++) {
    body(row, groups[Math.floor((row * batch) / rows)] as number);
  }
}

/** Σ over `n` of x[at + i·step]·w[from + i·pace]. */
function dot(
  [x, at, step]: readonly [Floats, number, number],
  [w, from, pace]: readonly [Floats, number, number],
  n: number,
): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += (x[at + i * step] as number) * (w[from + i * pace] as number);
  return sum;
}

/** to[at + i·step] += s·w[from + i·pace] for i < n. */
function addTo(
  [to, at, step]: readonly [Floats, number, number],
  s: number,
  [w, from, pace]: readonly [Floats, number, number],
  n: number,
): void {
  for (let i = 0; i < n; i++) {
    to[at + i * step] = (to[at + i * step] as number) + s * (w[from + i * pace] as number);
  }
}

/**
 * z = y + h B_gᵀ with h = s_g·x A_gᵀ for the adapter g of each row of the batch; z = y and h = 0
 * where it has none. y [B, .., O], x [B, .., I], A [r, I] and B [O, r] of each adapter → z and, where
 * it is asked for, h [B, .., R] of the largest rank. Attributes: the scale of each adapter, then the
 * adapter of each row, −1 for none.
 */
function addLowRankRows(call: Call): void {
  const count = call.args.length;
  if (count < 3) throw call.error('y, x, pairs of A and B, z and maybe h', `${count}`);
  const adapters = Math.floor((count - 3) / 2);
  const last = 2 + 2 * adapters;
  call.counts(count, adapters + (call.shape(1)[0] ?? 0));
  call.expectShape(last, call.shape(0));
  const inner = rowsOf(call, 1).width;
  const out = rowsOf(call, 0).width;
  call.expectShape(0, [...call.shape(1).slice(0, -1), out]);
  const factors = Array.from({ length: adapters }, (_, i) => {
    const rank = call.shape(2 + 2 * i)[0] ?? 0;
    call.expectShape(2 + 2 * i, [rank, inner]);
    call.expectShape(3 + 2 * i, [out, rank]);
    const [a, b] = [call.floats(2 + 2 * i), call.floats(3 + 2 * i)];
    return { a, b, rank, scale: call.attr(i) };
  });
  const most = Math.max(0, ...factors.map((f) => f.rank));
  let kept: Floats | null = null;
  if (count > last + 1) {
    call.expectShape(last + 1, [...call.shape(1).slice(0, -1), most]);
    kept = call.out(last + 1).fill(0);
  }
  const [y, x, z] = [call.floats(0), call.floats(1), call.activations(last)];
  z.set(y);
  eachRow(call, adapters, adapters, (row, group) => {
    const factor = factors[group];
    if (!factor) return;
    const { a, b, rank, scale } = factor;
    const h = new Float64Array(rank);
    for (let k = 0; k < rank; k++) {
      h[k] = scale * dot([x, row * inner, 1], [a, k * inner, 1], inner);
    }
    kept?.set(h, row * most);
    for (let o = 0; o < out; o++) {
      const at = row * out + o;
      z[at] = (z[at] as number) + dot([h, 0, 1], [b, o * rank, 1], rank);
    }
  });
}

/** What is wanted of a gradient: nothing, or that it is written; else that it is added. */
const NONE = 0;
const WRITTEN = 1;

/** Elements of a matrix [.., width]. */
interface Matrix {
  readonly data: Floats;
  readonly width: number;
}

/** Takes the tensors of a call one by one; a size of −1 may be any. */
class Tensors {
  #next = 0;
  readonly #outputs: [to: Floats, sum: Float64Array][] = [];
  constructor(private readonly call: Call) {}

  input(shape: Shape): Matrix {
    const i = this.#next++;
    return { data: this.call.floats(i), width: this.#width(i, shape) };
  }

  /** An input that a kernel made. */
  made(shape: Shape): Matrix {
    const { dtype } = this.call.arg(this.#next);
    if (dtype !== 'f32' && dtype !== 'f64') throw this.call.error('h of dtype f32', dtype);
    return this.input(shape);
  }

  /** An output, to be summed in doubles: from zero where it is not added to what is there. */
  output(mode: number, shape: Shape, activations = false): Matrix {
    const i = this.#next++;
    const to = activations ? this.call.activations(i) : this.call.out(i);
    const sum = mode === WRITTEN ? new Float64Array(to.length) : Float64Array.from(to);
    this.#outputs.push([to, sum]);
    return { data: sum, width: this.#width(i, shape) };
  }

  /** Throws unless every tensor was taken. */
  checkTaken(): void {
    this.call.counts(this.#next, -1);
  }

  store(): void {
    for (const [to, sum] of this.#outputs) to.set(sum);
  }

  #width(i: number, shape: Shape): number {
    const own = this.call.shape(i);
    this.call.expectShape(
      i,
      shape.map((d, axis) => (d < 0 ? (own[axis] ?? d) : d)),
    );
    return own[own.length - 1] as number;
  }
}

/** The tensors of a call of the gradients. */
function gradientTensors(call: Call, adapters: number) {
  const modeX = call.integer(1 + adapters, 0, 2);
  const modes = Array.from({ length: adapters }, (_, g) => ({
    a: call.integer(2 + adapters + 2 * g, 0, 2),
    b: call.integer(3 + adapters + 2 * g, 0, 2),
  }));
  const tensors = new Tensors(call);
  const shape = call.shape(0);
  if (shape.length < 2) throw call.error('dy [B, .., O]', `${shape}`);
  call.counts(call.args.length, 2 + 3 * adapters + (shape[0] as number));
  const batch = shape.slice(0, -1);
  const dy = tensors.input(shape);
  const out = dy.width;
  const x = modes.some((m) => m.a !== NONE) ? tensors.input([...batch, -1]) : null;
  const h = modes.some((m) => m.b !== NONE) ? tensors.made([...batch, -1]) : null;
  let inner = x?.width ?? -1;
  const sides = modes.map((m) => {
    const a = modeX !== NONE ? tensors.input([-1, inner]) : null;
    inner = a?.width ?? inner;
    const rank = a ? a.data.length / Math.max(inner, 1) : -1;
    const b = modeX !== NONE || m.a !== NONE ? tensors.input([out, inner > 0 ? rank : -1]) : null;
    return { a, b };
  });
  const dx = modeX !== NONE ? tensors.output(modeX, [...batch, inner], true) : null;
  const grads = modes.map((m, g) => {
    const rank = sides[g]?.b?.width ?? -1;
    const a = m.a !== NONE ? tensors.output(m.a, [rank, inner]) : null;
    const b = m.b !== NONE ? tensors.output(m.b, [out, rank]) : null;
    if (h && b && b.width > h.width) {
      throw call.error('ranks up to h’s', `${b.width} beyond ${h.width}`);
    }
    return { a, b };
  });
  tensors.checkTaken();
  return { dy, x, h, sides, dx, grads, tensors };
}

/**
 * The gradients of addLowRankRows, with dh = s_g·dy B_g: dx = dh A_g, dA_g = dhᵀ x and dB_g = dyᵀ h
 * over the rows of g. Attributes: the number of adapters, their scales, what is wanted of dx, and of
 * dA and dB of each (0 nothing, 1 written, 2 added to what is there), the adapter of each row.
 * Tensors: dy, x where a dA is wanted, h where a dB is; of each adapter A where dx is wanted, and B
 * where dx or its dA is; then the outputs that are wanted: dx; of each adapter dA, dB.
 */
function addLowRankRowsGrad(call: Call): void {
  const adapters = call.integer(0, 0, 2 ** 20);
  const { dy, x, h, sides, dx, grads, tensors } = gradientTensors(call, adapters);
  eachRow(call, 2 + 3 * adapters, adapters, (row, group) => {
    if (group < 0) return;
    const { a, b } = sides[group] as (typeof sides)[number];
    const grad = grads[group] as (typeof grads)[number];
    const upstream = [dy.data, row * dy.width, 1] as const;
    if (grad.b && h) {
      const rank = grad.b.width;
      for (let k = 0; k < rank; k++) {
        const s = h.data[row * h.width + k] as number;
        addTo([grad.b.data, k, rank], s, upstream, dy.width);
      }
    }
    if (!b) return;
    const rank = b.width;
    for (let k = 0; k < rank; k++) {
      const dh = call.attr(1 + group) * dot(upstream, [b.data, k, rank], dy.width);
      if (dx && a) addTo([dx.data, row * dx.width, 1], dh, [a.data, k * dx.width, 1], dx.width);
      if (grad.a && x) {
        addTo([grad.a.data, k * x.width, 1], dh, [x.data, row * x.width, 1], x.width);
      }
    }
  });
  tensors.store();
}

export const loraRowKernels: Kernels = {
  addLowRankRows,
  'addLowRankRows.grad': addLowRankRowsGrad,
};
