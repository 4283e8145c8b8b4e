import { existsSync, readdirSync, realpathSync } from 'node:fs';
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from 'node:path';
import { type Command, Option } from 'commander';
import { checkWritable, isTemporary } from '../io/files.js';
import type { Merged } from '../models/merge.js';
import type { SaveProgress } from '../models/save.js';
import { byteSize, type NamedAdapter, namedAdapter } from './adapters.js';
import { backendOptions, resolveDir } from './model.js';
import {
  bytesText,
  type CommonOptions,
  command,
  commonOptions,
  countText,
  needs,
  oneOf,
  plural,
  printJson,
  say,
  timeText,
  UsageError,
} from './output.js';

interface MergeFlags extends CommonOptions {
  readonly model: string;
  readonly adapter: readonly NamedAdapter[];
  readonly out: string;
  readonly dtype?: 'f32' | 'f16' | 'bf16';
  readonly maxShardSize?: number;
  readonly overwrite?: boolean;
  readonly backend?: string;
  readonly threads?: number;
}

const EXAMPLES = [
  'lowrank merge --model base --adapter adapter --out merged',
  'lowrank merge --model base --adapter style --adapter facts:0.5 --out merged',
  'lowrank merge --model org/name --adapter org/adapter --out merged --dtype bf16 --max-shard-size 2GB',
];

const SUMMARY = 'Merge adapters into the weights of their model.';

const DETAILS = [
  'Writes a plain Hugging Face directory that knows nothing of LoRA: W + Σ weight·ΔW, ' +
    "where ΔW is an adapter's update as it was trained (alpha / rank · B A). Sums are f32 " +
    "and rounded once. The base's tokenizer, chat template, generation settings and other " +
    'small files go along; weights, pickles, adapter files, hidden files and folders do ' +
    'not. The base is not changed and stays on disk: one tensor is made at a time (on the ' +
    'cpu backend; reference holds the model in memory).',
  '--adapter may be given several times, each with a weight after a colon (default 1). ' +
    'A folder whose whole name holds a colon and a number is taken as it is. A module ' +
    "that an adapter holds whole (modules_to_save) replaces the base's: its adapter needs " +
    'weight 1, and only one may hold it.',
  'Where an adapter changes the head of a model whose head is tied to its embeddings, ' +
    "or the embeddings, both are written and tie_word_embeddings becomes false. (PEFT's " +
    'merge_and_unload adds the update of a tied head to the embeddings, too, which ' +
    'changes what the model reads.)',
  'A weight that becomes NaN or infinite is refused. Nothing is left behind then, and ' +
    'old files stay.',
].join('\n\n');

/** `lowrank merge`. */
export function mergeCommand(): Command {
  const c = command('merge', SUMMARY, DETAILS, EXAMPLES);
  needs(c, '--model <dir>', 'the model: a directory, or org/name on the Hub');
  const collect = (text: string, before: readonly NamedAdapter[] = []) => [
    ...before,
    namedAdapter(text),
  ];
  needs(c, '--adapter <dir[:weight]>', 'a PEFT adapter of the model; may be repeated', collect);
  needs(c, '--out <dir>', 'where the merged model is written')
    .option(
      '--dtype <name>',
      'storage of the weights: f32, f16 or bf16 (default: the base’s)',
      oneOf(['f32', 'f16', 'bf16'] as const),
    )
    .addOption(
      new Option(
        '--max-shard-size <size>',
        'most bytes of weights in one file (default: 5GB)',
      ).argParser(byteSize),
    )
    .option('--overwrite', 'write although --out is not empty');
  return commonOptions(backendOptions(c)).action(runMerge);
}

/** A path with every link followed, of as much of it as exists. */
function realPath(path: string): string {
  const full = resolve(path);
  if (existsSync(full) || dirname(full) === full) return realpathSync(full);
  return join(realPath(dirname(full)), basename(full));
}

/** Throws where the folder holds what a model must not be written over. */
function checkOut(out: string, overwrite: boolean | undefined): void {
  checkWritable(out, 'merge');
  if (!existsSync(out)) return;
  const names = readdirSync(out);
  if (names.includes('adapter_config.json')) {
    throw new Error(
      `[merge] expected a folder for a model, received ${out}, which holds an adapter that ` +
        'transformers would load with it. Give another --out',
    );
  }
  if (overwrite || names.every(isTemporary)) return;
  throw new Error(
    `[merge] expected a new or empty folder, received ${out} with files in it. ` +
      'Give another --out, or --overwrite',
  );
}

/** Throws where the folder is a source's own or lies in it. */
function checkOutside(out: string, sources: readonly string[]): void {
  const target = realPath(out);
  for (const dir of sources) {
    const way = relative(realPath(dir), target);
    if (way === '..' || way.startsWith(`..${sep}`) || isAbsolute(way)) continue;
    throw new UsageError(`option --out must be a folder outside ${dir}`);
  }
}

/** Shows how far the merge is: a line that renews itself on a terminal, else none. */
function progressLine(): { step(p: SaveProgress): void; end(): void } {
  if (!process.stderr.isTTY) return { step() {}, end() {} };
  const start = performance.now();
  let shown = Number.NEGATIVE_INFINITY;
  const clear = '\r\x1b[K';
  return {
    step({ name, bytes, totalBytes }) {
      const now = performance.now();
      if (now - shown < 100) return;
      shown = now;
      const share = totalBytes > 0 ? bytes / totalBytes : 1;
      const left = (((now - start) / 1000) * (1 - share)) / share;
      const text = `${Math.floor(100 * share)}%  ${bytesText(bytes)} of ${bytesText(totalBytes)}  ${timeText(left)} left  ${name}`;
      process.stderr.write(`${clear}${text.slice(0, (process.stderr.columns ?? 80) - 1)}`);
    },
    end: () => void process.stderr.write(clear),
  };
}

function report(out: string, merged: Merged): void {
  const { parameters, tensors, changed, weights, bytes, untied, leftOut } = merged;
  const files = weights.filter((name) => name.endsWith('.safetensors')).length;
  say(
    `${out}: ${countText(parameters)} parameters in ${plural(tensors, 'tensor')}, ` +
      `${changed} of them changed, ${bytesText(bytes)} in ${plural(files, 'file')}`,
  );
  if (untied) say('The head was tied to the embeddings and is now a tensor of its own');
  if (leftOut.length > 0) say(`Not copied from the base: ${leftOut.join(', ')}`);
}

async function runMerge(flags: MergeFlags): Promise<void> {
  const { out, dtype, maxShardSize, overwrite } = flags;
  const local = [flags.model, ...flags.adapter.map((a) => a.name)].filter((n) => existsSync(n));
  checkOutside(out, local);
  checkOut(out, overwrite);
  const modelDir = await resolveDir(flags.model, 'model');
  const adapters: { dir: string; weight: number }[] = [];
  for (const { name, weight } of flags.adapter) {
    adapters.push({ dir: await resolveDir(name, 'adapter'), weight });
  }
  checkOutside(out, [modelDir, ...adapters.map((a) => a.dir)]);
  const { mergeAdapters } = await import('../models/merge.js');
  const { getBackend } = await import('../tensor/registry.js');
  const backend = getBackend(flags.backend ?? 'auto');
  if (flags.threads !== undefined) backend.setThreads(flags.threads);
  const line = progressLine();
  let merged: Merged;
  try {
    merged = mergeAdapters({
      ...{ modelDir, adapters, out, backend, onTensor: line.step },
      ...(dtype === undefined ? {} : { dtype }),
      ...(maxShardSize === undefined ? {} : { maxShardBytes: maxShardSize }),
    });
  } finally {
    line.end();
  }
  if (flags.json) printJson({ type: 'done', out, ...merged });
  else report(out, merged);
}
