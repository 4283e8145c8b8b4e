import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { openTokenizer } from '../src/io/tokenizer.js';

const test = suite('tokenizer');
let dir = '';
test.before.each(() => {
  dir = mkdtempSync(join(tmpdir(), 'lowrank-tokenizer-'));
});
test.after.each(() => rmSync(dir, { recursive: true, force: true }));

const put = (name: string, value: unknown) =>
  writeFileSync(join(dir, name), typeof value === 'string' ? value : JSON.stringify(value));

/** The printable characters by which byte-level BPE writes the 256 bytes (as GPT-2 does). */
function byteCharacters(): string[] {
  const printable = (b: number) =>
    (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(printable(b) ? b : next++));
}

/** A byte-level BPE: ids 0…255 the bytes, then merges, then `<bos>`, `<eos>`, `<pad>`. */
function byteLevel(
  merges: [string, string][] = [
    ['h', 'e'],
    ['Ġ', 'he'],
  ],
) {
  const tokens = [...byteCharacters(), ...merges.map(([a, b]) => a + b)];
  const first = tokens.length;
  const special = ['<bos>', '<eos>', '<pad>'].map((content, i) => ({
    id: first + i,
    content,
    special: true,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
  }));
  return {
    version: '1.0',
    added_tokens: special,
    normalizer: null,
    pre_tokenizer: {
      type: 'ByteLevel',
      add_prefix_space: false,
      trim_offsets: true,
      use_regex: true,
    },
    post_processor: {
      type: 'TemplateProcessing',
      single: [
        { SpecialToken: { id: '<bos>', type_id: 0 } },
        { Sequence: { id: 'A', type_id: 0 } },
      ],
      pair: [],
      special_tokens: { '<bos>': { id: '<bos>', ids: [first], tokens: ['<bos>'] } },
    },
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(tokens.map((t, i) => [t, i])),
      merges: merges.map(([a, b]) => `${a} ${b}`),
    },
  };
}
const BOS = 258;
const EOS = 259;
const PAD = 260;
const settings = { bos_token: '<bos>', eos_token: { content: '<eos>' }, pad_token: '<pad>' };

function load(config: unknown = settings) {
  put('tokenizer.json', byteLevel());
  put('tokenizer_config.json', config);
  return openTokenizer(dir);
}

test('encode with and without special tokens, decode with and without', () => {
  const tokenizer = load();
  assert.equal(tokenizer.encode('he'), [BOS, 256]);
  assert.equal(tokenizer.encode('he he', { addSpecialTokens: false }), [256, 257]);
  assert.equal(tokenizer.encode('', { addSpecialTokens: false }), []);
  assert.equal(tokenizer.encode('a<eos>', { addSpecialTokens: false }), [97, EOS]);
  assert.is(tokenizer.decode([BOS, 256, 257, EOS]), 'he he');
  assert.is(tokenizer.decode([BOS, 256, EOS], { skipSpecialTokens: false }), '<bos>he<eos>');
  assert.is(tokenizer.decode([]), '');
  assert.is(tokenizer.decode(Int32Array.of(97, 98)), 'ab');
});

test('special ids and sizes', () => {
  const tokenizer = load();
  assert.equal([tokenizer.bosId, tokenizer.eosId, tokenizer.padId], [BOS, EOS, PAD]);
  assert.equal(tokenizer.eosIds, [EOS]);
  assert.is(tokenizer.vocabSize, 261);
  assert.is(tokenizer.addsBos, true);
  assert.is(tokenizer.chatTemplate, null);
  assert.is(tokenizer.tokenId('<eos>'), EOS);
  assert.is(tokenizer.tokenId('nothing'), undefined);
  assert.is(tokenizer.token(256), 'he');
});

test('text is decoded as it was encoded, spaces before punctuation too', () => {
  const tokenizer = load();
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), (text) => {
      // Special tokens spelled out become ids that decoding leaves out.
      fc.pre(!text.includes('<'));
      assert.is(tokenizer.decode(tokenizer.encode(text)), text);
    }),
    { numRuns: 200, seed: 3 },
  );
  assert.is(tokenizer.decode(tokenizer.encode("a , b . do n't")), "a , b . do n't");
});

test('a stream emits whole characters only and loses nothing', () => {
  const tokenizer = load();
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme', maxLength: 20 }), (text) => {
      fc.pre(!text.includes('<'));
      const stream = tokenizer.decodeStream();
      const pieces = tokenizer.encode(text).map((id) => stream.push(id));
      const end = stream.end();
      assert.is(pieces.join('') + end, text);
      if (!text.includes('\uFFFD')) {
        for (const piece of pieces) assert.not.match(piece, /\uFFFD/);
        assert.is(end, '');
      }
    }),
    { numRuns: 200, seed: 5 },
  );
});

test('a stream holds back half a character, and shows it at the end', () => {
  const tokenizer = load();
  const stream = tokenizer.decodeStream();
  const ids = [...Buffer.from('a😀b')];
  assert.equal(
    ids.map((id) => stream.push(id)),
    ['a', '', '', '', '😀', 'b'],
  );
  assert.is(stream.end(), '');
  assert.is(stream.push(0xf0), '');
  assert.is(stream.push(0x9f), '');
  assert.match(stream.end(), /^\uFFFD+$/);
  assert.is(stream.push(BOS), '');
  assert.is(stream.push(97), 'a');
});

test('a stream keeps the spaces of a decoder that drops the first one', () => {
  const vocab = ['<unk>', '▁', 'a', 'b', '▁a', '▁b'];
  put('tokenizer.json', {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'first', split: true },
    post_processor: null,
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'first', split: true },
    model: {
      type: 'BPE',
      unk_token: '<unk>',
      vocab: Object.fromEntries(vocab.map((t, i) => [t, i])),
      merges: ['▁ a', '▁ b'],
    },
  });
  const tokenizer = openTokenizer(dir);
  const ids = tokenizer.encode('a b a');
  assert.equal(ids, [4, 5, 4]);
  const stream = tokenizer.decodeStream();
  assert.equal(
    ids.map((id) => stream.push(id)),
    ['a', ' b', ' a'],
  );
});

test('special ids fall back to the other files', () => {
  put('tokenizer.json', byteLevel());
  let tokenizer = openTokenizer(dir);
  assert.equal([tokenizer.bosId, tokenizer.eosId, tokenizer.padId], [null, null, null]);
  assert.equal(tokenizer.eosIds, []);
  assert.is(tokenizer.addsBos, false);
  put('config.json', { bos_token_id: BOS, eos_token_id: EOS, pad_token_id: -1 });
  tokenizer = openTokenizer(dir);
  assert.equal([tokenizer.bosId, tokenizer.eosId, tokenizer.padId], [BOS, EOS, null]);
  put('generation_config.json', { eos_token_id: [PAD, EOS] });
  assert.equal(openTokenizer(dir).eosIds, [PAD, EOS]);
  put('special_tokens_map.json', { eos_token: '<eos>', pad_token: '<pad>' });
  tokenizer = openTokenizer(dir);
  assert.equal(tokenizer.eosIds, [EOS, PAD]);
  assert.is(tokenizer.padId, PAD);
  put('tokenizer_config.json', { eos_token: '<pad>', bos_token: null });
  tokenizer = openTokenizer(dir);
  assert.equal(tokenizer.eosIds, [PAD, EOS]);
  assert.is(tokenizer.bosId, null);
});

test('what is missing or malformed is named', () => {
  assert.throws(
    () => openTokenizer(dir),
    /tokenizer\] expected a file .*tokenizer\.json, received none/,
  );
  put('tokenizer.model', '');
  assert.throws(() => openTokenizer(dir), /the folder has tokenizer\.model/);
  put('tokenizer.json', '{');
  assert.throws(() => openTokenizer(dir), /tokenizer .*tokenizer\.json\] expected JSON/);
  put('tokenizer.json', {});
  assert.throws(
    () => openTokenizer(dir),
    /a tokenizer\.json with a model and its vocab, received none/,
  );
  put('tokenizer.json', { ...byteLevel(), model: { type: 'Alchemy', vocab: {} } });
  assert.throws(() => openTokenizer(dir), /a model of type BPE, .*received "Alchemy"/);
  put('tokenizer.json', { ...byteLevel(), decoder: { type: 'Alchemy' } });
  assert.throws(() => openTokenizer(dir), /a tokenizer of a known kind, received .*Alchemy/);
  put('tokenizer.json', byteLevel());
  put('tokenizer_config.json', '[]');
  assert.throws(() => openTokenizer(dir), /tokenizer_config\.json\] expected a JSON object/);
  put('tokenizer_config.json', { eos_token: '</s>' });
  assert.throws(
    () => openTokenizer(dir),
    /eos_token\] expected a token of the vocabulary .*"<\/s>"/,
  );
  put('tokenizer_config.json', {});
  put('config.json', { eos_token_id: 'x' });
  assert.throws(() => openTokenizer(dir), /config\.json\] expected whole numbers in eos_token_id/);
});

test('ids outside the vocabulary and text without tokens are errors', () => {
  const tokenizer = load();
  assert.throws(() => tokenizer.decode([97, 261]), /ids of the vocabulary \(0…260\), received 261/);
  assert.throws(() => tokenizer.decode([-1]), /received -1/);
  assert.throws(() => tokenizer.decode([0.5]), /received 0\.5/);
  put('tokenizer.json', {
    pre_tokenizer: { type: 'Whitespace' },
    model: { type: 'WordLevel', vocab: { a: 0 } },
  });
  put('tokenizer_config.json', {});
  assert.throws(() => openTokenizer(dir).encode('a b'), /text of known tokens, received "b"/);
});

test.run();
