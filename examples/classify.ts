/**
 * Gives the bundled model a head of three labels and trains head and adapter to tell what a
 * definition is of.
 *
 * usage: npx tsx examples/classify.ts [steps]
 */
import { readFileSync } from 'node:fs';
import { AdamW, backward, loadModel, loadTokenizer, scope, withTraining } from 'lowrank';

const base = 'assets/base';
const steps = Number(process.argv[2] ?? 60);
const seed = 1;
const labels = ['animal', 'plant', 'location'];

/** Definitions with the number of their label. */
function read(file: string): { text: string; label: number }[] {
  const lines = readFileSync(`assets/data/${file}.jsonl`, 'utf8').trim().split('\n');
  return lines
    .map((line) => JSON.parse(line) as { prompt: string; completion: string })
    .map(({ prompt, completion }) => ({
      text: prompt.replace('Definition: ', '').replace('\nCategory:', ''),
      label: labels.indexOf(completion.trim()),
    }))
    .filter(({ label }) => label >= 0);
}

const tokenizer = await loadTokenizer(base);
using model = await loadModel(base, { task: 'classification', head: { labels, seed } });
// An adapter of a classifier trains the head along and saves it with itself.
model.addAdapter('kinds', { rank: 8, targetModules: ['all-linear'] }, { seed });

const examples = read('wordnet-category-train');
using optimizer = new AdamW([{ parameters: model.trainableParameters() }], { lr: 1e-3 });
for (let step = 0; step < steps; step++) {
  const rows = Array.from({ length: 16 }, (_, i) => examples[(step * 16 + i) % examples.length]!);
  const batch = tokenizer.encodeBatch(
    rows.map((r) => r.text),
    { maxLength: 64 },
  );
  const loss = scope(() => {
    const input = { ...batch, labels: rows.map((r) => r.label) };
    const { loss } = withTraining({ seed, step }, () => model.forward(input));
    backward(loss!);
    return loss!.item();
  });
  optimizer.update();
  optimizer.zeroGrad();
  if (step % 20 === 0 || step === steps - 1) console.log(`step ${step}: loss ${loss.toFixed(3)}`);
}

const test = read('wordnet-category-test').slice(0, 60);
const scores = model.predict(tokenizer.encodeBatch(test.map((t) => t.text)));
const guesses = scores.map((row) => row.indexOf(Math.max(...row)));
const right = guesses.filter((g, i) => g === test[i]?.label).length;
console.log(`right: ${right} of ${test.length}`);
console.log(`"${test[0]?.text}" is of: ${labels[guesses[0] ?? 0]}`);
