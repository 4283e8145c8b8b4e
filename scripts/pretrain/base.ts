/**
 * Trains the bundled base model on the token files of `scripts/data/make.ts`, by `lowrank pretrain`,
 * and writes it to `.cache/base` (`card.ts` bundles it). Stopped, it goes on where it was. Every
 * 50th step and every evaluation go to `.cache/base/log.jsonl`.
 *
 * usage: npx tsx scripts/pretrain/base.ts [--steps 15000]
 */
import { spawn } from 'node:child_process';
import { appendFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('../..', import.meta.url));
const corpus = join(root, '.cache/corpus');
const out = join(root, '.cache/base');
const sources = ['sotu', 'wordnet', 'factbook'];
const LOG_EVERY = 50;

const { values } = parseArgs({ options: { steps: { type: 'string', default: '15000' } } });
const settings = {
  config: join(root, 'scripts/pretrain/config.json'),
  tokenizer: join(root, 'assets/base'),
  data: join(corpus, 'train.bin'),
  out,
  steps: values.steps,
  'batch-size': '16',
  'seq-length': '256',
  lr: '2e-3',
  warmup: '300',
  'weight-decay': '0.1',
  seed: '1',
  'eval-every': '500',
  backend: 'cpu',
};
const args = [
  ...Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]),
  ...sources.flatMap((s) => ['--heldout', `${s}=${join(corpus, `heldout-${s}.bin`)}`]),
];

mkdirSync(out, { recursive: true });
const cli = [join(root, 'src/cli/main.ts'), 'pretrain', ...args, '--json'];
const child = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), ...cli], {
  stdio: ['ignore', 'pipe', 'inherit'],
});
// The command saves when it is stopped; it has the terminal's Ctrl-C by itself.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => child.kill('SIGTERM'));
for await (const line of createInterface(child.stdout)) {
  const event = JSON.parse(line) as { type: string; step: number };
  if (event.type === 'step' && event.step % LOG_EVERY !== 0) continue;
  appendFileSync(join(out, 'log.jsonl'), `${line}\n`);
  console.log(line);
}
const code = await new Promise<number | null>((settle) => {
  if (child.exitCode !== null) settle(child.exitCode);
  else child.once('exit', settle);
});
process.exitCode = code ?? 1;
