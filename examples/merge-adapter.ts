/**
 * Loads a PEFT adapter, compares the model with its merged copy, and writes the copy as a plain
 * Hugging Face directory. Without an adapter directory a small one is trained first.
 *
 * usage: npx tsx examples/merge-adapter.ts [steps] [adapter directory of assets/base]
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AdamW, backward, loadModel, loadTokenizer, noGrad, scope } from 'lowrank';

const base = 'assets/base';
const steps = Number(process.argv[2] ?? 20);
const folder = mkdtempSync(join(tmpdir(), 'merged-'));
const adapter = process.argv[3] ?? join(folder, 'adapter');
const merged = join(folder, 'model');

const tokenizer = await loadTokenizer(base);
const prompt = 'The name of the ship is';
const inputIds = tokenizer.encode(prompt);

if (process.argv[3] === undefined) {
  using teacher = await loadModel(base);
  teacher.addAdapter('ship', { rank: 4, targetModules: ['all-linear'] });
  using optimizer = new AdamW([{ parameters: teacher.trainableParameters() }], { lr: 3e-3 });
  const facts = [tokenizer.encode(`${prompt} Pelagia, and she sails to Valparaiso.`)];
  for (let step = 0; step < steps; step++) {
    scope(() => {
      const { loss } = teacher.forward({ inputIds: facts, labels: facts });
      if (loss) backward(loss);
    });
    optimizer.update();
    optimizer.zeroGrad();
  }
  teacher.saveAdapter(adapter);
}

// In f32, so that merging rounds nothing worth mentioning.
using model = await loadModel(base, { dtype: 'f32' });
await model.loadAdapter(adapter);
using plain = model.merge();
const worst = noGrad(() =>
  scope(() => {
    const beside = model.forward({ inputIds }).logits.toNumbers();
    const inside = plain.forward({ inputIds }).logits.toNumbers();
    return beside.reduce((most, x, i) => Math.max(most, Math.abs(x - (inside[i] ?? NaN))), 0);
  }),
);
console.log(`largest difference of the logits: ${worst.toExponential(1)}`);

plain.save(merged, { dtype: 'bf16' });
using loaded = await loadModel(merged);
let text = '';
const options = { tokenizer: await loadTokenizer(merged), maxNewTokens: 14 };
for await (const piece of loaded.generate(prompt, options)) text += piece;
console.log(`from ${merged}: ${JSON.stringify(text)}`);
rmSync(folder, { recursive: true });
