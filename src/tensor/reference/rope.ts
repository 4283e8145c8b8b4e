import { shapeText } from '../errors.js';
import type { Call, Kernels } from './call.js';

/**
 * Rotary position embedding (Su et al., 2021) in Hugging Face's rotate-half layout: the pair
 * (i, i + D′/2) is turned by position · invFreq[i]; channels from D′ on are copied.
 * x [B, T, H, D], positions [B, T], invFreq [D′/2].
 */
function rope(call: Call): void {
  call.counts(4, 2);
  const shape = call.shape(0);
  if (shape.length !== 4) throw call.error('x [B, T, H, D]', shapeText(shape));
  const [batch, time, heads, size] = shape as [number, number, number, number];
  call.expectShape(1, [batch, time]);
  call.expectShape(3, shape);
  const half = call.shape(2)[0] ?? 0;
  if (call.shape(2).length !== 1 || 2 * half > size) {
    throw call.error(`invFreq of at most ${Math.floor(size / 2)}`, shapeText(call.shape(2)));
  }
  const x = call.floats(0);
  const positions = call.ints(1);
  const invFreq = call.floats(2);
  const y = call.activations(3);
  const direction = call.flag(0) ? -1 : 1;
  const factor = call.attr(1);
  const cos = new Float64Array(half);
  const sin = new Float64Array(half);
  for (let t = 0; t < batch * time; t++) {
    for (let i = 0; i < half; i++) {
      const angle = direction * (positions[t] as number) * (invFreq[i] as number);
      cos[i] = Math.cos(angle) * factor;
      sin[i] = Math.sin(angle) * factor;
    }
    for (let h = 0; h < heads; h++) {
      const at = (t * heads + h) * size;
      for (let i = 0; i < half; i++) {
        const first = x[at + i] as number;
        const second = x[at + half + i] as number;
        y[at + i] = first * (cos[i] as number) - second * (sin[i] as number);
        y[at + half + i] = second * (cos[i] as number) + first * (sin[i] as number);
      }
      for (let i = 2 * half; i < size; i++) y[at + i] = x[at + i] as number;
    }
  }
}

export const ropeKernels: Kernels = { rope };
