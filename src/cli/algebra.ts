import { existsSync, readdirSync, realpathSync, statSync } from 'node:fs';
import { Command, InvalidArgumentError, Option } from 'commander';
import type { Adapter, Combined, CombineMethod, Layout, SignRule } from '../lora/algebra/index.js';
import { type NamedAdapter, namedAdapter } from './adapters.js';
import { fusedParts, pairs } from './lora-options.js';
import { backendOptions, resolveDir } from './model.js';
import {
  type CommonOptions,
  command,
  commonOptions,
  needs,
  number,
  oneOf,
  partNames,
  plural,
  printJson,
  say,
  UsageError,
  wholeNumber,
} from './output.js';
import { digitsText, tableLines } from './table.js';

const ADAPTER = 'a PEFT adapter: a directory, or org/name[@revision] of the Hub';
const METHODS = ['cat', 'linear', 'svd', 'ties', 'dare', 'dare-ties', 'prune'] as const;
const LAYOUT_NAMES = ['peft', 'mlx', 'loralib'] as const;

const share = number('a share of more than 0, at most 1', (v) => v > 0 && v <= 1);

interface OutFlags extends CommonOptions {
  readonly out: string;
  readonly overwrite?: boolean;
}

interface CombineFlags extends OutFlags {
  readonly method: CombineMethod;
  readonly rank?: number;
  readonly density?: number;
  readonly sign?: SignRule;
  readonly seed?: number;
  readonly backend?: string;
  readonly threads?: number;
}

interface ResizeFlags extends OutFlags {
  readonly rank?: number;
  readonly energy?: number;
}

interface ConvertFlags extends OutFlags {
  readonly from?: Layout;
  readonly to: Layout;
  readonly alpha?: number;
  readonly enabled?: boolean[] | Record<string, boolean[]>;
  readonly kernels?: Record<string, number>;
  readonly dropOthers?: boolean;
  readonly initial?: string;
}

/** Paragraphs of a help text. */
const text = (...paragraphs: string[]) => paragraphs.join('\n\n');

/** Adds the options of a command that writes an adapter. */
function outOptions(c: Command, what = 'where the new adapter is written'): Command {
  return needs(c, '--out <path>', what).option('--overwrite', 'write although --out is not empty');
}

/** Throws where something is that must not be written over. */
function checkOut({ out, overwrite }: OutFlags, sources: readonly string[]): void {
  const stats = statSync(out, { throwIfNoEntry: false });
  if (!stats) return;
  const real = realpathSync(out);
  const source = sources.find((s) => existsSync(s) && realpathSync(s) === real);
  if (source) throw new UsageError(`option --out must be another place than ${source}`);
  if (overwrite || (stats.isDirectory() && readdirSync(out).length === 0)) return;
  throw new Error(
    `[adapters] expected a new or empty folder, received ${out}` +
      `${stats.isDirectory() ? ' with files in it' : ', a file'}. Give another --out, or --overwrite`,
  );
}

function printCombined(flags: OutFlags, made: Combined): void {
  const { adapter, layers } = made;
  const total = (of: (l: (typeof layers)[number]) => number) =>
    layers.reduce((sum, l) => sum + of(l), 0) / layers.length;
  const energy = total((l) => l.energy);
  const worst = layers.reduce((a, b) => (b.error > a.error ? b : a));
  if (flags.json) {
    const { r, lora_alpha: alpha } = adapter.config;
    printJson({ type: 'done', out: flags.out, rank: r, alpha, energy, layers });
    return;
  }
  const ranks = [...new Set(layers.map((l) => adapter.modules.get(l.path)?.rank as number))];
  const rank =
    ranks.length === 1 ? `rank ${ranks[0]}` : `ranks ${Math.min(...ranks)} … ${Math.max(...ranks)}`;
  const lost =
    worst.error < 1e-6
      ? 'nothing is lost'
      : `${(100 * energy).toFixed(1)}% of ‖ΔW‖² kept in the mean; most is lost in ${worst.path}, ` +
        `relative error ${digitsText(worst.error)}`;
  say(`${flags.out}: ${rank} on ${plural(layers.length, 'layer')}; ${lost}`);
}

async function runCombine(named: readonly NamedAdapter[], flags: CombineFlags): Promise<void> {
  const { combine, readAdapter, writeAdapter } = await import('../lora/algebra/index.js');
  const { getBackend } = await import('../tensor/registry.js');
  const dirs = await Promise.all(named.map((a) => resolveDir(a.name, 'adapter')));
  checkOut(flags, dirs);
  const parts = dirs.map((dir, i) => ({
    adapter: readAdapter(dir),
    weight: (named[i] as NamedAdapter).weight,
  }));
  const backend = getBackend(flags.backend ?? 'auto');
  if (flags.threads !== undefined) backend.setThreads(flags.threads);
  const { method, rank, density, sign, seed } = flags;
  const made = combine(parts, {
    ...{ method, backend },
    ...(rank === undefined ? {} : { rank }),
    ...(density === undefined ? {} : { density }),
    ...(sign === undefined ? {} : { sign }),
    ...(seed === undefined ? {} : { seed }),
  });
  writeAdapter(flags.out, made.adapter);
  printCombined(flags, made);
}

function combineCommand(): Command {
  const c = command(
    'adapters combine',
    'Make one adapter of several: Σ weight·ΔW, and its relatives.',
    text(
      'Every method works on the updates ΔW = alpha / rank · B A, layer by layer, without a base ' +
        'model. A and B are never averaged apart: that is no combination of the updates.',
      `  cat, linear  Σ weight·ΔW, exactly; the ranks add up
  svd          the same, cut to --rank by its singular values: the nearest
  ties         of each update the --density largest elements; a sign is
               elected for each place; the mean of those that have it
  dare         a random --density of the elements, rescaled; their sum
  dare-ties    drops as dare, elects as ties
  prune        the --density largest elements; their sum
  (the last four are cut to --rank, too)`,
      'An adapter that lacks a layer counts as zero there. Modules that are saved whole ' +
        '(modules_to_save) can come from one adapter only. DoRA, and PiSSA or OLoRA as they are ' +
        'trained, are no sums of updates and refused (see convert --initial).',
    ),
    [
      'lowrank adapters combine style facts:0.5 --out both',
      'lowrank adapters combine new old:-1 --out what-changed',
      'lowrank adapters combine a b c --method ties --density 0.3 --rank 16 --out merged',
    ],
  )
    .name('combine')
    .argument('<adapter[:weight]...>', `${ADAPTER}; weight 1 unless given`, collectNamed)
    .addOption(
      new Option('--method <name>', METHODS.join(', ')).argParser(oneOf(METHODS)).default('cat'),
    )
    .option('--rank <n>', 'of the result (default: the largest of the adapters)', wholeNumber(1))
    .option('--density <share>', 'of the elements that are kept', share)
    .option(
      '--sign <rule>',
      'elected by the total of the updates or their frequency (default: total)',
      oneOf(['total', 'frequency'] as const),
    )
    .option('--seed <n>', 'of the elements that dare keeps (default: 0)', wholeNumber(0));
  return commonOptions(backendOptions(outOptions(c))).action(runCombine);
}

function collectNamed(word: string, before: readonly NamedAdapter[] | undefined): NamedAdapter[] {
  return [...(before ?? []), namedAdapter(word)];
}

async function runResize(name: string, flags: ResizeFlags): Promise<void> {
  const { rank, energy } = flags;
  if ((rank === undefined) === (energy === undefined)) {
    throw new UsageError('adapters resize needs one of --rank and --energy');
  }
  const { readAdapter, resize, writeAdapter } = await import('../lora/algebra/index.js');
  const dir = await resolveDir(name, 'adapter');
  checkOut(flags, [dir]);
  const made = resize(
    readAdapter(dir),
    rank === undefined ? { energy: energy as number } : { rank },
  );
  writeAdapter(flags.out, made.adapter);
  printCombined(flags, made);
}

function resizeCommand(): Command {
  const c = command(
    'adapters resize',
    'Give an adapter another rank, and tell what is lost.',
    text(
      'To --rank, or in each layer to the smallest rank that keeps a share of ‖ΔW‖² (--energy), ' +
        'from the singular values of ΔW: no adapter of that rank is nearer. A larger rank loses ' +
        'nothing.',
    ),
    [
      'lowrank adapters resize adapter --rank 8 --out small',
      'lowrank adapters resize adapter --energy 0.99 --out small --json',
    ],
  )
    .name('resize')
    .argument('<adapter>', ADAPTER)
    .option('--rank <n>', 'the new rank', wholeNumber(1))
    .option('--energy <share>', 'of ‖ΔW‖² that each layer keeps at least', share);
  return commonOptions(outOptions(c)).action(runResize);
}

async function runDiff(a: string, b: string, flags: CommonOptions): Promise<void> {
  const { diff, readAdapter } = await import('../lora/algebra/index.js');
  const [x, y] = [
    readAdapter(await resolveDir(a, 'adapter')),
    readAdapter(await resolveDir(b, 'adapter')),
  ];
  const { layers, settings, extras } = diff(x, y);
  if (flags.json) {
    printJson({ type: 'done', a, b, layers, settings, extras });
    return;
  }
  const rank = (r: number | null) => (r === null ? '–' : String(r));
  const rows = layers.map((l) => [
    l.path,
    l.ranks.map(rank).join(' / '),
    ...l.norms.map((n) => digitsText(n)),
    digitsText(l.difference),
    digitsText(l.cosine),
  ]);
  const header = ['layer', 'ranks', '‖ΔW₁‖', '‖ΔW₂‖', 'difference', 'cosine'];
  for (const line of tableLines([header, ...rows], 'lrrrrr')) say(line);
  const json = (v: unknown) => JSON.stringify(v);
  for (const { setting, values } of settings) say(`${setting}: ${values.map(json).join(' / ')}`);
  for (const name of extras) say(`${name}: differs, or is on one side only`);
  const same = layers.every((l) => (l.difference ?? 1) < 1e-6) && extras.length === 0;
  if (same) say(settings.length === 0 ? 'The same adapter.' : 'The same updates.');
}

function diffCommand(): Command {
  const c = command(
    'adapters diff',
    'Compare two adapters: updates layer by layer, and settings.',
    text(
      'difference is ‖ΔW₁ − ΔW₂‖ over the larger norm: 0 for the same update whatever its ' +
        'factors, 2 for opposite ones. cosine is that of the angle between them.',
    ),
    ['lowrank adapters diff before after', 'lowrank adapters diff before after --json'],
  )
    .name('diff')
    .argument('<a>', ADAPTER)
    .argument('<b>', 'another one');
  return commonOptions(c).action(runDiff);
}

/** `q,-,v` for all fused layers, or `name=q,-,v` given one after the other. */
function enabledParts(text: string, before?: boolean[] | Record<string, boolean[]>) {
  if (text.includes('=') && !Array.isArray(before)) return fusedParts(text, before);
  if (before === undefined) return partNames(text);
  throw new InvalidArgumentError('Expected parts once, or name=parts with each name once.');
}

async function runConvert(source: string, flags: ConvertFlags): Promise<void> {
  const algebra = await import('../lora/algebra/index.js');
  const { from, to, out, initial, alpha, enabled, kernels, dropOthers } = flags;
  const path = existsSync(source) ? source : await resolveDir(source, 'adapter');
  const layout = from ?? algebra.layoutOf(path);
  const only = { '--alpha': alpha, '--kernels': kernels, '--drop-others': dropOthers };
  for (const [option, value] of Object.entries(only)) {
    if (layout !== 'loralib' && value !== undefined) {
      throw new UsageError(`option ${option} is for --from loralib only`);
    }
  }
  if (layout !== 'loralib' && to !== 'loralib' && enabled !== undefined) {
    throw new UsageError('option --enabled is for --from loralib or --to loralib only');
  }
  checkOut(flags, [path]);
  let adapter: Adapter = algebra.readAnyAdapter(path, layout, {
    ...(alpha === undefined ? {} : { alpha }),
    ...(enabled === undefined ? {} : { enabled }),
    ...(kernels === undefined ? {} : { kernels }),
    ...(dropOthers === undefined ? {} : { dropOthers }),
  });
  if (initial !== undefined) {
    const before = algebra.readAnyAdapter(await resolveDir(initial, 'adapter'));
    adapter = algebra.plainFromMutated(adapter, before);
  }
  if (to === 'peft') algebra.writeAdapter(out, adapter);
  else if (to === 'mlx') algebra.writeMlx(out, adapter);
  else algebra.writeLoralib(out, adapter, layout === 'loralib' ? undefined : enabled);
  const layers = adapter.modules.size;
  if (flags.json) printJson({ type: 'done', out, from: layout, to, layers });
  else say(`${out}: ${plural(layers, 'layer')}, from ${layout} to ${to}`);
}

function convertCommand(): Command {
  const c = command(
    'adapters convert',
    'Convert an adapter between the layouts of PEFT, mlx-lm and loralib.',
    text(
      `  peft     a folder: adapter_model.safetensors, adapter_config.json
  mlx      a folder: adapters.safetensors, adapter_config.json with
           lora_parameters
  loralib  one safetensors file of the original library's names
           (….lora_A, ….lora_B), which does not hold lora_alpha: --alpha`,
      'loralib’s MergedLinear: name the parts of the fused layers, --enabled q,-,v for ' +
        'enable_lora [True, False, True], or of some of them, --enabled c_attn=q,-,v. Read, it ' +
        'becomes one layer, of the ranks’ sum; written, the parts that are off must be unchanged ' +
        '(those of --enable-lora are known). Its Conv2d: give the kernels, --kernels conv1=3, as ' +
        'nothing else tells it from a dense layer. What lowrank writes notes all three.',
      'With --initial, an adapter that was trained beside a changed base (PiSSA, OLoRA) becomes a ' +
        'plain one of twice the rank for the unchanged base: s·(B A − B₀ A₀), where --initial is ' +
        'the adapter as it was before training.',
    ),
    [
      'lowrank adapters convert adapter --to mlx --out adapter-mlx',
      'lowrank adapters convert adapter-mlx --to peft --out adapter',
      'lowrank adapters convert gpt2-lora.safetensors --alpha 32 --enabled q,-,v --to peft --out adapter',
      'lowrank adapters convert pissa --initial pissa-start --to peft --out plain',
    ],
  )
    .name('convert')
    .argument('<adapter>', 'a folder (or org/name of the Hub), or a file of loralib’s')
    .option('--from <layout>', 'peft, mlx or loralib (default: by its files)', oneOf(LAYOUT_NAMES));
  needs(c, '--to <layout>', 'peft, mlx or loralib', oneOf(LAYOUT_NAMES));
  outOptions(c, 'the new folder, or for loralib the new file')
    .option(
      '--alpha <n>',
      'lora_alpha of a loralib file',
      number('a number', () => true),
    )
    .option(
      '--enabled <parts>',
      'parts of loralib’s fused layers, such as q,-,v, or name=q,-,v (may then be repeated)',
      enabledParts,
    )
    .option(
      '--kernels <name=k,…>',
      'sizes of the kernels of loralib’s Conv2d layers',
      pairs(wholeNumber(1)),
    )
    .option('--drop-others', 'leave out tensors of a loralib file that are no lora_A or lora_B')
    .option('--initial <adapter>', 'the adapter before training, for PiSSA and OLoRA');
  return commonOptions(c).action(runConvert);
}

/** `lowrank adapters`. */
export function adaptersCommand(): Command {
  const c = new Command('adapters')
    .summary('Combine, resize, compare and convert adapters.')
    .description('Combine, resize, compare and convert adapters. No model is needed.')
    .helpOption('-h, --help', 'print this help')
    .helpCommand(false);
  for (const sub of [combineCommand(), resizeCommand(), diffCommand(), convertCommand()]) {
    c.addCommand(sub);
  }
  return c;
}
