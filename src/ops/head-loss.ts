import { defineOp, type Meta, type Sample } from '../autograd/index.js';
import type { Backend, KernelTensor } from '../tensor/backend.js';
import { computeDType, type DType, dtypeBytes } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { Tensor } from '../tensor/tensor.js';
import { sum } from './broadcast.js';
import { mul, scale } from './elementwise.js';
import { linear } from './matmul.js';
import { crossEntropy } from './softmax.js';

interface HeadLossAttrs {
  /** Multiplies the sum. */
  readonly factor: number;
  readonly ignoreIndex: number;
  /** Rows whose logits exist at a time. */
  readonly chunkRows: number;
}

/**
 * Bytes that the logits of a chunk take at most, if a row is not larger. Each chunk reads the whole
 * head twice, so that a few large ones cost less time than many small ones.
 */
const CHUNK_BYTES = 50 * 2 ** 20;

/** Rows of each chunk: as few chunks as fit the bytes, all alike. The same for any thread count. */
function rowsOfChunk(rows: number, vocabulary: number): number {
  const most = Math.max(1, Math.floor(CHUNK_BYTES / (4 * Math.max(1, vocabulary))));
  return Math.max(1, Math.ceil(rows / Math.ceil(rows / most)));
}

/** Rows from … to − 1 of a tensor [N] or [N, C]. */
function rowsOf(t: Tensor, from: number, to: number): KernelTensor {
  const [, ...rest] = t.shape;
  const row = rest.reduce((n, d) => n * d, dtypeBytes(t.dtype));
  return {
    storage: t.storage,
    byteOffset: t.byteOffset + from * row,
    dtype: t.dtype,
    shape: [to - from, ...rest],
  };
}

/** The losses of all rows, and the gradients that are asked for, a chunk of logits at a time. */
class ChunkedHead {
  readonly losses: Tensor;
  readonly dHidden: Tensor | null;
  readonly dWeight: Tensor | null;
  readonly #backend: Backend;
  readonly #dtype: DType;

  constructor(
    readonly hidden: Tensor,
    readonly weight: Tensor,
    readonly labels: Tensor,
    readonly attrs: HeadLossAttrs,
    needs: readonly boolean[],
  ) {
    const backend = hidden.backend;
    this.#backend = backend;
    this.#dtype = computeDType([hidden.dtype, weight.dtype]);
    this.losses = Tensor.empty(backend, labels.shape, this.#dtype);
    this.dHidden = needs[0] ? Tensor.empty(backend, hidden.shape, this.#dtype) : null;
    this.dWeight = needs[1] ? Tensor.empty(backend, weight.shape, this.#dtype) : null;
  }

  run(): void {
    const { hidden, weight, attrs, dWeight } = this;
    const [N, V] = [hidden.shape[0] as number, weight.shape[0] as number];
    const rows = Math.min(attrs.chunkRows, N);
    const logits = Tensor.empty(this.#backend, [rows, V], this.#dtype, 'workspace');
    if (dWeight && N === 0) this.#backend.run('fill', [dWeight], [0]);
    for (let from = 0; from < N; from += rows) {
      this.#chunk(from, Math.min(from + rows, N), logits);
    }
  }

  #chunk(from: number, to: number, buffer: Tensor): void {
    const { weight, dHidden, dWeight, attrs } = this;
    const backend = this.#backend;
    const [h, labels] = [rowsOf(this.hidden, from, to), rowsOf(this.labels, from, to)];
    const logits = rowsOf(buffer, 0, to - from);
    const losses = rowsOf(this.losses, from, to);
    const settings = [attrs.ignoreIndex, 0];
    backend.run('linear', [h, weight, logits], []);
    if (!dHidden && !dWeight) {
      backend.run('crossEntropy', [logits, labels, losses], settings);
      return;
    }
    // The gradient takes the logits' place.
    const factor = attrs.factor;
    backend.run('crossEntropy.withGrad', [labels, losses, logits], [...settings, factor]);
    if (dHidden) backend.run('matmul', [logits, weight, rowsOf(dHidden, from, to)], [0, 0, 1, 0]);
    if (dWeight) backend.run('matmul', [logits, h, dWeight], [1, 0, 1, from > 0 ? 1 : 0]);
  }
}

function sample(
  label: string,
  [N, C, V]: readonly [number, number, number],
  labels: readonly number[],
  chunkRows: number,
): Sample<HeadLossAttrs> {
  return {
    label,
    inputs: [{ shape: [N, C] }, { shape: [V, C] }, { shape: [N], values: labels, dtype: 'i32' }],
    attrs: { factor: 0.25, ignoreIndex: -100, chunkRows },
  };
}

const headLossOp = defineOp<HeadLossAttrs>({
  name: 'headLoss',
  infer: ([hidden, weight, labels]) => {
    const h = hidden as Meta;
    const w = weight as Meta;
    const y = labels as Meta;
    const [N, C] = h.shape;
    const fits =
      h.shape.length === 2 &&
      w.shape.length === 2 &&
      w.shape[1] === C &&
      y.shape.length === 1 &&
      y.shape[0] === N;
    if (!fits || y.dtype !== 'i32') {
      throw failure(
        'headLoss',
        'hidden states [N, C], a head [V, C] and i32 labels [N]',
        `${shapeText(h.shape)}, ${shapeText(w.shape)} and ${y.dtype} ${shapeText(y.shape)}`,
      );
    }
    return [{ shape: [], dtype: computeDType([h.dtype, w.dtype]) }];
  },
  forward: ([hidden, weight, labels], attrs, needs) => {
    const head = new ChunkedHead(
      hidden as Tensor,
      weight as Tensor,
      labels as Tensor,
      attrs,
      needs,
    );
    head.run();
    const kept = [head.dHidden, head.dWeight].filter((t) => t !== null);
    return { output: scale(sum(head.losses), attrs.factor), kept };
  },
  // loss = f·Σ ce(h wᵀ): with P = f·(softmax − onehot), dh = P w and dw = Pᵀ h, both from forward
  backward: ({ grad, unit, needs, kept }) => {
    let at = 0;
    const [dHidden, dWeight] = [0, 1].map((i) => {
      if (!needs[i]) return null;
      const d = kept(at++);
      return unit ? d.alias() : mul(d, grad);
    }) as [Tensor | null, Tensor | null];
    return [dHidden, dWeight, null];
  },
  composed: ([hidden, weight, labels], { factor, ignoreIndex }) => {
    const logits = linear(hidden as Tensor, weight as Tensor);
    const options = { ignoreIndex, reduction: 'sum' } as const;
    return scale(crossEntropy(logits, labels as Tensor, options), factor);
  },
  samples: [
    sample('odd, two chunks and a rest', [5, 3, 7], [6, 0, -100, 2, 2], 2),
    sample('one chunk', [3, 5, 37], [36, -100, 11], 3),
    sample('one', [1, 1, 1], [0], 4),
    sample('all ignored', [2, 3, 5], [-100, -100], 1),
    sample('empty', [0, 3, 5], [], 2),
  ],
});

/** Settings of {@link headLoss}. */
export interface HeadLossOptions {
  /** Multiplies the sum of the losses: 1 / their number, for a mean. Default 1. */
  readonly factor?: number;
  /** Rows with this label count nothing. Default −100. */
  readonly ignoreIndex?: number;
}

/**
 * factor · Σ cross-entropy of labels under softmax(hidden weightᵀ), in nats, without the logits
 * [N, V]: a chunk of rows has them at a time, and where gradients will be needed they are computed
 * with the chunk and kept in the logits' place.
 * @param hidden [N, C]
 * @param weight of the head, [V, C]
 * @param labels i32 [N], each in 0 … V − 1 or the ignore index
 * @returns one element
 */
export function headLoss(
  hidden: Tensor,
  weight: Tensor,
  labels: Tensor,
  options: HeadLossOptions = {},
): Tensor {
  const { factor = 1, ignoreIndex = -100 } = options;
  const chunkRows = rowsOfChunk(hidden.shape[0] ?? 0, weight.shape[0] ?? 0);
  return headLossOp([hidden, weight, labels], { factor, ignoreIndex, chunkRows })[0] as Tensor;
}
