/**
 * Keeps one frozen model in memory and switches between two adapters and none. The base's answers
 * are the same bits before and after.
 *
 * usage: npx tsx examples/switch-adapters.ts [steps]
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { finetune, loadModel, loadTokenizer, noGrad, scope } from 'lowrank';

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
    if (event.type !== 'done' || !event.trainLoss) continue;
    const { first, last } = event.trainLoss;
    console.log(`${name}: loss ${first.toFixed(3)} → ${last.toFixed(3)}`);
  }
}

const tokenizer = await loadTokenizer(base);
using model = await loadModel(base);
const prompt = 'Definition: a large mammal that lives in the sea\nCategory:';
const inputIds = tokenizer.encode(prompt);

/** The bits of the model's answer. */
const logits = () =>
  noGrad(() => scope(() => Buffer.from(model.forward({ inputIds }).logits.bytes())));

const before = logits();
for (const name of ['whale', 'categories']) await model.loadAdapter(join(folder, name), { name });
for (const name of ['whale', 'categories', null]) {
  model.setAdapter(name);
  let text = '';
  for await (const piece of model.generate(prompt, { tokenizer, maxNewTokens: 8 })) text += piece;
  console.log(`${name ?? 'no adapter'}: ${JSON.stringify(text)}`);
}
console.log(`the base’s logits are the same bits: ${logits().equals(before)}`);
rmSync(folder, { recursive: true });
