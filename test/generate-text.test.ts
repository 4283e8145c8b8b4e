import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { readJsonObject } from '../src/io/files.js';
import { openTokenizer, Tokenizer } from '../src/io/tokenizer.js';
import type { CausalLM } from '../src/models/causal-lm.js';
import { type Ended, generate } from '../src/models/generate.js';
import { openModel } from '../src/models/load.js';
import { StopScanner } from '../src/models/stop.js';
import {
  generateText,
  promptIds,
  streamText,
  type TextOptions,
  textSteps,
} from '../src/models/text.js';
import { reference } from './backends.js';
import { writeTinyModel } from './support/model-dir.js';
import { withFolder } from './support/temp.js';

/** What a scanner lets through, piece by piece. */
function scanned(stops: string[], pieces: readonly string[]): { out: string[]; found: unknown } {
  const scanner = new StopScanner(stops);
  const out = pieces.map((p) => scanner.push(p));
  return { out: [...out, scanner.end()], found: scanner.found };
}

test('text is held back only as long as it may begin a stop string', () => {
  const rows: [string[], string[], string[], string | null][] = [
    [['END'], ['a E', 'N', 'D b'], ['a ', '', '', ''], 'END'],
    [['END'], ['a E', 'N', 'A b'], ['a ', '', 'ENA b', ''], null],
    [['END'], ['E', 'EN', 'EEND'], ['', 'E', 'ENE', ''], 'END'],
    [['aab'], ['a', 'a', 'a', 'b'], ['', '', 'a', '', ''], 'aab'],
    [['\n\n'], ['x\n', 'y\n', '\nz'], ['x', '\ny', '', ''], '\n\n'],
    // The one that is complete first; of two that end together the longer.
    [['abc', 'b'], ['xabc'], ['xa', ''], 'b'],
    [['b', 'ab'], ['xab'], ['x', ''], 'ab'],
    [['stop'], ['st'], ['', 'st'], null],
    [[], ['all', ''], ['all', '', ''], null],
  ];
  for (const [stops, pieces, out, found] of rows) {
    assert.equal(scanned(stops, pieces), { out, found }, JSON.stringify([stops, pieces]));
  }
  const message = /stop\] expected a list of strings, none empty/;
  for (const wrong of [[''], ['a', ''], 'a', [1]]) {
    assert.throws(() => new StopScanner(wrong as string[]), message);
  }
});

test('where tokens begin and end changes nothing', () => {
  const few = fc.constantFrom('a', 'b', 'c');
  const text = (most: number, least = 0) =>
    fc.array(few, { minLength: least, maxLength: most }).map((l) => l.join(''));
  fc.assert(
    fc.property(
      fc.array(text(4, 1), { minLength: 1, maxLength: 3 }),
      fc.array(text(5), { maxLength: 8 }),
      (stops, pieces) => {
        const cut = scanned(stops, pieces);
        const letters = scanned(stops, [...pieces.join('')]);
        assert.is(cut.out.join(''), letters.out.join(''));
        assert.is(cut.found, letters.found);
        assert.ok(stops.every((s) => !cut.out.join('').includes(s)));
        if (cut.found === null) assert.is(cut.out.join(''), pieces.join(''));
      },
    ),
    { seed: 5, numRuns: 300 },
  );
});

/** Runs `body` with a tiny model and the bundled tokenizer. */
function withModel(
  body: (
    model: CausalLM,
    run: (options: TextOptions) => { text: string; ids: number[]; end: Ended },
  ) => void,
): void {
  withFolder((dir) => {
    writeTinyModel(dir, 3);
    using model = openModel(dir, { task: 'causal-lm', backend: reference });
    const tokenizer = openTokenizer(dir);
    body(model, (options) => {
      const steps = textSteps(model, tokenizer, 'Call me', options);
      const out = { text: '', ids: [] as number[] };
      for (;;) {
        const step = steps.next();
        if (step.done) return { ...out, end: step.value };
        out.text += step.value.text;
        if (step.value.id !== null) out.ids.push(step.value.id);
      }
    });
  });
}

const LENGTH = { maxNewTokens: 16, noRepeatNgramSize: 2 };

test('a stop string ends the text before it, and costs no more tokens', () => {
  withModel((_, run) => {
    const free = run(LENGTH);
    assert.is(free.end.reason, 'length');
    assert.is(free.ids.length, 16);
    const { text } = free;
    for (let at = 5; at + 9 < text.length; at += 15) {
      const stop = text.slice(at, at + 4);
      const { text: cut, end, ids } = run({ ...LENGTH, stop: ['never there', stop] });
      assert.is(cut, text.slice(0, text.indexOf(stop)), stop);
      assert.is(end.reason, 'stop');
      assert.equal(ids, free.ids.slice(0, ids.length));
      assert.ok(ids.length < 16);
    }
    const none = run({ ...LENGTH, stop: ['never there'] });
    assert.is(none.text, text);
    assert.is(none.end.reason, 'length');
  });
});

test('beams end at stop strings, too', () => {
  withModel((_, run) => {
    const beams = { ...LENGTH, maxNewTokens: 8, numBeams: 3, lengthPenalty: 0 };
    const free = run(beams);
    const reasons = new Set<string>();
    for (const stop of [free.text.slice(3, 6), ...free.text.slice(0, 3)]) {
      const { text, end } = run({ ...beams, stop: [stop] });
      assert.not.match(text, stop);
      assert.ok(Number.isFinite(end.score));
      reasons.add(end.reason);
    }
    assert.ok(reasons.has('stop'), [...reasons].join());
  });
});

test('a special token as stop string is seen though it leaves no text', () => {
  withModel((model, run) => {
    const free = run(LENGTH);
    const plain = openTokenizer('assets/base');
    const id = free.ids[6] as number;
    const content = plain.token(id) as string;
    // The same tokenizer, but for this token being a special one.
    const json = readJsonObject('assets/base/tokenizer.json');
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    const added = [...(json.added_tokens as object[]), { id, content, special: true, ...flags }];
    const none = { bos: [], eos: [], pad: [] };
    const tokenizer = new Tokenizer({ ...json, added_tokens: added }, {}, none);
    assert.is(tokenizer.decode([id]), '');
    const ids = promptIds(plain, 'Call me');
    const before = free.ids.slice(0, free.ids.indexOf(id));
    const cut = generateText(model, tokenizer, ids, { ...LENGTH, stop: [content] });
    assert.is(cut, plain.decode(before));
    assert.not.equal(generateText(model, tokenizer, ids, LENGTH), cut);
    assert.is(generateText(model, plain, ids, LENGTH), free.text);
    assert.is([...streamText(model, plain, 'Call me', LENGTH)].join(''), free.text);
  });
});

test('ids past the vocabulary of a padded table of embeddings have no text', () => {
  withModel((model) => {
    const ids = promptIds(openTokenizer('assets/base'), 'Call me');
    const settings = { maxNewTokens: 8, noRepeatNgramSize: 1, stopIds: [] };
    const made = [...generate(model, ids, settings)];
    // A vocabulary of every other token that the model makes.
    const known = made.filter((_, i) => i % 2);
    const vocab = Object.fromEntries(known.map((id) => [`<${id}>`, id]));
    const tokenizer = new Tokenizer(
      { model: { type: 'WordLevel', vocab }, decoder: { type: 'Fuse' } },
      {},
      { bos: [], eos: [], pad: [] },
    );
    const text = known.map((id) => `<${id}>`).join('');
    for (const numBeams of [1, 2]) {
      const beams = numBeams > 1 ? { numBeams } : {};
      for (const stop of [[], ['never there']]) {
        const all = generateText(model, tokenizer, ids, { ...settings, ...beams, stop });
        if (numBeams === 1) assert.is(all, text);
        assert.match(all, /^(<\d+>)*$/);
      }
    }
    assert.is(tokenizer.decode(made, { skipUnknown: true }), text);
    assert.is(tokenizer.decode([made[0] as number], { skipUnknown: true }), '');
    assert.throws(() => tokenizer.decode(made), /ids of the vocabulary/);
  });
});

test('errors come at once, and one that is left early frees its cache', () => {
  withModel((model, run) => {
    const tokenizer = openTokenizer('assets/base');
    const stream = (o: object) => streamText(model, tokenizer, 'a', o);
    assert.throws(() => stream({ stop: [''] }), /stop\] expected a list/);
    assert.throws(() => stream({ stop: 'a' }), /stop\] expected a list/);
    assert.throws(() => stream({ temprature: 1 }), /Nearest: temperature/);
    assert.throws(() => run({ maxNewTokens: 0 }), /maxNewTokens/);
    const before = reference.memory().total;
    for (const piece of stream(LENGTH)) {
      assert.type(piece, 'string');
      break;
    }
    assert.is(reference.memory().total, before);
  });
});

test.run();
