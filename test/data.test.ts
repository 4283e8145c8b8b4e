import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { BpeEncoder, byteAlphabet, countWords, trainBpe } from '../scripts/data/bpe.js';
import {
  BASE_DIR,
  cleanText,
  normalised,
  ROOT,
  readJsonl,
  TASKS_DIR,
} from '../scripts/data/common.js';
import { wordnetDoc } from '../scripts/data/sources.js';
import { loadBpe } from '../scripts/data/tokenizer.js';
import { splitGloss, splitSynsets } from '../scripts/data/wordnet.js';

interface Example {
  prompt: string;
  completion: string;
  synset: string;
}

const readJson = (path: string) => JSON.parse(readFileSync(path, 'utf8'));
const trainRows = readJsonl<Example>(join(TASKS_DIR, 'wordnet-category-train.jsonl'));
const testRows = readJsonl<Example>(join(TASKS_DIR, 'wordnet-category-test.jsonl'));
const { labels, classes } = readJson(join(TASKS_DIR, 'wordnet-category-labels.json')) as {
  labels: string[];
  classes: { label: string; completion: string; lexname: string; train: number; test: number }[];
};
const tokenizer = new Tokenizer(
  readJson(join(BASE_DIR, 'tokenizer.json')),
  readJson(join(BASE_DIR, 'tokenizer_config.json')),
);
const encode = (text: string) => tokenizer.encode(text, { add_special_tokens: false }).ids;

function definitionOf(row: Example): string {
  const match = /^Definition: (.+)\nCategory:$/.exec(row.prompt);
  if (!match) throw new Error(`unexpected prompt ${JSON.stringify(row.prompt)}`);
  return match[1]!;
}

test('every category example has the prompt and one of the labels', () => {
  assert.ok(labels.length >= 14);
  assert.is(new Set(labels).size, labels.length);
  const completions = new Set(labels.map((label) => ` ${label}`));
  for (const row of [...trainRows, ...testRows]) {
    assert.ok(completions.has(row.completion), row.completion);
    assert.ok(definitionOf(row).length <= 240);
    assert.not.match(row.prompt, /"\s*$|;\s*"/);
  }
});

test('the categories are counted and balanced as the labels file says', () => {
  assert.is(trainRows.length, 17576);
  assert.is(testRows.length, 1527);
  for (const { completion, train, test: held } of classes) {
    assert.is(trainRows.filter((row) => row.completion === completion).length, train);
    assert.is(testRows.filter((row) => row.completion === completion).length, held);
    assert.ok(held >= 40, completion);
    assert.ok(held / testRows.length <= 0.16, completion);
  }
});

test('no synset and no definition stands twice or on both sides', () => {
  const all = [...trainRows, ...testRows];
  assert.is(new Set(all.map((row) => row.synset)).size, all.length);
  assert.is(new Set(all.map((row) => normalised(definitionOf(row)))).size, all.length);
});

test('the labels start with different tokens', () => {
  const first = labels.map((label) => encode(` ${label}`)[0]);
  assert.is(new Set(first).size, labels.length);
});

test("the test's synsets and definitions are held out of the pretraining text", () => {
  const { train, heldout } = splitSynsets();
  const held = new Map(heldout.map((synset) => [synset.id, synset]));
  const read = new Set(train.map((synset) => normalised(synset.definition)));
  const trainIds = new Set(train.map((synset) => synset.id));
  for (const row of testRows) {
    assert.is(held.get(row.synset)?.definition, definitionOf(row));
    assert.not(read.has(normalised(definitionOf(row))), row.synset);
  }
  for (const row of trainRows) assert.ok(trainIds.has(row.synset), row.synset);
  for (const synset of train) {
    assert.not.match(wordnetDoc(synset).text, /\b(noun|verb|adj|adv)\.[a-z]+\b/);
  }
});

test('Moby Dick is split by whole chapters', () => {
  const rows = (side: string) =>
    readJsonl<{ text: string; chapter: string }>(join(TASKS_DIR, `moby-dick-${side}.jsonl`));
  const train = rows('train');
  const heldout = rows('heldout');
  const chapters = (side: { chapter: string }[]) => new Set(side.map((row) => row.chapter));
  const both = [...chapters(train)].filter((chapter) => chapters(heldout).has(chapter));
  assert.equal(both, []);
  assert.is(chapters(train).size + chapters(heldout).size, 135);
  assert.is(train.length, 984);
  assert.is(heldout.length, 121);
  for (const { text } of [...train, ...heldout]) {
    assert.ok(text.length >= 200 && text.length <= 1700, `${text.length} characters`);
    assert.not.match(text, /^CHAPTER \d/m);
  }
});

test('the special tokens and the bytes have the first ids', () => {
  const { vocab, merges } = loadBpe();
  assert.is(vocab.length, 4096);
  assert.is(merges.length, 4096 - 258);
  assert.equal(vocab.slice(0, 2), ['<|endoftext|>', '<|pad|>']);
  assert.equal(vocab.slice(2, 258), [...byteAlphabet()].sort());
  assert.is(new Set(vocab).size, vocab.length);
  assert.equal(tokenizer.encode('a<|endoftext|>b<|pad|>').ids, [
    ...encode('a'),
    0,
    ...encode('b'),
    1,
  ]);
  assert.is(tokenizer.decode([0, ...encode('a whale')], { skip_special_tokens: true }), 'a whale');
});

test('any text comes back, and with the ids of the own encoder', () => {
  const encoder = new BpeEncoder(loadBpe());
  const check = (text: string) => {
    const ids = encode(text);
    assert.equal(ids, encoder.encode(text));
    if (text !== '') assert.is(tokenizer.decode(ids), text);
  };
  for (const row of testRows.slice(0, 200)) check(row.prompt + row.completion);
  check(
    "two  spaces,\ttabs\r\nand\n\n breaks; it's 1851 -- \u{1f433}\u200d e\u0301 \u4f60\u597d \u0000",
  );
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 60 }), (text) => {
      fc.pre(!/[\ud800-\udfff]/.test(text.replace(/[\ud800-\udbff][\udc00-\udfff]/g, '')));
      check(text);
    }),
    { numRuns: 300 },
  );
});

test('the trainer merges the most frequent pair first, ties by smaller ids', () => {
  const counts = countWords(['abab ab', ' cd', ' cd']);
  assert.equal(
    [...counts],
    [
      ['abab', 1],
      [' ab', 1],
      [' cd', 2],
    ],
  );
  const { vocab } = trainBpe(counts, 258 + 3);
  // ab stands three times; of the pairs that stand twice, c d has the smallest ids.
  assert.equal(vocab.slice(258), ['ab', 'cd', '\u0120cd']);
  const encoder = new BpeEncoder(trainBpe(counts, 258 + 3));
  assert.equal(encoder.encode('abab cd'), [258, 258, 260]);
  assert.throws(() => trainBpe(counts, 100), /expected a vocabulary of at least 258/);
});

test('overlapping pairs are counted as they are merged', () => {
  const { vocab, merges } = trainBpe(countWords(['aaaaa', 'aaaaa']), 258 + 8);
  assert.is(vocab[258], 'aa');
  assert.ok(merges.length >= 2);
  const encoder = new BpeEncoder({ vocab, merges });
  assert.equal(
    encoder
      .encode('aaaaa')
      .map((id) => vocab[id])
      .join(''),
    'aaaaa',
  );
});

test('glosses split into definition and examples', () => {
  assert.equal(splitGloss('a dog; "he saw a dog"; "dogs bark"  '), {
    definition: 'a dog',
    examples: ['he saw a dog', 'dogs bark'],
  });
  assert.equal(splitGloss('one; two (as "three")'), {
    definition: 'one; two (as "three")',
    examples: [],
  });
});

test('text is cleaned to plain quotes, dashes and letters', () => {
  assert.is(
    cleanText('\ufeffCaf\u00e9\u2014\u201cna\u00efve\u201d\r\n\r\n\r\n it\u2019s  \u00c6'),
    'Cafe--"naive"\n\nit\'s Ae',
  );
  assert.is(cleanText('\u4f60\u597d'), '\u4f60\u597d');
});

test("WordNet's licence goes with the files", () => {
  const licence = readFileSync(join(ROOT, 'assets', 'licenses', 'WORDNET.txt'), 'utf8');
  assert.match(licence, /Permission to use, copy, modify and distribute this software/);
  assert.match(licence, /Title to copyright[\s\S]*Princeton University/);
  assert.ok(existsSync(join(ROOT, 'assets', 'licenses', 'README.md')));
});

test.run();
