import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { normal, philox, randomWords, shuffled, streamOf, uniform } from '../src/tensor/random.js';

/** Known answers of Philox-4x32-10 as Random123 publishes them: counter, key, result. */
const KNOWN = [
  {
    counter: [0, 0, 0, 0],
    key: [0, 0],
    words: [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  },
  {
    counter: [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    key: [0xffffffff, 0xffffffff],
    words: [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  },
  {
    counter: [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    key: [0xa4093822, 0x299f31d0],
    words: [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  },
];

test('philox gives the published known answers', () => {
  for (const { counter, key, words } of KNOWN) {
    const c = Uint32Array.from(counter);
    philox(c, key[0] as number, key[1] as number);
    assert.equal([...c], words);
  }
});

test('the address is laid out as docs/kernels.md says', () => {
  const seed = 0x12345 * 2 ** 32 + 0x89abcdef;
  const words = randomWords({ seed, stream: 7, step: 9 }, 12);
  const c = Uint32Array.from([2, 0, 7, 9]);
  philox(c, 0x89abcdef, 0x12345);
  assert.equal([...words.subarray(8)], [...c]);
});

test('a part of a sequence is the same as the sequence there', () => {
  const address = { seed: 3, stream: 1 };
  const whole = randomWords(address, 40);
  for (const start of [0, 1, 3, 4, 17]) {
    assert.equal([...randomWords(address, 9, start)], [...whole.subarray(start, start + 9)]);
  }
  const far = 2 ** 34 + 1;
  assert.equal(randomWords(address, 2, far)[1], randomWords(address, 1, far + 1)[0]);
  assert.is.not(randomWords(address, 1, 2 ** 34)[0], whole[0], 'the high counter word counts');
});

test('seed, stream and step each make another sequence', () => {
  const base = { seed: 5, stream: 6, step: 7 };
  const first = (a: typeof base) => randomWords(a, 4).join();
  const all = [base, { ...base, seed: 8 }, { ...base, stream: 8 }, { ...base, step: 8 }];
  all.push({ ...base, seed: 5 + 2 ** 32 });
  assert.is(new Set(all.map(first)).size, all.length);
});

test('uniform numbers fill [0, 1) evenly', () => {
  const n = 40000;
  const bins = new Array<number>(10).fill(0);
  for (const u of uniform({ seed: 1, stream: 2 }, n)) {
    assert.ok(u >= 0 && u < 1);
    const bin = Math.floor(u * 10);
    bins[bin] = (bins[bin] as number) + 1;
  }
  // A bin's count has a standard deviation of √(n · 0.1 · 0.9) = 60.
  for (const count of bins) assert.ok(Math.abs(count - n / 10) < 5 * 60, String(count));
});

test('normal numbers have the moments of the normal distribution', () => {
  const n = 40001;
  const x = normal({ seed: 1, stream: 2 }, n);
  assert.is(x.length, n);
  const moment = (k: number) => x.reduce((sum, v) => sum + v ** k, 0) / n;
  assert.ok(Math.abs(moment(1)) < 5 / Math.sqrt(n));
  assert.ok(Math.abs(moment(2) - 1) < 5 * Math.sqrt(2 / n));
  assert.ok(Math.abs(moment(3)) < 5 * Math.sqrt(15 / n));
  assert.ok(Math.abs(moment(4) - 3) < 5 * Math.sqrt(96 / n));
});

test('a shuffle is a permutation, and every place is reached', () => {
  const order = shuffled({ seed: 4, stream: 0 }, 101);
  assert.equal(
    [...order].sort((a, b) => a - b),
    Array.from({ length: 101 }, (_, i) => i),
  );
  const firsts = new Set(
    Array.from({ length: 200 }, (_, seed) => shuffled({ seed, stream: 0 }, 5)[0]),
  );
  assert.is(firsts.size, 5);
  assert.equal([...shuffled({ seed: 0, stream: 0 }, 0)], []);
});

test('stream numbers of names are FNV-1a', () => {
  assert.is(streamOf(''), 0x811c9dc5);
  assert.is(streamOf('a'), 0xe40c292c);
  assert.is(streamOf('foobar'), 0xbf9cf968);
});

test.run();
