import { failure } from '../tensor/errors.js';

/**
 * A small dense matrix of doubles, column-major: column j is `data[j·rows … (j+1)·rows)`. For what
 * must be accurate and is cheap: thin factors and their cores. Products of large matrices belong
 * to the engine's `matmul`.
 */
export class Matrix {
  /** @param data column-major; default zeros */
  constructor(
    readonly rows: number,
    readonly cols: number,
    readonly data: Float64Array = new Float64Array(rows * cols),
  ) {
    if (data.length !== rows * cols) {
      throw failure('Matrix', `${rows * cols} values for [${rows}, ${cols}]`, `${data.length}`);
    }
  }

  /** From row-major values. */
  static fromRows(values: ArrayLike<number>, rows: number, cols: number): Matrix {
    return Matrix.fromColumns(values, cols, rows).transposed();
  }

  /** From column-major values: the rows of a row-major [cols, rows]. */
  static fromColumns(values: ArrayLike<number>, rows: number, cols: number): Matrix {
    return new Matrix(rows, cols, Float64Array.from(values));
  }

  static identity(rows: number, cols = rows): Matrix {
    const out = new Matrix(rows, cols);
    for (let i = 0; i < Math.min(rows, cols); i++) out.data[i * rows + i] = 1;
    return out;
  }

  at(i: number, j: number): number {
    return this.data[j * this.rows + i] as number;
  }

  /** A copy of the first `count` columns. */
  firstColumns(count: number): Matrix {
    return new Matrix(this.rows, count, this.data.slice(0, count * this.rows));
  }

  transposed(): Matrix {
    const { rows, cols, data } = this;
    const out = new Matrix(cols, rows);
    for (let j = 0; j < cols; j++) {
      for (let i = 0; i < rows; i++) out.data[i * cols + j] = data[j * rows + i] as number;
    }
    return out;
  }

  /** this · other */
  times(other: Matrix): Matrix {
    const { rows, cols, data } = this;
    if (cols !== other.rows) {
      throw failure('Matrix', `[${cols}, ..] on the right`, `[${other.rows}, ${other.cols}]`);
    }
    const out = new Matrix(rows, other.cols);
    for (let j = 0; j < other.cols; j++) {
      for (let k = 0; k < cols; k++) {
        addScaled(out.data, j * rows, data, k * rows, other.data[j * cols + k] as number, rows);
      }
    }
    return out;
  }

  /** thisᵀ · other */
  transposedTimes(other: Matrix): Matrix {
    if (this.rows !== other.rows) {
      throw failure('Matrix', `[${this.rows}, ..] on the right`, `[${other.rows}, ${other.cols}]`);
    }
    const out = new Matrix(this.cols, other.cols);
    for (let j = 0; j < other.cols; j++) {
      for (let i = 0; i < this.cols; i++) {
        out.data[j * this.cols + i] = dot(
          this.data,
          i * this.rows,
          other.data,
          j * this.rows,
          this.rows,
        );
      }
    }
    return out;
  }

  /** Every column j multiplied by factors[j], in place. */
  scaleColumns(factors: ArrayLike<number>): this {
    const { rows, data } = this;
    for (let j = 0; j < this.cols; j++) {
      const f = factors[j] as number;
      for (let i = j * rows; i < (j + 1) * rows; i++) data[i] = (data[i] as number) * f;
    }
    return this;
  }

  /** Frobenius norm. */
  norm(): number {
    return Math.sqrt(dot(this.data, 0, this.data, 0, this.data.length));
  }

  /** Rounded to f32, column-major: row-major values of the transpose. */
  toColumns32(): Float32Array {
    return Float32Array.from(this.data);
  }

  /** Rounded to f32, row-major. */
  toRows32(): Float32Array {
    return this.transposed().toColumns32();
  }
}

/** Σ a[aAt + i] b[bAt + i], in four running sums. */
export function dot(
  a: Float64Array,
  aAt: number,
  b: Float64Array,
  bAt: number,
  count: number,
): number {
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  const four = count - (count % 4);
  let i = 0;
  for (; i < four; i += 4) {
    s0 += (a[aAt + i] as number) * (b[bAt + i] as number);
    s1 += (a[aAt + i + 1] as number) * (b[bAt + i + 1] as number);
    s2 += (a[aAt + i + 2] as number) * (b[bAt + i + 2] as number);
    s3 += (a[aAt + i + 3] as number) * (b[bAt + i + 3] as number);
  }
  for (; i < count; i++) s0 += (a[aAt + i] as number) * (b[bAt + i] as number);
  return s0 + s1 + (s2 + s3);
}

/** y[yAt + i] += factor · x[xAt + i] */
export function addScaled(
  y: Float64Array,
  yAt: number,
  x: Float64Array,
  xAt: number,
  factor: number,
  count: number,
): void {
  if (factor === 0) return;
  for (let i = 0; i < count; i++) {
    y[yAt + i] = (y[yAt + i] as number) + factor * (x[xAt + i] as number);
  }
}
