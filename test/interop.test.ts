// time-limit: 600
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { SafetensorsFile } from '../src/io/safetensors.js';
import { type InteropCase, PLANS, writeCases } from './interop/cases.js';
import { relativeDifference } from './support/tiny.js';
import { skipUnless } from './support.js';

/** What check.py prints of a case. */
interface Checked {
  readonly name: string;
  readonly difference?: number;
  readonly warnings: readonly string[];
  readonly error?: string;
}

const PEERS = ['torch', 'transformers', 'peft', 'safetensors'];

/** A Python that has the peers, or why there is none. */
function findPython(): { readonly python: string; readonly reason: string } {
  const asked = process.env.LOWRANK_PYTHON;
  const python = asked ?? 'python3';
  // Whether they are there, without the seconds that importing them takes.
  const code = `import importlib.util as u; print([n for n in ${JSON.stringify(PEERS)} if u.find_spec(n) is None])`;
  const { status, stdout, error } = spawnSync(python, ['-c', code], { encoding: 'utf8' });
  if (status === 0 && stdout.trim() === '[]') return { python, reason: '' };
  const why = error || status !== 0 ? 'does not run' : `lacks ${stdout.trim()}`;
  const wayOut = 'set LOWRANK_PYTHON to a Python with torch, transformers and peft';
  if (asked !== undefined) throw new Error(`[LOWRANK_PYTHON] ${asked} ${why}; ${wayOut}`);
  return { python: '', reason: `${python} ${why}; ${wayOut}` };
}

const { python, reason } = findPython();
const CHECK = fileURLToPath(new URL('interop/check.py', import.meta.url));

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
      writeFileSync(join(root, 'manifest.json'), JSON.stringify(cases));
      const { status, stdout, stderr } = spawnSync(python, [CHECK, join(root, 'manifest.json')], {
        encoding: 'utf8',
        maxBuffer: 2 ** 26,
      });
      assert.is(status, 0, stderr);
      const checked = stdout
        .trim()
        .split('\n')
        .filter((line) => line.startsWith('{'))
        .map((line) => JSON.parse(line) as Checked);
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

test.run();
