import { failure } from '../tensor/errors.js';
import type { ConfigReader } from './config.js';

/** How a model turns its queries and keys: angles by position, and the length of the result. */
export interface RopeFrequencies {
  /** [D/2] radians a position, for sequences of this many positions. */
  frequencies(length: number): Float32Array;
  /** Factor of cosine and sine (YaRN); 1 for all others. */
  readonly factor: number;
  /** Sequences longer than this have angles of their own; Infinity where the length changes nothing. */
  readonly fixedUpTo: number;
  /** The most positions, where the scaling says more than the model's own number; else 0. */
  readonly reach: number;
}

interface RopeContext {
  /** The object that holds the settings, in the new or the old spelling. */
  readonly settings: ConfigReader;
  readonly theta: number;
  /** Channels that turn: the head size. */
  readonly dim: number;
  readonly maxPositions: number;
  /** Positions of the pretraining, before the scaling. */
  readonly original: number;
}

function plain(theta: number, dim: number): Float64Array {
  return Float64Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim));
}

function fixed(frequencies: Float64Array, factor = 1): RopeFrequencies {
  const rounded = Float32Array.from(frequencies);
  return { frequencies: () => rounded, factor, fixedUpTo: Number.POSITIVE_INFINITY, reach: 0 };
}

/** Positions divided by the factor (kaiokendev, 2023). */
function linear({ settings, theta, dim }: RopeContext): RopeFrequencies {
  const factor = settings.number('factor');
  return fixed(plain(theta, dim).map((f) => f / factor));
}

/** Beyond the model's positions the base grows with the length ("NTK-aware", bloc97 and emozilla). */
function dynamic({ settings, theta, dim, maxPositions: P }: RopeContext): RopeFrequencies {
  const factor = settings.number('factor');
  return {
    frequencies: (length) => {
      const stretch = (factor * Math.max(length, P)) / P - (factor - 1);
      return Float32Array.from(plain(theta * stretch ** (dim / (dim - 2)), dim));
    },
    factor: 1,
    fixedUpTo: P,
    reach: Math.floor(P * factor),
  };
}

/** Llama 3.1: long waves are stretched by the factor, short ones stay, those between are mixed. */
function llama3({ settings, theta, dim, original }: RopeContext): RopeFrequencies {
  const factor = settings.number('factor');
  const low = settings.number('low_freq_factor');
  const high = settings.number('high_freq_factor');
  return fixed(
    plain(theta, dim).map((f) => {
      const wave = (2 * Math.PI) / f;
      if (wave < original / high) return f;
      if (wave > original / low) return f / factor;
      const smooth = (original / wave - low) / (high - low);
      return ((1 - smooth) * f) / factor + smooth * f;
    }),
  );
}

/** YaRN (Peng et al., 2023): a ramp over the channels from plain to stretched, and a factor. */
function yarn({ settings, theta, dim, original, maxPositions }: RopeContext): RopeFrequencies {
  const factor = settings.optionalNumber('factor') ?? maxPositions / original;
  const betaFast = settings.optionalNumber('beta_fast') || 32;
  const betaSlow = settings.optionalNumber('beta_slow') || 1;
  const truncate = settings.flag('truncate', true);
  // The channel that turns this often within the original length.
  const channel = (turns: number) =>
    (dim * Math.log(original / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  let [low, high] = [channel(betaFast), channel(betaSlow)];
  if (truncate) [low, high] = [Math.floor(low), Math.ceil(high)];
  [low, high] = [Math.max(low, 0), Math.min(high, dim - 1)];
  if (low === high) high += 0.001;
  const frequencies = plain(theta, dim).map((f, i) => {
    const ramp = Math.min(1, Math.max(0, (i - low) / (high - low)));
    return (f / factor) * ramp + f * (1 - ramp);
  });
  return fixed(frequencies, yarnFactor(settings, factor));
}

function yarnFactor(settings: ConfigReader, factor: number): number {
  const given = settings.optionalNumber('attention_factor');
  const mscale = settings.optionalNumber('mscale');
  const all = settings.optionalNumber('mscale_all_dim');
  if (given !== undefined) return given;
  const scale = (m: number) => (factor <= 1 ? 1 : 0.1 * m * Math.log(factor) + 1);
  return mscale && all ? scale(mscale) / scale(all) : scale(1);
}

const TYPES: Readonly<Record<string, (context: RopeContext) => RopeFrequencies>> = {
  default: ({ theta, dim }) => fixed(plain(theta, dim)),
  linear,
  dynamic,
  llama3,
  yarn,
};

/** What other kinds of scaling read, and how YaRN's models were trained. */
const NEUTRAL = ['type', 'finetuned', 'original_max_position_embeddings'];

/**
 * Reads the rotary embedding's settings from `rope_parameters`, or in the old spelling from
 * `rope_theta` and `rope_scaling` (there `type` may stand for `rope_type`).
 * @throws naming a kind or a setting that is not handled
 */
export function readRope(c: ConfigReader, dim: number, maxPositions: number): RopeFrequencies {
  // An empty one is none, as in transformers.
  const fields = ['rope_scaling', 'rope_parameters'].filter((f) => !c.isEmpty(f));
  const settings = fields.map((f) => c.object(f)).find((o) => o !== undefined) ?? c.empty();
  const type = settings.text('rope_type', settings.text('type', 'default'));
  const make = Object.hasOwn(TYPES, type) ? TYPES[type] : undefined;
  if (!make) {
    throw failure('config rope_type', `one of ${Object.keys(TYPES).join(', ')}`, `"${type}"`);
  }
  for (const reader of [c, settings]) reader.only('partial_rotary_factor', [1, null, undefined]);
  const outer = c.number('rope_theta', 10000);
  const theta = settings.optionalNumber('rope_theta') ?? outer;
  const original =
    c.optionalNumber('original_max_position_embeddings') ??
    settings.optionalNumber('original_max_position_embeddings') ??
    maxPositions;
  if (type === 'dynamic' && dim <= 2) {
    throw failure('config rope_type', 'a head_dim above 2 for dynamic', String(dim));
  }
  const rope = make({ settings, theta, dim, maxPositions, original });
  settings.end(NEUTRAL);
  return rope;
}
