/**
 * Encodes the corpus: `.cache/corpus/train.bin` and `heldout-<source>.bin`, token ids as
 * little-endian uint16, `<|endoftext|>` after every document. Training documents stand whole, in
 * one seeded shuffle over all sources. `manifest.json` beside them counts documents, bytes and
 * tokens, and gives yardsticks for the held-out text.
 *
 * Usage: npx tsx scripts/data/tokens.ts (after tokenizer.ts)
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { BpeEncoder, END_OF_TEXT } from './bpe.js';
import {
  CORPUS_DIR,
  type Doc,
  docsPath,
  readJsonl,
  SOURCES,
  type Source,
  seededOrder,
  writeAtomic,
} from './common.js';
import { loadBpe } from './tokenizer.js';

/** The seed of the order of documents in train.bin. */
const SHUFFLE_SEED = 20;

/** What the manifest says of one side of a source. */
interface Side {
  documents: number;
  bytes: number;
  /** With one `<|endoftext|>` a document. */
  tokens: number;
  bytesPerToken: number;
}

/** Yardsticks on a held-out text, in the units that a language model's loss is reported in. */
interface Yardsticks {
  /** Cross-entropy of the held-out tokens under the training tokens' frequencies (plus one). */
  unigramNatsPerToken: number;
  unigramBitsPerByte: number;
  gzipBitsPerByte: number;
  brotliBitsPerByte: number;
}

interface Encoded {
  doc: Doc;
  ids: Uint16Array;
}

function encodeSide(encoder: BpeEncoder, source: Source, side: 'train' | 'heldout'): Encoded[] {
  return readJsonl<Doc>(docsPath(source, side)).map((doc) => {
    const ids = encoder.encode(doc.text);
    ids.push(0);
    return { doc, ids: Uint16Array.from(ids) };
  });
}

function describe(docs: readonly Encoded[]): Side {
  const bytes = docs.reduce((sum, { doc }) => sum + Buffer.byteLength(doc.text), 0);
  const tokens = docs.reduce((sum, { ids }) => sum + ids.length, 0);
  return {
    documents: docs.length,
    bytes,
    tokens,
    bytesPerToken: Number((bytes / tokens).toFixed(4)),
  };
}

/** Writes the ids of `docs` in order; returns what the manifest says of the file. */
function writeTokens(file: string, docs: readonly Encoded[]) {
  const total = docs.reduce((sum, { ids }) => sum + ids.length, 0);
  const buffer = Buffer.alloc(2 * total);
  let at = 0;
  for (const { ids } of docs) {
    for (const id of ids) at = buffer.writeUInt16LE(id, at);
  }
  writeAtomic(join(CORPUS_DIR, file), buffer);
  return { file, tokens: total, sha256: createHash('sha256').update(buffer).digest('hex') };
}

function yardsticks(docs: readonly Encoded[], logProb: Float64Array): Yardsticks {
  const text = Buffer.from(docs.map(({ doc }) => doc.text).join('\n\n'));
  let nats = 0;
  let tokens = 0;
  for (const { ids } of docs) {
    for (const id of ids) nats -= logProb[id]!;
    tokens += ids.length;
  }
  const round = (value: number) => Number(value.toFixed(4));
  const params = { [constants.BROTLI_PARAM_LGWIN]: constants.BROTLI_MAX_WINDOW_BITS };
  return {
    unigramNatsPerToken: round(nats / tokens),
    unigramBitsPerByte: round(nats / Math.LN2 / text.length),
    gzipBitsPerByte: round((8 * gzipSync(text, { level: 9 }).length) / text.length),
    brotliBitsPerByte: round((8 * brotliCompressSync(text, { params }).length) / text.length),
  };
}

function unigram(docs: readonly Encoded[], vocabSize: number): Float64Array {
  const counts = new Float64Array(vocabSize).fill(1);
  let total = vocabSize;
  for (const { ids } of docs) {
    for (const id of ids) counts[id]! += 1;
    total += ids.length;
  }
  return counts.map((count) => Math.log(count / total));
}

/** Encodes both sides of every source and writes the manifest. */
export function makeTokens(): void {
  const bpe = loadBpe();
  const encoder = new BpeEncoder(bpe);
  if (bpe.vocab[0] !== END_OF_TEXT) {
    throw new Error(`[tokens] expected '${END_OF_TEXT}' to have id 0, received '${bpe.vocab[0]}'`);
  }
  const train: Encoded[] = [];
  const sources: Record<string, { train: Side }> = {};
  for (const source of SOURCES) {
    const docs = encodeSide(encoder, source, 'train');
    sources[source] = { train: describe(docs) };
    train.push(...docs);
  }
  const order = seededOrder(train, ({ doc }) => doc.id, SHUFFLE_SEED);
  const logProb = unigram(train, bpe.vocab.length);
  const manifest = {
    vocabSize: bpe.vocab.length,
    endOfText: 0,
    train: writeTokens('train.bin', order),
    sources: {} as Record<string, object>,
  };
  console.log(`train     ${manifest.train.tokens} tokens`);
  for (const source of SOURCES) {
    const docs = encodeSide(encoder, source, 'heldout');
    const file = writeTokens(`heldout-${source}.bin`, docs);
    const heldout = { ...describe(docs), ...file, yardsticks: yardsticks(docs, logProb) };
    manifest.sources[source] = { ...sources[source], heldout };
    const side = sources[source]!.train;
    console.log(
      `${source.padEnd(9)} train ${side.tokens} tokens (${side.bytesPerToken} bytes each), held out ${heldout.tokens}`,
    );
  }
  writeAtomic(join(CORPUS_DIR, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) makeTokens();
