import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { saveAdapter } from '../../lora/index.js';
import { AdamW } from '../../optim/index.js';
import { type BatchSource, train } from '../../train/trainer.js';
import { type Lab, parameterCount } from './lab.js';
import { type FitPlan, loraConfig } from './options.js';
import type { FitResults } from './results.js';
import { bytes, count, seconds } from './view.js';

/** What {@link fit} trains, and on what. */
export interface FitTask {
  readonly name: string;
  readonly plan: FitPlan;
  readonly source: BatchSource;
  /** The held-out measure with the adapter as it is. */
  measure(): number;
  /** That measure in words. */
  describe(value: number): string;
  /** The same of the base, known already. */
  readonly base: number;
}

/** Steps over which the speed that is shown is averaged. */
const WINDOW = 20;
const WARM_UP = 0.05;

function tokensOf(batch: { inputIds: Int32Array; attentionMask?: Uint8Array }): number {
  return batch.attentionMask?.reduce((n, m) => n + m, 0) ?? batch.inputIds.length;
}

/** A source that counts the tokens it gave. */
function counted(source: BatchSource): BatchSource & { tokens: number } {
  return {
    tokens: 0,
    batch(step, micro) {
      const batch = source.batch(step, micro);
      this.tokens += tokensOf(batch);
      return batch;
    },
  };
}

/** Trains a new adapter, shows how it goes, writes it in PEFT's layout, and leaves it frozen. */
export async function fit(lab: Lab, task: FitTask): Promise<FitResults> {
  const { adapters, model, options, scale, view } = lab;
  const { seed } = options;
  const { steps, lr, batchSize, measures } = task.plan;
  adapters.add(task.name, loraConfig(scale), seed);
  const parameters = adapters.tensors(task.name);
  using optimizer = new AdamW([{ parameters, weightDecay: 0 }], { lr });
  const source = counted(task.source);
  const losses: number[] = [];
  const times: number[] = [];
  const measured = [{ step: 0, value: task.base }];
  const measureEvery = Math.ceil(steps / measures);
  const bar = await view.bar(steps);
  let training = 0;
  try {
    const warmupSteps = Math.round(WARM_UP * steps);
    for await (const event of train(model, optimizer, source, { steps, lr, warmupSteps, seed })) {
      const { step, loss } = event;
      losses.push(loss);
      times.push(event.seconds);
      training += event.seconds;
      const recent = times.slice(-WINDOW);
      const stepTime = recent.reduce((n, s) => n + s, 0) / recent.length;
      const tokensPerSecond = source.tokens / training;
      bar.step({ step, loss, tokensPerSecond, secondsLeft: (steps - step) * stepTime });
      if (step % measureEvery !== 0 && step !== steps) continue;
      const value = task.measure();
      measured.push({ step, value });
      bar.note(`  after step ${step}: ${task.describe(value)} on held-out data`);
    }
  } finally {
    bar.end();
  }
  adapters.setTrainable(task.name, false);
  const folder = join(options.out, task.name);
  saveAdapter(adapters, task.name, folder, options.modelDir);
  const file = readFileSync(join(folder, 'adapter_model.safetensors'));
  const trainableParameters = parameterCount(parameters.values());
  const { rank, alpha, targetModules: targets } = adapters.config(task.name);
  const targetModules = [targets].flat();
  view.say(
    `  trained ${count(trainableParameters)} parameters in ${seconds(training)}; ` +
      `adapter of ${bytes(file.length)}: ${folder}`,
  );
  return {
    ...{ steps, batchSize, lr, rank, alpha, targetModules, losses, measured, folder },
    seconds: training,
    tokens: source.tokens,
    trainableParameters,
    bytes: file.length,
    sha256: createHash('sha256').update(file).digest('hex'),
  };
}
