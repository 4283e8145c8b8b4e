/**
 * Fine-tunes the bundled model with LoRA, saves the adapter and lets the model write.
 *
 * usage: npx tsx examples/finetune.ts [steps]
 */
import {
  AdamW,
  loadModel,
  loadTokenizer,
  readJsonl,
  type TrainOptions,
  train,
  trainingData,
} from 'lowrank';

const base = 'assets/base';
const steps = Number(process.argv[2] ?? 100);
const settings: TrainOptions = { steps, lr: 2e-3, seed: 1 };

const tokenizer = await loadTokenizer(base);
using model = await loadModel(base, { task: 'causal-lm' });
model.addAdapter('whale', { rank: 8, targetModules: ['qv'] }, { seed: 1 });
const { total, trainable } = model.parameterCount();
console.log(`training ${trainable} of ${total} parameters`);

const records = readJsonl('assets/data/moby-dick-train.jsonl');
const data = trainingData(records, tokenizer, { seqLength: 128, batchSize: 8, seed: 1 });
const optimizer = new AdamW([{ parameters: model.trainableParameters() }], { lr: settings.lr });
for await (const { step, loss } of train(model, optimizer, data, settings)) {
  if (step % 10 === 0 || step === steps) console.log(`step ${step}: loss ${loss.toFixed(3)}`);
}
optimizer.dispose();
model.saveAdapter('.cache/whale');

const sampling = { tokenizer, maxNewTokens: 60, temperature: 0.8, topP: 0.95, seed: 1 };
process.stdout.write('The whale');
for await (const text of model.generate('The whale', sampling)) process.stdout.write(text);
console.log();
