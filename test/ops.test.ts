// time-limit: 300
import { readFileSync } from 'node:fs';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { candidates, native, onEachBackend, onNative, reference } from './backends.js';
import {
  dtypesOf,
  expectClose,
  finiteDifferences,
  gradInputs,
  inputsOf,
  run,
  table,
} from './op-cases.js';
import { BF16_CASES, LARGE_CASES } from './op-cases-large.js';
import { bitsOf, check, halfDTypes, oracle } from './op-checks.js';

/** Rounding is a step function; its gradient is the identity by definition, tested by itself. */
const NO_DIFFERENCES = ['cast'];

const ops = table();

test('every kernel of docs/kernels.md is on every backend, and no other', () => {
  const text = readFileSync(new URL('../docs/kernels.md', import.meta.url), 'utf8');
  const names = text
    .split('\n')
    .map((line) => /^\| ((?:`[\w.]+` ?)+)\|/.exec(line)?.[1] ?? '')
    .flatMap((cell) => [...cell.matchAll(/`([\w.]+)`/g)].map((m) => m[1] as string));
  assert.ok(names.length >= 60, `${names.length} kernels listed`);
  for (const { backend } of candidates) {
    if (backend) assert.equal([...backend.kernels].sort(), [...names].sort(), backend.name);
  }
  const kernels = new Set(names);
  for (const { name, op } of ops) {
    assert.ok(kernels.has(name) || op.spec.view || op.spec.composed, `${name} has a kernel`);
  }
});

test('every op samples odd, size-1 and empty dimensions', () => {
  assert.ok(ops.length >= 40);
  for (const { name, cases } of ops) {
    const shapes = cases.map((c) => c.sample.inputs.map((input) => [...input.shape]));
    const some = (f: (d: number) => boolean) =>
      shapes.some((all) => all.some((shape) => shape.some(f)));
    assert.ok(
      shapes.some((all) => all.flat().some((d) => d % 2 === 1 && d > 1) && !all.flat().includes(0)),
      `${name}: an odd size`,
    );
    assert.ok(
      some((d) => d === 1),
      `${name}: a size of 1`,
    );
    assert.ok(
      some((d) => d === 0),
      `${name}: a size of 0`,
    );
    const labels = cases.map((c) => c.title);
    assert.is(new Set(labels).size, labels.length, `${name}: labels that tell samples apart`);
  }
});

test('every op of two inputs that broadcasts samples it', () => {
  for (const name of ['add', 'sub', 'mul', 'div', 'maximum', 'minimum', 'matmul']) {
    const { cases } = ops.find((o) => o.name === name) as (typeof ops)[number];
    const differing = cases.filter(({ sample: { inputs } }) => {
      const [a, b] = inputs.map((i) => i.shape.slice(0, name === 'matmul' ? -2 : undefined));
      return `${a}` !== `${b}`;
    });
    assert.ok(differing.length >= 2, name);
  }
});

for (const { name, op, cases } of ops) {
  if (op.spec.backward && !NO_DIFFERENCES.includes(name)) {
    test(`${name}: gradients in f64 agree with finite differences`, () => {
      for (const c of cases) {
        const { grads } = oracle(c, dtypesOf(c, 'f64'));
        for (const i of gradInputs(c)) {
          const want = finiteDifferences(c, i, 1e-6);
          const got = grads[i] as Float64Array;
          want.forEach((w, k) => {
            const g = got[k] as number;
            const close = Math.abs(g - w) <= 1e-6 + 1e-6 * Math.abs(w);
            if (!close) assert.unreachable(`${c.title}, input ${i}, element ${k}: ${g}, not ${w}`);
          });
        }
      }
    });
  }

  if (op.spec.composed) {
    test(`${name}: the kernel agrees with the composition from basic ops`, () => {
      for (const c of cases) {
        const dtypes = dtypesOf(c, 'f64');
        const want = oracle(c, dtypes);
        const got = run(c, {
          backend: reference,
          dtypes,
          inputs: inputsOf(c),
          grads: gradInputs(c),
          composed: true,
        });
        const y = want.outputs[0]?.values as Float64Array;
        expectClose(got.outputs[0]?.values as Float64Array, y, 1e-12, `${c.title}, composed`);
        got.grads.forEach((g, i) => {
          if (g) expectClose(g, want.grads[i] as Float64Array, 1e-11, `${c.title}, gradient ${i}`);
        });
      }
    });
  }

  onEachBackend(test, `${name}: f32 values and gradients agree with f64`, (backend) => {
    for (const c of cases) {
      const plain = check(c, backend, dtypesOf(c, 'f32'));
      // Inside a larger buffer, off the allocator's alignment: the same bits.
      const apart = check(c, backend, dtypesOf(c, 'f32'), 3);
      assert.is(bitsOf(apart), bitsOf(plain), `${c.title}, at an offset`);
    }
  });

  if (cases.some((c) => halfDTypes(c).length > 0)) {
    onEachBackend(test, `${name}: bf16 and f16 inputs are widened exactly`, (backend) => {
      for (const c of cases) for (const dtypes of halfDTypes(c)) check(c, backend, dtypes);
    });
  }

  onNative(test, `${name}: 1, 2 and 3 threads give the same bits`, (backend) => {
    const { threads } = backend.info();
    try {
      for (const c of cases) {
        const bits = [1, 2, 3].map((count) => {
          backend.setThreads(count);
          const dtypes = dtypesOf(c, 'f32');
          return bitsOf(run(c, { backend, dtypes, inputs: inputsOf(c), grads: gradInputs(c) }));
        });
        assert.is(bits[1], bits[0], `${c.title}: 2 threads`);
        assert.is(bits[2], bits[0], `${c.title}: 3 threads`);
      }
    } finally {
      backend.setThreads(threads);
    }
  });
}

onEachBackend(test, 'larger shapes agree with f64', (backend) => {
  for (const c of LARGE_CASES) check(c, backend, dtypesOf(c, 'f32'));
});

onEachBackend(test, 'larger shapes in bf16 agree with f64', (backend) => {
  assert.ok(BF16_CASES.length >= 11);
  for (const c of BF16_CASES) check(c, backend, dtypesOf(c, 'bf16'));
});

onNative(test, 'larger shapes: 1, 2 and 3 threads give the same bits', (backend) => {
  const { threads } = backend.info();
  try {
    for (const c of LARGE_CASES) {
      const dtypes = dtypesOf(c, 'f32');
      const inputs = inputsOf(c);
      const bits = [1, 2, 3].map((count) => {
        backend.setThreads(count);
        return bitsOf(run(c, { backend, dtypes, inputs, grads: gradInputs(c) }));
      });
      assert.ok(bits[1] === bits[0], `${c.title}: 2 threads`);
      assert.ok(bits[2] === bits[0], `${c.title}: 3 threads`);
    }
  } finally {
    backend.setThreads(threads);
  }
});

for (const isa of native?.info().isas ?? ['each instruction set']) {
  onNative(test, `every op on ${isa}`, (backend) => {
    const { isa: before } = backend.info();
    try {
      backend.setIsa(isa);
      assert.is(backend.info().isa, isa);
      for (const c of ops.flatMap((o) => o.cases)) {
        for (const dtypes of [dtypesOf(c, 'f32'), ...halfDTypes(c)]) check(c, backend, dtypes);
      }
      for (const c of LARGE_CASES) check(c, backend, dtypesOf(c, 'f32'));
    } finally {
      backend.setIsa(before);
    }
  });
}

test.run();
