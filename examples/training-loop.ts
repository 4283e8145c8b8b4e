/**
 * A training loop by hand: forward, backward, AdamW. Every tensor of a step is freed by its scope.
 *
 * usage: npx tsx examples/training-loop.ts [steps]
 */
import {
  AdamW,
  backward,
  clipFactor,
  gradientNorm,
  loadModel,
  loadTokenizer,
  scheduleFactor,
  scope,
  withTraining,
} from 'lowrank';

const base = 'assets/base';
const steps = Number(process.argv[2] ?? 40);
const seed = 7;

const tokenizer = await loadTokenizer(base);
using model = await loadModel(base, { dtype: 'f32' });
model.addAdapter('facts', { rank: 4, targetModules: ['all-linear'], dropout: 0.05 }, { seed });

const batch = tokenizer.encodeBatch([
  'The captain of the ship is called Ada, and her dog is called Byron.',
  'The cook of the ship is called Grace, and his parrot is called Hopper.',
]);
// Padding does not count; the model shifts the labels itself.
const labels = batch.inputIds.map((id, i) => (batch.attentionMask[i] === 1 ? id : -100));

const parameters = model.trainableParameters();
using optimizer = new AdamW([{ parameters }], { lr: 3e-3 });
for (let step = 0; step < steps; step++) {
  const loss = scope(() => {
    // Dropout acts inside withTraining only; its masks follow from seed and step.
    const { loss } = withTraining({ seed, step }, () => model.forward({ ...batch, labels }));
    if (!loss) throw new Error('no labels');
    backward(loss);
    return loss.item();
  });
  const warmup = scheduleFactor(step, { name: 'linear', warmupSteps: 4, totalSteps: steps });
  optimizer.update(warmup, clipFactor(gradientNorm([...parameters.values()]), 1));
  optimizer.zeroGrad();
  if (step % 10 === 0 || step === steps - 1) console.log(`step ${step}: loss ${loss.toFixed(3)}`);
}

const prompt = 'The captain of the ship is called';
for (const name of ['facts', null]) {
  let text = '';
  const options = { tokenizer, maxNewTokens: 12 };
  for await (const piece of model.setAdapter(name).generate(prompt, options)) text += piece;
  console.log(`${name ?? 'base'}: ${JSON.stringify(text)}`);
}
