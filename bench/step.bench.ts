import { fileURLToPath } from 'node:url';
import { buildStep, type StepSettings } from './step-work.js';
import { measure, native, type Result, threadCounts } from './support.js';

const SETTINGS: Omit<StepSettings, 'mode'> = {
  model: fileURLToPath(new URL('../scripts/pretrain/config.json', import.meta.url)),
  batch: 16,
  seq: 256,
  rank: 8,
  dtype: 'f32',
};

/** One training step of the bundled model's shape, full and LoRA, over thread counts. */
export async function run(): Promise<Result[]> {
  const results: Result[] = [];
  const { batch, seq } = SETTINGS;
  for (const mode of ['full', 'lora'] as const) {
    const work = buildStep({ ...SETTINGS, mode }, native());
    for (const threads of threadCounts()) {
      const name = `${mode} step, ${batch} × ${seq} tokens`;
      const result = await measure(name, threads, work.flops, () => void work.step(), 3000);
      const rate = (batch * seq) / result.milliseconds;
      results.push({ ...result, note: `${(rate * 1000).toFixed(0)} tokens/s` });
    }
    work.dispose();
  }
  return results;
}
