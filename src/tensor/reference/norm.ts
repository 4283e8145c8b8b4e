import { type Call, type Floats, type Kernels, rowsOf } from './call.js';

/** 1 / sqrt(mean x² + eps) of a row. */
function inverseRms(x: Floats, at: number, width: number, eps: number): number {
  let squares = 0;
  for (let i = at; i < at + width; i++) squares += (x[i] as number) * (x[i] as number);
  return 1 / Math.sqrt(squares / width + eps);
}

/** Mean and 1 / sqrt(variance + eps) of a row; the variance is that of the population. */
function moments(x: Floats, at: number, width: number, eps: number): { mean: number; inv: number } {
  let sum = 0;
  for (let i = at; i < at + width; i++) sum += x[i] as number;
  const mean = sum / width;
  let squares = 0;
  for (let i = at; i < at + width; i++) {
    const centred = (x[i] as number) - mean;
    squares += centred * centred;
  }
  return { mean, inv: 1 / Math.sqrt(squares / width + eps) };
}

/** y = x / rms(x) · w. x [.., C], w [C]. */
function rmsNorm(call: Call): void {
  call.counts(3, 1);
  call.expectSame(0, 2);
  const { rows, width } = rowsOf(call, 0);
  call.expectShape(1, [width]);
  const x = call.floats(0);
  const w = call.floats(1);
  const y = call.activations(2);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    const inv = inverseRms(x, at, width, call.attr(0));
    for (let c = 0; c < width; c++) y[at + c] = (x[at + c] as number) * inv * (w[c] as number);
  }
}

/** With r = 1/rms(x): dx = r · (w⊙dy − x · r² · mean(w⊙dy⊙x)). */
function rmsNormGradInput(call: Call): void {
  call.counts(4, 1);
  call.expectSame(0, 2, 3);
  const { rows, width } = rowsOf(call, 0);
  call.expectShape(1, [width]);
  const x = call.floats(0);
  const w = call.floats(1);
  const dy = call.floats(2);
  const dx = call.activations(3);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    const inv = inverseRms(x, at, width, call.attr(0));
    let dot = 0;
    for (let c = 0; c < width; c++) {
      dot += (w[c] as number) * (dy[at + c] as number) * (x[at + c] as number);
    }
    const pull = (inv * inv * dot) / width;
    for (let c = 0; c < width; c++) {
      dx[at + c] = inv * ((w[c] as number) * (dy[at + c] as number) - (x[at + c] as number) * pull);
    }
  }
}

/** dw = Σ over rows of dy ⊙ x / rms(x). */
function rmsNormGradWeight(call: Call): void {
  call.counts(3, 1);
  call.expectSame(0, 1);
  const { rows, width } = rowsOf(call, 0);
  call.expectShape(2, [width]);
  const x = call.floats(0);
  const dy = call.floats(1);
  const sums = new Float64Array(width);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    const inv = inverseRms(x, at, width, call.attr(0));
    for (let c = 0; c < width; c++) {
      sums[c] = (sums[c] as number) + (dy[at + c] as number) * (x[at + c] as number) * inv;
    }
  }
  call.out(2).set(sums);
}

/** y = (x − mean) / sqrt(variance + eps) · w + b. x [.., C], w and b [C]. */
function layerNorm(call: Call): void {
  call.counts(4, 1);
  call.expectSame(0, 3);
  const { rows, width } = rowsOf(call, 0);
  call.expectShape(1, [width]);
  call.expectShape(2, [width]);
  const x = call.floats(0);
  const w = call.floats(1);
  const b = call.floats(2);
  const y = call.activations(3);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    const { mean, inv } = moments(x, at, width, call.attr(0));
    for (let c = 0; c < width; c++) {
      y[at + c] = ((x[at + c] as number) - mean) * inv * (w[c] as number) + (b[c] as number);
    }
  }
}

/** With n = (x − mean)·inv and g = w⊙dy: dx = inv · (g − mean(g) − n · mean(g⊙n)). */
function layerNormGradInput(call: Call): void {
  call.counts(4, 1);
  call.expectSame(0, 2, 3);
  const { rows, width } = rowsOf(call, 0);
  call.expectShape(1, [width]);
  const x = call.floats(0);
  const w = call.floats(1);
  const dy = call.floats(2);
  const dx = call.activations(3);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    const { mean, inv } = moments(x, at, width, call.attr(0));
    let sum = 0;
    let dot = 0;
    for (let c = 0; c < width; c++) {
      const g = (w[c] as number) * (dy[at + c] as number);
      sum += g;
      dot += g * ((x[at + c] as number) - mean) * inv;
    }
    for (let c = 0; c < width; c++) {
      const g = (w[c] as number) * (dy[at + c] as number);
      const n = ((x[at + c] as number) - mean) * inv;
      dx[at + c] = inv * (g - sum / width - (n * dot) / width);
    }
  }
}

/** dw = Σ over rows of dy ⊙ (x − mean) / sqrt(variance + eps). */
function layerNormGradWeight(call: Call): void {
  call.counts(3, 1);
  call.expectSame(0, 1);
  const { rows, width } = rowsOf(call, 0);
  call.expectShape(2, [width]);
  const x = call.floats(0);
  const dy = call.floats(1);
  const sums = new Float64Array(width);
  for (let r = 0; r < rows; r++) {
    const at = r * width;
    const { mean, inv } = moments(x, at, width, call.attr(0));
    for (let c = 0; c < width; c++) {
      const n = ((x[at + c] as number) - mean) * inv;
      sums[c] = (sums[c] as number) + (dy[at + c] as number) * n;
    }
  }
  call.out(2).set(sums);
}

export const normKernels: Kernels = {
  rmsNorm,
  'rmsNorm.gradInput': rmsNormGradInput,
  'rmsNorm.gradWeight': rmsNormGradWeight,
  layerNorm,
  'layerNorm.gradInput': layerNormGradInput,
  'layerNorm.gradWeight': layerNormGradWeight,
};
