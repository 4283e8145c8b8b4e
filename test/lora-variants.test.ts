// time-limit: 240
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope } from '../src/autograd/index.js';
import { writtenConfig } from '../src/lora/config.js';
import {
  DoraBranch,
  type FusedBranch,
  fullConfig,
  LoraAdapters,
  LoraBranch,
  type LoraConfig,
  LoraLinear,
  loadAdapter,
  saveAdapter,
  siteOf,
} from '../src/lora/index.js';
import { mergedWeight } from '../src/lora/layer.js';
import { variantOn } from '../src/lora/variants/index.js';
import type { CausalLM } from '../src/models/causal-lm.js';
import { buildCausalLM } from '../src/models/load.js';
import { Conv1D, Embedding, Linear, withTraining } from '../src/nn/index.js';
import { AdamW, loraPlusGroups } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend, reference } from './backends.js';
import { withFolder } from './support/temp.js';
import {
  logitBytes,
  logitsOf,
  randomize,
  relativeDifference,
  sameBytes,
  setFloats,
  snapshot,
  TINY,
  tinyBatch,
  tinyConfig,
  tinyModel,
} from './support/tiny.js';

const BATCH = tinyBatch(1, [6, 4], TINY.vocab);
const BIASED = { ...TINY, bias: true };

/** Settings of every variant and kind of layer, tried alike. `start`: not the base bit for bit. */
const VARIANTS: Record<string, LoraConfig & { near?: boolean }> = {
  lora: { targetModules: ['q_proj', 'down_proj'], rank: 3 },
  rslora: { targetModules: ['q_proj'], rank: 4, scaling: 'rslora' },
  dora: { targetModules: ['all-linear'], rank: 2, variant: 'dora' },
  'dora rslora': { targetModules: ['v_proj'], rank: 2, variant: 'dora', scaling: 'rslora' },
  'bias of B': { targetModules: ['q_proj', 'v_proj'], rank: 2, loraBias: true },
  'biases of the layers': { targetModules: ['q_proj'], rank: 2, bias: 'lora_only' },
  'all biases': { targetModules: ['q_proj'], rank: 2, bias: 'all' },
  'dora with biases': { targetModules: ['q_proj'], variant: 'dora', bias: 'lora_only' },
  embedding: { targetModules: ['embed_tokens', 'q_proj'], rank: 2 },
  'dora embedding': { targetModules: ['embed_tokens'], rank: 2, variant: 'dora' },
  'output layer': { targetModules: ['lm_head'], rank: 2 },
  patterns: {
    targetModules: ['all-linear'],
    rank: 2,
    rankPattern: { q_proj: 5, 'layers\\.1\\.mlp\\.(up|gate)_proj': 1 },
    alphaPattern: { v_proj: 1, '^model\\.layers\\.0\\..*o_proj': 7 },
  },
  'blocks and exclusions': {
    targetModules: ['attention'],
    excludeModules: ['k_proj'],
    layersToTransform: [1],
    layersPattern: ['layers'],
  },
  'a regular expression': { targetModules: '.*layers\\.1\\..*(q|v)_proj', rank: 2 },
  'modules saved whole': { targetModules: ['q_proj'], modulesToSave: ['norm', 'lm_head'] },
  'token rows': { targetModules: ['q_proj'], trainableTokens: [3, 1, 7] },
  'token rows by name': { targetModules: ['q_proj'], trainableTokens: { embed_tokens: [2] } },
  'parts of a fused layer': {
    targetModules: ['gate_proj', 'q_proj'],
    rank: 2,
    enableLora: { gate_proj: [true, false, true], 'layers\\.1\\..*q_proj': [false, true] },
  },
  'parts, rslora, patterns': {
    targetModules: ['up_proj'],
    rank: 2,
    scaling: 'rslora',
    enableLora: { up_proj: [true, true, false, true] },
    rankPattern: { 'layers\\.0\\.mlp\\.up_proj': 3 },
    alphaPattern: { 'layers\\.1\\.mlp\\.up_proj': 5 },
  },
  gaussian: { targetModules: ['q_proj', 'embed_tokens'], init: 'gaussian' },
  orthogonal: { targetModules: ['q_proj'], rank: 4, init: 'orthogonal', near: true },
  pissa: { targetModules: ['q_proj', 'up_proj'], rank: 2, init: 'pissa' },
  'pissa rslora': { targetModules: ['q_proj'], rank: 2, init: 'pissa', scaling: 'rslora' },
  'pissa, randomised': { targetModules: ['q_proj'], rank: 2, init: 'pissa_niter_4' },
  olora: { targetModules: ['v_proj', 'o_proj'], rank: 2, init: 'olora' },
};

/** Every variant on a tiny model of its own. */
function eachVariant(
  backend: Backend,
  body: (model: CausalLM, adapters: LoraAdapters, config: LoraConfig, near: boolean) => void,
  settings = BIASED,
): void {
  for (const [name, { near = false, ...config }] of Object.entries(VARIANTS)) {
    using model = tinyModel(settings, backend);
    using adapters = new LoraAdapters(model);
    try {
      body(model, adapters, config, near);
    } catch (error) {
      throw new Error(`${name}: ${(error as Error).message}`, { cause: error });
    }
  }
}

/** A few steps of AdamW on an adapter. */
function train(model: CausalLM, adapters: LoraAdapters, name: string, steps = 3): void {
  using optimizer = new AdamW([{ parameters: adapters.tensors(name) }], { lr: 0.02 });
  for (let i = 0; i < steps; i++) {
    scope(() => {
      backward(model.loss(BATCH).loss);
      for (const [key, t] of adapters.tensors(name)) {
        assert.ok(t.grad, `${key} has a gradient`);
      }
      optimizer.update();
      optimizer.zeroGrad();
    });
  }
}

onEachBackend(test, 'every variant starts at the base, and leaves it as it was', (backend) => {
  using plain = tinyModel(BIASED, backend);
  const base = logitBytes(plain, BATCH);
  eachVariant(backend, (model, adapters, config, near) => {
    const before = snapshot(adapters.baseParameters());
    const names = [...model.namedParameters()].map(([n]) => n);
    adapters.add('a', config, 5);
    if (near) {
      const floats = new Float32Array(base.buffer);
      assert.ok(relativeDifference(logitsOf(model, BATCH), floats) < 1e-5);
    } else assert.ok(sameBytes(logitBytes(model, BATCH), base), 'bit for bit');
    train(model, adapters, 'a');
    const trained = logitBytes(model, BATCH);
    assert.not.ok(sameBytes(trained, base), 'training changes something');
    adapters.setActive(null);
    assert.ok(sameBytes(logitBytes(model, BATCH), base), 'off');
    adapters.setActive('a');
    assert.ok(sameBytes(logitBytes(model, BATCH), trained), 'on again');
    adapters.remove('a');
    assert.ok(sameBytes(logitBytes(model, BATCH), base), 'removed');
    assert.equal(snapshot(adapters.baseParameters()), before);
    assert.equal(
      [...model.namedParameters()].map(([n]) => n),
      names,
    );
  });
});

onEachBackend(
  test,
  'every variant: merged ≡ unmerged; unmerge is the base bit for bit',
  (backend) => {
    using plain = tinyModel(BIASED, backend);
    const base = logitBytes(plain, BATCH);
    eachVariant(backend, (model, adapters, config) => {
      adapters.add('a', config, 5);
      train(model, adapters, 'a');
      const before = snapshot(adapters.baseParameters());
      const unmerged = logitBytes(model, BATCH);
      const close = (other: Float32Array, what: string) => {
        const difference = relativeDifference(other, new Float32Array(unmerged.buffer));
        assert.ok(difference < 1e-4, `${what}: ${difference}`);
      };
      using built = buildCausalLM(tinyConfig(BIASED), adapters.mergedSource(['a']));
      close(logitsOf(built, BATCH), 'a plain model of merged weights');
      adapters.merge();
      assert.equal(adapters.merged, ['a']);
      close(logitsOf(model, BATCH), 'merged in place');
      assert.throws(() => adapters.setActive(null), /no adapter merged.*unmerge\(\) first/);
      adapters.unmerge();
      assert.ok(sameBytes(logitBytes(model, BATCH), unmerged), 'the same adapter again');
      assert.equal(snapshot(adapters.baseParameters()), before);
      adapters.setActive(null);
      assert.ok(sameBytes(logitBytes(model, BATCH), base));
      adapters.setActive('a');
      assert.is(adapters.fuse(), model);
      close(logitsOf(model, BATCH), 'fused');
      assert.equal(adapters.names(), []);
      assert.equal(
        [...model.namedParameters()].map(([n]) => n),
        [...plain.namedParameters()].map(([n]) => n),
      );
    });
  },
);

onEachBackend(test, 'every variant: saved and loaded, the same tensors and outputs', (backend) => {
  eachVariant(backend, (model, adapters, config) => {
    adapters.add('a', config, 5);
    train(model, adapters, 'a');
    const fromWeight = /pissa|olora/.test(config.init ?? '');
    withFolder((dir) => {
      saveAdapter(adapters, 'a', dir);
      loadAdapter(adapters, 'b', dir);
      const b = logitsOf(model, BATCH);
      adapters.setActive('a');
      if (fromWeight) assert.ok(relativeDifference(b, logitsOf(model, BATCH)) < 1e-5);
      else {
        assert.equal(snapshot(adapters.tensors('b')), snapshot(adapters.tensors('a')));
        assert.equal(b, logitsOf(model, BATCH));
        // The settings, too: a dora stays one.
        assert.is(adapters.config('b').variant, adapters.config('a').variant);
      }
    });
  });
});

onEachBackend(test, 'nothing is left after an adapter, a merge or a fusion', (backend) => {
  eachVariant(backend, (_model, adapters, config) => {
    const start = backend.memory();
    adapters.add('a', config, 1);
    adapters.merge().unmerge().remove('a');
    assert.is(backend.memory().handles, start.handles);
    assert.is(backend.memory().total, start.total);
  });
  const before = backend.memory();
  eachVariant(backend, (_model, adapters, config) => {
    adapters.add('other', { targetModules: ['all-linear'], rank: 1 }, 1);
    adapters.add('a', config, 1).fuse();
  });
  assert.is(backend.memory().handles, before.handles);
  assert.is(backend.memory().total, before.total);
});

onEachBackend(
  test,
  'a fused embedding frees the base’s table, unless a tied head needs it',
  (backend) => {
    for (const tied of [false, true]) {
      using model = tinyModel({ ...TINY, tied }, backend);
      const adapters = new LoraAdapters(model);
      const table = adapters.baseParameters().get('model.embed_tokens.weight') as Tensor;
      adapters.add('a', { targetModules: ['embed_tokens'], rank: 2 }, 1);
      randomize(adapters, 'a', 1);
      const before = logitsOf(model, tinyBatch(1, [4], TINY.vocab));
      adapters.fuse();
      const after = logitsOf(model, tinyBatch(1, [4], TINY.vocab));
      assert.ok(relativeDifference(after, before) < 1e-4);
      if (tied) table.check('here');
      else assert.throws(() => table.check('here'), /here/);
    }
  },
);

/** A layer of each kind with random weights. */
function layers(backend: Backend, dtype: 'f32' | 'bf16' | 'f16') {
  const random = (shape: number[], stream: number) =>
    tensor(
      normal(
        { seed: 3, stream },
        shape.reduce((n, d) => n * d, 1),
      ),
      shape,
      { backend, dtype },
    );
  const linear = new Linear(random([5, 7], 1), random([5], 2));
  const conv1d = new Conv1D(random([7, 5], 3), random([5], 4));
  const table = new Embedding(random([7, 5], 5));
  const x = tensor(normal({ seed: 4, stream: 1 }, 21), [3, 7], { backend });
  const ids = tensor([6, 0, 6], [3], { backend, dtype: 'i32' });
  return [
    { site: siteOf('l', linear), x, y: () => linear.forward(x) },
    { site: siteOf('l', conv1d), x, y: () => conv1d.forward(x) },
    { site: siteOf('l', table), x: ids, y: () => table.forward(ids) },
  ];
}

onEachBackend(
  test,
  'DoRA by hand: rows of length m, whatever the layer and its dtype',
  (backend) => {
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      noGrad(() =>
        scope(() => {
          for (const { site, x, y } of layers(backend, dtype)) {
            const random = (shape: number[], stream: number) =>
              tensor(normal({ seed: 9, stream }, shape[0]! * (shape[1] ?? 1)), shape, { backend });
            const [a, b] = [random([2, 7], 1), random([5, 2], 2)];
            const m = tensor([1, 2, 3, 0.5, 0], [5], { backend });
            const parts = new Map([
              [site.names.a, a],
              [site.names.b, b],
              ['lora_magnitude_vector', m],
            ]);
            const branch = new DoraBranch(site, parts, 0.7, 0);
            const plain = LoraBranch.of(site, a, b, 0.7).delta().toNumbers();
            const w = site.weight.toNumbers();
            const changed = branch.delta().toNumbers();
            // W + change has rows of length m in the direction of W + ΔW.
            const at = (o: number, i: number) => (site.transposed ? i * 5 + o : o * 7 + i);
            for (let o = 0; o < 5; o++) {
              const moved = Array.from({ length: 7 }, (_, i) => w[at(o, i)]! + plain[at(o, i)]!);
              const n = Math.hypot(...moved);
              moved.forEach((v, i) => {
                const want = (m.toNumbers()[o]! * v) / n;
                assert.ok(Math.abs(w[at(o, i)]! + changed[at(o, i)]! - want) < 1e-5);
              });
            }
            // The output is that of the merged weight.
            const got = branch.change(x, y()).toNumbers();
            const rows =
              site.kind === 'embedding'
                ? x.toNumbers().map((id) => Array.from({ length: 7 }, (_, i) => Number(i === id)))
                : [0, 1, 2].map((r) => x.toNumbers().slice(7 * r, 7 * r + 7));
            rows.forEach((row, r) => {
              for (let o = 0; o < 5; o++) {
                const want = row.reduce((sum, v, i) => sum + v * changed[at(o, i)]!, 0);
                assert.ok(Math.abs(got[r * 5 + o]! - want) < 2e-5, `${site.kind} ${dtype}`);
              }
            });
          }
        }),
      );
    }
  },
);

test('DoRA’s norm counts as a constant: dm = Σ dy ⊙ (W + ΔW)x / n, by hand', () => {
  scope(() => {
    const make = (values: number[], shape: number[]) =>
      tensor(values, shape, { backend: reference });
    const layer = new LoraLinear(new Linear(make([3, 0], [1, 2]), make([10], [1])), 'l');
    const parts = new Map([
      ['lora_A.weight', make([0, 2], [1, 2])],
      ['lora_B.weight', make([2], [1, 1])],
      ['lora_magnitude_vector', make([10], [1])],
    ]);
    const branch = new DoraBranch(layer.site, parts, 1, 0);
    branch.setTrainable(true);
    layer.branches.set('a', branch);
    layer.active = ['a'];
    // W + BA = [3, 4], of length 5: W' = [6, 8].
    const y = layer.forward(make([1, 2], [1, 2]));
    assert.equal(y.toNumbers(), [6 + 16 + 10]);
    backward(y, make([1], [1, 1]));
    const grad = (end: string) => (parts.get(end) as Tensor).grad?.toNumbers();
    assert.equal(grad('lora_magnitude_vector'), [Math.fround(11 / 5)]);
    // As if W' were 2·(W + BA): dB = 2·dy·Ax, dA = 2·dy·B·x.
    assert.equal(grad('lora_B.weight'), [2 * 4]);
    assert.equal(grad('lora_A.weight'), [2 * 2, 2 * 2 * 2]);
  });
});

test('with dropout, DoRA’s share of the base sees it too, as in PEFT', () => {
  scope(() => {
    const ones = (shape: number[]) =>
      tensor(new Float32Array(shape.reduce((n, d) => n * d, 1)).fill(1), shape, {
        backend: reference,
      });
    const layer = new LoraLinear(new Linear(ones([1, 64]), null), 'l');
    const m = tensor([16], [1], { backend: reference });
    const parts = new Map([
      ['lora_A.weight', ones([1, 64])],
      ['lora_B.weight', tensor([0], [1, 1], { backend: reference })],
      ['lora_magnitude_vector', m],
    ]);
    layer.branches.set('a', new DoraBranch(layer.site, parts, 1, 0.5));
    layer.active = ['a'];
    const x = ones([1, 64]);
    assert.equal(layer.forward(x).toNumbers(), [128], 'm/n = 2');
    const y = withTraining({ seed: 1, step: 0 }, () => layer.forward(x)).item();
    // 64 + (2 − 1)·(kept · 2): the base as it is, the branch's part with dropout.
    assert.is.not(y, 128);
    assert.ok(Number.isInteger((y - 64) / 2) && y > 64 && y < 192, `${y}`);
  });
});

onEachBackend(test, 'several at once: the sum of what each adds, in any order', (backend) => {
  using model = tinyModel(TINY, backend);
  using adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['q_proj', 'o_proj'], rank: 2 }, 1);
  adapters.add('b', { targetModules: ['q_proj'], rank: 3, variant: 'dora' }, 2);
  adapters.add('c', { targetModules: ['embed_tokens'], rank: 1 }, 3);
  for (const n of ['a', 'b', 'c']) randomize(adapters, n, 7);
  const only = logitBytes(adapters.setActive('a').model as CausalLM, BATCH);
  assert.is(adapters.active, 'a');
  adapters.setActive(['a', 'b', 'c']);
  assert.equal([...adapters.activeNames], ['a', 'b', 'c']);
  assert.is(adapters.active, null);
  const all = logitsOf(model, BATCH);
  adapters.setActive(['c', 'b', 'a']);
  assert.ok(relativeDifference(logitsOf(model, BATCH), all) < 1e-5);
  adapters.merge(['b', 'c', 'a']);
  assert.ok(relativeDifference(logitsOf(model, BATCH), all) < 1e-4);
  adapters.unmerge().setActive('a');
  assert.ok(sameBytes(logitBytes(model, BATCH), only));
  assert.throws(() => adapters.setActive(['a', 'a']), /each adapter once/);
  assert.throws(() => adapters.setActive(['a', 'd']), /"d"\. There are: a, b, c/);
});

test('two that hold one parameter, or one token’s row, cannot be active together', () => {
  using model = tinyModel(TINY, reference);
  using adapters = new LoraAdapters(model);
  const whole = { targetModules: ['q_proj'], modulesToSave: ['norm'] };
  adapters.add('a', whole, 1).add('b', whole, 1);
  adapters.add('c', { targetModules: ['q_proj'], trainableTokens: [1, 2] }, 1);
  adapters.add('d', { targetModules: ['q_proj'], trainableTokens: [2, 3] }, 1);
  adapters.setActive(['a', 'c']);
  assert.throws(() => adapters.setActive(['a', 'b']), /holds model\.norm\.weight whole.*a and b/);
  assert.throws(() => adapters.setActive(['c', 'd']), /token 2 of model\.embed_tokens.*c and d/);
  assert.equal([...adapters.activeNames], ['a', 'c'], 'as before');
  assert.throws(() => adapters.merge(['a', 'b']), /one adapter that holds/);
  assert.throws(
    () => adapters.merge(new Map([['a', 0.5]])),
    /weight 1, as it holds model\.norm\.weight whole/,
  );
  assert.equal(adapters.merged, []);
});

onEachBackend(test, 'rename, and hot-swap another rank in place', (backend) => {
  using model = tinyModel(TINY, backend);
  using adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['q_proj'], rank: 2 }, 1);
  adapters.add('b', { targetModules: ['q_proj', 'up_proj'], rank: 5, bias: 'none' }, 2);
  randomize(adapters, 'a', 3);
  randomize(adapters, 'b', 4);
  const b = logitBytes(model, BATCH);
  adapters.rename('a', 'x').setActive('x');
  assert.equal(adapters.names(), ['x', 'b']);
  assert.throws(() => adapters.rename('x', 'b'), /new, non-empty name/);
  adapters.setTrainable('x', true).setTrainable('b', false);
  adapters.swap('x', 'b');
  assert.equal(adapters.names(), ['x']);
  assert.is(adapters.active, 'x');
  assert.is(adapters.isTrainable('x'), true, 'as the one it replaced');
  assert.is(adapters.config('x').rank, 5);
  assert.ok(sameBytes(logitBytes(model, BATCH), b));
});

test('loraPlusGroups: B learns faster; biases and magnitudes have no decay', () => {
  using model = tinyModel(TINY, reference);
  using adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['q_proj', 'embed_tokens'], rank: 2, variant: 'dora' }, 1);
  const parameters = adapters.tensors('a');
  const groups = loraPlusGroups(parameters, adapters.outputTensors('a'), {
    lr: 1e-3,
    ratio: 8,
    weightDecay: 0.1,
  });
  const seen = groups.map((g) => [
    g.lr,
    g.weightDecay,
    [...new Set([...g.parameters.keys()].map((k) => k.replace(/^.*(lora_[a-zA-Z_]+).*$/, '$1')))],
  ]);
  assert.equal(seen, [
    [1e-3, 0.1, ['lora_embedding_A', 'lora_A']],
    [8e-3, 0.1, ['lora_embedding_B', 'lora_B']],
    [1e-3, 0, ['lora_magnitude_vector']],
  ]);
  assert.is(
    groups.reduce((n, g) => n + g.parameters.size, 0),
    parameters.size,
  );
  using optimizer = new AdamW(groups, { lr: 1 });
  assert.is(optimizer.parameters().length, parameters.size);
  assert.throws(() => loraPlusGroups(parameters, new Set(['x']), { lr: 1 }), /names of parameters/);
  assert.throws(() => loraPlusGroups(parameters, new Set(), { lr: 1 }), /received none/);
});

test('a bias of B cannot be merged into a layer without one: an error that names it', () => {
  using model = tinyModel(TINY, reference);
  using adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['q_proj'], loraBias: true }, 1);
  const message = /\[merge, adapter a\] expected a bias of model\.layers\.0\.self_attn\.q_proj/;
  assert.throws(() => adapters.merge(), message);
  assert.throws(() => adapters.mergedSource(['a']), message);
  assert.equal(adapters.merged, []);
});

test('names and patterns that match nothing, and settings that clash, are errors', () => {
  using model = tinyModel(TINY, reference);
  using adapters = new LoraAdapters(model);
  const wrong: [Partial<LoraConfig>, RegExp][] = [
    [{ excludeModules: ['qproj'] }, /excludeModules.*"qproj".*q_proj/],
    [{ excludeModules: ['q_proj'] }, /excludeModules.*every layer excluded/],
    [{ rankPattern: { k_proj: 2 } }, /rankPattern.*"k_proj", which matches none.*q_proj/],
    [{ alphaPattern: { 'q.proj_': 2 } }, /alphaPattern.*which matches none/],
    [{ rankPattern: { q_proj: 0 } }, /rankPattern.*rank of 1 or more.*received 0/],
    [{ rankPattern: { '(': 1 } }, /regular expression.*"\(/],
    [{ layersToTransform: [2] }, /layersToTransform.*0, 1.*received 2/],
    [
      { layersToTransform: [0], layersPattern: ['h'] },
      /layersPattern.*"h", which matches none.*layers/,
    ],
    [{ layersPattern: ['layers'] }, /layersToTransform with it/],
    [{ modulesToSave: ['orm'] }, /modulesToSave.*"orm".*norm/],
    [{ trainableTokens: [99] }, /trainableTokens.*0…12.*received 99/],
    [{ trainableTokens: { embed: [1] } }, /trainableTokens.*"embed".*embed_tokens/],
    [{ trainableTokens: [1, 1] }, /each once/],
    [{ targetModules: ['embed_tokens'], trainableTokens: [1] }, /an embedding without LoRA/],
    [{ variant: 'dora', loraBias: true }, /loraBias.*variant lora.*dora/],
    [{ init: 'orthogonal', rank: 3 }, /orthogonal.*even rank.*3/],
    [{ init: 'pissa', variant: 'dora' }, /pissa.*variant lora/],
    [{ init: 'pissa', rank: 9 }, /pissa rank.*1 to 8.*9/],
    [{ init: 'pissa', targetModules: ['embed_tokens'] }, /start from the weight of .*embed_tokens/],
    [{ enableLora: { q_proj: [true, false, true] } }, /enableLora.*3 equal parts.*of 8 outputs/],
    [{ enableLora: { up_proj: [true] } }, /enableLora.*"up_proj", which matches none/],
    [{ enableLora: { q_proj: [false, false] } }, /enableLora.*one of them true/],
    [{ enableLora: { q_proj: [true, false] }, variant: 'dora' }, /enableLora.*plain LoRA.*dora/],
    [{ bias: 'some' as never }, /bias.*none or all or lora_only.*"some"/],
    [{ variant: 'vera' as never }, /variant.*lora or dora/],
    [{ targetModules: '.*qproj' }, /"\.\*qproj", which matches none.*model\.embed_tokens/],
  ];
  for (const [change, message] of wrong) {
    const config = { targetModules: ['q_proj'], ...change };
    const { handles } = reference.memory();
    assert.throws(() => adapters.add('a', config, 1), message, JSON.stringify(change));
    assert.equal(adapters.names(), []);
    assert.is(reference.memory().handles, handles, JSON.stringify(change));
  }
});

onEachBackend(
  test,
  'parts that are off are left alone; the others have their own A and B',
  (backend) => {
    const random = (shape: number[], stream: number) =>
      tensor(
        normal(
          { seed: 2, stream },
          shape.reduce((n, d) => n * d, 1),
        ),
        shape,
        { backend },
      );
    scope(() => {
      const layer = new LoraLinear(
        new Conv1D(random([4, 9], 1), random([9], 2)),
        'h.0.attn.c_attn',
      );
      const config = fullConfig({
        rank: 2,
        alpha: 6,
        targetModules: ['c_attn'],
        enableLora: { c_attn: [true, false, true] },
      });
      const branch = variantOn(layer.site, config).create(layer.site, config, 1) as FusedBranch;
      assert.equal(
        [branch.a.shape, branch.b.shape],
        [
          [4, 4],
          [6, 2],
        ],
      );
      const [a, b] = [random([4, 4], 3), random([6, 2], 4)];
      branch.a.setBytes(a.bytes());
      branch.b.setBytes(b.bytes());
      branch.setTrainable(true);
      layer.branches.set('x', branch);
      layer.active = ['x'];
      const x = random([5, 4], 5);
      const [y, base] = [layer.forward(x), layer.base.forward(x).toNumbers()];
      // Part p of the output: 3 · (x A_pᵀ) B_pᵀ with s = 6 / 2.
      const [A, B, X] = [a, b, x].map((t) => t.toNumbers()) as [number[], number[], number[]];
      const share = (row: number, part: number, o: number) => {
        let sum = 0;
        for (let k = 0; k < 2; k++) {
          let h = 0;
          for (let i = 0; i < 4; i++) h += X[row * 4 + i]! * A[(2 * part + k) * 4 + i]!;
          sum += h * B[(3 * part + o) * 2 + k]!;
        }
        return 3 * sum;
      };
      y.toNumbers().forEach((v, i) => {
        const [row, o] = [Math.floor(i / 9), i % 9];
        const part = Math.floor(o / 3);
        if (part === 1) assert.is(v, base[i], 'off: the base, bit for bit');
        else assert.ok(Math.abs(v - base[i]! - share(row, part === 0 ? 0 : 1, o % 3)) < 1e-4);
      });
      backward(y, random([5, 9], 6));
      assert.equal(branch.b.grad?.shape, [6, 2]);
      layer.dispose();
    });
  },
);

test('parts of GPT-2’s c_attn, as PEFT can say them', () => {
  const sizes = { n_embd: 8, n_head: 2, n_layer: 1, n_positions: 8, vocab_size: 11 };
  using model = buildCausalLM({ model_type: 'gpt2', ...sizes }, (name, shape) =>
    tensor(normal({ seed: 1, stream: name.length }, numel(shape)), shape, { backend: reference }),
  );
  using adapters = new LoraAdapters(model);
  const enableLora = { 'attn.c_attn': [true, false, true] };
  adapters.add('a', { targetModules: ['qv'], rank: 2, alpha: 2, enableLora }, 1);
  assert.equal(
    [...adapters.tensors('a').values()].map((t) => t.shape),
    [
      [4, 8],
      [16, 2],
    ],
  );
  withFolder((dir) => {
    saveAdapter(adapters, 'a', dir);
    loadAdapter(adapters, 'b', dir);
    assert.equal(snapshot(adapters.tensors('b')), snapshot(adapters.tensors('a')));
  });
  // PEFT's way to say so: rank 4 with alpha 4.
  const path = 'transformer.h.0.attn.c_attn';
  assert.equal(writtenConfig(adapters.config('a'), [path]).rankPattern, { [path]: 4 });
  assert.equal(writtenConfig(adapters.config('a'), [path]).alphaPattern, { [path]: 4 });
});

test('"norm" is the module of that name, not every name that ends so', () => {
  using model = tinyModel(TINY, reference);
  using adapters = new LoraAdapters(model);
  adapters.add('a', { targetModules: ['q_proj'], modulesToSave: ['norm'] }, 1);
  const whole = [...adapters.tensors('a').keys()].filter((k) => !k.includes('lora_'));
  assert.equal(whole, ['base_model.model.model.norm.weight']);
});

test('a start from the weight subtracts itself: A and B change, the base does not', () => {
  using model = tinyModel(TINY, reference);
  using adapters = new LoraAdapters(model);
  const before = snapshot(adapters.baseParameters());
  adapters.add('a', { targetModules: ['q_proj'], rank: 2, alpha: 6, init: 'pissa' }, 1);
  for (const t of adapters.tensors('a').values()) assert.ok(t.toNumbers().some((v) => v !== 0));
  assert.equal(snapshot(adapters.baseParameters()), before);
  withFolder((dir) => {
    saveAdapter(adapters, 'a', dir);
    loadAdapter(adapters, 'b', dir);
    const { rank, alpha, init } = adapters.config('b');
    assert.equal({ rank, alpha, init }, { rank: 4, alpha: 12, init: 'kaiming' });
  });
});

for (const transposed of [false, true]) {
  const kind = transposed ? 'Conv1D' : 'Linear';
  onEachBackend(test, `DoRA on ${kind} is merged row by row, not as a whole in f32`, (backend) => {
    const native = backend.name === 'cpu';
    const [outF, inF] = native ? [1600, 1000] : [60, 40];
    const shape = transposed ? [inF, outF] : [outF, inF];
    const weight = tensor(normal({ seed: 1, stream: 1 }, outF * inF), shape, {
      ...{ backend, dtype: 'bf16', purpose: 'frozen' },
    });
    const layer = new LoraLinear(
      transposed ? new Conv1D(weight, null) : new Linear(weight, null),
      'l',
    );
    const settings = fullConfig({ rank: 2, targetModules: ['l'], variant: 'dora' });
    layer.branches.set('a', variantOn(layer.site, settings).create(layer.site, settings, 1));
    for (const branch of layer.branches.values()) {
      for (const t of branch.tensors().values()) {
        const values = normal({ seed: 2, stream: t.size }, t.size);
        setFloats(
          t,
          Float32Array.from(values, (z) => (t.shape.length === 1 ? 20 + z : z)),
        );
      }
    }
    const [branch] = layer.branches.values();
    const whole = branch?.delta().toNumbers() as number[];
    const before = backend.memory().total;
    backend.resetPeak();
    const merged = scope(() => mergedWeight(layer, new Map([['a', -0.5]])));
    // A dozen blocks of 65,536 numbers in f32 at most, whatever the layer: less than a copy of it.
    const most = backend.memory().totalPeak - before - 2 * outF * inF;
    if (native) assert.ok(most < 12 * 4 * 2 ** 16, `${most} bytes beside the result`);
    const base = weight.toNumbers();
    for (const [i, v] of merged.toNumbers().entries()) {
      const wanted = (base[i] as number) - 0.5 * (whole[i] as number);
      assert.ok(Math.abs(v - wanted) <= 2 ** -8 * Math.abs(wanted) + 1e-5, `${i}: ${v} ${wanted}`);
    }
    merged.dispose();
    layer.dispose();
  });
}

test.run();
