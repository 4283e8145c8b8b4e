/** One layer of any kind with random branches of any variant, whose law is to be tried. */
import fc from 'fast-check';
import { fullConfig, LoraConv, LoraLinear } from '../../src/lora/index.js';
import { LoraEmbedding, mergedWeight } from '../../src/lora/layer.js';
import { variantOn } from '../../src/lora/variants/index.js';
import { Conv1D, Conv1d, Conv2d, Embedding, Linear } from '../../src/nn/index.js';
import { embedding } from '../../src/ops/index.js';
import type { Backend } from '../../src/tensor/backend.js';
import { tensor } from '../../src/tensor/create.js';
import { normal, uniform } from '../../src/tensor/random.js';
import { numel } from '../../src/tensor/shape.js';
import type { Tensor } from '../../src/tensor/tensor.js';
import type { Dtype } from './random-configs.js';

const dtypes = fc.constantFrom('f32' as const, 'bf16' as const, 'f16' as const);
const seeds = fc.integer({ min: 0, max: 2 ** 31 });

const KINDS = ['linear', 'conv1d', 'embedding', 'taps 1', 'taps 2'] as const;

export const layerCases = fc.record({
  seed: seeds,
  kind: fc.constantFrom(...KINDS),
  how: fc.constantFrom('lora', 'dora', 'bias of B', 'parts'),
  scaling: fc.constantFrom('lora' as const, 'rslora' as const),
  dtype: dtypes,
  inF: fc.integer({ min: 1, max: 18 }),
  third: fc.integer({ min: 1, max: 9 }),
  ranks: fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 3 }),
  weights: fc.array(fc.double({ min: -2, max: 2, noNaN: true }), { minLength: 3, maxLength: 3 }),
});
export type LayerCase = typeof layerCases extends fc.Arbitrary<infer T> ? T : never;

/** A wrapped layer with a random branch for each rank, all active, and an input of it. */
export function layerCase(backend: Backend, s: LayerCase) {
  let stream = 0;
  const random = (shape: readonly number[], size: number, dtype: Dtype = 'f32') =>
    tensor(
      normal({ seed: s.seed, stream: stream++ }, numel(shape)).map((z) => size * z),
      shape,
      { backend, dtype },
    );
  const outF = 3 * s.third;
  const bias = random([outF], 0.4);
  const wrap = () => {
    const w = (...shape: number[]) => random(shape, 0.4, s.dtype);
    if (s.kind === 'embedding') return new LoraEmbedding(new Embedding(w(s.inF, outF)), 'l');
    if (s.kind === 'linear') return new LoraLinear(new Linear(w(outF, s.inF), bias), 'l');
    if (s.kind === 'conv1d') return new LoraLinear(new Conv1D(w(s.inF, outF), bias), 'l');
    if (s.kind === 'taps 1') return new LoraConv(new Conv1d(w(outF, s.inF, 3), bias), 'l');
    return new LoraConv(new Conv2d(w(outF, s.inF, 2, 3), bias, { padding: 1 }), 'l');
  };
  const layer = wrap();
  const dense = layer instanceof LoraLinear;
  const configs = s.ranks.map((rank) =>
    fullConfig({
      rank,
      alpha: 1 + (s.seed % 9),
      targetModules: ['l'],
      scaling: s.scaling,
      variant: s.how === 'dora' ? 'dora' : 'lora',
      loraBias: s.how === 'bias of B' && s.kind !== 'embedding',
      enableLora: s.how === 'parts' && dense ? { l: [true, false, true] } : {},
    }),
  );
  configs.forEach((config, i) => {
    const branch = variantOn(layer.site, config).create(layer.site, config, s.seed + i);
    // Away from the start; magnitudes stay near the lengths that the rows have.
    for (const [end, t] of branch.tensors()) {
      const moved = random(t.shape, end.includes('magnitude') ? 0.1 : 0.3).toNumbers();
      const start = t.toNumbers();
      const values = Float32Array.from(moved, (v, k) =>
        end.includes('magnitude') ? (start[k] as number) * (1 + v) : v,
      );
      t.setBytes(new Uint8Array(values.buffer));
    }
    layer.branches.set(String(i), branch);
  });
  layer.active = [...layer.branches.keys()];
  const ids = Int32Array.from(uniform({ seed: s.seed, stream: 98 }, 5), (u) =>
    Math.floor(u * s.inF),
  );
  const inputs: Record<typeof s.kind, () => Tensor> = {
    linear: () => random([3, s.inF], 1),
    conv1d: () => random([3, s.inF], 1),
    embedding: () => tensor(ids, [5], { backend, dtype: 'i32' }),
    'taps 1': () => random([2, s.inF, 5], 1),
    'taps 2': () => random([2, s.inF, 3, 4], 1),
  };
  const x = inputs[s.kind]();
  return { layer, x, configs };
}

export type Layer = ReturnType<typeof layerCase>['layer'];

/** The output of the layer that adapters are merged into, of a dtype. */
export function mergedForward(layer: Layer, x: Tensor, dtype: Dtype): Tensor {
  if (!(layer instanceof LoraEmbedding)) return layer.merged(layer.active, dtype).forward(x);
  const weights = new Map(layer.active.map((name) => [name, 1]));
  return embedding(mergedWeight(layer, weights, dtype), x);
}
