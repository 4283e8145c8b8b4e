import { generateText } from '../../models/text.js';
import { trainingData } from '../../train/data.js';
import { evaluate } from '../../train/evaluate.js';
import { fit } from './fit.js';
import { type Lab, STYLE } from './lab.js';
import type { StyleResults } from './results.js';
import { count, decimal, heading, prose, table } from './view.js';

/** Begins every sample; it stands in no training text. */
const PROMPT = 'The old captain stood upon the deck and';
const TEMPERATURE = 0.8;
const TOP_P = 0.95;

function sample({ model, tokenizer, scale, options }: Lab): string {
  return generateText(model, tokenizer, PROMPT, {
    maxNewTokens: scale.sampleTokens,
    temperature: TEMPERATURE,
    topP: TOP_P,
    seed: options.seed,
    stopIds: [],
  });
}

/** Trains and measures the style: Moby Dick. */
export async function runStyle(lab: Lab): Promise<StyleResults> {
  const { view, scale, data, tokenizer, model, adapters, options, styleBatches } = lab;
  const plan = scale.style;
  const heldOutChunks = styleBatches.reduce((n, b) => n + b.batch, 0);
  heading(view, '2. A style: Moby Dick');
  const training = trainingData(data.styleTrain, tokenizer, {
    seqLength: Math.min(plan.seqLength, model.maxPositions),
    batchSize: plan.batchSize,
    seed: options.seed,
  });
  const trainTokens = training.tokenized.tokens;
  prose(
    view,
    `${count(trainTokens)} tokens of the book to learn from; ${heldOutChunks} chunks of chapters ` +
      'left out to measure. Perplexity is e to the mean loss: among how many equally likely ' +
      'tokens the model seems to choose. Less is better.',
  );
  adapters.setActive(null);
  const base = evaluate(model, styleBatches);
  const baseSample = sample(lab);
  view.say(`  the base alone: perplexity ${decimal(base.perplexity)}`);
  let adapter = base;
  const results = await fit(lab, {
    name: STYLE,
    plan,
    source: training,
    base: base.perplexity,
    measure: () => {
      adapter = evaluate(model, styleBatches);
      return adapter.perplexity;
    },
    describe: (value) => `perplexity ${decimal(value)}`,
  });
  const adapterSample = sample(lab);
  adapters.setActive(null);
  const out: StyleResults = {
    fit: results,
    trainTokens,
    heldOutChunks,
    base,
    adapter,
    sample: {
      ...{ prompt: PROMPT, seed: options.seed, temperature: TEMPERATURE, topP: TOP_P },
      base: baseSample,
      adapter: adapterSample,
    },
  };
  show(lab, out);
  return out;
}

function show({ view }: Lab, { base, adapter, sample }: StyleResults): void {
  view.say('');
  table(
    view,
    [
      ['held-out chapters', 'perplexity', 'nats a token'],
      ['base', decimal(base.perplexity), base.loss.toFixed(3)],
      ['base + adapter "moby"', decimal(adapter.perplexity), adapter.loss.toFixed(3)],
    ],
    'lrr',
  );
  for (const [name, text] of [
    ['base', sample.base],
    ['base + adapter "moby"', sample.adapter],
  ] as const) {
    view.say('');
    view.say(`  ${name}, continuing "${sample.prompt}":`);
    prose(view, text, '    ');
  }
}
