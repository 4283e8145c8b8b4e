// time-limit: 300
import { statSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope } from '../src/autograd/index.js';
import {
  fullConfig,
  LoraAdapters,
  LoraBranch,
  type LoraConfig,
  LoraLinear,
  saveAdapter,
} from '../src/lora/index.js';
import { LoraEmbedding, mergedWeight } from '../src/lora/layer.js';
import { VARIANTS } from '../src/lora/variants/index.js';
import type { CausalLM, TokenBatch } from '../src/models/causal-lm.js';
import { buildCausalLM } from '../src/models/load.js';
import { Conv1D, Embedding, Linear } from '../src/nn/index.js';
import { embedding, mul, sub, sum } from '../src/ops/index.js';
import { AdamW } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal, uniform } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';
import { GPT2_124M, LLAMA_1B } from './support/big-shapes.js';
import { ShapesBackend } from './support/shapes-backend.js';
import { withFolder } from './support/temp.js';
import {
  forTinyCases,
  logitBytes,
  logitsOf,
  randomize,
  relativeDifference,
  sameBytes,
  snapshot,
  TINY,
  tinyBatch,
  tinyModel,
} from './support/tiny.js';

/** The largest share that rounding a stored weight once moves it by. */
const ROUNDING = { f32: 2 ** -24, bf16: 2 ** -8, f16: 2 ** -10 } as const;

const layerCases = fc.record({
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
  kind: fc.constantFrom('linear' as const, 'conv1d' as const, 'embedding' as const),
  variant: fc.constantFrom('lora' as const, 'dora' as const),
  scaling: fc.constantFrom('lora' as const, 'rslora' as const),
  loraBias: fc.boolean(),
  dtype: fc.constantFrom('f32' as const, 'bf16' as const, 'f16' as const),
  inF: fc.integer({ min: 2, max: 40 }),
  outF: fc.integer({ min: 1, max: 40 }),
  rank: fc.integer({ min: 1, max: 12 }),
  alpha: fc.integer({ min: 1, max: 24 }),
});
type LayerCase = typeof layerCases extends fc.Arbitrary<infer T> ? T : never;

/** A wrapped layer of any kind with one random branch, an input, and the layer merged. */
function layerCase(backend: Backend, s: LayerCase) {
  let stream = 0;
  const random = (shape: number[], size: number, dtype: 'f32' | 'bf16' | 'f16' = 'f32') =>
    tensor(
      normal({ seed: s.seed, stream: stream++ }, numel(shape)).map((z) => size * z),
      shape,
      { backend, dtype },
    );
  const transposed = s.kind !== 'linear';
  const weight = random(transposed ? [s.inF, s.outF] : [s.outF, s.inF], 0.4, s.dtype);
  const bias = random([s.outF], 0.4);
  const layer =
    s.kind === 'embedding'
      ? new LoraEmbedding(new Embedding(weight), 'l')
      : new LoraLinear(
          s.kind === 'linear' ? new Linear(weight, bias) : new Conv1D(weight, bias),
          'l',
        );
  const config = fullConfig({
    rank: s.rank,
    alpha: s.alpha,
    targetModules: ['l'],
    variant: s.variant,
    scaling: s.scaling,
    loraBias: s.loraBias && s.variant === 'lora' && s.kind !== 'embedding',
  });
  // Magnitudes around those of the rows, so that the output is of the base's size.
  const branch = VARIANTS[s.variant].from(layer.site, config, (end, shape) => {
    if (!end.includes('magnitude')) return random([...shape], 0.3);
    const u = uniform({ seed: s.seed, stream: 99 }, shape[0] as number);
    return tensor(
      u.map((v) => (0.5 + v) * 0.4 * Math.sqrt(s.inF)),
      shape,
      { backend },
    );
  });
  layer.branches.set('x', branch);
  layer.active = ['x'];
  const ids = Int32Array.from(uniform({ seed: s.seed, stream: 98 }, 5), (u) =>
    Math.floor(u * s.inF),
  );
  const x =
    s.kind === 'embedding' ? tensor(ids, [5], { backend, dtype: 'i32' }) : random([3, s.inF], 1);
  const merged = () => {
    if (layer instanceof LoraLinear) return layer.merged(['x']).forward(x);
    return embedding(mergedWeight(layer, new Map([['x', 1]])), x);
  };
  return { layer, branch, x, weight, merged };
}

onEachBackend(test, 'merged ≡ unmerged, for every kind of layer and variant', (backend) => {
  fc.assert(
    fc.property(layerCases, (s) => {
      noGrad(() =>
        scope(() => {
          const { layer, branch, x, weight, merged } = layerCase(backend, s);
          const want = layer.forward(x).toNumbers();
          const got = merged().toNumbers();
          // Rounding of the weights once, and f32's own error of sums whose parts may cancel.
          const largest = (t: number[]) => t.reduce((n, v) => Math.max(n, Math.abs(v)), 1e-30);
          const parts = largest(weight.toNumbers()) + largest(branch.delta().toNumbers());
          const inputs = s.kind === 'embedding' ? 1 : s.inF * largest(x.toNumbers());
          // A DoRA row whose W + ΔW nearly cancels is divided by its own small length.
          const near = s.variant === 'dora' ? 20 : 1;
          const bound = inputs * parts * (ROUNDING[s.dtype] + near * 3e-6) + 1e-5;
          got.forEach((y, i) => {
            const difference = Math.abs(y - (want[i] as number));
            assert.ok(difference <= bound, `${difference} > ${bound}`);
          });
        }),
      );
    }),
    { numRuns: 120 },
  );
});

onEachBackend(
  test,
  'the base’s storage is the same bits after forward, backward, merge',
  (backend) => {
    fc.assert(
      fc.property(layerCases, (s) => {
        scope(() => {
          const { layer, branch, x, weight, merged } = layerCase(backend, s);
          const before = weight.bytes();
          branch.setTrainable(true);
          backward(sum(layer.forward(x)));
          for (const [end, t] of branch.tensors()) assert.ok(t.grad, end);
          noGrad(() => merged());
          assert.ok(sameBytes(weight.bytes(), before));
          assert.is(weight.grad, null);
        });
      }),
      { numRuns: 40 },
    );
  },
);

onEachBackend(test, 'r rows of rank reach any change of rank r, and no other', (backend) => {
  // A layer is trained to y = (W + T) x where T has rank 3; loss of ΔW = s·B A to T itself.
  const [inF, outF, rank] = [6, 5, 3];
  const random = (shape: number[], stream: number) =>
    tensor(
      normal({ seed: 8, stream }, numel(shape)).map((z) => 0.5 * z),
      shape,
      { backend },
    );
  const target = noGrad(() => {
    const delta = LoraBranch.of(
      new LoraLinear(new Linear(random([outF, inF], 1)), 't').site,
      random([rank, inF], 2),
      random([outF, rank], 3),
      1,
    );
    return delta.delta();
  });
  const trained = (r: number): number => {
    const layer = new LoraLinear(new Linear(random([outF, inF], 1)), 'l');
    const config = fullConfig({ rank: r, alpha: r, targetModules: ['l'] });
    const branch = VARIANTS.lora.create(layer.site, config, 5);
    branch.setTrainable(true);
    layer.branches.set('x', branch);
    layer.active = ['x'];
    const goal = new Linear(random([outF, inF], 1));
    const more = new Linear(target);
    const optimizer = new AdamW([{ parameters: branch.tensors() }], { lr: 0.03 });
    let loss = Number.NaN;
    for (let step = 0; step < 700; step++) {
      scope(() => {
        const x = random([24, inF], 100 + (step % 20));
        const error = sub(sub(layer.forward(x), goal.forward(x)), more.forward(x));
        const mean = sum(mul(error, error));
        loss = mean.item() / error.size;
        backward(mean);
        optimizer.update(step < 400 ? 1 : 0.985 ** (step - 400));
        optimizer.zeroGrad();
      });
    }
    optimizer.dispose();
    for (const m of [layer, goal]) m.dispose();
    return loss;
  };
  for (const r of [1, 2]) assert.ok(trained(r) > 1e-4, `rank ${r} is too low: ${trained(r)}`);
  for (const r of [3, Math.min(inF, outF)]) assert.ok(trained(r) < 1e-6, `${r}: ${trained(r)}`);
  target.dispose();
});

onEachBackend(
  test,
  '1,000 switches among 8 adapters: the base as it was, each output as the first time',
  (backend) => {
    const batch = tinyBatch(3, [3, 2], TINY.vocab);
    using model = tinyModel({ ...TINY, layers: 1, dtype: 'bf16' }, backend);
    const base = logitBytes(model, batch);
    using adapters = new LoraAdapters(model);
    const kinds: LoraConfig[] = [
      { targetModules: ['q_proj'], rank: 1 },
      { targetModules: ['all-linear'], rank: 3 },
      { targetModules: ['v_proj'], rank: 2, variant: 'dora' },
      { targetModules: ['embed_tokens'], rank: 2 },
      { targetModules: ['lm_head', 'q_proj'], rank: 2, scaling: 'rslora' },
      { targetModules: ['up_proj'], rank: 2, modulesToSave: ['norm'] },
      { targetModules: ['o_proj'], rank: 2, init: 'pissa' },
      { targetModules: ['k_proj'], rank: 2, trainableTokens: [1, 2] },
    ];
    kinds.forEach((config, i) => {
      adapters.add(String(i), config, i);
      randomize(adapters, String(i), i);
      adapters.setTrainable(String(i), false);
    });
    const before = snapshot(adapters.baseParameters());
    const first = kinds.map((_, i) => {
      adapters.setActive(String(i));
      return logitBytes(model, batch);
    });
    const order = uniform({ seed: 5, stream: 5 }, 1000);
    order.forEach((u, step) => {
      const i = Math.floor(u * 9);
      adapters.setActive(i === 8 ? null : String(i));
      // Every twentieth is merged and taken out again on the way.
      if (step % 20 === 0 && i < 8) adapters.merge().unmerge();
      if (step % 5 > 0) return;
      const got = logitBytes(model, batch);
      assert.ok(sameBytes(got, i === 8 ? base : (first[i] as Uint8Array)), `step ${step}`);
    });
    assert.equal(snapshot(adapters.baseParameters()), before);
    adapters.setActive(null);
    assert.ok(sameBytes(logitBytes(model, batch), base));
  },
);

/** One row of a batch. */
function rowOf(batch: Required<TokenBatch>, b: number): TokenBatch {
  const cut = <T extends Int32Array | Uint8Array>(a: T) =>
    a.slice(b * batch.length, (b + 1) * batch.length) as T;
  return {
    inputIds: cut(batch.inputIds),
    attentionMask: cut(batch.attentionMask),
    batch: 1,
    length: batch.length,
  };
}

onEachBackend(test, 'a mixed batch ≡ its rows one by one, in any order', (backend) => {
  forTinyCases(12, (c) => {
    using model = tinyModel(c.settings, backend);
    using adapters = new LoraAdapters(model);
    adapters.add('a', { rank: c.rank, alpha: c.alpha, targetModules: c.targets }, 1);
    adapters.add('b', { rank: 2, targetModules: ['all-linear'] }, 2);
    adapters.add('d', { rank: 1, targetModules: ['qv'], variant: 'dora' }, 3);
    adapters.add('e', { rank: 1, targetModules: ['embed_tokens', 'up_proj'] }, 4);
    adapters.add('c', { rank: 3, targetModules: ['q_proj'], loraBias: true }, 5);
    for (const n of ['a', 'b', 'c', 'd', 'e']) randomize(adapters, n, 8);
    const rows = ['a', null, 'b', 'd', 'a', 'e', 'c'];
    const batch = tinyBatch(
      c.settings.seed,
      rows.map((_, i) => 2 + (i % 3)),
      c.settings.vocab,
    );
    adapters.setActive('b');
    const mixed = adapters.withRows(rows, () => logitsOf(model, batch));
    assert.is(adapters.active, 'b', 'what was active is again');
    const size = mixed.length / rows.length;
    rows.forEach((name, b) => {
      adapters.setActive(name);
      const alone = logitsOf(model, rowOf(batch, b));
      const own = mixed.slice(b * size, (b + 1) * size);
      const width = c.settings.vocab * (2 + (b % 3));
      const difference = relativeDifference(own.subarray(0, width), alone.subarray(0, width));
      assert.ok(difference < 2e-5, `${name}: ${difference}`);
    });
    // Another order of the rows, and so of the adapters in the grouped product.
    const order = rows.map((_, b) => rows.length - 1 - b);
    const pick = (a: Int32Array) =>
      Int32Array.from(order.flatMap((b) => [...a.slice(b * batch.length, (b + 1) * batch.length)]));
    const reversed = {
      ...batch,
      inputIds: pick(batch.inputIds),
      attentionMask: Uint8Array.from(pick(Int32Array.from(batch.attentionMask))),
      labels: pick(batch.labels),
    };
    const turned = adapters.withRows([...rows].reverse(), () => logitsOf(model, reversed));
    order.forEach((from, b) => {
      const width = c.settings.vocab * (2 + (from % 3));
      const [was, is] = [mixed.slice(from * size), turned.slice(b * size)];
      assert.ok(relativeDifference(is.subarray(0, width), was.subarray(0, width)) < 2e-5);
    });
  });
});

onEachBackend(test, 'a mixed batch trains each row’s adapter by its own rows only', (backend) => {
  using model = tinyModel(TINY, backend);
  using adapters = new LoraAdapters(model);
  const batch = tinyBatch(4, [5, 5], TINY.vocab);
  for (const n of ['a', 'b']) {
    adapters.add(n, { rank: 2, targetModules: ['q_proj', 'down_proj'] }, 1);
    randomize(adapters, n, n === 'a' ? 1 : 2);
  }
  const gradients = (name: string, run: () => void) => {
    run();
    const out = [...adapters.tensors(name).values()].map((t) => t.grad?.toNumbers() ?? []);
    for (const n of ['a', 'b']) adapters.setTrainable(n, false).setTrainable(n, true);
    return out.flat();
  };
  const one = { ...batch, labels: batch.labels.map((l, i) => (i < 5 ? l : -100)) };
  const mixed = gradients('a', () =>
    adapters.withRows(['a', 'b'], () => scope(() => backward(model.loss(batch, 4).loss))),
  );
  adapters.setActive('a');
  const alone = gradients('a', () => scope(() => backward(model.loss(one, 4).loss)));
  assert.ok(relativeDifference(mixed, alone) < 1e-5);
});

test('a mixed batch that does not fit is an error', () => {
  const [backend] = [new ShapesBackend()];
  const model = tinyModel(TINY, backend);
  const adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['q_proj'] }, 1);
  adapters.add('w', { targetModules: ['q_proj'], modulesToSave: ['norm'] }, 1);
  const batch = tinyBatch(1, [3, 3], TINY.vocab);
  const run = (rows: (string | null)[]) => () =>
    adapters.withRows(rows, () => logitBytes(model, batch));
  assert.throws(run(['a']), /1 rows in .*q_proj, one for each adapter named, received 2/);
  assert.throws(run(['a', 'x']), /"x"\. There are: a, w/);
  assert.throws(run(['a', 'w']), /"w", which holds model\.norm\.weight/);
  run(['a', null])();
  adapters.dispose();
  model.dispose();
});

/** Trainables by the closed formula: Σ over layers r·(in + out), and what a variant adds. */
const COUNTS: [string, Record<string, unknown>, LoraConfig, number][] = [
  ['GPT-2 c_attn', GPT2_124M, { targetModules: ['c_attn'], rank: 4 }, 12 * 4 * (768 + 2304)],
  [
    'GPT-2 all-linear, DoRA',
    GPT2_124M,
    { targetModules: ['all-linear'], rank: 8, variant: 'dora' },
    12 * (8 * (768 + 2304 + 2 * 768 + 2 * (768 + 3072)) + 2304 + 768 + 3072 + 768),
  ],
  ['Llama qv', LLAMA_1B, { targetModules: ['qv'], rank: 8 }, 16 * 8 * (2048 * 3 + 512)],
  [
    'Llama all-linear',
    LLAMA_1B,
    { targetModules: ['all-linear'], rank: 16 },
    16 * 16 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192)),
  ],
];

for (const [name, json, config, count] of COUNTS) {
  test(`${name}: trainables by the formula; 8 bytes of moments, 4 of gradient, 0 frozen`, () => {
    const backend = new ShapesBackend();
    const model: CausalLM = buildCausalLM(json, (_, shape) =>
      Tensor.empty(backend, shape, 'f32', 'frozen'),
    );
    const parameters = [...model.namedParameters()].reduce((n, [, p]) => n + p.size, 0);
    if (json === GPT2_124M) assert.is(parameters, 124_439_808);
    else assert.is(parameters, 1_235_814_400);
    const adapters = new LoraAdapters(model);
    const start = backend.memory().live;
    adapters.add('a', config, 1);
    const tensors = adapters.tensors('a');
    assert.is(
      [...tensors.values()].reduce((n, t) => n + t.size, 0),
      count,
    );
    assert.is(backend.memory().live.trainable, 4 * count);
    assert.is(backend.memory().live.frozen, start.frozen);
    const optimizer = new AdamW([{ parameters: tensors }], { lr: 1e-3 });
    scope(() => backward(model.loss(tinyBatch(1, [3], 50)).loss));
    assert.is(backend.memory().live.gradient, 4 * count);
    optimizer.update();
    assert.is(backend.memory().live.optimizer, 8 * count);
    for (const [path, p] of adapters.baseParameters()) {
      assert.is(p.grad, null, path);
      assert.is(p.requiresGrad, false, path);
    }
    optimizer.zeroGrad();
    optimizer.dispose();
    withFolder((dir) => {
      saveAdapter(adapters, 'a', dir);
      const files = ['adapter_model.safetensors', 'adapter_config.json'];
      const bytes = files.reduce((n, f) => n + statSync(join(dir, f)).size, 0);
      assert.ok(bytes >= 4 * count && bytes < 1.02 * 4 * count, `${bytes} of ${4 * count}`);
    });
    adapters.dispose();
    model.dispose();
    assert.is(backend.memory().handles, 0);
  });
}

test.run();
