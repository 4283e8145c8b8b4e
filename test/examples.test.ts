/** Every example runs, with short settings, and says what it is to show. */
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

/** Arguments of each example, and what it prints. */
const EXAMPLES: Readonly<Record<string, readonly [readonly string[], readonly RegExp[]]>> = {
  'chat.ts': [['1'], [/trained for 1 steps/, /> Where does the ship sail\?\n/]],
  'classify.ts': [['2'], [/step 1: loss \d/, /right: \d+ of 60/, /is of: (animal|plant|location)/]],
  'finetune.ts': [['2'], [/training 25600 of 2780224/, /step 2: loss \d/, /The whale./]],
  'merge-adapter.ts': [['1'], [/difference of the logits: \d\.\de-[5-9]/, /from .*: ".+"/]],
  'switch-adapters.ts': [['2'], [/whale: loss/, /categories: "/, /the same bits: true/]],
  'training-loop.ts': [['2'], [/step 1: loss \d/, /facts: ".+"/, /base: ".+"/]],
};

test('every example is run here, is short, and uses the public API alone', () => {
  const files = readdirSync('examples').filter((f) => f.endsWith('.ts'));
  assert.equal(files.sort(), Object.keys(EXAMPLES));
  for (const file of files) {
    const text = readFileSync(`examples/${file}`, 'utf8');
    assert.ok(text.split('\n').length <= 60, `${file} has at most 60 lines`);
    assert.match(text, `usage: npx tsx examples/${file}`);
    for (const [, from] of text.matchAll(/from '([^']+)'/g)) {
      assert.ok(from === 'lowrank' || from?.startsWith('node:'), `${file} imports ${from}`);
    }
  }
});

for (const [file, [args, patterns]] of Object.entries(EXAMPLES)) {
  test(`${file} runs`, () => {
    const tsx = resolve('node_modules/tsx/dist/cli.mjs');
    const run = spawnSync(process.execPath, [tsx, `examples/${file}`, ...args], {
      encoding: 'utf8',
      timeout: 120_000,
    });
    assert.is(run.status, 0, run.stderr);
    for (const pattern of patterns) assert.match(run.stdout, pattern);
  });
}

test.run();
