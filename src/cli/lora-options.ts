import { type Command, InvalidArgumentError, Option } from 'commander';
import type { LoraSettings } from '../train/finetune.js';
import { names, number, oneOf, partNames, positive, wholeNumber } from './output.js';

/** LoRA's settings that have an option of the same name. */
const SAME = [
  'rank',
  'alpha',
  'targetModules',
  'excludeModules',
  'layersToTransform',
  'layersPattern',
  'rankPattern',
  'alphaPattern',
  'enableLora',
  'dropout',
  'init',
  'variant',
  'scaling',
  'loraBias',
  'bias',
  'modulesToSave',
  'trainableTokens',
] as const satisfies readonly (keyof LoraSettings)[];

/** Options of a setting that takes names or an expression: the latter has an option of its own. */
const PATTERNS = { targetPattern: 'targetModules', excludePattern: 'excludeModules' } as const;

/** The options that say what an adapter is. */
export const LORA: readonly string[] = [...SAME, ...Object.keys(PATTERNS)];

/** Whether an option is one of LoRA's settings. */
export function isLora(key: string): boolean {
  return LORA.includes(key);
}

/** LoRA's settings as commander hands them over. */
export type LoraFlags = Pick<LoraSettings, (typeof SAME)[number]> & {
  readonly [key in keyof typeof PATTERNS]?: string;
};

const probability = number('a number from 0 to below 1', (v) => v >= 0 && v < 1);
const STARTS = ['kaiming', 'gaussian', 'orthogonal', 'pissa', 'olora'] as const;

/** A way to begin; PiSSA's randomised one carries its number of iterations. */
function start(text: string): NonNullable<LoraSettings['init']> {
  if (/^pissa_niter_\d+$/.test(text)) return text as `pissa_niter_${number}`;
  return oneOf(STARTS)(text);
}

function numbers(text: string): number[] {
  return names(text).map(wholeNumber(0));
}

/** A parser of `name=value` pairs with commas between them. */
export function pairs(value: (text: string) => number): (text: string) => Record<string, number> {
  return (text) => {
    const split = names(text).map((pair): [string, number] => {
      const at = pair.lastIndexOf('=');
      if (at < 1) throw new InvalidArgumentError('Expected name=value pairs, commas between them.');
      return [pair.slice(0, at), value(pair.slice(at + 1))];
    });
    return Object.fromEntries(split);
  };
}

/** Parts of fused layers by name, from options that are given one after the other. */
export function fusedParts(
  text: string,
  before: Readonly<Record<string, boolean[]>> = {},
): Record<string, boolean[]> {
  const at = text.lastIndexOf('=');
  if (at < 1) throw new InvalidArgumentError('Expected name=parts, such as c_attn=q,-,v.');
  const name = text.slice(0, at);
  if (Object.hasOwn(before, name)) throw new InvalidArgumentError('Expected each name once.');
  return { ...before, [name]: partNames(text.slice(at + 1)) };
}

/** The most ids that one range names: more is a slip of the keyboard. */
const LONGEST_RANGE = 1_000_000;

/** `5,7,32000-32003` as a list. */
function tokenIds(text: string): number[] {
  return names(text).flatMap((part) => {
    const [from, to, ...more] = part.split('-').map(wholeNumber(0)) as [number, number?];
    if (to === undefined) return [from];
    if (more.length > 0 || to < from || to - from >= LONGEST_RANGE) {
      throw new InvalidArgumentError('Expected ids and ranges, such as 5,7,32000-32003.');
    }
    return Array.from({ length: to - from + 1 }, (_, i) => from + i);
  });
}

type Tokens = NonNullable<LoraSettings['trainableTokens']>;

/** Ids of the model's table, or `name=ids` of any embedding, given one after the other. */
function tokens(text: string, before?: Tokens): Tokens {
  const at = text.lastIndexOf('=');
  if (at < 0 && before === undefined) return tokenIds(text);
  const name = text.slice(0, Math.max(0, at));
  if (name === '' || Array.isArray(before) || Object.hasOwn(before ?? {}, name)) {
    throw new InvalidArgumentError('Expected ids once, or name=ids with each name once.');
  }
  return { ...(before as Record<string, number[]>), [name]: tokenIds(text.slice(at + 1)) };
}

/** Adds the options that say what an adapter is. */
export function loraOptions(c: Command): Command {
  return c
    .option('--rank <r>', 'rank of the update (default: 8)', wholeNumber(1))
    .option('--alpha <a>', 'the update is scaled by alpha / rank (default: 2 × rank)', positive)
    .option(
      '--target-modules <names>',
      'layers to adapt, by name or ending, commas between them, or a preset: qv, attention, ' +
        'all-linear (default: all-linear); embeddings (embed_tokens, wte) only by name',
      names,
    )
    .addOption(
      new Option(
        '--target-pattern <regex>',
        'instead of names a regular expression that whole paths of layers match, as PEFT’s ' +
          "target_modules of one text: '.*layers\\.[01]\\..*(q|v)_proj'",
      ).conflicts('targetModules'),
    )
    .option('--exclude-modules <names>', 'layers to leave out of these, by name', names)
    .addOption(
      new Option('--exclude-pattern <regex>', 'the same by a regular expression').conflicts(
        'excludeModules',
      ),
    )
    .option('--layers-to-transform <n,…>', 'numbers of the blocks to adapt (default: all)', numbers)
    .option(
      '--layers-pattern <names>',
      'the lists of blocks that these numbers count in, such as layers or h (default: any)',
      names,
    )
    .option(
      '--enable-lora <name=parts>',
      'parts of a fused layer that have A and B, - for one without: c_attn=q,-,v for q and v of ' +
        'GPT-2; may be repeated',
      fusedParts,
    )
    .option('--rank-pattern <name=r,…>', 'other ranks, by name', pairs(wholeNumber(1)))
    .option('--alpha-pattern <name=a,…>', 'other alphas, by name', pairs(positive))
    .option('--dropout <p>', 'dropout on the adapter’s input (default: 0)', probability)
    .option(
      '--init <how>',
      'start of A and B: kaiming, gaussian, orthogonal, pissa, pissa_niter_<n> or olora ' +
        '(default: kaiming)',
      start,
    )
    .option('--variant <name>', 'lora or dora (default: lora)', oneOf(['lora', 'dora'] as const))
    .option(
      '--scaling <name>',
      'lora: alpha / rank, or rslora: alpha / √rank (default: lora)',
      oneOf(['lora', 'rslora'] as const),
    )
    .option('--lora-bias', 'give B a bias of its own')
    .option(
      '--bias <which>',
      'biases of the model that are trained along: none, all or lora_only (default: none)',
      oneOf(['none', 'all', 'lora_only'] as const),
    )
    .option('--modules-to-save <names>', 'modules that are trained and saved whole', names)
    .option(
      '--trainable-tokens <ids>',
      'tokens whose rows of the embedding are trained: 5,7,32000-32003, or of an embedding by ' +
        'name: wpe=0-3 (may then be repeated)',
      tokens,
    );
}

/** The settings that were given. */
export function loraSettings(flags: LoraFlags): LoraSettings {
  const same = SAME.map((key) => [key, flags[key]] as const);
  const patterns = Object.entries(PATTERNS).map(
    ([flag, key]) => [key, flags[flag as keyof typeof PATTERNS]] as const,
  );
  return Object.fromEntries([...same, ...patterns].filter(([, value]) => value !== undefined));
}
