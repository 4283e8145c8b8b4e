import { type Command, InvalidArgumentError } from 'commander';
import type { Adapter } from '../lora/algebra/index.js';
import type { BaseWeight, Space } from '../lora/analysis/index.js';
import type { Model } from '../models/load.js';
import type { AnalysisPage } from './analysis-charts.js';
import { alignOf, analysisRows } from './analysis-rows.js';
import { backendOptions, resolveDir } from './model.js';
import {
  type CommonOptions,
  command,
  commonOptions,
  note,
  oneOf,
  printJson,
  say,
} from './output.js';
import { tableLines } from './table.js';

interface AnalyzeFlags extends CommonOptions {
  readonly model?: string;
  readonly space: Space;
  readonly out?: string;
  readonly backend?: string;
  readonly threads?: number;
}

const SPACES = ['A', 'right', 'left'] as const;

const EXAMPLES = [
  'lowrank analyze adapter',
  'lowrank analyze rank8 rank64 --out report.html',
  'lowrank analyze adapter --model base --json',
];

const SUMMARY = 'Show what an adapter’s updates are: their ranks, directions and strength.';

const DETAILS = `Of every layer the singular values of ΔW and what follows from them:

  effective  effective rank, exp of the entropy of the values' shares
  stable     stable rank, ‖ΔW‖² over the largest value squared
  90%, 99%   directions that hold so much of ‖ΔW‖²

With a second adapter the similarity of their directions, φ = ‖U₁ᵀU₂‖² / min(i, j) (Hu et al., equation 4), and what random directions would have, max(i, j) / d. With --model the amplification factor ‖ΔW‖ / ‖Uᵀ W V‖ (section 7.3): by how much the adapter strengthens directions that the weight has but does not stress.

Adapters trained with one --seed begin with the same rows of A, whatever their ranks, and stay alike: compare ones of different seeds.

--out writes a page (.html) with the table and plots, or the plots alone as a picture (.svg); neither needs another file. No model is needed but for the amplification.`;

/** `lowrank analyze`. */
export function analyzeCommand(): Command {
  const c = command('analyze', SUMMARY, DETAILS, EXAMPLES)
    .argument('<adapter>', 'a PEFT adapter: a directory, or org/name[@revision] of the Hub')
    .argument('[other]', 'an adapter to compare its directions with')
    .option('--model <dir>', 'the base, for amplification factors')
    .option(
      '--space <name>',
      'directions compared: A (of A, as the paper), right or left (of ΔW)',
      oneOf(SPACES),
      'A',
    )
    .option(
      '--out <file>',
      'write a page (.html) with table and plots, or a picture (.svg)',
      outFile,
    );
  return commonOptions(backendOptions(c)).action(runAnalyze);
}

/** A path whose ending says what is written. */
function outFile(text: string): string {
  if (/\.(html?|svg)$/i.test(text)) return text;
  throw new InvalidArgumentError('Expected a name that ends in .html or .svg.');
}

const isPicture = (file: string) => /\.svg$/i.test(file);

/** What does not show in B A. */
function caveats(adapter: Adapter): string[] {
  const out: string[] = [];
  const { use_dora: dora, init_lora_weights: start } = adapter.config;
  if (dora === true) out.push('DoRA: what is shown is B A, without the magnitudes’ part.');
  if (typeof start === 'string' && /^(pissa|olora|corda|loftq)/.test(start)) {
    out.push(
      `Started by ${start}: B A holds what was taken from the base, too, not the change alone.`,
    );
  }
  return out;
}

async function baseWeights(
  flags: AnalyzeFlags,
): Promise<{ model: Model; weights: ReadonlyMap<string, BaseWeight> } | undefined> {
  if (flags.model === undefined) return undefined;
  const [{ getBackend }, { openModel }, { siteOf }, { plainLayer, targetLayers }] =
    await Promise.all([
      import('../tensor/registry.js'),
      import('../models/load.js'),
      import('../lora/site.js'),
      import('../lora/targets.js'),
    ]);
  const backend = getBackend(flags.backend ?? 'auto');
  if (flags.threads !== undefined) backend.setThreads(flags.threads);
  const model = openModel(await resolveDir(flags.model, 'model'), { backend });
  const weights = targetLayers(model).map((t) => [t.path, siteOf(t.path, plainLayer(t))] as const);
  return { model, weights: new Map(weights) };
}

async function writeReport(file: string, page: AnalysisPage): Promise<void> {
  const [{ analysisHtml }, { analysisSvg }, { writeFileAtomic }] = await Promise.all([
    import('./analysis-report.js'),
    import('./analysis-svg.js'),
    import('../io/files.js'),
  ]);
  const text = isPicture(file) ? analysisSvg(page) : analysisHtml(page);
  writeFileAtomic(file, [new TextEncoder().encode(text)]);
}

async function runAnalyze(
  name: string,
  otherName: string | undefined,
  flags: AnalyzeFlags,
): Promise<void> {
  const [{ readAdapter }, { analyze }, { failure, nearest }] = await Promise.all([
    import('../lora/algebra/index.js'),
    import('../lora/analysis/index.js'),
    import('../tensor/errors.js'),
  ]);
  const adapter = readAdapter(await resolveDir(name, 'adapter'));
  const other =
    otherName === undefined ? undefined : readAdapter(await resolveDir(otherName, 'adapter'));
  const loaded = await baseWeights(flags);
  using _model = loaded?.model;
  const base = loaded?.weights;
  const layers = analyze(adapter, {
    space: flags.space,
    ...(other ? { other } : {}),
    ...(base ? { base: (path: string) => base.get(path) ?? null } : {}),
  });
  const [first] = adapter.modules.keys();
  if (base && first !== undefined && !layers.some((l) => base.has(l.path))) {
    throw failure(
      `analyze --model ${flags.model}`,
      `layers of the adapter, such as ${first}`,
      'none of them',
      `Nearest: ${nearest(first, base.keys(), 1).join('')}`,
    );
  }
  const notes = [...caveats(adapter), ...(other ? caveats(other) : [])];
  if (flags.out !== undefined) {
    await writeReport(flags.out, {
      ...{ name, layers, notes, space: flags.space },
      ...(otherName === undefined ? {} : { other: otherName }),
      ...(flags.model === undefined ? {} : { model: flags.model }),
    });
  }
  if (flags.json) {
    for (const layer of layers) printJson({ type: 'layer', ...layer });
    printJson({ type: 'done', layers: layers.length, notes, out: flags.out ?? null });
    return;
  }
  const rows = analysisRows(layers);
  for (const line of tableLines(rows, alignOf(rows))) say(line);
  for (const line of notes) note(line);
  if (flags.out !== undefined) {
    say(`${flags.out}: ${isPicture(flags.out) ? 'the plots' : 'the page with plots'}`);
  }
}
