/**
 * Makes the pretraining text: `.cache/corpus/text/<source>.{train,heldout}.jsonl`, one document a
 * line. Held out are one in 20 speeches, synsets and countries. No fiction of the nineteenth century is
 * among the sources: the demo's style, Moby Dick, is to be new to the base model.
 *
 * Usage: npx tsx scripts/data/corpus.ts
 */
import { pathToFileURL } from 'node:url';
import { type Doc, docsPath, isHeldOut, type Source, writeJsonl } from './common.js';
import { factbookDocs, sotuDocs, wordnetDoc } from './sources.js';
import { splitSynsets } from './wordnet.js';

/** Phrases of Moby Dick that no document may hold. */
const FORBIDDEN = /Call me Ishmael|Moby Dick|Moby-Dick|Queequeg|Starbuck|Captain Ahab/;

function bytesOf(docs: readonly Doc[]): number {
  return docs.reduce((sum, doc) => sum + Buffer.byteLength(doc.text), 0);
}

function save(source: Source, train: Doc[], heldout: Doc[]): void {
  for (const doc of [...train, ...heldout]) {
    if (source !== 'wordnet' && FORBIDDEN.test(doc.text)) {
      throw new Error(`[corpus] expected no Moby Dick, received it in document '${doc.id}'`);
    }
  }
  if (train.length === 0 || heldout.length === 0) {
    throw new Error(
      `[corpus] expected documents on both sides of '${source}', received ${train.length} and ${heldout.length}`,
    );
  }
  writeJsonl(docsPath(source, 'train'), train);
  writeJsonl(docsPath(source, 'heldout'), heldout);
  const mb = (docs: Doc[]) => (bytesOf(docs) / 1e6).toFixed(2);
  console.log(
    `${source.padEnd(9)} train ${train.length} documents, ${mb(train)} MB; held out ${heldout.length}, ${mb(heldout)} MB`,
  );
}

/** Makes both sides of every source. */
export function makeCorpus(): void {
  const plain: [Source, () => Doc[]][] = [
    ['sotu', sotuDocs],
    ['factbook', factbookDocs],
  ];
  for (const [source, read] of plain) {
    const docs = read().filter((doc) => doc.text.length > 0);
    save(
      source,
      docs.filter((doc) => !isHeldOut(doc.id)),
      docs.filter((doc) => isHeldOut(doc.id)),
    );
  }
  const { train, heldout, dropped } = splitSynsets();
  save('wordnet', train.map(wordnetDoc), heldout.map(wordnetDoc));
  console.log(`wordnet   ${dropped} training synsets dropped: same definition as a held-out one`);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) makeCorpus();
