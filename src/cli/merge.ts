import { existsSync, readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Command } from 'commander';
import { backendOptions, type ModelFlags, modelOptions } from './model.js';
import {
  command,
  commonOptions,
  countText,
  needs,
  oneOf,
  printJson,
  say,
  UsageError,
} from './output.js';

interface MergeFlags extends ModelFlags {
  readonly adapter: string;
  readonly out: string;
  readonly dtype?: 'f32' | 'f16' | 'bf16';
  readonly overwrite?: boolean;
}

const EXAMPLES = [
  'lowrank merge --model base --adapter adapter --out merged',
  'lowrank merge --model base --adapter adapter --out merged --dtype f32',
];

const SUMMARY = 'Merge an adapter into the weights of its model.';

const DETAILS =
  'Writes a plain model directory that knows nothing of LoRA. Sums are f32 and rounded once. ' +
  'A weight that is NaN or infinite is refused. The base is not changed.';

/** `lowrank merge`. */
export function mergeCommand(): Command {
  const c = modelOptions(command('merge', SUMMARY, DETAILS, EXAMPLES), 'required');
  needs(c, '--out <dir>', 'where the merged model is written')
    .option(
      '--dtype <name>',
      'storage of the weights: f32, f16 or bf16 (default: the base’s)',
      oneOf(['f32', 'f16', 'bf16'] as const),
    )
    .option('--overwrite', 'write although --out is not empty');
  return commonOptions(backendOptions(c)).action(runMerge);
}

function checkOut({ out, model, adapter, overwrite }: MergeFlags): void {
  for (const dir of [model, adapter]) {
    if (resolve(out) === resolve(dir)) {
      throw new UsageError(`option --out must be another folder than ${dir}`);
    }
  }
  if (overwrite || !existsSync(out)) return;
  if (readdirSync(out).length > 0) {
    throw new Error(
      `[merge] expected a new or empty folder, received ${out} with files in it. ` +
        'Give another --out, or --overwrite',
    );
  }
}

async function runMerge(flags: MergeFlags): Promise<void> {
  checkOut(flags);
  const { mergeAdapter } = await import('../models/merge.js');
  const { getBackend } = await import('../tensor/registry.js');
  const { model, adapter, out, dtype } = flags;
  const backend = getBackend(flags.backend ?? 'auto');
  if (flags.threads !== undefined) backend.setThreads(flags.threads);
  const merged = mergeAdapter({
    ...{ modelDir: model, adapterDir: adapter, out, backend },
    ...(dtype === undefined ? {} : { dtype }),
  });
  if (flags.json) {
    printJson({ type: 'done', out, ...merged });
    return;
  }
  say(
    `${out}: ${countText(merged.parameters)} parameters in ${merged.tensors} tensors, ` +
      `${merged.changed} of them changed by the adapter`,
  );
}
