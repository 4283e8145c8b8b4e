import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, scope, setTrainable } from '../src/autograd/index.js';
import { mul, sum } from '../src/ops/index.js';
import { AdamW } from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';

/** Empty, single, odd, and longer than a piece of work of one thread. */
const SHAPES = [[0], [1], [3, 37], [8192], [3, 8193], [2, 5]];
const ATTRS = [0.01, 0.9, 0.99, 1e-6, 0.1, 3, 0.5];

const random = (backend: Backend, shape: readonly number[], stream: number) =>
  tensor(normal({ seed: 6, stream }, numel(shape)), shape, { backend });

/** g, p, m and v of each shape. */
function operands(backend: Backend): Tensor[] {
  return SHAPES.flatMap((shape, i) =>
    [0, 1, 2, 3].map((slot) => {
      const t = random(backend, shape, 4 * i + slot);
      // The second moment is a mean of squares.
      return slot < 3 ? t : tensor(t.toNumbers().map(Math.abs), shape, { backend });
    }),
  );
}

const bytesOf = (tensors: readonly Tensor[]) => tensors.map((t) => Buffer.from(t.bytes()));

onEachBackend(test, 'adamwEach does what adamw does, one after the other', (backend) => {
  const [apart, together] = [operands(backend), operands(backend)];
  for (let i = 0; i < apart.length; i += 4) backend.run('adamw', apart.slice(i, i + 4), ATTRS);
  backend.run('adamwEach', together, ATTRS);
  assert.equal(bytesOf(together), bytesOf(apart));
  assert.throws(() => backend.run('adamwEach', [], ATTRS), /\[adamwEach\] expected g, p, m and v/);
  assert.throws(() => backend.run('adamwEach', together.slice(1), ATTRS), /g, p, m and v/);
  const wrong = [...together.slice(4, 8), ...together.slice(8, 11), together[0] as Tensor];
  const before = bytesOf(together);
  assert.throws(() => backend.run('adamwEach', wrong, ATTRS), /\[adamwEach\] expected/);
  assert.equal(bytesOf(together), before, 'a bad call changes nothing');
});

onEachBackend(test, 'an update of many parameters is that of each by itself', (backend) => {
  const count = 150;
  const train = (names: readonly string[]) => {
    const parameters = new Map(
      names.map((name) => [name, setTrainable(random(backend, [5], Number(name)), true)]),
    );
    const optimizer = new AdamW([{ parameters }], { lr: 0.1, weightDecay: 0.2 });
    for (let step = 0; step < 3; step++) {
      for (const [name, p] of parameters) {
        // One that has no gradient at first begins later.
        if (name === '7' && step === 0) continue;
        // Its gradient is what it is multiplied by.
        const g = random(backend, [5], 1000 * (step + 1) + Number(name));
        scope(() => backward(sum(mul(p, g))));
      }
      optimizer.update(1, 0.75);
      optimizer.zeroGrad();
    }
    return [...parameters.values()].map((p) => p.toNumbers());
  };
  const names = Array.from({ length: count }, (_, i) => String(i));
  assert.equal(
    train(names),
    names.flatMap((name) => train([name])),
  );
});

test.run();
