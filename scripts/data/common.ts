/** What the data scripts share: where things lie, hashing, random order, cleaning, JSON lines. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);

/** The repository's root folder. */
export const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
/** Where the corpus is made; ignored by git. */
export const CORPUS_DIR = join(ROOT, '.cache', 'corpus');
/** Where the committed task files are made. */
export const TASKS_DIR = join(ROOT, 'assets', 'data');
/** Where the tokenizer is made, beside the base model. */
export const BASE_DIR = join(ROOT, 'assets', 'base');

/** The sources of the pretraining corpus, in the order in which they are made and reported. */
export const SOURCES = ['sotu', 'wordnet', 'factbook'] as const;
export type Source = (typeof SOURCES)[number];

/** One document: `id` is stable between runs and decides on which side it falls. */
export interface Doc {
  id: string;
  text: string;
}

/** The folder of an installed development dependency. */
export function packageDir(name: string): string {
  try {
    return dirname(require.resolve(`${name}/package.json`));
  } catch {
    throw new Error(
      `[data] expected the development dependency '${name}' to be installed, received nothing; run npm install`,
    );
  }
}

/** FNV-1a over UTF-16 code units, with a final mix, as an unsigned 32-bit integer. */
export function hash32(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** True for about one in `oneIn` ids, always the same ones. */
export function isHeldOut(id: string, oneIn = 20): boolean {
  return hash32(`held-out:${id}`) % oneIn === 0;
}

/** A copy of `items` in an order that depends on their keys and on `seed` alone. */
export function seededOrder<T>(items: readonly T[], key: (item: T) => string, seed: number): T[] {
  const keyed = items.map((item) => ({ item, id: key(item), h: hash32(`${seed}:${key(item)}`) }));
  keyed.sort((a, b) => a.h - b.h || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  return keyed.map((entry) => entry.item);
}

/**
 * Text with plain quotes and dashes, without diacritics and control characters, single spaces,
 * and at most one empty line in a row. Line breaks stay.
 */
export function cleanText(text: string): string {
  return (
    text
      .replace(/\r\n?/g, '\n')
      .replace(/[\u2018\u2019\u201b\u2032]/g, "'")
      .replace(/[\u201c\u201d\u201e]/g, '"')
      .replace(/[\u2010\u2011]/g, '-')
      .replace(/\u2013/g, '-')
      .replace(/\u2014/g, '--')
      .replace(/\u2026/g, '...')
      .replace(/[æ]/g, 'ae')
      .replace(/[Æ]/g, 'Ae')
      .replace(/[œ]/g, 'oe')
      .replace(/[Œ]/g, 'Oe')
      // Only Latin letters lose their marks.
      .replace(/[\u00c0-\u024f]/g, (c) => c.normalize('NFD').replace(/[\u0300-\u036f]/g, ''))
      // biome-ignore lint/suspicious/noControlCharactersInRegex: those are what is removed
      .replace(/[\u0000-\u0008\u000b-\u001f\u007f\u00ad\ufeff\ufffd]/g, '')
      .replace(/[ \t\u00a0]+/g, ' ')
      .replace(/ ?\n ?/g, '\n')
      .replace(/\n{3,}/g, '\n\n')
      .trim()
  );
}

/** A definition as compared between the sides: lower case, letters and digits only. */
export function normalised(text: string): string {
  return text
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, ' ')
    .trim();
}

/** Writes a whole file under a new name first, so that a failure leaves the old one in place. */
export function writeAtomic(path: string, data: string | Uint8Array): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, data);
  renameSync(`${path}.new`, path);
}

/** Writes one JSON object a line. */
export function writeJsonl(path: string, rows: readonly object[]): void {
  writeAtomic(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
}

/** Reads what {@link writeJsonl} wrote. */
export function readJsonl<T>(path: string): T[] {
  const lines = readFileSync(path, 'utf8').split('\n');
  return lines.filter((line) => line !== '').map((line) => JSON.parse(line) as T);
}

/** Where one side of a source's documents lies. */
export function docsPath(source: Source, side: 'train' | 'heldout'): string {
  return join(CORPUS_DIR, 'text', `${source}.${side}.jsonl`);
}
