/**
 * Keeps one frozen model in memory and switches between two adapters and none. The base's answers
 * are the same bits before and after.
 *
 * usage: npx tsx examples/switch-adapters.ts [steps]
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  finetune,
  generateText,
  LoraAdapters,
  loadAdapter,
  openModel,
  openTokenizer,
  promptIds,
} from 'lowrank';

const base = 'assets/base';
const steps = Number(process.argv[2] ?? 100);
const folder = mkdtempSync(join(tmpdir(), 'adapters-'));

for (const [name, file] of [
  ['whale', 'moby-dick-train'],
  ['categories', 'wordnet-category-train'],
] as const) {
  const run = finetune({
    modelDir: base,
    dataFile: `assets/data/${file}.jsonl`,
    out: join(folder, name),
    lora: { rank: 4, targetModules: ['attention'] },
    seqLength: 128,
    lr: 2e-3,
    steps,
  });
  for await (const event of run) {
    if (event.type === 'done') {
      console.log(
        `${name}: loss ${event.trainLoss?.first.toFixed(3)} → ${event.trainLoss?.last.toFixed(3)}`,
      );
    }
  }
}

const tokenizer = openTokenizer(base);
using model = openModel(base, { task: 'causal-lm' });
const adapters = new LoraAdapters(model);
const prompt = 'Definition: a large mammal that lives in the sea\nCategory:';
const inputIds = Int32Array.from(promptIds(tokenizer, prompt));

/** The bits of the base's answer. */
function logits(): Buffer {
  using answer = model.lastLogits({ inputIds, batch: 1, length: inputIds.length });
  return Buffer.from(answer.bytes());
}

const before = logits();
for (const name of ['whale', 'categories']) loadAdapter(adapters, name, join(folder, name));
for (const name of ['whale', 'categories', null]) {
  adapters.setActive(name);
  const text = generateText(model, tokenizer, prompt, { maxNewTokens: 8 });
  console.log(`${name ?? 'no adapter'}: ${JSON.stringify(text)}`);
}
console.log(`the base’s logits are the same bits: ${logits().equals(before)}`);
rmSync(folder, { recursive: true });
