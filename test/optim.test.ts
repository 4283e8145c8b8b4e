import { join } from 'node:path';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, scope, setTrainable } from '../src/autograd/index.js';
import { mul, sum } from '../src/ops/index.js';
import {
  AdamW,
  type AdamWOptions,
  clipFactor,
  gradientNorm,
  type Optimizer,
  SGD,
  type SGDOptions,
  scheduleFactor,
} from '../src/optim/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { loadTrainingState, saveTrainingState } from '../src/train/state.js';
import { onEachBackend, reference } from './backends.js';
import { withFolder } from './support/temp.js';
import { relativeDifference } from './support/tiny.js';

function parameter(values: readonly number[], backend: Backend = reference): Tensor {
  return setTrainable(tensor([...values], [values.length], { backend }), true);
}

/** Gives a parameter this gradient, through a loss Σ p·g. */
function setGradient(p: Tensor, values: readonly number[]): void {
  scope(() => backward(sum(mul(p, tensor([...values], p.shape, { backend: p.backend })))));
}

const START = [0.5, -1.25, 2, 0];
const GRADIENTS = [
  [0.1, -0.2, 3, 0],
  [-0.4, 0.05, 1.5, 1e-4],
  [0.3, 0.3, -2, 0],
];

/** The parameter after each of the three steps. */
function trajectory(backend: Backend, make: (p: Tensor) => Optimizer, scales = [1, 1]): number[][] {
  const p = parameter(START, backend);
  const optimizer = make(p);
  const out = GRADIENTS.map((g) => {
    setGradient(p, g);
    optimizer.update(...(scales as [number, number]));
    optimizer.zeroGrad();
    return p.toNumbers();
  });
  optimizer.dispose();
  p.dispose();
  return out;
}

const adamw = (options: AdamWOptions) => (p: Tensor) =>
  new AdamW([{ parameters: new Map([['p', p]]) }], options);
const sgd = (options: SGDOptions) => (p: Tensor) =>
  new SGD([{ parameters: new Map([['p', p]]) }], options);

/** What torch.optim of PyTorch 2.13 answers for the same parameter and gradients. */
const PYTORCH: [string, (p: Tensor) => Optimizer, number[][]][] = [
  [
    'AdamW, defaults, lr 0.1',
    adamw({ lr: 0.1 }),
    [
      [0.3995000123977661, -1.1487499475479126, 1.8980000019073486, 0],
      [0.45505085587501526, -1.1006544828414917, 1.8028841018676758, -0.07440316677093506],
      [0.45196399092674255, -1.1316795349121094, 1.7719441652297974, -0.1318407952785492],
    ],
  ],
  [
    'AdamW, betas 0.8 and 0.95, eps 1e-3, weight decay 0.2, lr 0.03',
    adamw({ lr: 0.03, betas: [0.8, 0.95], eps: 1e-3, weightDecay: 0.2 }),
    [
      [0.4672970473766327, -1.2126493453979492, 1.9580100774765015, 0],
      [0.48252183198928833, -1.1927398443222046, 1.9186540842056274, -0.001555289956741035],
      [0.47780919075012207, -1.1978079080581665, 1.9009860754013062, -0.0024758982472121716],
    ],
  ],
  [
    'SGD, lr 0.1',
    sgd({ lr: 0.1 }),
    [
      [0.49000000953674316, -1.2300000190734863, 1.7000000476837158, 0],
      [0.5300000309944153, -1.2350000143051147, 1.5500000715255737, -9.999999747378752e-6],
      [0.5, -1.2649999856948853, 1.7500001192092896, -9.999999747378752e-6],
    ],
  ],
  [
    'SGD, momentum 0.9',
    sgd({ lr: 0.1, momentum: 0.9 }),
    [
      [0.49000000953674316, -1.2300000190734863, 1.7000000476837158, 0],
      [0.5210000276565552, -1.2170000076293945, 1.28000009059906, -9.999999747378752e-6],
      [0.5189000368118286, -1.235300064086914, 1.102000117301941, -1.8999999156221747e-5],
    ],
  ],
  [
    'SGD, momentum 0.5, weight decay 0.1',
    sgd({ lr: 0.1, momentum: 0.5, weightDecay: 0.1 }),
    [
      [0.48499998450279236, -1.2174999713897705, 1.6799999475479126, 0],
      [0.5126500129699707, -1.1940749883651733, 1.3531999588012695, -9.999999747378752e-6],
      [0.4913485050201416, -1.200421690940857, 1.376267910003662, -1.4899999769113492e-5],
    ],
  ],
];

for (const [name, make, expected] of PYTORCH) {
  onEachBackend(test, `three steps as PyTorch's: ${name}`, (backend) => {
    const got = trajectory(backend, make);
    expected.forEach((row, step) => {
      row.forEach((want, i) => {
        const value = got[step]?.[i] as number;
        assert.ok(
          Math.abs(value - want) <= 2e-7 + 1e-6 * Math.abs(want),
          `${step}, ${i}: ${value}`,
        );
      });
    });
  });
}

onEachBackend(test, 'the schedule scales the rate, clipping the gradient', (backend) => {
  const half = trajectory(backend, sgd({ lr: 0.1, momentum: 0.9 }), [0.5, 1]);
  assert.equal(half, trajectory(backend, sgd({ lr: 0.05, momentum: 0.9 })));
  // AdamW's decay follows the schedule, too.
  const adam = trajectory(backend, adamw({ lr: 0.1, weightDecay: 0.5 }), [0.5, 1]);
  assert.equal(adam, trajectory(backend, adamw({ lr: 0.05, weightDecay: 0.5 })));
  const clipped = trajectory(backend, sgd({ lr: 0.1 }), [1, 0.5]);
  assert.equal(clipped, trajectory(backend, sgd({ lr: 0.05 })));
  const still = trajectory(backend, adamw({ lr: 0.1 }), [0, 1]);
  assert.equal(
    still,
    GRADIENTS.map(() => START),
  );
});

test('groups have their own settings; a parameter without a gradient is left alone', () => {
  const [a, b, c] = [1, 2, 3].map((v) => parameter([v])) as [Tensor, Tensor, Tensor];
  const optimizer = new SGD(
    [
      { parameters: new Map([['a', a]]) },
      {
        parameters: new Map([
          ['b', b],
          ['c', c],
        ]),
        lr: 0.5,
      },
    ],
    { lr: 0.1 },
  );
  for (const p of [a, b]) setGradient(p, [1]);
  optimizer.update();
  assert.ok(Math.abs(a.item() - 0.9) < 1e-7);
  assert.is(b.item(), 1.5);
  assert.is(c.item(), 3);
  assert.equal([...optimizer.state().keys()], ['a.m', 'b.m'], 'no state without a gradient');
  assert.equal(optimizer.parameters(), [a, b, c]);
  assert.is(optimizer.step, 1);
  assert.is(optimizer.updates, 1);
  optimizer.skip();
  assert.is(optimizer.step, 2);
  assert.is(optimizer.updates, 1);
  optimizer.zeroGrad();
  assert.is(a.grad, null);
  for (const t of [a, b, c, optimizer]) t.dispose();
});

test('an update between forward and backward is noticed', () => {
  const p = parameter([2]);
  const q = parameter([3]);
  const optimizer = new SGD([{ parameters: new Map([['p', p]]) }], { lr: 0.1 });
  setGradient(p, [1]);
  scope(() => {
    const loss = sum(mul(p, q));
    optimizer.update();
    assert.throws(() => backward(loss), /changed in place/);
  });
  for (const t of [p, q, optimizer]) t.dispose();
});

test('settings out of range, unknown ones, and parameters that cannot be trained', () => {
  const p = parameter([1]);
  const frozen = tensor([1], [1], { backend: reference });
  const of = (t: Tensor) => [{ parameters: new Map([['p', t]]) }];
  const wrong: [() => unknown, RegExp][] = [
    [
      () => new AdamW(of(p), { lr: -1 }),
      /\[AdamW lr\] expected a number of 0 or more, received -1/,
    ],
    [() => new AdamW(of(p), { lr: Number.NaN }), /\[AdamW lr\].*NaN/],
    [() => new AdamW(of(p), {} as AdamWOptions), /\[AdamW lr\].*undefined/],
    [() => new AdamW(of(p), { lr: 1, betas: [0.9, 1] }), /\[AdamW betas\].*received 1/],
    [() => new AdamW(of(p), { lr: 1, eps: -1 }), /\[AdamW eps\]/],
    [() => new AdamW(of(p), { lr: 1, weightDecay: -1 }), /\[AdamW weightDecay\]/],
    [() => new SGD(of(p), { lr: 1, momentum: 1 }), /\[SGD momentum\].*received 1/],
    [
      () => new AdamW(of(p), { lr: 1, weight_decay: 0.1 } as AdamWOptions),
      /\[AdamW\].*"weight_decay".*Nearest: weightDecay/,
    ],
    [() => new SGD([{ ...of(p)[0]!, lr: -3 }], { lr: 1 }), /\[SGD lr\].*-3/],
    [() => new AdamW(of(frozen), { lr: 1 }), /\[AdamW\].*p, frozen/],
    [() => new AdamW([...of(p), ...of(p)], { lr: 1 }), /\[AdamW\].*p again/],
    [() => new AdamW([], { lr: 1 }), /\[AdamW\].*none/],
  ];
  for (const [make, message] of wrong) assert.throws(make, message);
  p.dispose();
  frozen.dispose();
});

test('state goes through a checkpoint, and only into the optimizer it is of', () => {
  withFolder((dir) => {
    const parameters = new Map([['p', parameter(START)]]);
    const p = parameters.get('p') as Tensor;
    const first = new SGD([{ parameters }], { lr: 0.1, momentum: 0.9 });
    setGradient(p, GRADIENTS[0] as number[]);
    first.update();
    first.zeroGrad();
    saveTrainingState(join(dir, 'sgd'), parameters, first, {});
    const second = new SGD([{ parameters }], { lr: 0.1, momentum: 0.9 });
    loadTrainingState(join(dir, 'sgd'), parameters, second, {});
    for (const o of [first, second]) {
      setGradient(p, GRADIENTS[1] as number[]);
      loadTrainingState(join(dir, 'sgd'), parameters, o, {});
      o.update();
      o.zeroGrad();
      assert.equal(p.toNumbers(), trajectory(reference, sgd({ lr: 0.1, momentum: 0.9 }))[1]);
    }
    const other = new AdamW([{ parameters }], { lr: 0.1 });
    assert.throws(() => loadTrainingState(join(dir, 'sgd'), parameters, other, {}), /p\.v/);
    setGradient(p, [1, 1, 1, 1]);
    other.update();
    saveTrainingState(join(dir, 'adamw'), parameters, other, {});
    assert.throws(() => loadTrainingState(join(dir, 'adamw'), parameters, second, {}), /p\.v too/);
    // A state of before the first update: the moments of now are forgotten.
    other.restore(0, 0, () => undefined);
    assert.is(other.state().size, 0);
    for (const t of [p, first, second, other]) t.dispose();
  });
});

onEachBackend(test, 'the norm is over all gradients together; clipping is PyTorch’s', (backend) => {
  const a = parameter([3, 4], backend);
  const b = parameter([12], backend);
  const none = parameter([1], backend);
  setGradient(a, [3, 4]);
  setGradient(b, [12]);
  const norm = gradientNorm([a, b, none]);
  assert.ok(Math.abs(norm - 13) < 1e-6);
  // torch.nn.utils.clip_grad_norm_ to 1 leaves 0.23076921701431274 of 3.
  assert.ok(Math.abs(3 * clipFactor(norm, 1) - 0.23076921701431274) < 1e-7);
  assert.is(clipFactor(13, 13), 1);
  assert.is(clipFactor(0, 1), 1);
  assert.is(gradientNorm([none]), 0);
  setGradient(none, [Number.NaN]);
  assert.ok(Number.isNaN(gradientNorm([a, none])));
  for (const t of [a, b, none]) t.dispose();
});

onEachBackend(test, 'the norm of many gradients, small and large', (backend) => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: -(10 ** 7), max: 10 ** 7 }), { minLength: 1, maxLength: 300 }),
      (thousandths) => {
        const values = thousandths.map((v) => v / 1000);
        const p = parameter(
          values.map(() => 0),
          backend,
        );
        setGradient(p, values);
        const exact = Math.hypot(...values.map(Math.fround));
        assert.ok(relativeDifference([gradientNorm([p])], [exact]) < 1e-6);
        p.dispose();
      },
    ),
    { numRuns: 30 },
  );
});

test('schedules: hand-computed factors', () => {
  const at = (name: 'constant' | 'linear' | 'cosine', floor = 0) =>
    [0, 1, 2, 6, 10, 11].map((step) =>
      Number(scheduleFactor(step, { name, warmupSteps: 2, totalSteps: 10, floor }).toFixed(12)),
    );
  assert.equal(at('constant'), [0.5, 1, 1, 1, 1, 1]);
  assert.equal(at('linear'), [0.5, 1, 1, 0.5, 0, 0]);
  assert.equal(at('linear', 0.2), [0.5, 1, 1, 0.6, 0.2, 0.2]);
  assert.equal(at('cosine', 0.1), [0.5, 1, 1, 0.55, 0.1, 0.1]);
  const quarter = scheduleFactor(4, { name: 'cosine', warmupSteps: 2, totalSteps: 10 });
  assert.ok(Math.abs(quarter - (1 + Math.SQRT1_2) / 2) < 1e-12);
  assert.is(scheduleFactor(0, { name: 'cosine', warmupSteps: 0, totalSteps: 1 }), 1);
  assert.throws(
    () => scheduleFactor(0, { name: 'cosin' as never, warmupSteps: 0, totalSteps: 1 }),
    /\[schedule\] expected one of constant, linear, cosine, received "cosin"/,
  );
});

test('schedules stay between floor and one, and fall after the warm-up', () => {
  fc.assert(
    fc.property(
      fc.constantFrom('linear' as const, 'cosine' as const),
      fc.integer({ min: 0, max: 20 }),
      fc.integer({ min: 1, max: 50 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      (name, warmupSteps, totalSteps, floor) => {
        let last = Number.POSITIVE_INFINITY;
        for (let step = 0; step < totalSteps + 3; step++) {
          const f = scheduleFactor(step, { name, warmupSteps, totalSteps, floor });
          assert.ok(f > 0 || floor === 0 || step >= warmupSteps);
          assert.ok(f <= 1 + 1e-12);
          if (step < warmupSteps) continue;
          assert.ok(f >= floor - 1e-12 && f <= last + 1e-12);
          last = f;
        }
      },
    ),
  );
});

test.run();
