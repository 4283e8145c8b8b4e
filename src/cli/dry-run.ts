import { PURPOSES, type Purpose } from '../tensor/backend.js';
import { type DryRun, dryRun } from '../train/dry-run.js';
import type { FinetuneOptions } from '../train/finetune-options.js';
import { bytesText, countText, plural, printJson, say } from './output.js';

/** What each purpose holds, for people. */
const HOLDS: Readonly<Record<Purpose, string>> = {
  frozen: 'weights that stay as they are',
  trainable: 'weights that are trained',
  gradient: 'their gradients',
  optimizer: 'moments of AdamW',
  activation: 'what backward needs, and results on the way',
  workspace: 'scratch memory of kernels',
};

/** Says what a run would do and need, and does nothing. */
export async function runDry(options: FinetuneOptions, json: boolean): Promise<void> {
  const result = await dryRun(options);
  if (json) printJson(result);
  else report(result);
}

function report(r: DryRun): void {
  const { batch, length } = r.largestBatch;
  const share = (100 * r.trainableParameters) / r.totalParameters;
  say(`${r.method === 'full' ? 'Full fine-tuning' : 'LoRA'} of ${r.modelDir} on ${r.backend}`);
  say(
    `${countText(r.trainableParameters)} trainable parameters, ${share.toPrecision(3)}% of ` +
      countText(r.totalParameters),
  );
  say(
    `${plural(r.steps - r.resumedFrom, 'step')} of ` +
      `${plural(r.batchSize * r.accumulation, 'sequence')}; measured on the largest batch, ` +
      `${plural(batch, 'sequence')} of ${plural(length, 'token')}\n`,
  );
  for (const purpose of PURPOSES) {
    const bytes = bytesText(r.memory.peak[purpose]).padStart(9);
    say(`${purpose.padEnd(12)}${bytes}   ${HOLDS[purpose]}`);
  }
  say(`${'at once'.padEnd(12)}${bytesText(r.memory.totalPeak).padStart(9)}   the most, together`);
  say(
    `${'process'.padEnd(12)}${bytesText(r.residentBytes).padStart(9)}   ` +
      'in memory at most, with Node.js',
  );
  say('\nNothing was trained or written.');
}
