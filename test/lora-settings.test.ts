import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { LoraAdapters, type LoraConfig } from '../src/lora/index.js';
import { chooseLayers } from '../src/lora/targets.js';
import { onEachBackend, reference } from './backends.js';
import { logitBytes, randomize, sameBytes, TINY, tinyBatch, tinyModel } from './support/tiny.js';

/** Throws unless `add` refuses each of these and leaves nothing behind. */
function refused(
  adapters: LoraAdapters,
  cases: readonly (readonly [Partial<LoraConfig>, RegExp])[],
): void {
  const { handles } = reference.memory();
  for (const [change, message] of cases) {
    const config = { targetModules: ['q_proj', 'v_proj'], ...change };
    assert.throws(() => adapters.add('a', config, 1), message, JSON.stringify(change));
    assert.equal(adapters.names(), []);
    assert.is(reference.memory().handles, handles, JSON.stringify(change));
  }
}

test('a setting that does nothing is an error that says so', () => {
  using model = tinyModel(TINY, reference);
  using adapters = new LoraAdapters(model);
  refused(adapters, [
    // One name of several.
    [
      { layersToTransform: [0], layersPattern: ['layers', 'h'] },
      /layersPattern\].*lists of blocks.*received "h", which matches none\. Nearest: layers/,
    ],
    // The first pattern that matches counts: the second one never does.
    [
      { rankPattern: { q_proj: 2, 'self_attn.q_proj': 4 } },
      /rankPattern\].*"self_attn\.q_proj", whose layers .* before it/,
    ],
    // Nothing would ever be learnt.
    [{ alpha: 0 }, /lora alpha\] expected a number other than 0, received 0/],
    [{ alphaPattern: { q_proj: 0 } }, /lora alphaPattern\].*other than 0 for "q_proj"/],
    [{ bias: 'all' }, /lora bias\] expected a model with biases, received none/],
    [{ bias: 'lora_only' }, /lora bias\] expected layers with biases, received none/],
  ]);
  // A narrower pattern before a wider one has its own layers, and so has the wider one.
  adapters.add(
    'a',
    { targetModules: ['q_proj', 'v_proj'], rankPattern: { q_proj: 2, '.*_proj': 4 } },
    1,
  );
  // A file may say more than it needs.
  const choice = {
    targetModules: ['q_proj'],
    layersToTransform: [0],
    layersPattern: ['layers', 'h'],
  };
  assert.is(chooseLayers(model, choice, false).length, 1);
});

test('biases elsewhere are the way out where the layers have none', () => {
  using model = tinyModel({ ...TINY, bias: true }, reference);
  using adapters = new LoraAdapters(model);
  refused(adapters, [
    [
      { targetModules: ['lm_head'], bias: 'lora_only' },
      /lm_head.*bias "all" takes those of others/,
    ],
  ]);
  adapters.add('a', { targetModules: ['lm_head'], bias: 'all' }, 1);
});

test('modules that nearly match are named by what a user would write', () => {
  using model = tinyModel(TINY, reference);
  using adapters = new LoraAdapters(model);
  refused(adapters, [
    [{ modulesToSave: ['layernorm'] }, /"layernorm"\. Nearest: norm, input_layernorm/],
    [{ modulesToSave: ['nrm'] }, /"nrm"\. Nearest: norm,/],
    [{ modulesToSave: ['model.nrm'] }, /"model\.nrm"\. Nearest: model\.norm,/],
  ]);
});

test('a head that is tied to the table is told of with the way out', () => {
  using model = tinyModel({ ...TINY, tied: true }, reference);
  using adapters = new LoraAdapters(model);
  refused(adapters, [[{ targetModules: ['lm_head'] }, /"lm_head".*loaded with untied: true/]]);
});

onEachBackend(test, 'a swap that cannot be leaves everything as it was', (backend) => {
  using model = tinyModel(TINY, backend);
  using adapters = new LoraAdapters(model);
  const batch = tinyBatch(3, [4], TINY.vocab);
  const whole = { targetModules: ['q_proj'], rank: 2, modulesToSave: ['norm'] };
  adapters.add('plain', { targetModules: ['q_proj', 'up_proj'], rank: 3 }, 1);
  adapters.add('one', whole, 2).add('two', whole, 3);
  for (const name of adapters.names()) randomize(adapters, name, 4);
  adapters.setTrainable('two', false).setActive(['plain', 'one']);
  const before = logitBytes(model, batch);
  assert.throws(
    () => adapters.swap('plain', 'two'),
    /lora swap\].*model\.norm\.weight whole.*two and one/,
  );
  assert.equal(adapters.names(), ['plain', 'one', 'two']);
  assert.equal([...adapters.activeNames], ['plain', 'one']);
  assert.equal(
    adapters.names().map((n) => adapters.isTrainable(n)),
    [true, true, false],
  );
  assert.ok(sameBytes(logitBytes(model, batch), before));
  // Merged, nothing is swapped either.
  adapters.merge();
  assert.throws(() => adapters.swap('one', 'two'), /lora swap\] expected no adapter merged/);
  adapters.unmerge().swap('one', 'two');
  assert.equal([...adapters.activeNames], ['plain', 'one']);
});

test.run();
