import { noGrad, scope } from '../autograd/index.js';
import { cast, slice, transpose } from '../ops/index.js';
import { tensor } from '../tensor/create.js';
import { failure, shapeText } from '../tensor/errors.js';
import { Tensor } from '../tensor/tensor.js';
import { type Reflectors, reflect } from './householder.js';
import { dot, Matrix } from './matrix.js';

/** Columns reduced together: narrow ones cost little outside matmul, wide ones feed it. */
const PANEL = 64;

/** A block of reflectors I − V T Vᵀ. */
interface Block {
  /** First column it reduces. */
  readonly from: number;
  /** Vᵀ [width, m]. */
  readonly vt: Tensor;
  /** T [width, width], upper triangular. */
  readonly t: Tensor;
}

/** Rows `from` … `to` of a matrix, over the same memory. */
function rowsOf(x: Tensor, from: number, to: number): Tensor {
  const width = x.shape[1] as number;
  const at = x.byteOffset + from * width * 4;
  return new Tensor(x.storage.retain(), [to - from, width], x.dtype, at);
}

/** x −= (x V) T Vᵀ, or with Tᵀ, in place. @param x rows to be reflected, [.., m] */
function reflectRows(x: Tensor, { vt, t }: Block, transT: boolean): void {
  const [rows, width] = [x.shape[0] as number, vt.shape[0] as number];
  if (rows === 0) return;
  const { backend } = x;
  scope(() => {
    const xv = Tensor.empty(backend, [rows, width], 'f32', 'workspace');
    const xvt = Tensor.empty(backend, [rows, width], 'f32', 'workspace');
    backend.run('matmul', [x, vt, xv], [0, 1, 1, 0]);
    backend.run('matmul', [xv, t, xvt], [0, transT ? 1 : 0, 1, 0]);
    backend.run('matmul', [xvt, vt, x], [0, 0, -1, 1]);
  });
}

/** V rounded to f32 and T of exactly those reflectors, so that the block is orthogonal. */
function blockOf(
  { packed, tau: taus }: Reflectors,
  from: number,
  m: number,
  backend: Tensor['backend'],
) {
  const width = Math.min(packed.rows, packed.cols);
  const v = new Float64Array(width * m);
  for (let j = 0; j < width; j++) {
    v[j * m + from + j] = 1;
    for (let i = j + 1; i < packed.rows; i++) {
      v[j * m + from + i] = Math.fround(packed.at(i, j));
    }
  }
  // T's column j: −τⱼ T (Vᵀ vⱼ) above the diagonal, τⱼ on it (Schreiber and Van Loan).
  const t = new Float64Array(width * width);
  for (let j = 0; j < width; j++) {
    const length = dot(v, j * m, v, j * m, m);
    const tau = taus[j] === 0 ? 0 : 2 / length;
    const overlaps = Array.from({ length: j }, (_, i) => dot(v, i * m, v, j * m, m));
    for (let i = 0; i < j; i++) {
      let sum = 0;
      for (let k = i; k < j; k++) sum += (t[i * width + k] as number) * (overlaps[k] as number);
      t[i * width + j] = -tau * sum;
    }
    t[j * width + j] = tau;
  }
  const options = { backend, purpose: 'workspace' } as const;
  return {
    from,
    vt: tensor(Float32Array.from(v), [width, m], options),
    t: tensor(Float32Array.from(t), [width, width], options),
  };
}

/**
 * Reduces the columns of a matrix that is given transposed; `at` becomes Rᵀ (lower trapezoid).
 * @param at Aᵀ [n, m], f32, overwritten
 */
function reduce(at: Tensor): Block[] {
  const [n, m] = at.shape as [number, number];
  const k = Math.min(m, n);
  const blocks: Block[] = [];
  for (let from = 0; from < k; from += PANEL) {
    const to = Math.min(from + PANEL, k);
    const rows = rowsOf(at, from, to);
    const values = rows.toArray() as Float32Array;
    const panel = new Matrix(m - from, to - from);
    for (let j = 0; j < to - from; j++) {
      for (let i = from; i < m; i++) {
        panel.data[j * (m - from) + i - from] = values[j * m + i] as number;
      }
    }
    if (!panel.data.every(Number.isFinite)) {
      throw failure('qr', 'finite numbers', `NaN or Inf in ${shapeText([m, n])}`);
    }
    const reflectors = reflect(panel);
    for (let j = 0; j < to - from; j++) {
      for (let i = 0; i <= j; i++) values[j * m + from + i] = panel.at(i, j);
      values.fill(0, j * m + from + j + 1, (j + 1) * m);
    }
    rows.setBytes(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    const block = blockOf(reflectors, from, m, at.backend);
    // Aᵀ Qᵀᵀ: the columns still to be reduced, and those beyond a wide matrix's k.
    reflectRows(rowsOf(at, to, n), block, false);
    blocks.push(block);
  }
  return blocks;
}

/** Qᵀ [k, m] of a reduction: the blocks from the last to the first, on the identity's rows. */
function formQ(blocks: readonly Block[], k: number, m: number, backend: Tensor['backend']) {
  const eye = new Float32Array(k * m);
  for (let i = 0; i < k; i++) eye[i * m + i] = 1;
  const qt = tensor(eye, [k, m], { backend });
  for (const block of [...blocks].reverse()) reflectRows(rowsOf(qt, block.from, k), block, true);
  return qt;
}

/** Qᵀ [k, m] and Rᵀ [n, k] of A, given Aᵀ [n, m]; f32. */
export function qrOfTransposed(at: Tensor): { qt: Tensor; rt: Tensor } {
  const [n, m] = at.shape as [number, number];
  const k = Math.min(m, n);
  return noGrad(() =>
    scope(() => {
      const work = Tensor.empty(at.backend, at.shape, 'f32');
      at.backend.run('cast', [at, work], []);
      const blocks = reduce(work);
      return { qt: formQ(blocks, k, m, at.backend), rt: slice(work, 1, 0, k) };
    }),
  );
}

/**
 * A = Q R by blocked Householder reflections: panels in doubles, everything else through the
 * backend's matmul. Signs as LAPACK's, f32 results, ‖QᵀQ − I‖ about 10⁻⁶.
 * @param a [m, n], floats
 * @returns Q [m, k] with orthonormal columns and R [k, n] upper triangular, k = min(m, n)
 * @throws on NaN and Inf
 */
export function qr(a: Tensor): { q: Tensor; r: Tensor } {
  checkMatrix('qr', a);
  return noGrad(() =>
    scope(() => {
      const { qt, rt } = qrOfTransposed(transpose(cast(a, 'f32')));
      return { q: transpose(qt), r: transpose(rt) };
    }),
  );
}

export function checkMatrix(where: string, a: Tensor): void {
  a.check(where);
  if (a.shape.length !== 2 || !a.isFloat || a.size === 0) {
    throw failure(where, 'a matrix of floats', `${a.dtype} ${shapeText(a.shape)}`);
  }
}
