/** Random adapters without a model, for tests. */
import fc from 'fast-check';
import { Matrix } from '../../src/linalg/index.js';
import {
  type Adapter,
  type AdapterModule,
  leftFactor,
  rightFactor,
} from '../../src/lora/algebra/index.js';
import { normal, streamOf } from '../../src/tensor/random.js';

/** Sizes of a layer by its path: [out, in]. */
export type Layers = Readonly<Record<string, readonly [number, number]>>;

export const LAYERS: Layers = {
  'model.layers.0.self_attn.q_proj': [12, 10],
  'model.layers.0.mlp.down_proj': [10, 17],
  'model.layers.1.self_attn.q_proj': [12, 10],
  'model.layers.1.mlp.down_proj': [10, 17],
};

/** An adapter of random factors; its settings name its layers by their last names. */
export function randomAdapter(seed: number, rank: number, alpha: number, layers = LAYERS): Adapter {
  const modules = new Map<string, AdapterModule>();
  for (const [path, [outFeatures, inFeatures]] of Object.entries(layers)) {
    const values = (name: string, count: number) =>
      Float32Array.from(normal({ seed, stream: streamOf(path + name) }, count));
    modules.set(path, {
      kind: 'linear',
      a: values('A', rank * inFeatures),
      b: values('B', outFeatures * rank),
      rank,
      inFeatures,
      outFeatures,
      scaling: alpha / rank,
    });
  }
  const names = new Set(Object.keys(layers).map((p) => p.split('.').at(-1) as string));
  const config = {
    peft_type: 'LORA',
    r: rank,
    lora_alpha: alpha,
    target_modules: [...names],
    task_type: 'CAUSAL_LM',
  };
  return { config, modules, extras: new Map() };
}

/** ΔW of a layer, formed. */
export function deltaOf(adapter: Adapter, path: string): Matrix {
  const m = adapter.modules.get(path);
  if (!m) throw new Error(`no layer ${path}`);
  return leftFactor(m).times(rightFactor(m).transposed());
}

/** Σ wᵢ mᵢ */
export function sumOf(terms: readonly (readonly [number, Matrix])[]): Matrix {
  const [, first] = terms[0] as readonly [number, Matrix];
  const out = new Matrix(first.rows, first.cols);
  for (const [w, m] of terms) {
    m.data.forEach((x, i) => {
      out.data[i] = (out.data[i] as number) + w * x;
    });
  }
  return out;
}

/** ‖a − b‖_F over the larger norm. */
export function relative(a: Matrix, b: Matrix): number {
  const size = Math.max(a.norm(), b.norm());
  const difference = sumOf([
    [1, a],
    [-1, b],
  ]).norm();
  return size === 0 ? 0 : difference / size;
}

/** The largest relative difference of two adapters' updates over all layers of the first. */
export function apart(a: Adapter, b: Adapter): number {
  return Math.max(...[...a.modules.keys()].map((p) => relative(deltaOf(a, p), deltaOf(b, p))));
}

/** A pair of random adapters of the same layers. */
export const pairs = fc.record({
  seed: fc.integer({ min: 0, max: 2 ** 30 }),
  ranks: fc.tuple(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 6 })),
  alphas: fc.tuple(fc.integer({ min: 1, max: 32 }), fc.integer({ min: 1, max: 32 })),
  // Hundredths: the square of a weight of 1e-160 is no number that a norm could be told by.
  weights: fc
    .tuple(fc.integer({ min: -200, max: 200 }), fc.integer({ min: -200, max: 200 }))
    .map(([a, b]): [number, number] => [a / 100, b / 100]),
});

/** Checks a law over pairs of adapters; a failure prints seed and path to run it again. */
export function forPairs(
  runs: number,
  law: (a: Adapter, b: Adapter, weights: readonly [number, number], seed: number) => void,
): void {
  fc.assert(
    fc.property(pairs, ({ seed, ranks, alphas, weights }) => {
      const [a, b] = [0, 1].map((i) =>
        randomAdapter(seed + i, ranks[i] as number, alphas[i] as number),
      ) as [Adapter, Adapter];
      law(a, b, weights, seed);
    }),
    { numRuns: runs, verbose: 1 },
  );
}
