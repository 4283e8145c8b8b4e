import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope } from '../src/autograd/index.js';
import {
  chooseTargets,
  denseLayers,
  fullConfig,
  LoraAdapters,
  LoraBranch,
  type LoraConfig,
  LoraLinear,
  siteOf,
} from '../src/lora/index.js';
import { VARIANTS } from '../src/lora/variants/index.js';
import { buildCausalLM } from '../src/models/load.js';
import { Linear, type Module, withTraining } from '../src/nn/index.js';
import { full, tensor } from '../src/tensor/create.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, reference } from './backends.js';
import {
  logitBytes,
  randomize,
  relativeDifference,
  sameBytes,
  setFloats,
  TINY,
  tinyBatch,
  tinyConfig,
  tinyModel,
} from './support/tiny.js';

const BATCH = tinyBatch(1, [6, 4], TINY.vocab);

/** A new model with adapters, both freed afterwards. */
function withModel(body: (adapters: LoraAdapters) => void, settings = TINY): void {
  using model = tinyModel(settings, reference);
  using adapters = new LoraAdapters(model);
  body(adapters);
}

/** The first layer's q_proj. */
const firstQuery = (model: Module) => chooseTargets(model, ['layers.0.self_attn.q_proj'])[0]?.layer;

const pathsOf = (adapters: LoraAdapters, ...names: string[]) =>
  chooseTargets(adapters.model, names).map((t) => t.path);

test('targets: last parts of a path, whole paths and presets', () => {
  withModel((adapters) => {
    const both = (part: string) => [0, 1].map((i) => `model.layers.${i}.${part}`);
    assert.equal(pathsOf(adapters, 'q_proj'), both('self_attn.q_proj'));
    assert.equal(pathsOf(adapters, 'mlp.down_proj'), both('mlp.down_proj'));
    const one = 'model.layers.1.mlp.up_proj';
    assert.equal(pathsOf(adapters, one), [one]);
    assert.equal(pathsOf(adapters, one, 'up_proj'), both('mlp.up_proj'), 'each layer once');
    assert.is(pathsOf(adapters, 'all-linear').length, 14);
    assert.not.ok(pathsOf(adapters, 'all-linear').includes('lm_head'));
    assert.equal(pathsOf(adapters, 'lm_head'), ['lm_head']);
    assert.is(pathsOf(adapters, 'attention').length, 8);
    assert.is(pathsOf(adapters, 'qv').length, 4);
    assert.is(denseLayers(adapters.model).length, 15);
    // A part of a name is no name.
    assert.throws(() => pathsOf(adapters, 'proj'), /matches none/);
  });
  withModel(
    (adapters) => {
      assert.throws(() => pathsOf(adapters, 'lm_head'), /"lm_head", which matches none/);
    },
    { ...TINY, tied: true },
  );
});

test('a target that matches nothing names the near ones, and changes nothing', () => {
  withModel((adapters) => {
    const before = logitBytes(adapters.model as never, BATCH);
    assert.throws(
      () => adapters.add('a', { targetModules: ['v_proj', 'query_proj'] }, 1),
      /\[lora targetModules\].*"query_proj", which matches none\. Nearest: .*q_proj/,
    );
    assert.throws(() => adapters.add('a', { targetModules: ['all_linear'] }, 1), /all-linear/);
    assert.equal(adapters.names(), []);
    assert.is(adapters.active, null);
    assert.not.ok(denseLayers(adapters.model).some((t) => t.layer instanceof LoraLinear));
    assert.ok(sameBytes(before, logitBytes(adapters.model as never, BATCH)));
  });
});

test('settings out of range, or misspelt, are errors that name them', () => {
  const wrong: [Record<string, unknown>, RegExp][] = [
    [{ rank: 0 }, /\[lora rank\] expected a whole number of 1 or more, received 0/],
    [{ rank: 1.5 }, /\[lora rank\].*1\.5/],
    [{ rank: -4 }, /\[lora rank\].*-4/],
    [{ rank: Number.NaN }, /\[lora rank\].*NaN/],
    [{ alpha: Number.NaN }, /\[lora alpha\].*NaN/],
    [{ alpha: Number.POSITIVE_INFINITY }, /\[lora alpha\].*Infinity/],
    [{ dropout: 1 }, /\[lora dropout\].*received 1/],
    [{ dropout: -0.1 }, /\[lora dropout\].*-0\.1/],
    [{ dropout: Number.NaN }, /\[lora dropout\].*NaN/],
    [{ init: 'zero' }, /\[lora init\].*"zero"/],
    [{ targetModules: [] }, /\[lora targetModules\].*none/],
    [
      { targetModules: 'q_proj' },
      /\[lora targetModules\] expected a regular expression .*"q_proj", which matches none.*in a list/,
    ],
    [{ targetModules: 3 }, /\[lora targetModules\] expected a list of names.*received 3/],
    [{ ranks: 4 }, /\[lora\].*"ranks".*rank/],
    [{ target_modules: ['q_proj'] }, /\[lora\].*"target_modules".*targetModules/],
  ];
  withModel((adapters) => {
    for (const [change, message] of wrong) {
      const config = { targetModules: ['q_proj'], ...change } as LoraConfig;
      assert.throws(() => adapters.add('a', config, 1), message, JSON.stringify(change));
      assert.equal(adapters.names(), []);
    }
  });
});

test('names: taken, empty and unknown ones', () => {
  withModel((adapters) => {
    const config = { targetModules: ['q_proj'] };
    adapters.add('first', config, 1);
    const before = adapters.tensors('first').values().next().value as Tensor;
    assert.throws(() => adapters.add('first', config, 1), /\[lora adapter\].*"first"/);
    assert.throws(() => adapters.add('', config, 1), /\[lora adapter\].*""/);
    assert.is(before.disposed, false, 'the one there is stays');
    for (const use of [
      () => adapters.setActive('frist'),
      () => adapters.remove('frist'),
      () => adapters.tensors('frist'),
      () => adapters.config('frist'),
      () => adapters.setTrainable('frist', true),
      () => adapters.mergedSource(['frist']),
    ]) {
      assert.throws(use, /received "frist"\. There are: first/);
    }
    assert.is(adapters.active, 'first');
    adapters.remove('first');
    assert.throws(() => adapters.setActive('first'), /There is none yet/);
  });
});

test('a second set of adapters on one model is refused', () => {
  withModel((adapters) => {
    adapters.add('a', { targetModules: ['q_proj'] }, 1);
    assert.throws(() => new LoraAdapters(adapters.model), /plain model/);
  });
});

test('tensors that do not fit the settings are refused, and freed', () => {
  withModel((adapters) => {
    const before = reference.memory().handles;
    const t = (shape: number[]) => full(shape, 0.1, { backend: reference });
    const config = { targetModules: ['q_proj'], rank: 2 };
    assert.throws(
      () => adapters.addFrom('a', config, () => ({ a: t([3, 8]), b: t([8, 3]) })),
      /q_proj.*expected \[2, 8\] and \[8, 2\], received \[3, 8\] and \[8, 3\]/,
    );
    assert.equal(adapters.names(), []);
    assert.is(reference.memory().handles, before);
  });
});

test('A is random by seed and layer, B is zero; the defaults are those documented', () => {
  withModel((adapters) => {
    adapters.add('a', { targetModules: ['all-linear'] }, 1);
    const { rank, alpha, dropout, init } = adapters.config('a');
    assert.equal(
      { rank, alpha, dropout, init },
      { rank: 8, alpha: 16, dropout: 0, init: 'kaiming' },
    );
    const seen = new Set<string>();
    for (const [key, t] of adapters.tensors('a')) {
      assert.is(t.dtype, 'f32');
      assert.is(t.requiresGrad, true);
      if (key.includes('lora_B')) assert.ok(t.toNumbers().every((v) => v === 0));
      else seen.add(t.toNumbers().slice(0, 4).join());
    }
    assert.is(seen.size, 14, 'no two layers start alike');
    adapters.add('b', { targetModules: ['all-linear'] }, 1);
    adapters.add('c', { targetModules: ['all-linear'] }, 2);
    const bytes = (n: string) =>
      [...adapters.tensors(n).values()].map((t) => Buffer.from(t.bytes()));
    assert.equal(bytes('b'), bytes('a'));
    assert.not.equal(bytes('c'), bytes('a'));
  });
});

test('A starts with the spread of PEFT: 1/√(3·in) for Kaiming, 1/r for Gaussian', () => {
  const layer = new Linear(full([4, 300], 0, { backend: reference }));
  for (const init of ['kaiming', 'gaussian'] as const) {
    const config = fullConfig({ rank: 50, alpha: 1, targetModules: ['l'], init });
    const branch = VARIANTS.lora.create(siteOf('l', layer), config, 5) as LoraBranch;
    const values = branch.a.toNumbers();
    const mean = values.reduce((n, v) => n + v, 0) / values.length;
    const std = Math.sqrt(values.reduce((n, v) => n + (v - mean) ** 2, 0) / values.length);
    const expected = init === 'kaiming' ? 1 / Math.sqrt(3 * 300) : 1 / 50;
    assert.ok(Math.abs(std / expected - 1) < 0.02, `${init}: ${std}`);
    assert.ok(Math.abs(mean) < 4 * (expected / Math.sqrt(values.length)), `${init}: ${mean}`);
    if (init === 'kaiming') {
      const bound = 1 / Math.sqrt(300);
      assert.ok(values.every((v) => Math.abs(v) <= bound));
    }
    branch.dispose();
  }
  layer.dispose();
});

test('a hand-computed layer: value, scaling and gradients', () => {
  scope(() => {
    const make = (values: number[], shape: number[]) =>
      tensor(values, shape, { backend: reference });
    const base = new Linear(make([1, 2, 3, 4], [2, 2]), make([10, 20], [2]));
    const layer = new LoraLinear(base, 'l');
    const a = make([1, -1], [1, 2]);
    const b = make([2, 3], [2, 1]);
    const branch = LoraBranch.of(layer.site, a, b, 0.5);
    branch.setTrainable(true);
    layer.branches.set('x', branch);
    const x = make([5, 7], [1, 2]);
    assert.equal(layer.forward(x).toNumbers(), [29, 63], 'not active: x Wᵀ + b');
    layer.active = ['x'];
    // x Aᵀ = −2, times 0.5, times B = [−2, −3].
    const y = layer.forward(x);
    assert.equal(y.toNumbers(), [27, 60]);
    backward(y, make([1, 1], [1, 2]));
    // dB = s · dyᵀ (x Aᵀ) = 0.5 · −2; dA = s · (dy B)ᵀ x = 0.5 · 5 · [5, 7].
    assert.equal(b.grad?.toNumbers(), [-1, -1]);
    assert.equal(a.grad?.toNumbers(), [12.5, 17.5]);
    assert.equal(branch.delta().toNumbers(), [1, -1, 1.5, -1.5]);
    const merged = layer.merged(['x']);
    assert.equal(merged.weight.toNumbers(), [2, 1, 4.5, 2.5]);
    assert.equal(merged.forward(x).toNumbers(), [27, 60]);
    merged.dispose();
  });
});

onEachBackend(
  test,
  'dropout: on the branch only, in training only, by seed and step',
  (backend) => {
    using model = tinyModel(TINY, backend);
    const base = logitBytes(model, BATCH);
    using adapters = new LoraAdapters(model);
    adapters.add('a', { targetModules: ['q_proj'], dropout: 0.5 }, 1);
    const seen = (seed: number, step: number) =>
      withTraining({ seed, step }, () => logitBytes(model, BATCH));
    assert.ok(sameBytes(seen(1, 0), base), 'B = 0: what is dropped does not matter');
    randomize(adapters, 'a', 2, 1);
    const plain = logitBytes(model, BATCH);
    assert.ok(sameBytes(logitBytes(model, BATCH), plain));
    assert.not.ok(sameBytes(seen(1, 0), plain));
    assert.ok(sameBytes(seen(1, 0), seen(1, 0)));
    assert.not.ok(sameBytes(seen(1, 0), seen(1, 1)));
    assert.not.ok(sameBytes(seen(1, 0), seen(2, 0)));
  },
);

onEachBackend(test, 'several adapters: one active, each its own', (backend) => {
  using model = tinyModel(TINY, backend);
  using adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['q_proj'], rank: 2 }, 1);
  adapters.add('b', { targetModules: ['q_proj', 'up_proj'], rank: 3 }, 2);
  assert.equal(adapters.names(), ['a', 'b']);
  assert.is(adapters.active, 'b', 'the newest');
  randomize(adapters, 'a', 1);
  randomize(adapters, 'b', 2);
  scope(() => backward(model.loss(BATCH).loss));
  for (const t of adapters.tensors('b').values()) assert.ok(t.grad);
  for (const t of adapters.tensors('a').values()) assert.is(t.grad, null);
  const b = logitBytes(model, BATCH);
  const a = logitBytes(adapters.setActive('a').model as typeof model, BATCH);
  assert.not.ok(sameBytes(a, b));
  adapters.remove('b');
  assert.is(adapters.active, 'a');
  assert.ok(sameBytes(logitBytes(model, BATCH), a));
  assert.is(denseLayers(model).filter((t) => t.layer instanceof LoraLinear).length, 2);
  adapters.remove('a');
  assert.is(adapters.active, null, 'the active one was removed');
  assert.not.ok(denseLayers(model).some((t) => t.layer instanceof LoraLinear));
});

onEachBackend(test, 'merging two adapters adds both updates, in either order', (backend) => {
  using model = tinyModel(TINY, backend);
  using adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['q_proj'], rank: 2 }, 1);
  adapters.add('b', { targetModules: ['q_proj', 'up_proj'], rank: 3 }, 2);
  randomize(adapters, 'a', 1);
  randomize(adapters, 'b', 2);
  const config = tinyConfig(TINY);
  using ab = buildCausalLM(config, adapters.mergedSource(['a', 'b']));
  using ba = buildCausalLM(config, adapters.mergedSource(['b', 'a']));
  const wrapped = firstQuery(model) as LoraLinear;
  const deltas = ['a', 'b'].map((n) => wrapped.branches.get(n)?.delta() as Tensor);
  const want = wrapped.base.weight
    .toNumbers()
    .map((w, i) => deltas.reduce((n, d) => n + (d.toNumbers()[i] as number), w));
  const got = (m: typeof ab) => (firstQuery(m) as Linear).weight.toNumbers();
  assert.ok(relativeDifference(got(ab), want) < 1e-6);
  assert.ok(relativeDifference(got(ba), want) < 1e-6);
  for (const d of deltas) d.dispose();
  assert.throws(() => adapters.mergedSource(['a', 'a']), /each adapter once/);
  assert.throws(() => adapters.mergedSource([]), /at least one adapter/);
});

test('merging numbers that are not finite is refused', () => {
  withModel((adapters) => {
    adapters.add('a', { targetModules: ['q_proj'], rank: 1 }, 1);
    for (const t of adapters.tensors('a').values()) {
      setFloats(t, new Float32Array(t.size).fill(3e38));
    }
    assert.throws(
      () => buildCausalLM(tinyConfig(TINY), adapters.mergedSource(['a'])),
      /\[merge\] expected finite weights/,
    );
  });
});

test('use after dispose names the op and the way out', () => {
  const model = tinyModel(TINY, reference);
  const adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['q_proj'] }, 1);
  const { b } = (firstQuery(model) as LoraLinear).branches.get('a') as LoraBranch;
  b.dispose();
  assert.throws(
    () => noGrad(() => scope(() => model.logits(BATCH))),
    /\[addLowRank\] expected a live tensor.*disposed/,
  );
  model.dispose();
  adapters.dispose();
  assert.throws(() => model.logits(BATCH), /expected a live tensor/);
  assert.equal(adapters.names(), []);
});

test('disposing the model frees its adapters, too', () => {
  const before = reference.memory();
  const model = tinyModel(TINY, reference);
  const adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['all-linear'] }, 1);
  adapters.add('b', { targetModules: ['qv'] }, 1);
  model.dispose();
  assert.is(reference.memory().handles, before.handles);
  assert.is(reference.memory().total, before.total);
});

test.run();
