import type { DType } from '../src/tensor/dtype.js';
import type { Shape } from '../src/tensor/shape.js';

/** A tensor of a kernel call. Floats are filled with small numbers, i32 with 0 … below − 1. */
export interface Operand {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly below?: number;
}

/** A kernel call to be timed. */
export interface KernelCall {
  readonly kernel: string;
  /** What tells it from other calls of the kernel. */
  readonly label?: string;
  /** Inputs, then outputs. */
  readonly tensors: readonly Operand[];
  readonly attrs: readonly number[];
  /** Operations, a multiply-add being two; without it only the bytes count. */
  readonly flops?: number;
  /** Bytes read and written, where that is not every tensor once. */
  readonly bytes?: number;
}

/** Sizes of a model's training step. */
export interface ModelShape {
  readonly name: string;
  readonly batch: number;
  readonly time: number;
  readonly channels: number;
  readonly inner: number;
  readonly heads: number;
  readonly keyHeads: number;
  readonly vocab: number;
  readonly rank: number;
}

/** The shapes that are timed: GPT-2-124M and the bundled model, both 4 × 128 tokens. */
export const MODEL_SHAPES: readonly ModelShape[] = [
  {
    name: 'gpt2',
    batch: 4,
    time: 128,
    channels: 768,
    inner: 3072,
    heads: 12,
    keyHeads: 12,
    vocab: 50257,
    rank: 8,
  },
  {
    name: 'bundled',
    batch: 4,
    time: 128,
    channels: 192,
    inner: 512,
    heads: 6,
    keyHeads: 2,
    vocab: 4096,
    rank: 8,
  },
];

/** Rows of logits at a time: the loss computes them in chunks. */
const LOSS_ROWS = 128;

const f32 = (...shape: number[]): Operand => ({ shape, dtype: 'f32' });
const bf16 = (...shape: number[]): Operand => ({ shape, dtype: 'bf16' });
const i32 = (below: number, ...shape: number[]): Operand => ({ shape, dtype: 'i32', below });

/** A call whose tensors are read or written once each. */
function call(
  kernel: string,
  tensors: readonly Operand[],
  attrs: readonly number[] = [],
  more: { label?: string; flops?: number; bytes?: number } = {},
): KernelCall {
  return { kernel, tensors, attrs, ...more };
}

/** Maps, sums, casts and copies. */
function elementwise({ batch, time, channels: c, inner: f }: ModelShape): KernelCall[] {
  const n = batch * time;
  const x = f32(n, c);
  const wide = f32(n, f);
  return [
    call('add', [x, x, x]),
    call('add', [x, f32(c), x], [], { label: 'a row to each' }),
    call('mul', [x, x, x]),
    call('affine', [x, x], [0.5, 1]),
    call('exp', [x, x]),
    call('gelu', [wide, wide], [1]),
    call('gelu.grad', [wide, wide, wide], [1]),
    call('swiglu', [wide, wide, wide]),
    call('swiglu.grad', [wide, wide, wide, wide, wide]),
    call('sum', [x, f32(c)], [0], { label: 'of rows' }),
    call('sum', [x, f32(n)], [1], { label: 'in rows' }),
    call('sumSquares', [wide, f32(1)]),
    call('argmax', [x, i32(c, n)], [1]),
    call('dropout', [x, x], [0.1, 1, 2, 3]),
    call('cast', [wide, bf16(n, f)], [], { label: 'to bf16' }),
    call('cast', [bf16(n, f), wide], [], { label: 'from bf16' }),
    call('accumulate', [x, x], [], { bytes: 3 * n * c * 4 }),
  ];
}

/** Cuts and turns of arrays, tables and their gradients. */
function layout({ batch: b, time: t, channels: c, heads: h, vocab: v }: ModelShape): KernelCall[] {
  const n = b * t;
  const x = f32(n, c);
  const d = c / h;
  const rows = 3 * n * c * 4; // ids are few
  return [
    call('permute', [f32(b, t, h, d), f32(b, h, t, d)], [0, 2, 1, 3]),
    call('permute', [x, f32(c, n)], [1, 0], { label: 'transposed' }),
    call('slice', [f32(n, 3 * c), x], [0, c], { bytes: 2 * n * c * 4 }),
    call('slice.grad', [x, f32(n, 3 * c)], [0, c]),
    call('slice.gradAdd', [x, f32(n, 3 * c)], [0, c], { bytes: rows }),
    call('concat', [x, x, f32(n, 2 * c)], [1]),
    call('embedding', [f32(v, c), i32(v, b, t), f32(b, t, c)], [], { bytes: 2 * n * c * 4 }),
    call('embedding.grad', [i32(v, b, t), f32(b, t, c), f32(v, c)]),
    call('embedding.gradAdd', [i32(v, b, t), f32(b, t, c), f32(v, c)], [], { bytes: rows }),
  ];
}

/** Norms, softmax, losses, rotary positions and attention. */
function rowsAndAttention(shape: ModelShape): KernelCall[] {
  const { batch: b, time: t, channels: c, heads: h, keyHeads: g, vocab: v } = shape;
  const n = b * t;
  const d = c / h;
  const x = f32(n, c);
  const w = f32(c);
  const q = f32(b, t, h, d);
  const k = f32(b, t, g, d);
  const lse = f32(b, h, t);
  const logits = f32(LOSS_ROWS, v);
  const labels = i32(v, LOSS_ROWS);
  const loss = f32(LOSS_ROWS);
  const causal = [0, 1, 1 / Math.sqrt(d), 0, -1];
  const pairs = (b * h * t * (t + 1)) / 2; // a causal query sees half of the keys
  return [
    call('softmax', [x, x]),
    call('softmax.grad', [x, x, x]),
    call('rmsNorm', [x, w, x], [1e-5]),
    call('rmsNorm.gradInput', [x, w, x, x], [1e-5]),
    call('rmsNorm.gradWeight', [x, x, w], [1e-5]),
    call('layerNorm', [x, w, w, x], [1e-5]),
    call('layerNorm.gradInput', [x, w, x, x], [1e-5]),
    call('layerNorm.gradWeight', [x, x, w], [1e-5]),
    call('rope', [q, i32(t, b, t), f32(d / 2), q], [0, 1]),
    call('attention', [q, k, k, q, lse], causal, { flops: 4 * pairs * d }),
    call('attention.grad', [q, k, k, q, lse, q, q, k, k], causal, { flops: 10 * pairs * d }),
    call('crossEntropy', [logits, labels, loss], [-100, 0]),
    call('crossEntropy.grad', [logits, labels, loss, logits], [-100, 0]),
    call('crossEntropy.withGrad', [labels, loss, logits], [-100, 0, 1], {
      bytes: 2 * LOSS_ROWS * v * 4,
    }),
  ];
}

/** Rank-r products as a LoRA layer runs them, merging, and the optimizers' steps. */
function training(shape: ModelShape): KernelCall[] {
  const { batch: b, time: t, channels: c, inner: f, rank: r } = shape;
  const n = b * t;
  const x = f32(n, c);
  const u = f32(n, r);
  const a = f32(r, c);
  const bFactor = f32(c, r);
  const flops = 2 * n * c * r;
  const p = f32(f, c);
  const merge = 2 * c * c * r;
  const three = f32(b, t, c);
  return [
    call('linear', [x, a, u], [], { label: 'x Aᵀ', flops }),
    call('matmul', [u, bFactor, x], [0, 1, 2, 1], { label: '+ s (x Aᵀ) Bᵀ', flops }),
    call('matmul', [x, u, bFactor], [1, 0, 2, 0], { label: 'dB = s dyᵀ u', flops }),
    call('matmul', [x, bFactor, u], [0, 0, 2, 0], { label: 's dy B', flops }),
    call('matmul', [u, x, a], [1, 0, 1, 0], { label: 'dA = (s dy B)ᵀ x', flops }),
    call('addLowRankRows', [three, three, a, bFactor, three], [2, ...Array(b).fill(0)], {
      flops: 2 * flops,
    }),
    call(
      'addLowRankRows.grad',
      [three, three, f32(b, t, r), a, bFactor, three, a, bFactor],
      [1, 2, 1, 1, 1, ...Array(b).fill(0)],
      { flops: 4 * flops },
    ),
    call('mergeLowRank', [f32(c, c), a, bFactor, f32(c, c), i32(2, 1)], [0, 2], { flops: merge }),
    call('lowRankNorms', [f32(c, c), a, bFactor, f32(c)], [0, 2], { flops: merge }),
    call('adamw', [p, p, p, p], [1e-3, 0.9, 0.999, 1e-8, 0.01, 3, 1], { bytes: 7 * f * c * 4 }),
    call('sgd', [p, p, p], [1e-3, 0.9, 0, 1, 0], { bytes: 5 * f * c * 4 }),
  ];
}

/** Every kernel family at a model's shapes; dense products are gemm.bench.ts's. */
export function kernelCalls(shape: ModelShape): KernelCall[] {
  return [...elementwise(shape), ...layout(shape), ...rowsAndAttention(shape), ...training(shape)];
}
