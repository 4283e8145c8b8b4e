// time-limit: 240
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { noGrad, scope } from '../src/autograd/index.js';
import { type Branch, LoraAdapters, type LoraConfig, type Site } from '../src/lora/index.js';
import { mergedWeight } from '../src/lora/layer.js';
import type { CausalLM } from '../src/models/causal-lm.js';
import { Conv1D, Embedding, Linear, Module } from '../src/nn/index.js';
import { abs, add, cast, matmul, type RowFactors, reshape, scale } from '../src/ops/index.js';
import { tensor } from '../src/tensor/create.js';
import { normal, uniform } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';
import { layerCase, layerCases, mergedForward } from './support/layer-cases.js';
import {
  type Dtype,
  loraConfigs,
  modelCases,
  randomModel,
  shake,
} from './support/random-configs.js';
import {
  logitBytes,
  logitsOf,
  relativeDifference,
  sameBytes,
  snapshot,
  TINY,
  tinyBatch,
} from './support/tiny.js';

const dtypes = fc.constantFrom('f32' as const, 'bf16' as const, 'f16' as const);
const seeds = fc.integer({ min: 0, max: 2 ** 31 });

/** Half the distance of neighbouring numbers of a dtype, as a share of the number. */
const HALF_STEP = { f32: 2 ** -24, bf16: 2 ** -8, f16: 2 ** -11 } as const;

onEachBackend(
  test,
  'merged in f32, whatever the base’s dtype: what all the branches together answer',
  (backend) => {
    fc.assert(
      fc.property(layerCases, (s) =>
        noGrad(() =>
          scope(() => {
            const { layer, x } = layerCase(backend, s);
            const want = layer.forward(x).toNumbers();
            const got = mergedForward(layer, x, 'f32').toNumbers();
            // The sums' parts may be larger than they: taken as large as the largest weights.
            const largest = (t: Tensor) =>
              t.toNumbers().reduce((n, v) => Math.max(n, Math.abs(v)), 1e-30);
            const deltas = [...layer.branches.values()].map((b) => largest(b.delta()));
            const weights = deltas.reduce((n, d) => n + d, largest(layer.site.weight));
            const inputs = s.kind === 'embedding' ? 1 : layer.site.inFeatures * largest(x);
            // A DoRA row is divided by its own length, which may be small.
            const bound = 3e-6 * (s.how === 'dora' ? 20 : 1) * inputs * weights + 1e-6;
            got.forEach((y, i) => {
              const difference = Math.abs(y - (want[i] as number));
              assert.ok(difference <= bound, `${difference} > ${bound}`);
            });
          }),
        ),
      ),
      { numRuns: 100 },
    );
  },
);

/** What a change's products come to without their signs: f32's error is a share of that. */
function productSizes(site: Site, branch: Branch): Float64Array {
  const of = ({ a, b, scale: s }: RowFactors) => {
    const [x, y] = [abs(a), abs(b)];
    const whole = site.transposed ? matmul(x, y, { transA: true, transB: true }) : matmul(y, x);
    return scale(reshape(whole, site.mergedShape), Math.abs(s));
  };
  const parts = branch.factors()?.map(of) ?? [branch.delta()];
  return Float64Array.from(parts.reduce((sum, part) => add(sum, part)).toNumbers());
}

onEachBackend(
  test,
  'W + Σ w·ΔW is summed in f32 and rounded once, and the base is not written',
  (backend) => {
    fc.assert(
      fc.property(layerCases, (s) =>
        noGrad(() =>
          scope(() => {
            const { layer } = layerCase(backend, s);
            const { weight } = layer.site;
            const before = weight.bytes();
            const shares = new Map(layer.active.map((n, i) => [n, s.weights[i] as number]));
            const wide = mergedWeight(layer, shares, 'f32');
            const merged = mergedWeight(layer, shares);
            assert.is(merged.dtype, s.dtype);
            assert.ok(
              sameBytes(merged.bytes(), cast(wide, s.dtype).bytes()),
              'one rounding of f32',
            );
            // Against the same sum in doubles: half a step of the dtype, and f32's own error.
            const base = weight.toNumbers();
            const deltas = [...layer.branches].map(([name, b]) => ({
              w: shares.get(name) as number,
              values: b.delta().toNumbers(),
              sizes: productSizes(layer.site, b),
            }));
            merged.toNumbers().forEach((got, i) => {
              const parts = [
                base[i] as number,
                ...deltas.map((d) => d.w * (d.values[i] as number)),
              ];
              const want = parts.reduce((a, b) => a + b, 0);
              const products = deltas.map((d) => Math.abs(d.w) * (d.sizes[i] as number));
              const size = [...parts, ...products].reduce((a, b) => a + Math.abs(b), 0);
              const bound = HALF_STEP[s.dtype] * Math.abs(want) + 3e-7 * size + 2 ** -25;
              assert.ok(Math.abs(got - want) <= bound, `${got}, not ${want}`);
            });
            assert.ok(sameBytes(weight.bytes(), before));
          }),
        ),
      ),
      { numRuns: 100 },
    );
  },
);

const BATCH = tinyBatch(3, [5, 3], TINY.vocab);

onEachBackend(
  test,
  'any settings: start at the base; merge, unmerge and fuse are what the adapter is',
  (backend) => {
    fc.assert(
      fc.property(modelCases(1), ({ name, dtype, seed, configs }) => {
        const [config] = configs as [LoraConfig];
        using model = randomModel(name, backend, dtype, seed);
        const base = logitBytes(model, BATCH);
        using adapters = new LoraAdapters(model);
        const before = snapshot(adapters.baseParameters());
        adapters.add('a', config, seed);
        const start = logitsOf(model, BATCH);
        // Only an orthogonal start computes B A = 0 with rounding.
        if (config.init !== 'orthogonal') assert.ok(sameBytes(logitBytes(model, BATCH), base));
        else assert.ok(relativeDifference(start, new Float32Array(base.buffer)) < 1e-5);
        shake(adapters, 'a', seed);
        const own = logitBytes(model, BATCH);
        const asOwn = (other: Float32Array) => {
          const difference = relativeDifference(other, new Float32Array(own.buffer));
          assert.ok(difference < 1e-3, `${difference}`);
        };
        const wide = new Map(
          [...adapters.changedBy(['a'])].map((p) => [
            p,
            adapters.mergedSource(['a'], 'f32')(p, []),
          ]),
        );
        const rounded = new Map([...wide].map(([p, t]) => [p, Buffer.from(bytesAs(t, dtype))]));
        adapters.merge();
        // Merged tensors are the f32 sums, rounded once; every other is the base's.
        for (const [path, p] of model.namedParameters()) {
          const want = rounded.get(path) ?? before.get(path);
          assert.ok(want?.equals(Buffer.from(p.bytes())), path);
        }
        if (dtype === 'f32') asOwn(logitsOf(model, BATCH));
        adapters.unmerge();
        assert.ok(sameBytes(logitBytes(model, BATCH), own), 'the adapter as it was');
        adapters.setActive(null);
        assert.ok(sameBytes(logitBytes(model, BATCH), base), 'the base as it was');
        assert.equal(snapshot(adapters.baseParameters()), before);
        const fused = adapters.setActive('a').fuse() as CausalLM;
        if (dtype === 'f32') asOwn(logitsOf(fused, BATCH));
        for (const t of wide.values()) t.dispose();
      }),
      { numRuns: 50 },
    );
  },
);

/** A tensor's bytes in another dtype. */
function bytesAs(t: Tensor, dtype: Dtype): Uint8Array {
  return noGrad(() => scope(() => cast(t, dtype).bytes()));
}

onEachBackend(test, 'a mixed batch of any settings ≡ its rows one by one', (backend) => {
  fc.assert(
    fc.property(modelCases(3), ({ name, dtype, seed, configs }) => {
      using model = randomModel(name, backend, dtype, seed);
      using adapters = new LoraAdapters(model);
      configs.forEach((config, i) => {
        // What an adapter holds whole cannot differ by row.
        const { modulesToSave: _, ...layers } = { ...config, bias: 'none' as const };
        adapters.add(String(i), layers, seed + i);
        shake(adapters, String(i), seed + i);
      });
      const rows = ['1', null, '0', '2', '1'];
      const batch = tinyBatch(seed, [4, 4, 4, 4, 4], TINY.vocab);
      const mixed = adapters.withRows(rows, () => logitsOf(model, batch));
      const size = 4 * TINY.vocab;
      rows.forEach((active, b) => {
        adapters.setActive(active);
        const row = {
          inputIds: batch.inputIds.slice(4 * b, 4 * b + 4),
          attentionMask: batch.attentionMask.slice(4 * b, 4 * b + 4),
          batch: 1,
          length: 4,
        };
        const alone = logitsOf(model, row);
        const own = mixed.slice(b * size, (b + 1) * size);
        const difference = relativeDifference(own, alone);
        assert.ok(difference < 1e-4, `row ${b}, ${active}: ${difference}`);
      });
    }),
    { numRuns: 25 },
  );
});

onEachBackend(test, 'a mixed loss whose rows differ in a tied head is refused', (backend) => {
  using model = randomModel('llama', backend, 'f32', 1);
  using adapters = new LoraAdapters(model);
  adapters.add('tokens', { targetModules: ['q_proj'], trainableTokens: [1, 4] }, 1);
  adapters.add('plain', { targetModules: ['q_proj'] }, 1);
  const loss = (rows: (string | null)[]) => () =>
    adapters.withRows(rows, () => scope(() => model.loss(BATCH).loss.item()));
  // The head sees labelled positions, of which none is told whose row it is.
  assert.throws(
    loss(['tokens', null]),
    /2 rows in the head tied to model\.embed_tokens.*received 6/,
  );
  assert.ok(Number.isFinite(loss(['plain', null])()));
});

/** A table, a dense layer of each kind: small enough for a thousand passes. */
class Chain extends Module {
  constructor(
    readonly table: Embedding,
    readonly first: Linear,
    readonly second: Conv1D,
  ) {
    super();
  }

  /** @param ids i32 [n] → [n, 9] */
  forward(ids: Tensor): Tensor {
    return this.second.forward(this.first.forward(this.table.forward(ids)));
  }
}

onEachBackend(
  test,
  '1,000 switches among 8 adapters and none: every output is the first one, bit for bit',
  (backend) => {
    fc.assert(
      fc.property(seeds, dtypes, (seed, dtype) => {
        const w = (stream: number, ...shape: number[]) =>
          tensor(normal({ seed, stream }, numel(shape)), shape, { backend, dtype });
        using model = new Chain(
          new Embedding(w(1, 7, 6)),
          new Linear(w(2, 6, 6), w(3, 6)),
          new Conv1D(w(4, 6, 9), w(5, 9)),
        );
        using adapters = new LoraAdapters(model);
        const kinds: LoraConfig[] = [
          { targetModules: ['first'], rank: 1 },
          { targetModules: ['first', 'second'], rank: 3, scaling: 'rslora' },
          { targetModules: ['all-linear'], rank: 2, variant: 'dora' },
          { targetModules: ['table', 'second'], rank: 2 },
          { targetModules: ['first'], rank: 2, loraBias: true, bias: 'all' },
          { targetModules: ['second'], rank: 2, enableLora: { second: [true, false, true] } },
          { targetModules: ['second'], rank: 2, init: 'olora' },
          { targetModules: ['first'], rank: 1, trainableTokens: { table: [2, 5] } },
        ];
        kinds.forEach((config, i) => {
          adapters.add(String(i), config, seed);
          shake(adapters, String(i), seed + i);
        });
        const ids = tensor([2, 0, 6, 5], [4], { backend, dtype: 'i32' });
        const output = () => noGrad(() => scope(() => model.forward(ids).bytes()));
        const before = snapshot(adapters.baseParameters());
        const names = [...adapters.names(), null];
        const first = names.map((name) => adapters.setActive(name) && output());
        for (const u of uniform({ seed, stream: 9 }, 1000)) {
          const i = Math.floor(u * names.length);
          adapters.setActive(names[i] as string | null);
          assert.ok(sameBytes(output(), first[i] as Uint8Array), `${names[i]}`);
        }
        assert.is(new Set(first.map((bytes) => Buffer.from(bytes).toString('hex'))).size, 9);
        assert.equal(snapshot(adapters.baseParameters()), before);
        ids.dispose();
      }),
      { numRuns: 3 },
    );
  },
);

/** What may happen to the adapters of a model; each names some of four slots. */
const events = fc.record({
  what: fc.constantFrom('add', 'remove', 'rename', 'swap', 'freeze', 'merge', 'mixed'),
  slot: fc.nat({ max: 3 }),
  other: fc.nat({ max: 3 }),
  config: fc.nat({ max: 3 }),
});

onEachBackend(
  test,
  'whatever happens to its neighbours, an adapter answers the same bits by any name',
  (backend) => {
    const lives = fc.record({
      dtype: dtypes,
      seed: seeds,
      configs: fc.array(loraConfigs('llama'), { minLength: 4, maxLength: 4 }),
      order: fc.array(events, { minLength: 10, maxLength: 30 }),
    });
    fc.assert(
      fc.property(lives, ({ dtype, seed, configs, order }) => {
        using model = randomModel('llama', backend, dtype, seed);
        const base = logitBytes(model, BATCH);
        using adapters = new LoraAdapters(model);
        const before = snapshot(adapters.baseParameters());
        /** Which settings each slot's adapter was made of. */
        const held = new Map<string, number>();
        const first = new Map<number, Uint8Array>();
        const add = (name: string, config: number) => {
          adapters.add(name, configs[config] as LoraConfig, seed + config);
          shake(adapters, name, seed + config);
          held.set(name, config);
        };
        const happen = ({ what, slot, other, config }: (typeof order)[number]) => {
          const [name, second] = [`slot ${slot}`, `slot ${other}`];
          if (!held.has(name)) add(name, config);
          else if (what === 'remove') held.delete(adapters.remove(name) && name);
          else if (what === 'freeze') adapters.setTrainable(name, !adapters.isTrainable(name));
          else if (what === 'merge') adapters.merge([name]).unmerge();
          else if (what === 'rename' && !held.has(second)) {
            adapters.rename(name, second);
            held.set(second, held.get(name) as number).delete(name);
          } else if (what === 'swap' && name !== second && held.has(second)) {
            adapters.swap(name, second);
            held.set(name, held.get(second) as number).delete(second);
          } else if (what === 'mixed') {
            const whole = adapters.wholeParameters(name).size > 0;
            const run = () => adapters.withRows([name, null], () => logitBytes(model, BATCH));
            if (whole) assert.throws(run, /which holds/);
            else run();
          }
        };
        for (const event of order) {
          happen(event);
          assert.equal(adapters.names().sort(), [...held.keys()].sort());
          for (const [name, config] of held) {
            if (event.slot % 2 === 0 && name !== `slot ${event.slot}`) continue;
            const bytes = logitBytes(adapters.setActive(name).model as CausalLM, BATCH);
            const was = first.get(config);
            if (was) assert.ok(sameBytes(bytes, was), `settings ${config} as ${name}`);
            else first.set(config, bytes);
          }
        }
        adapters.setActive(null);
        assert.ok(sameBytes(logitBytes(model, BATCH), base));
        assert.equal(snapshot(adapters.baseParameters()), before);
      }),
      { numRuns: 10 },
    );
  },
);

test.run();
