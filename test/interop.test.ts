// time-limit: 600
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { SafetensorsFile } from '../src/io/safetensors.js';
import { type InteropCase, PLANS, type Plan, writeCases } from './interop/cases.js';
import { writeConvCases } from './interop/conv.js';
import { checkCases, findPython } from './support/python.js';
import { loraConfigs } from './support/random-configs.js';
import { withFolder } from './support/temp.js';
import { relativeDifference, TINY, tinyConfig } from './support/tiny.js';
import { skipUnless } from './support.js';

const { python, reason } = findPython();

/** Largest difference of logits that is allowed. */
const LIMIT = 1e-4;

function logitsIn(path: string): Float32Array {
  return new Float32Array(SafetensorsFile.open(path).bytes('logits').buffer);
}

const onPython = skipUnless(test, python !== '', reason || 'no Python');
onPython(
  'PEFT and transformers compute the same with what lowrank writes, and warn of nothing',
  () => {
    const root = mkdtempSync(join(tmpdir(), 'lowrank-interop-'));
    try {
      const cases: InteropCase[] = PLANS.flatMap((plan) => writeCases(root, plan));
      const checked = checkCases(python, root, cases);
      assert.equal(
        checked.map((c) => c.name),
        cases.map((c) => c.name),
      );
      const wrong: string[] = [];
      for (const plan of PLANS.filter((p) => p.adapters.length === 1)) {
        const [beside, merged] = ['adapter', 'merged'].map((n) =>
          logitsIn(join(root, plan.name, `${n}.expected`)),
        ) as [Float32Array, Float32Array];
        // A weight that is rounded to bf16 moves the logits; one in f32 does not.
        const apart = relativeDifference(merged, beside);
        if (!(apart <= (plan.dtype === 'bf16' ? 0.05 : LIMIT))) {
          wrong.push(`${plan.name}: merged and unmerged are ${apart} apart`);
        }
      }
      for (const [i, { name, difference, warnings, error }] of checked.entries()) {
        console.log(`${name}: ${error ? 'failed' : difference?.toExponential(1)}`);
        const { mayWarn } = cases[i] as InteropCase;
        const unexpected = warnings.filter((w) => !mayWarn || !new RegExp(mayWarn).test(w));
        if (error) wrong.push(`${name}: ${error}`);
        else if (!((difference as number) <= LIMIT))
          wrong.push(`${name}: difference ${difference}`);
        if (unexpected.length > 0) wrong.push(`${name} warns: ${unexpected.join('\n  ')}`);
      }
      assert.is(wrong.length, 0, `\n${wrong.join('\n')}`);
      assert.ok(existsSync(join(root, 'gpt2-conv1d/merged/model.safetensors.index.json')));
    } finally {
      rmSync(root, { recursive: true, force: true });
    }
  },
);

onPython('PEFT computes the same with adapters of convolutions, also of several groups', () => {
  withFolder((root) => {
    const cases = writeConvCases(root);
    const checked = checkCases(python, root, cases, 'conv.py');
    assert.is(checked.length, cases.length);
    for (const { name, difference = Number.NaN, error, warnings } of checked) {
      assert.is(error, undefined, `${name}: ${error}`);
      assert.ok(difference <= LIMIT, `${name}: ${difference}`);
      console.log(`${name}: ${difference.toExponential(1)}`);
      // PEFT cannot merge these, and says so.
      const others = warnings.filter((w) => !/groups > 1/.test(w));
      assert.equal(others, [], name);
    }
  });
});

onPython('random settings of every variant compute the same in PEFT', () => {
  const seed = Date.now() % 2 ** 31;
  console.log(`seed ${seed}`);
  const gpt2 = PLANS.find((p) => p.name === 'gpt2-conv1d') as Plan;
  const biased = { bias: true, tied: true };
  const plans = [
    ...fc.sample(loraConfigs('llama'), { seed, numRuns: 12 }).map((config, i) => ({
      name: `llama ${i}`,
      config: tinyConfig({ ...TINY, ...biased }),
      settings: biased,
      adapters: [config],
    })),
    ...fc.sample(loraConfigs('gpt2'), { seed, numRuns: 12 }).map((config, i) => ({
      name: `gpt2 ${i}`,
      config: gpt2.config,
      adapters: [config],
    })),
  ];
  withFolder((root) => {
    const cases = plans.flatMap((plan) => writeCases(root, plan));
    const checked = checkCases(python, root, cases);
    assert.is(checked.length, cases.length);
    for (const { name, difference = Number.NaN, error, warnings } of checked) {
      const { adapters } = plans.find((p) => name.startsWith(`${p.name},`)) as Plan;
      const what = `seed ${seed}, ${name}, ${JSON.stringify(adapters)}`;
      assert.is(error, undefined, `${what}: ${error}`);
      assert.ok(difference <= LIMIT, `${what}: ${difference}`);
      // PEFT warns of every adapter of a tied head.
      assert.equal(
        warnings.filter((w) => !/tie_word_embeddings|tied/.test(w)),
        [],
        what,
      );
    }
  });
});

test.run();
