import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope } from '../src/autograd/index.js';
import { svd } from '../src/linalg/index.js';
import { fullConfig, LoraBranch, LoraLinear } from '../src/lora/index.js';
import { VARIANTS } from '../src/lora/variants/index.js';
import { Conv1D, Linear } from '../src/nn/index.js';
import { add, matmul, mul, scale, slice, sub, sum } from '../src/ops/index.js';
import { AdamW } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';
import { relativeDifference } from './support/tiny.js';

const STEPS = 600;

function random(backend: Backend, shape: number[], stream: number, size = 1, seed = 11): Tensor {
  const values = normal({ seed, stream }, numel(shape));
  return tensor(
    values.map((z) => size * z),
    shape,
    { backend },
  );
}

/** The identity of n rows. */
function identity(backend: Backend, n: number): Tensor {
  const values = Float32Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));
  return tensor(values, [n, n], { backend });
}

/** A change of a layer's weight as x meets it, [in, out], of rank k. */
function changeOf(backend: Backend, inF: number, outF: number, rank: number, seed = 11): Tensor {
  // Singular values apart from each other, so that the nearest matrix of a lower rank is one.
  const strengths = Float32Array.from({ length: rank }, (_, i) => 1.5 - 0.15 * i);
  return scope(() => {
    const { u, vt } = svd(random(backend, [inF, outF], 1, 1, seed));
    const left = mul(slice(u, 1, 0, rank), tensor(strengths, [1, rank], { backend }));
    return matmul(left, slice(vt, 0, 0, rank));
  });
}

/**
 * Trains an adapter of a rank so that the layer answers x (W + T) for every x: on the identity's
 * rows the loss is ‖ΔW − T‖² / (in·out). Answers the last loss.
 */
function trained(backend: Backend, transposed: boolean, target: Tensor, rank: number): number {
  const [inF, outF] = target.shape as [number, number];
  const weight = random(backend, transposed ? [inF, outF] : [outF, inF], 3, 0.5);
  const layer = new LoraLinear(transposed ? new Conv1D(weight, null) : new Linear(weight), 'l');
  const config = fullConfig({ rank, alpha: 2 * rank, targetModules: ['l'] });
  const branch = VARIANTS.lora.create(layer.site, config, 5);
  branch.setTrainable(true);
  layer.branches.set('x', branch);
  layer.active = ['x'];
  const x = identity(backend, inF);
  const wanted = noGrad(() => scope(() => add(target, layer.base.forward(x))));
  const optimizer = new AdamW([{ parameters: branch.tensors() }], { lr: 0.03 });
  let loss = Number.NaN;
  for (let step = 0; step < STEPS; step++) {
    loss = scope(() => {
      const error = sub(layer.forward(x), wanted);
      const mean = scale(sum(mul(error, error)), 1 / target.size);
      backward(mean);
      optimizer.update(step < STEPS / 2 ? 1 : 0.975 ** (step - STEPS / 2));
      optimizer.zeroGrad();
      return mean.item();
    });
  }
  optimizer.dispose();
  layer.dispose();
  for (const t of [x, wanted]) t.dispose();
  return loss;
}

onEachBackend(
  test,
  'training reaches a change of rank k with r ≥ k, and else the nearest of rank r',
  (backend) => {
    for (const [inF, outF, transposed] of [
      [6, 4, false],
      [4, 5, true],
    ] as const) {
      const most = Math.min(inF, outF);
      for (const k of [2, most]) {
        const target = changeOf(backend, inF, outF, k);
        const { s } = svd(target);
        for (const r of new Set([k - 1, k, most])) {
          const loss = trained(backend, transposed, target, r);
          const what = `rank ${r} towards rank ${k} of ${outF} × ${inF}: ${loss}`;
          // Eckart and Young: no matrix of rank r is nearer than √Σ s² of the values beyond r.
          const beyond = s.slice(r).reduce((sum, v) => sum + v * v, 0) / target.size;
          if (r >= k) assert.ok(loss < 1e-6, what);
          else {
            assert.ok(beyond > 1e-2);
            assert.ok(loss > 0.999 * beyond && loss < 1.02 * beyond, `${what}, not ${beyond}`);
          }
        }
        target.dispose();
      }
    }
  },
);

onEachBackend(
  test,
  'a random change of rank k of a random layer is learnt to 1e-6 if and only if r ≥ k',
  (backend) => {
    const cases = fc.record({
      inF: fc.integer({ min: 2, max: 7 }),
      outF: fc.integer({ min: 2, max: 7 }),
      k: fc.nat({ max: 6 }),
      r: fc.nat({ max: 6 }),
      transposed: fc.boolean(),
      seed: fc.nat(),
    });
    fc.assert(
      fc.property(cases, ({ inF, outF, transposed, seed, ...c }) => {
        const most = Math.min(inF, outF);
        const [k, r] = [1 + (c.k % most), 1 + (c.r % most)];
        const target = changeOf(backend, inF, outF, k, seed);
        const loss = trained(backend, transposed, target, r);
        target.dispose();
        assert.is(loss < 1e-6, r >= k, `rank ${r} towards rank ${k} of ${outF} × ${inF}: ${loss}`);
      }),
      { numRuns: 15 },
    );
  },
);

onEachBackend(test, 'at r = min(in, out) there are A and B for every change of W', (backend) => {
  const sizes = fc.integer({ min: 1, max: 24 });
  const alphas = fc.integer({ min: 1, max: 40 });
  fc.assert(
    fc.property(sizes, sizes, alphas, fc.nat(), (inF, outF, alpha, seed) => {
      noGrad(() =>
        scope(() => {
          const rank = Math.min(inF, outF);
          const s = alpha / rank;
          const layer = new LoraLinear(new Linear(random(backend, [outF, inF], seed)), 'l');
          const change = random(backend, [outF, inF], seed + 1);
          // Full fine-tuning in LoRA's words: one factor is the identity, the other the change.
          const [a, b] =
            inF <= outF
              ? [identity(backend, inF), scale(change, 1 / s)]
              : [scale(change, 1 / s), identity(backend, outF)];
          layer.branches.set('x', LoraBranch.of(layer.site, a, b, s));
          layer.active = ['x'];
          const full = add(layer.base.weight, change);
          const x = random(backend, [3, inF], seed + 2);
          const want = new Linear(full).forward(x).toNumbers();
          const size = Math.sqrt(inF);
          layer
            .forward(x)
            .toNumbers()
            .forEach((y, i) => {
              assert.ok(Math.abs(y - (want[i] as number)) < 1e-5 * size, `${y}, not ${want[i]}`);
            });
          const merged = layer.merged(['x']).weight.toNumbers();
          assert.ok(relativeDifference(merged, full.toNumbers()) < 1e-6);
        }),
      );
    }),
    { numRuns: 60 },
  );
});

test.run();
