import { existsSync } from 'node:fs';
import { InvalidArgumentError } from 'commander';

/** An adapter as an option names it. */
export interface NamedAdapter {
  /** A directory, or `org/name` on the Hub. */
  readonly name: string;
  readonly weight: number;
}

const WEIGHT = /^(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)$/i;

/**
 * Reads `DIR` or `DIR:WEIGHT`: what follows the last colon is the weight if it is a number. A
 * directory that exists under the whole name wins, and other colons belong to the name.
 * @throws when the weight is 0 or too large to be one
 */
export function namedAdapter(text: string): NamedAdapter {
  const [, name, number] = WEIGHT.exec(text) ?? [];
  if (name === undefined || existsSync(text)) return { name: text, weight: 1 };
  const weight = Number(number);
  if (!Number.isFinite(weight) || weight === 0) {
    throw new InvalidArgumentError(`Expected a weight other than 0 after ${name}, got ${number}.`);
  }
  return { name, weight };
}

const UNITS: Readonly<Record<string, number>> = {
  '': 1,
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KIB: 2 ** 10,
  MIB: 2 ** 20,
  GIB: 2 ** 30,
  TIB: 2 ** 40,
};

/** A size in bytes as people and transformers write it: `5GB`, `500 MB`, `2GiB`, `1000000`. */
export function byteSize(text: string): number {
  const [, number, unit = ''] = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim()) ?? [];
  const factor = UNITS[unit.toUpperCase()];
  const bytes = Math.floor(Number(number) * (factor ?? Number.NaN));
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  throw new InvalidArgumentError('Expected a size such as 5GB, 500MB or 2GiB.');
}
