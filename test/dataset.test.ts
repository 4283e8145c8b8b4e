import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import {
  collate,
  type DataRecord,
  type Encoder,
  type Example,
  packExamples,
  parseJsonl,
  readJsonl,
  tokenizeRecords,
} from '../src/io/dataset.js';
import { BatchSampler } from '../src/io/sampler.js';
import { TokenFile, writeTokenFile } from '../src/io/token-file.js';

const test = suite('dataset');
const dir = mkdtempSync(join(tmpdir(), 'lowrank-dataset-'));
test.after(() => rmSync(dir, { recursive: true, force: true }));

const parse = (text: string) => parseJsonl(new TextEncoder().encode(text), 'd.jsonl');

test('texts, prompts and completions, with their lines', () => {
  const text = '\uFEFF{"text":"a"}\r\n\n  \n{"prompt":"p","completion":"c","id":3}\r\n{"text":"ü"}';
  assert.equal(parse(text), [
    { kind: 'text', line: 1, text: 'a' },
    { kind: 'completion', line: 4, prompt: 'p', completion: 'c' },
    { kind: 'text', line: 5, text: 'ü' },
  ]);
  assert.equal(parse('{"prompt":"","completion":"c"}\n').length, 1);
});

const wrong: [name: string, text: string, message: RegExp][] = [
  [
    'bad JSON',
    '{"text":"a"}\n{"text":',
    /^\[d\.jsonl:2\] expected a line of JSON, received .*JSON/,
  ],
  ['two objects on a line', '{"text":"a"}{"text":"b"}', /^\[d\.jsonl:1\] expected a line of JSON/],
  ['a JSON array over lines', '[\n{"text":"a"}]', /^\[d\.jsonl:1\] expected a line of JSON/],
  ['an array', '[1]', /^\[d\.jsonl:1\] expected a JSON object with "text", or .*received an array/],
  ['a string', '"text"', /a JSON object .*received string/],
  ['null', 'null', /a JSON object .*received null/],
  ['no field', '{}', /expected "text", or "prompt" and "completion", received no field/],
  ['other fields', '{"txt":"a"}', /expected "text", or .*received "txt"/],
  ['messages', '{"messages":[]}', /received "messages"\. Chats are not read yet/],
  [
    'no completion',
    '\n{"prompt":"p"}',
    /^\[d\.jsonl:2\] expected "completion" as well, received "prompt"/,
  ],
  [
    'a misspelt completion',
    '{"prompt":"p","completions":"c"}',
    /Is "completions" meant to be "completion"/,
  ],
  [
    'no prompt',
    '{"completion":"c","promt":"p"}',
    /"prompt" as well.*Is "promt" meant to be "prompt"/,
  ],
  [
    'text and prompt',
    '{"text":"a","prompt":"p"}',
    /either "text", or .*received "text" and "prompt"/,
  ],
  ['text and completion', '{"text":"a","completion":"c"}', /received "text" and "completion"/],
  ['a number', '{"text":1}', /"text" to be a string, received number/],
  [
    'a null completion',
    '{"prompt":"","completion":null}',
    /"completion" to be a string, received null/,
  ],
  [
    'a prompt in pieces',
    '{"prompt":["p"],"completion":"c"}',
    /"prompt" to be a string, received an array/,
  ],
  ['an empty text', '{"text":""}', /"text" with something in it, received an empty string/],
  ['an empty completion', '{"prompt":"p","completion":""}', /"completion" with something in it/],
  ['an empty file', '', /^\[d\.jsonl\] expected lines of JSON .*received an empty file/],
  ['blank lines only', '\uFEFF\n \r\n', /received an empty file/],
];

for (const [name, text, message] of wrong) {
  test(`refused: ${name}`, () => assert.throws(() => parse(text), message));
}

test('files that are missing, no file, or not UTF-8', () => {
  writeFileSync(join(dir, 'train.jsonl'), '{"text":"a"}\n');
  assert.is(readJsonl(join(dir, 'train.jsonl')).length, 1);
  assert.throws(
    () => readJsonl(join(dir, 'trian.jsonl')),
    /received none; the folder has train\.jsonl/,
  );
  mkdirSync(join(dir, 'folder.jsonl'));
  assert.throws(
    () => readJsonl(join(dir, 'folder.jsonl')),
    /a JSON Lines file, received a directory/,
  );
  writeFileSync(join(dir, 'bad.jsonl'), Buffer.from([0x7b, 0x7d, 0x0a, 0xff]));
  assert.throws(() => readJsonl(join(dir, 'bad.jsonl')), /bad\.jsonl:1\] expected "text"/);
  writeFileSync(join(dir, 'bad.jsonl'), Buffer.from('{"text":"a"}\n\xff', 'latin1'));
  assert.throws(() => readJsonl(join(dir, 'bad.jsonl')), /bad\.jsonl:2\] expected UTF-8 text/);
});

/** A character a token; "ab" is one token, so that a border between a and b joins. */
const encoder: Encoder = {
  encode: (text) => [...text.matchAll(/ab|./gs)].map(([t]) => (t === 'ab' ? 900 : t.charCodeAt(0))),
};
const codes = (text: string) => [...text].map((c) => c.charCodeAt(0));
const completion = (prompt: string, answer: string): DataRecord => ({
  kind: 'completion',
  line: 1,
  prompt,
  completion: answer,
});
const lists = (e: Example | undefined) => [Array.from(e?.ids ?? []), Array.from(e?.labels ?? [])];
const EOS = 1;
const BOS = 2;

test('labels stand at their ids; only the completion and its eos have some', () => {
  const records: DataRecord[] = [completion('xy', 'z'), { kind: 'text', line: 2, text: 'uv' }];
  const out = tokenizeRecords(records, encoder, { maxLength: 10, eosId: EOS, bosId: BOS });
  assert.equal(lists(out.examples[0]), [
    [BOS, ...codes('xyz'), EOS],
    [-100, -100, -100, ...codes('z'), EOS],
  ]);
  assert.equal(lists(out.examples[1]), [
    [BOS, ...codes('uv'), EOS],
    [BOS, ...codes('uv'), EOS],
  ]);
  assert.is(out.tokens, 9);
  assert.is(out.targets, 2 + 3);
  assert.is(out.truncated, 0);
});

test('without bos and eos', () => {
  const out = tokenizeRecords([completion('x', 'y')], encoder, { maxLength: 4, eosId: null });
  assert.equal(lists(out.examples[0]), [codes('xy'), [-100, ...codes('y')]]);
});

test('a token that would join prompt and completion is not made', () => {
  const out = tokenizeRecords([completion('xa', 'bz')], encoder, { maxLength: 9, eosId: EOS });
  assert.equal(lists(out.examples[0])[0], [...codes('xabz'), EOS]);
});

test('too long: the prompt loses its left, then the completion its right; all is counted', () => {
  const cut = (record: DataRecord, maxLength: number, bosId: number | null) => {
    const out = tokenizeRecords([record], encoder, { maxLength, eosId: EOS, bosId });
    const counts = [out.truncated, out.truncatedTokens];
    return [...lists(out.examples[0]), counts, [out.truncatedPrompts, out.truncatedCompletions]];
  };
  assert.equal(cut(completion('uvwx', 'yz'), 5, BOS), [
    [BOS, ...codes('xyz'), EOS],
    [-100, -100, ...codes('yz'), EOS],
    [1, 3],
    [1, 0],
  ]);
  assert.equal(cut(completion('uv', 'wxyz'), 3, null), [
    codes('wxy'),
    codes('wxy'),
    [1, 4],
    [1, 1],
  ]);
  assert.equal(cut({ kind: 'text', line: 1, text: 'wxyz' }, 3, BOS), [
    [BOS, ...codes('wx')],
    [BOS, ...codes('wx')],
    [1, 3],
    [0, 1],
  ]);
  assert.throws(
    () => cut(completion('a', 'b'), 1, null),
    /\[maxLength\] expected a whole number of 2/,
  );
});

const example = (...ids: number[]): Example => ({
  ids: Int32Array.from(ids),
  labels: Int32Array.from(ids, (id) => (id % 2 ? id : -100)),
});

test('packing keeps every token in order', () => {
  const examples = [example(1, 2, 3), example(4), example(5, 6, 7, 8)];
  const kept = packExamples(examples, 3);
  assert.equal(
    kept.examples.map((e) => lists(e)[0]),
    [
      [1, 2, 3],
      [4, 5, 6],
      [7, 8],
    ],
  );
  assert.equal(lists(kept.examples[1])[1], [-100, 5, -100]);
  assert.is(kept.droppedTokens, 0);
  const dropped = packExamples(examples, 3, { dropRemainder: true });
  assert.is(dropped.examples.length, 2);
  assert.is(dropped.droppedTokens, 2);
  assert.is(packExamples(examples, 4, { dropRemainder: true }).examples.length, 2);
  assert.equal(packExamples([], 4).examples, []);
  assert.throws(() => packExamples(examples, 1), /a length of 2 or more, received 1/);
});

test('collating pads on the right', () => {
  const batch = collate([example(1, 2, 3), example(5)], 0);
  assert.equal(Array.from(batch.inputIds), [1, 2, 3, 5, 0, 0]);
  assert.equal(Array.from(batch.attentionMask), [1, 1, 1, 1, 0, 0]);
  assert.equal(Array.from(batch.labels), [1, -100, 3, 5, -100, -100]);
  assert.equal([batch.batch, batch.length, batch.targets, batch.tokens], [2, 3, 1, 4]);
  assert.is(collate([example(1, 2, 3)], 0, { multipleOf: 8 }).length, 8);
  assert.is(collate([example(1, 2, 3, 4)], 9, { multipleOf: 4 }).length, 4);
  assert.throws(() => collate([], 0), /at least one example, received none/);
  assert.throws(() => collate([example(1)], 0, { multipleOf: 0 }), /multipleOf of 1 or more/);
});

test('every item is in one batch of an epoch', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 60 }),
      fc.integer({ min: 1, max: 70 }),
      fc.nat(2 ** 40),
      fc.nat(3),
      (count, batchSize, seed, epoch) => {
        const sampler = new BatchSampler(count, { batchSize, seed });
        const seen: number[] = [];
        for (let k = 0; k < sampler.batchesPerEpoch; k++) seen.push(...sampler.batch(epoch, k));
        assert.equal(
          seen.sort((a, b) => a - b),
          Array.from({ length: count }, (_, i) => i),
        );
      },
    ),
    { numRuns: 100, seed: 13 },
  );
});

test('a batch depends on its address alone, and a resumed run goes on exactly', () => {
  const make = () => new BatchSampler(23, { batchSize: 4, seed: 5 });
  const straight = make();
  const steps = Array.from({ length: 20 }, (_, step) => Array.from(straight.at(step)));
  for (const step of [13, 2, 19, 7]) assert.equal(Array.from(make().at(step)), steps[step]);
  assert.equal(Array.from(make().batch(1, 3)), steps[6 + 3]);
  assert.not.equal(steps[0], steps[6]);
  const other = new BatchSampler(23, { batchSize: 4, seed: 6 });
  assert.not.equal(Array.from(other.at(0)), steps[0]);
  assert.is(steps[5]?.length, 3);
  // A caller that changes its batch changes nothing else.
  straight.at(0).fill(-1);
  assert.equal(Array.from(straight.at(0)), steps[0]);
});

test('the order is pinned, so that old runs can be resumed by new versions', () => {
  const sampler = new BatchSampler(8, { batchSize: 8, seed: 42 });
  assert.equal([...sampler.batch(0, 0)], [4, 5, 0, 6, 1, 7, 3, 2]);
  assert.equal([...sampler.batch(1, 0)], [3, 0, 1, 6, 2, 7, 4, 5]);
});

test('in order, and without a smaller last batch', () => {
  const sampler = new BatchSampler(7, { batchSize: 3, shuffle: false, dropLast: true });
  assert.is(sampler.batchesPerEpoch, 2);
  assert.equal(Array.from(sampler.at(3)), [3, 4, 5]);
  assert.throws(() => sampler.batch(0, 2), /an index of 0…1, received 2/);
  assert.throws(() => sampler.at(-1), /\[step\]/);
  assert.throws(() => sampler.batch(-1, 0), /\[epoch\]/);
  assert.throws(() => new BatchSampler(0, { batchSize: 1 }), /at least one item, received 0/);
  assert.throws(() => new BatchSampler(2, { batchSize: 0 }), /\[batchSize\]/);
  assert.throws(() => new BatchSampler(2, { batchSize: 1, seed: -1 }), /\[seed\]/);
  assert.throws(
    () => new BatchSampler(2, { batchSize: 3, dropLast: true }),
    /\[dropLast\] expected at l/,
  );
});

test('token files are written and read by windows', () => {
  const path = join(dir, 'train.bin');
  const ids = Array.from({ length: 11 }, (_, i) => (i * 7000) % 65536);
  writeTokenFile(path, [ids.slice(0, 4), Int32Array.from(ids.slice(4)), []]);
  assert.is(readFileSync(path).readUInt16LE(2), 7000);
  const file = TokenFile.open(path, 5);
  assert.equal([file.count, file.windows], [11, 2]);
  assert.equal(Array.from(file.window(0)), ids.slice(0, 6));
  assert.equal(Array.from(file.window(1)), ids.slice(5, 11));
  assert.equal(Array.from(file.tokens(3, 2)), ids.slice(3, 5));
  assert.throws(() => file.window(2), /a window of 0…1, received 2/);
  assert.throws(() => file.tokens(10, 2), /tokens among 0…10, received 2 from 10/);
  file.close();
  file.close();
  assert.throws(() => file.window(0), /an open file, received a closed one/);
});

test('token files that do not fit are refused, and an old one stays', () => {
  const path = join(dir, 'bad.bin');
  writeFileSync(path, Uint8Array.of(1, 0, 2, 0, 3, 0));
  assert.throws(() => TokenFile.open(path, 3), /at least 4 tokens, received 3/);
  assert.throws(() => TokenFile.open(path, 0), /a length of 1 or more/);
  assert.throws(
    () => writeTokenFile(path, [[1], [65536]]),
    /ids of 0…65535 \(16 bits each\), received 65536/,
  );
  assert.is(readFileSync(path).length, 6);
  assert.equal(
    readdirSync(dir).filter((n) => n.endsWith('.tmp')),
    [],
  );
  writeFileSync(path, Uint8Array.of(1, 0, 2));
  assert.throws(() => TokenFile.open(path, 1), /an even number of bytes, received 3/);
  assert.throws(() => TokenFile.open(dir, 1), /expected a file, received something else/);
  assert.throws(() => TokenFile.open(join(dir, 'none.bin'), 1), /received none; the folder has/);
});

test.run();
