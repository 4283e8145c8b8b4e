import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope } from '../src/autograd/index.js';
import type { Branch, FullLoraConfig } from '../src/lora/index.js';
import { variantOn } from '../src/lora/variants/index.js';
import { mul, sum } from '../src/ops/index.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';
import { type Layer, type LayerCase, layerCase, layerCases } from './support/layer-cases.js';
import { relativeDifference, sameBytes } from './support/tiny.js';

/** A branch of the same settings but for some, with each tensor of the file changed. */
function remade(
  layer: Layer,
  branch: Branch,
  config: FullLoraConfig,
  change: (end: string, t: Tensor) => Tensor,
): Branch {
  const written = branch.written();
  return variantOn(layer.site, config).from(layer.site, config, (end) =>
    change(end, written.get(end) as Tensor).keep(),
  );
}

const copy = (t: Tensor) => tensor(t.toNumbers(), t.shape, { backend: t.backend });

/** What a branch alone answers, what it adds to the weight, and its tensors' gradients. */
function answers(layer: Layer, name: string, x: Tensor, seed: number) {
  layer.active = [name];
  const branch = layer.branches.get(name) as Branch;
  branch.setTrainable(true);
  const y = layer.forward(x);
  const dy = tensor(normal({ seed, stream: 50 }, numel(y.shape)), y.shape, { backend: y.backend });
  backward(sum(mul(y, dy)));
  const grads = new Map([...branch.tensors()].map(([end, t]) => [end, t.grad as Tensor]));
  const delta = noGrad(() => branch.delta().toNumbers());
  return { y: y.toNumbers(), delta, grads };
}

/** The first case's branch alone; the others go. */
const ofOne = (s: LayerCase): LayerCase => ({ ...s, ranks: [s.ranks[0] as number] });

onEachBackend(
  test,
  'the scale is linear in alpha, and 0 is the base bit for bit, on every kind of layer',
  (backend) => {
    const factors = fc.constantFrom(0, 0.5, 2, 3, -1);
    fc.assert(
      fc.property(layerCases, factors, (any, factor) =>
        noGrad(() =>
          scope(() => {
            // DoRA divides by the length of W + ΔW, so that it is not linear.
            const s = ofOne(any.how === 'dora' ? { ...any, how: 'lora' } : any);
            const { layer, x, configs } = layerCase(backend, s);
            const [config] = configs as [FullLoraConfig];
            const own = layer.branches.get('0') as Branch;
            const other = { ...config, alpha: factor * config.alpha };
            layer.branches.set(
              'scaled',
              remade(layer, own, other, (_, t) => copy(t)),
            );
            layer.active = [];
            const base = layer.forward(x);
            const change = (name: string) => {
              const y = (layer.branches.get(name) as Branch).change(x, base);
              return (y as Tensor).toNumbers();
            };
            const times = (v: number[]) => v.map((e) => e * factor);
            assert.ok(relativeDifference(change('scaled'), times(change('0'))) < 1e-5);
            const scaled = layer.branches.get('scaled') as Branch;
            const deltas = [scaled, own].map((b) => b.delta().toNumbers());
            const [got, once] = deltas as [number[], number[]];
            assert.ok(relativeDifference(got, times(once)) < 1e-5);
            layer.active = ['scaled'];
            if (factor === 0) assert.ok(sameBytes(layer.forward(x).bytes(), base.bytes()));
          }),
        ),
      ),
      { numRuns: 80 },
    );
  },
);

/** Zeros between the numbers of one dimension: after each of its blocks. */
function padded(t: Tensor, axis: number, blocks: number, by: number): Tensor {
  const size = t.shape[axis] as number;
  const inner = numel(t.shape.slice(axis + 1));
  const block = (size / blocks) * inner;
  const more = by * inner;
  const outer = numel(t.shape.slice(0, axis));
  const values = t.toNumbers();
  const out = new Float32Array(outer * blocks * (block + more));
  for (let i = 0; i < outer * blocks; i++) {
    out.set(values.slice(i * block, (i + 1) * block), i * (block + more));
  }
  const shape = t.shape.map((n, i) => (i === axis ? n + blocks * by : n));
  return tensor(out, shape, { backend: t.backend });
}

onEachBackend(
  test,
  'zeros that pad the rank change nothing, in values and gradients, on every kind of layer',
  (backend) => {
    fc.assert(
      fc.property(layerCases, fc.integer({ min: 1, max: 9 }), (any, by) =>
        scope(() => {
          const s = ofOne(any);
          const { layer, x, configs } = layerCase(backend, s);
          const [config] = configs as [FullLoraConfig];
          const { names } = layer.site;
          const parts = Object.keys(config.enableLora).length > 0;
          const blocks = parts ? 2 : 1;
          const grown = (config.rank + by) / config.rank;
          const wide = {
            ...config,
            rank: config.rank + by,
            alpha: config.alpha * (config.scaling === 'rslora' ? Math.sqrt(grown) : grown),
          };
          const branch = remade(layer, layer.branches.get('0') as Branch, wide, (end, t) => {
            if (end === names.a) return padded(t, 0, blocks, by);
            return end === names.b ? padded(t, 1, blocks, by) : copy(t);
          });
          layer.branches.set('wide', branch);
          const narrow = answers(layer, '0', x, s.seed);
          const got = answers(layer, 'wide', x, s.seed);
          assert.ok(relativeDifference(got.y, narrow.y) < 1e-5, 'output');
          assert.ok(relativeDifference(got.delta, narrow.delta) < 1e-5, 'ΔW');
          for (const [end, g] of narrow.grads) {
            // Parts hold their B one below the other: [2·out/3, r].
            const want =
              end === names.a
                ? padded(g, 0, blocks, by)
                : end === names.b
                  ? padded(g, 1, 1, by)
                  : g;
            const grad = got.grads.get(end) as Tensor;
            assert.equal(grad.shape, want.shape);
            const values = grad.toNumbers();
            assert.ok(relativeDifference(values, want.toNumbers()) < 1e-4, `gradient of ${end}`);
            // What pads has no gradient, so that training leaves it as it is.
            if (end !== names.a && end !== names.b) continue;
            const ones = tensor(new Float32Array(g.size).fill(1), g.shape, { backend });
            const inside = (
              end === names.a ? padded(ones, 0, blocks, by) : padded(ones, 1, 1, by)
            ).toNumbers();
            assert.ok(
              values.every((v, i) => inside[i] === 1 || v === 0),
              `padding of ${end}`,
            );
          }
        }),
      ),
      { numRuns: 80 },
    );
  },
);

test.run();
