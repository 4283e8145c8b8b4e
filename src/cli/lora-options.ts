import { type Command, InvalidArgumentError } from 'commander';
import type { LoraSettings } from '../train/finetune.js';
import { names, number, oneOf, positive, wholeNumber } from './output.js';

/** LoRA's settings that have an option of the same name. */
export const LORA = [
  'rank',
  'alpha',
  'targetModules',
  'excludeModules',
  'layersToTransform',
  'rankPattern',
  'alphaPattern',
  'dropout',
  'init',
  'variant',
  'scaling',
  'loraBias',
  'bias',
  'modulesToSave',
] as const satisfies readonly (keyof LoraSettings)[];

/** Whether an option is one of LoRA's settings. */
export function isLora(key: string): boolean {
  return (LORA as readonly string[]).includes(key);
}

/** LoRA's settings as commander hands them over. */
export type LoraFlags = Pick<LoraSettings, (typeof LORA)[number]>;

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
function pairs(value: (text: string) => number): (text: string) => Record<string, number> {
  return (text) => {
    const split = names(text).map((pair): [string, number] => {
      const at = pair.lastIndexOf('=');
      if (at < 1) throw new InvalidArgumentError('Expected name=value pairs, commas between them.');
      return [pair.slice(0, at), value(pair.slice(at + 1))];
    });
    return Object.fromEntries(split);
  };
}

/** Adds the options that say what an adapter is. */
export function loraOptions(c: Command): Command {
  return c
    .option('--rank <r>', 'rank of the update (default: 8)', wholeNumber(1))
    .option('--alpha <a>', 'the update is scaled by alpha / rank (default: 2 × rank)', positive)
    .option(
      '--target-modules <names>',
      'layers to adapt, by name or ending, commas between them, or a preset: qv, attention, ' +
        'all-linear (default: all-linear)',
      names,
    )
    .option('--exclude-modules <names>', 'layers to leave out of these, by name', names)
    .option('--layers-to-transform <n,…>', 'numbers of the blocks to adapt (default: all)', numbers)
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
    .option('--modules-to-save <names>', 'modules that are trained and saved whole', names);
}

/** The settings that were given. */
export function loraSettings(flags: LoraFlags): LoraSettings {
  return Object.fromEntries(
    LORA.filter((key) => flags[key] !== undefined).map((key) => [key, flags[key]]),
  );
}
