/**
 * Trains the bundled base model on the token files of `scripts/data/make.ts` and writes it to
 * `.cache/base` (copy it to `assets/base` when it is to be the bundled one). Stopped, it goes on
 * where it was. Events go to `.cache/base/log.jsonl`.
 *
 * usage: npx tsx scripts/pretrain/base.ts [--steps 15000]
 */
import { appendFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { readJsonObject } from '../../src/io/files.js';
import { getBackend } from '../../src/tensor/registry.js';
import { pretrain } from '../../src/train/pretrain.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const corpus = join(root, '.cache/corpus');
const out = join(root, '.cache/base');
const { values } = parseArgs({ options: { steps: { type: 'string', default: '15000' } } });
const abort = new AbortController();
process.once('SIGINT', () => abort.abort());
process.once('SIGTERM', () => abort.abort());

async function main(): Promise<void> {
  mkdirSync(out, { recursive: true });
  const sources = ['sotu', 'wordnet', 'webster', 'books', 'kjv', 'factbook'];
  const run = pretrain({
    config: readJsonObject(join(root, 'scripts/pretrain/config.json'), 'config'),
    tokenizerDir: join(root, 'assets/base'),
    trainFile: join(corpus, 'train.bin'),
    heldOut: new Map(sources.map((s) => [s, join(corpus, `heldout-${s}.bin`)])),
    out,
    steps: Number(values.steps),
    batchSize: 16,
    accumulation: 1,
    seqLength: 256,
    lr: 2e-3,
    warmupSteps: 300,
    weightDecay: 0.1,
    seed: 1,
    evalEvery: 500,
    backend: getBackend('cpu'),
    signal: abort.signal,
  });
  let positions = 0;
  let since = performance.now();
  for await (const event of run) {
    if (event.type === 'step') positions += event.positions;
    if (event.type === 'step' && event.step % 50 !== 0) continue;
    const seconds = (performance.now() - since) / 1000;
    const line = event.type === 'step' ? { ...event, tokensPerSecond: positions / seconds } : event;
    if (event.type === 'step') {
      positions = 0;
      since = performance.now();
    }
    appendFileSync(join(out, 'log.jsonl'), `${JSON.stringify(line)}\n`);
    console.log(JSON.stringify(line));
  }
}

await main();
