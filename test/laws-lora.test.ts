import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope } from '../src/autograd/index.js';
import { type LoraAdapters, LoraBranch, LoraLinear } from '../src/lora/index.js';
import type { CausalLM } from '../src/models/causal-lm.js';
import { buildCausalLM } from '../src/models/load.js';
import { Linear } from '../src/nn/index.js';
import { AdamW } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { onEachBackend } from './backends.js';
import {
  forTinyCases,
  logitBytes,
  logitsOf,
  randomize,
  relativeDifference,
  sameBytes,
  snapshot,
  type TinyCase,
  tinyBatch,
  tinyConfig,
  tinyModel,
  withAdapter,
} from './support/tiny.js';

/** Random models of a law on one backend; each law takes a second or two. */
const RUNS = 30;

const batchOf = (c: TinyCase) => tinyBatch(c.settings.seed, c.lengths, c.settings.vocab);

/** A few AdamW steps on the active adapter. */
function trainSteps(model: CausalLM, adapters: LoraAdapters, c: TinyCase, steps: number): void {
  const optimizer = new AdamW([{ parameters: adapters.tensors('a') }], { lr: 0.05 });
  for (let i = 0; i < steps; i++) {
    scope(() => {
      backward(model.loss(batchOf(c)).loss);
      optimizer.update();
      optimizer.zeroGrad();
    });
  }
  optimizer.dispose();
}

onEachBackend(test, 'B = 0 is the base, bit for bit', (backend) => {
  forTinyCases(RUNS, (c) => {
    using plain = tinyModel(c.settings, backend);
    const base = logitBytes(plain, batchOf(c));
    withAdapter(c, backend, (model) => {
      assert.ok(sameBytes(logitBytes(model, batchOf(c)), base));
    });
  });
});

onEachBackend(
  test,
  'off, removed or untrained: the base bit for bit, and its bytes never change',
  (backend) => {
    let changed = 0;
    forTinyCases(RUNS, (c) => {
      using plain = tinyModel(c.settings, backend);
      const batch = batchOf(c);
      const base = logitBytes(plain, batch);
      const names = [...plain.namedParameters()].map(([n]) => n);
      withAdapter(c, backend, (model, adapters) => {
        const before = snapshot(adapters.baseParameters());
        trainSteps(model, adapters, c, 3);
        const trained = logitBytes(model, batch);
        if (!sameBytes(trained, base)) changed++;
        assert.ok(sameBytes(logitBytes(adapters.setActive(null).model as CausalLM, batch), base));
        adapters.setActive('a');
        assert.ok(sameBytes(logitBytes(model, batch), trained), 'and on again');
        adapters.add('b', { targetModules: ['all-linear'], rank: 2 }, 5);
        randomize(adapters, 'b', 6);
        adapters.setActive('a');
        assert.ok(sameBytes(logitBytes(model, batch), trained), 'another one changes nothing');
        adapters.remove('a').remove('b');
        assert.ok(sameBytes(logitBytes(model, batch), base));
        assert.equal(
          [...model.namedParameters()].map(([n]) => n),
          names,
        );
        assert.equal(snapshot(adapters.baseParameters()), before);
      });
    });
    // Not all: a query of a width of one, say, has no gradient.
    assert.ok(changed > RUNS / 2, `training changed the outputs of ${changed}`);
  },
);

/** The largest rounding error of one stored weight: a share of it, and an absolute floor. */
const ROUNDING = {
  f32: { share: 2 ** -24, floor: 0 },
  bf16: { share: 2 ** -8, floor: 0 },
  f16: { share: 2 ** -11, floor: 2 ** -25 },
} as const;

/** A LoRA layer with random weights; returns it with its parts as numbers. */
function layerCase(
  backend: Backend,
  s: {
    seed: number;
    dtype: keyof typeof ROUNDING;
    inF: number;
    outF: number;
    rank: number;
    alpha: number;
  },
) {
  const random = (stream: number, count: number, size: number) =>
    Float32Array.from(normal({ seed: s.seed, stream }, count), (z) => size * z);
  const w = tensor(random(1, s.inF * s.outF, 0.3), [s.outF, s.inF], { backend, dtype: s.dtype });
  const bias = tensor(random(2, s.outF, 0.3), [s.outF], { backend });
  const a = tensor(random(3, s.rank * s.inF, 0.3), [s.rank, s.inF], { backend });
  const b = tensor(random(4, s.outF * s.rank, 0.3), [s.outF, s.rank], { backend });
  const layer = new LoraLinear(new Linear(w, bias), 'l');
  layer.branches.set('x', LoraBranch.of(layer.site, a, b, s.alpha / s.rank));
  layer.active = ['x'];
  const x = tensor(random(5, 3 * s.inF, 1), [3, s.inF], { backend });
  return { layer, x, w, a, b };
}

const layerCases = fc.record({
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
  dtype: fc.constantFrom('f32' as const, 'bf16' as const, 'f16' as const),
  inF: fc.integer({ min: 1, max: 70 }),
  outF: fc.integer({ min: 1, max: 40 }),
  rank: fc.integer({ min: 1, max: 17 }),
  alpha: fc.integer({ min: 1, max: 32 }),
});

onEachBackend(
  test,
  'a merged layer answers what the unmerged does, within the rounding of its dtype',
  (backend) => {
    fc.assert(
      fc.property(layerCases, (s) =>
        noGrad(() =>
          scope(() => {
            const { layer, x, w } = layerCase(backend, s);
            const merged = layer.merged(['x']);
            assert.is(merged.weight.dtype, w.dtype);
            const got = merged.forward(x).toNumbers();
            const want = layer.forward(x).toNumbers();
            const weights = merged.weight.toNumbers();
            const xs = x.toNumbers();
            const { share, floor } = ROUNDING[s.dtype];
            got.forEach((y, i) => {
              const [row, o] = [Math.floor(i / s.outF), i % s.outF];
              // Σ |x| · (error of one weight), and f32's own error of both sums, whose parts
              // are larger than their sum where base and update cancel.
              let bound = 0;
              for (let k = 0; k < s.inF; k++) {
                const size = Math.abs(xs[row * s.inF + k] as number);
                const weight = Math.abs(weights[o * s.inF + k] as number);
                bound += size * (share * weight + floor + 1e-6 * (s.alpha + weight));
              }
              const difference = Math.abs(y - (want[i] as number));
              assert.ok(difference <= bound + 1e-6, `${difference} > ${bound} (${s.dtype})`);
            });
            merged.dispose();
          }),
        ),
      ),
      { numRuns: 60 },
    );
  },
);

onEachBackend(test, 'a merged model answers what the unmerged one does', (backend) => {
  forTinyCases(RUNS, (c) => {
    const exact = { ...c, settings: { ...c.settings, dtype: 'f32' as const } };
    withAdapter(exact, backend, (model, adapters) => {
      randomize(adapters, 'a', c.settings.seed + 1, 0.1);
      using merged = buildCausalLM(tinyConfig(exact.settings), adapters.mergedSource(['a']));
      const batch = batchOf(c);
      const difference = relativeDifference(logitsOf(merged, batch), logitsOf(model, batch));
      assert.ok(difference < 1e-3, `${difference}`);
      // A merged model has its own life: the adapter may go.
      const before = logitBytes(merged, batch);
      adapters.remove('a');
      assert.ok(sameBytes(logitBytes(merged, batch), before));
    });
  });
});

onEachBackend(test, 'the scale is linear in alpha, and alpha 0 is the base', (backend) => {
  fc.assert(
    fc.property(layerCases, fc.integer({ min: 0, max: 5 }), (s, factor) =>
      noGrad(() =>
        scope(() => {
          const update = (alpha: number) => {
            const { layer, x } = layerCase(backend, { ...s, alpha });
            const branch = layer.branches.get('x') as LoraBranch;
            return { y: branch.change(x, x).toNumbers(), delta: branch.delta().toNumbers() };
          };
          const once = update(s.alpha);
          const scaled = update(s.alpha * factor);
          const times = (v: number[]) => v.map((e) => e * factor);
          assert.ok(relativeDifference(scaled.y, times(once.y)) < 1e-5);
          assert.ok(relativeDifference(scaled.delta, times(once.delta)) < 1e-5);
          if (factor === 0) assert.ok([...scaled.y, ...scaled.delta].every((v) => v === 0));
        }),
      ),
    ),
    { numRuns: 40 },
  );
});

onEachBackend(
  test,
  'rows of zeros in A and columns of zeros in B change nothing, in values and gradients',
  (backend) => {
    forTinyCases(RUNS, (c) => {
      const batch = batchOf(c);
      const results = [1, 2].map((times) => {
        let out: { logits: Float32Array; loss: number; grads: Map<string, number[]> } | undefined;
        // Twice the rank at twice the alpha: the same scaling.
        const wide = { ...c, rank: c.rank * times, alpha: c.alpha * times };
        withAdapter(wide, backend, (model, adapters) => {
          for (const [key, t] of adapters.tensors('a')) {
            const isA = key.includes('lora_A');
            const [rows, columns] = t.shape as [number, number];
            const values = normal({ seed: c.settings.seed, stream: isA ? 1 : 2 }, t.size / times);
            const own = isA ? columns : columns / times;
            const padded = new Float32Array(t.size);
            for (let i = 0; i < values.length; i++) {
              padded[Math.floor(i / own) * columns + (i % own)] = 0.2 * (values[i] as number);
            }
            assert.is(values.length, isA ? (rows / times) * own : rows * own);
            t.setBytes(new Uint8Array(padded.buffer));
          }
          const logits = logitsOf(model, batch);
          const grads = new Map<string, number[]>();
          const loss = scope(() => {
            const result = model.loss(batch);
            backward(result.loss);
            return result.loss.item();
          });
          for (const [key, t] of adapters.tensors('a')) {
            const g = t.grad?.toNumbers() ?? [];
            const columns = t.shape[1] as number;
            const keep = (i: number) =>
              key.includes('lora_A') ? i < g.length / times : i % columns < columns / times;
            const padding = g.filter((_, i) => !keep(i));
            assert.ok(padding.every((v) => v === 0) || times === 1, 'padding gets no gradient');
            grads.set(
              key,
              g.filter((_, i) => keep(i)),
            );
          }
          out = { logits, loss, grads };
        });
        return out as NonNullable<typeof out>;
      });
      const [narrow, wide] = results as [(typeof results)[0], (typeof results)[0]];
      assert.ok(relativeDifference(wide.logits, narrow.logits) < 1e-5);
      assert.ok(Math.abs(wide.loss - narrow.loss) <= 1e-5 * Math.abs(narrow.loss));
      for (const [key, g] of narrow.grads) {
        assert.ok(relativeDifference(wide.grads.get(key) ?? [], g) < 1e-3, key);
      }
    });
  },
);

test.run();
