/**
 * Fine-tunes the bundled model with LoRA and lets it write.
 *
 * usage: npx tsx examples/finetune.ts [steps]
 */
import * as lowrank from 'lowrank';

const base = 'assets/base';
const steps = Number(process.argv[2] ?? 100);
const lr = 2e-3;
const seed = 1;

const tokenizer = lowrank.openTokenizer(base);
using model = lowrank.openModel(base, { task: 'causal-lm' });
const config = { rank: 8, targetModules: ['qv'] };
const adapters = new lowrank.LoraAdapters(model).add('whale', config, seed);
const optimizer = new lowrank.AdamW([{ parameters: adapters.tensors('whale') }], { lr });

const records = lowrank.readJsonl('assets/data/moby-dick-train.jsonl');
const data = lowrank.trainingData(records, tokenizer, { seqLength: 128, batchSize: 8, seed });
for await (const { step, loss } of lowrank.train(model, optimizer, data, { steps, lr, seed })) {
  if (step % 10 === 0) console.log(`step ${step}: loss ${loss.toFixed(3)}`);
}

lowrank.saveAdapter(adapters, 'whale', '.cache/whale', base);
const sampling = { maxNewTokens: 60, temperature: 0.8, topP: 0.95, seed: 1 };
console.log(lowrank.generateText(model, tokenizer, 'The whale', sampling));
