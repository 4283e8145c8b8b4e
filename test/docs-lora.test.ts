// time-limit: 180
/** What docs/lora.md says to type runs, with few steps on little data. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { inside } from './support/cli.js';
import { withFolder } from './support/temp.js';

const PAGE = readFileSync('docs/lora.md', 'utf8');
const DATA = 'assets/data/moby-dick-train.jsonl';

/** The words of the page's commands; those after a `$` are shown with the error that they give. */
const COMMANDS = [...PAGE.matchAll(/^ {4}(\$ )?lowrank (\S.*)$/gm)]
  .filter(([, , rest]) => !rest?.startsWith('['))
  .map(([, fails, rest]) => ({
    fails: fails !== undefined,
    words: (rest as string).split(' '),
  }));

test('every command line of the page runs', async () => {
  assert.ok(COMMANDS.length > 20);
  await withFolder(async (dir) => {
    const lines = readFileSync(DATA, 'utf8').split('\n').slice(0, 20);
    writeFileSync(join(dir, 'data.jsonl'), lines.join('\n'));
    const place = (word: string) => {
      if (word === DATA) return join(dir, 'data.jsonl');
      return word.startsWith('out/') ? join(dir, word) : word;
    };
    for (const { fails, words } of COMMANDS) {
      const at = words.indexOf('--steps');
      const kept = at < 0 ? words : [...words.slice(0, at), ...words.slice(at + 2)];
      const short = ['--steps', '1', '--batch-size', '2', '--seq-length', '16'];
      const argv = [...kept.map(place), ...(words[0] === 'train' ? short : [])];
      const { code, stderr } = await inside(...argv);
      assert.is(code, fails ? 1 : 0, `${words.join(' ')}: ${stderr}`);
      if (fails) assert.ok(PAGE.includes(stderr.trim()), stderr);
    }
    assert.ok(existsSync(join(dir, 'out/merged/model.safetensors')));
    assert.ok(existsSync(join(dir, 'out/report.html')));
  });
});

test('the program of the page runs', async () => {
  const [, code] = /```ts\n([\s\S]*?)```/.exec(PAGE) as unknown as [string, string];
  await withFolder((dir) => {
    const file = join(dir, 'program.mts');
    const library = pathToFileURL('src/index.ts').href;
    writeFileSync(file, `${code.replace("'lowrank'", `'${library}'`)}\nconsole.log('done');\n`);
    const run = spawnSync(process.execPath, ['--import', import.meta.resolve('tsx'), file], {
      encoding: 'utf8',
    });
    assert.is(run.stdout, 'done\n', run.stderr);
  });
});

test.run();
