import fc from 'fast-check';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { parseLabelled, type RawLabel } from '../src/io/labelled.js';
import { LengthSampler } from '../src/io/sampler.js';
import { fillTemplate, longestFirst, readTemplate } from '../src/io/sequence-template.js';
import { Tokenizer } from '../src/io/tokenizer.js';
import { chooseTargets } from '../src/lora/index.js';
import { type SequenceBatch, SequenceClassifier } from '../src/models/classifier.js';
import { buildModel, modelTypes } from '../src/models/load.js';
import {
  type ClassifierEvaluation,
  evaluateClassifier,
  probabilities,
} from '../src/train/classify.js';
import { LabelSpace, labelsOfData } from '../src/train/labels.js';
import {
  accuracy,
  binaryF1,
  macroF1,
  matthews,
  meanSquaredError,
  multiLabelScores,
  pearson,
  ranks,
  spearman,
} from '../src/train/metrics.js';
import {
  collateSequences,
  encodeRecords,
  givesTokenTypes,
  placedBatches,
  sequenceSource,
} from '../src/train/sequences.js';
import { reference } from './backends.js';
import { encoderConfig, tokenizerJson } from './support/classifier.js';
import { TINY, tinySource } from './support/tiny.js';

const test = suite('classify');
const near = (a: number | undefined, b: number, within = 1e-12) =>
  assert.ok(Math.abs((a as number) - b) < within, `${a}, ${b}`);

// The expected numbers come from the definitions (precision and recall, covariances of indicator
// vectors, ranks by counting), computed with NumPy.
test('F1 and Matthews of two and of more classes', () => {
  const predicted = [1, 1, 0, 1, 0, 0, 1, 0, 1, 1];
  const labels = [1, 0, 0, 1, 1, 0, 1, 0, 0, 1];
  near(accuracy(predicted, labels), 0.7);
  near(binaryF1(predicted, labels), 0.7272727272727273);
  near(binaryF1(predicted, labels, 0), 6 / 9);
  near(matthews(predicted, labels), 0.408248290463863);
  const three = [0, 1, 1, 2, 2, 2, 0, 1];
  const truth = [0, 1, 2, 2, 2, 1, 1, 1];
  near(macroF1(three, truth), 0.6349206349206349);
  near(matthews(three, truth), 0.42553224817349505);
  near(matthews(labels, labels), 1);
  near(
    matthews(
      labels.map((l) => 1 - l),
      labels,
    ),
    -1,
  );
});

test('what is 0 / 0 is 0 as in scikit-learn, a constant’s correlation NaN as in scipy', () => {
  assert.is(binaryF1([0, 0], [0, 0]), 0);
  assert.is(binaryF1([0, 0], [1, 1]), 0);
  assert.is(matthews([1, 1, 1], [0, 1, 0]), 0);
  assert.is(matthews([0, 1, 0], [1, 1, 1]), 0);
  // The mean of 0.1 three times is not 0.1.
  for (const measure of [pearson, spearman]) {
    assert.ok(Number.isNaN(measure([0.1, 0.1, 0.1], [1, 2, 3])));
    assert.ok(Number.isNaN(measure([1, 2, 3], [4, 4, 4])));
    assert.ok(Number.isNaN(measure([1], [1])));
    assert.ok(Number.isNaN(measure([1, Number.NaN], [1, 2])));
  }
  assert.ok(Number.isNaN(accuracy([], [])));
  // A class that is nowhere does not count.
  assert.is(macroF1([2, 2], [2, 2]), 1);
  assert.throws(() => accuracy([1], []), /as many predictions as labels, received 1 and 0/);
});

test('Pearson, and Spearman with ties', () => {
  const x = [0.1, 2.5, 2.5, 3, -1, 4, 0.1, 0.1];
  const y = [1, 3, 2, 5, 0, 5, 1, 2];
  near(pearson(x, y), 0.9073701231306295);
  assert.equal(ranks(x), [3, 5.5, 5.5, 7, 1, 8, 3, 3]);
  near(spearman(x, y), 0.9438237391101646);
  near(spearman([1, 2, 3], [10, 100, 1000]), 1);
  near(pearson([1, 2, 3], [-2, -4, -6]), -1);
  near(meanSquaredError([1, 2], [0, 4]), 2.5);
  // Any growing map leaves Spearman as it is; any straight one Pearson.
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: -9, max: 9 }), fc.integer({ min: -9, max: 9 })), {
        minLength: 3,
        maxLength: 12,
      }),
      (pairs) => {
        const [a, b] = [pairs.map((p) => p[0]), pairs.map((p) => p[1])];
        const cubes = a.map((v) => v ** 3 + v);
        const [one, other] = [spearman(a, b), spearman(cubes, b)];
        assert.ok(Number.isNaN(one) ? Number.isNaN(other) : Math.abs(one - other) < 1e-12);
        const line = pearson(
          a.map((v) => 3 * v - 7),
          b,
        );
        assert.ok(Number.isNaN(line) || Math.abs(line - pearson(a, b)) < 1e-12);
      },
    ),
    { numRuns: 60, seed: 3 },
  );
});

test('several labels: micro and macro F1, and the share of rows that are all right', () => {
  const predicted = [
    [1, 0, 0],
    [1, 1, 0],
    [0, 1, 0],
  ];
  const labels = [
    [1, 0, 0],
    [0, 1, 0],
    [1, 1, 0],
  ];
  const { microF1, macroF1: macro, subsetAccuracy } = multiLabelScores(predicted, labels);
  // tp 3, fp 1, fn 1; by label 1/2, 1 and, never there nor predicted, 0.
  near(microF1, 6 / 8);
  near(macro, (0.5 + 1 + 0) / 3);
  near(subsetAccuracy, 1 / 3);
});

const parse = (...lines: unknown[]) =>
  parseLabelled(
    new TextEncoder().encode(lines.map((l) => `${JSON.stringify(l)}\n`).join('')),
    'd.jsonl',
  );

test('records: our fields and those of GLUE’s tasks', () => {
  assert.equal(parse({ text: 'a', label: 'x' }, { text: 'a', text_pair: 'b', label: [0, 1] }), [
    { line: 1, text: 'a', label: 'x' },
    { line: 2, text: 'a', pair: 'b', label: [0, 1] },
  ]);
  const fields = [
    ['sentence1', 'sentence2'],
    ['question1', 'question2'],
    ['premise', 'hypothesis'],
    ['question', 'sentence'],
  ];
  for (const [first, second] of fields as [string, string][]) {
    const [record] = parse({ [second]: 'b', [first]: 'a', label: 2.5, idx: 7, other: [] });
    assert.equal(record, { line: 1, text: 'a', pair: 'b', label: 2.5, idx: 7 });
  }
  assert.equal(parse({ sentence: '' }), [{ line: 1, text: '' }]);
});

const wrongRecords: [object, RegExp][] = [
  [{ label: 1 }, /^\[d\.jsonl:1\] expected "text" .*received "label"/],
  [{}, /received no field/],
  [{ sentence1: 'a', label: 1 }, /"sentence2" as well, received "sentence1"/],
  [{ premise: 'a', hypotesis: 'b' }, /"hypothesis" as well.*Is "hypotesis" meant to be/],
  [{ text_pair: 'b' }, /"text" as well, received "text_pair"/],
  [{ text: 'a', sentence: 'b' }, /one of "text".*received "text", "sentence"/],
  [{ prompt: 'a', completion: 'b' }, /prompts and completions are for causal models/],
  [{ text: 1 }, /"text" to be a string, received number/],
  [{ text: 'a', text_pair: null }, /"text_pair" to be a string, received null/],
  [{ text: 'a', label: true }, /"label" to be a name, a number.*received boolean/],
  [{ text: 'a', label: [1, 'x'] }, /"label" to be .*received \[1,"x"\]/],
  [{ text: 'a', labels: 'x' }, /expected "label", received "labels"/],
];
for (const [record, message] of wrongRecords) {
  test(`refused: ${JSON.stringify(record)}`, () => assert.throws(() => parse(record), message));
}

const of = (...labels: (RawLabel | undefined)[]) =>
  parse(...labels.map((label) => ({ text: 'a', ...(label === undefined ? {} : { label }) })));

test('the labels of a new head follow from the data', () => {
  const space = (labels: RawLabel[], options = {}) => {
    const s = labelsOfData(of(...labels), 'd', options);
    return [s.problemType, ...s.names];
  };
  const single = 'single_label_classification';
  assert.equal(space(['no', 'yes', 'no']), [single, 'no', 'yes']);
  assert.equal(space([0, 2]), [single, 'LABEL_0', 'LABEL_1', 'LABEL_2']);
  assert.equal(space([0, 1], { count: 3 }).length, 4);
  assert.equal(space([1, 2.5]), ['regression', 'LABEL_0']);
  assert.equal(space([1, 5], { problemType: 'regression' }), ['regression', 'LABEL_0']);
  assert.equal(space([1, 5], { count: 1 }), ['regression', 'LABEL_0']);
  assert.equal(space([[], ['b', 'a']]), ['multi_label_classification', 'a', 'b']);
  assert.equal(space([[0, 1, 0]]).length, 4);
  const values = [[0.5, 1.5]];
  assert.equal(space(values, { problemType: 'regression' }), ['regression', 'LABEL_0', 'LABEL_1']);
});

test('labels that do not go together are errors with their line', () => {
  const cases: [(RawLabel | undefined)[], object, RegExp][] = [
    [['a', undefined], {}, /^\[d:2\] expected "label", received none/],
    [['a', 1], {}, /^\[d:2\] expected a name as the lines before, received 1/],
    [[1, 'a'], {}, /^\[d:2\] expected the number of a class.*received "a"/],
    [['a', ['b']], {}, /^\[d:2\] expected one label as the lines before/],
    [[['a'], 'b'], {}, /^\[d:2\] expected a list as the lines before, received "b"/],
    [['a', 'a'], {}, /several labels to tell apart, received "a" only/],
    [[-1, 1], {}, /the number of a class.*Leave records without a label out/],
    [[2019, 0], {}, /classes of 0…999, received 2019\. Give numLabels/],
    [
      ['a', 'b', 'c'],
      { count: 2 },
      /\[numLabels\] expected 2 labels, received 3 in the data: a, b, c/,
    ],
    [[0, 2], { count: 2 }, /a class of 0…1 \(numLabels 2\), received 2/],
    [['a', 'b'], { problemType: 'regression' }, /a label of regression, received "a"/],
    [[[0, 1]], { problemType: 'single_label_classification' }, /a label of single_label/],
    [[0, 1], { problemType: 'multi_label_classification' }, /a label of multi_label/],
    [[[0, 1], [1]], {}, /2 times 0 or 1/],
    [[[0, 2]], {}, /2 times 0 or 1.*received \[0,2\]/],
  ];
  for (const [labels, options, message] of cases) {
    assert.throws(() => labelsOfData(of(...labels), 'd', options), message);
  }
});

test('known labels: names, numbers, aliases; another one names the nearest', () => {
  const space = new LabelSpace(
    ['negative', 'positive'],
    'single_label_classification',
    new Map([['pos', 1]]),
  );
  assert.equal(space.encode('positive', 'p'), [1]);
  assert.equal(space.encode('pos', 'p'), [1]);
  assert.equal(space.encode(0, 'p'), [0]);
  assert.throws(() => space.encode('Positve', 'f:3'), /^\[f:3\].*"Positve"\. Nearest: positive/);
  assert.throws(() => space.encode(2, 'p'), /a class of 0…1, received 2.*--num-labels/);
  assert.throws(() => space.encode(-1, 'p'), /Leave "label" out/);
  assert.throws(() => space.encode(['positive'], 'p'), /one label/);
  const several = new LabelSpace(['a', 'b', 'c'], 'multi_label_classification');
  assert.equal(several.encode(['c', 'a'], 'p'), [1, 0, 1]);
  assert.equal(several.encode([0, 1, 0], 'p'), [0, 1, 0]);
  assert.equal(several.encode([], 'p'), [0, 0, 0]);
  assert.throws(() => several.encode('a', 'p'), /a list of names/);
  const value = new LabelSpace(['LABEL_0'], 'regression');
  assert.equal(value.encode(3.5, 'p'), [3.5]);
  assert.throws(() => value.encode('3.5', 'p'), /a number/);
});

const tokens = (type: 'bert' | 'roberta') =>
  new Tokenizer(tokenizerJson(type), {}, { bos: [], eos: [], pad: [] });

test('special tokens and types as each tokenizer’s template says', () => {
  const bert = tokens('bert');
  assert.equal(bert.encodeSequence('the film'), {
    ids: [2, 4, 6, 3],
    typeIds: [0, 0, 0, 0],
    lost: 0,
  });
  assert.equal(bert.encodeSequence('the film', 'good'), {
    ids: [2, 4, 6, 3, 14, 3],
    typeIds: [0, 0, 0, 0, 1, 1],
    lost: 0,
  });
  // An empty second text is a pair all the same.
  assert.equal(bert.encodeSequence('the', '').ids, [2, 4, 3, 3]);
  const roberta = tokens('roberta');
  const pair = roberta.encodeSequence('the film', 'good');
  assert.equal(
    [pair.ids, pair.typeIds],
    [
      [0, 4, 6, 2, 2, 14, 2],
      [0, 0, 0, 0, 0, 0, 0],
    ],
  );
  const left = new Tokenizer(
    tokenizerJson('bert'),
    { truncation_side: 'left' },
    { bos: [], eos: [], pad: [] },
  );
  assert.equal(left.encodeSequence('the a film', null, 4).ids, [2, 5, 6, 3]);
  assert.equal(bert.encodeSequence('the a film', null, 4), {
    ids: [2, 4, 5, 3],
    typeIds: [0, 0, 0, 0],
    lost: 1,
  });
  assert.throws(
    () => bert.encodeSequence('the', 'a', 2),
    /3 or more for special tokens, received 2/,
  );
});

test('token types go to the model where model_input_names has them, by default to BERT', () => {
  const make = (names?: unknown) => {
    const settings = names === undefined ? {} : { model_input_names: names };
    return new Tokenizer(tokenizerJson('bert'), settings, { bos: [], eos: [], pad: [] }, 'here');
  };
  const all = ['input_ids', 'token_type_ids', 'attention_mask'];
  const rows: [unknown, boolean | null, bert: boolean, roberta: boolean][] = [
    [undefined, null, true, false],
    [null, null, true, false],
    [all, true, true, true],
    [['input_ids', 'attention_mask'], false, false, false],
  ];
  for (const [names, gives, bert, roberta] of rows) {
    const tokenizer = make(names);
    assert.is(tokenizer.givesTokenTypes, gives);
    assert.is(givesTokenTypes({ model_type: 'bert' }, tokenizer), bert);
    assert.is(givesTokenTypes({ model_type: 'roberta' }, tokenizer), roberta);
    assert.is(givesTokenTypes({ model_type: 'llama' }, tokenizer), false);
    const batch = tokenizer.encodeBatch([['the film', 'good']]);
    assert.is(batch.tokenTypeIds !== undefined, gives !== false);
    assert.is(batch.attentionMask.length, batch.inputIds.length);
  }
  const space = new LabelSpace(['a', 'b'], 'single_label_classification');
  const records = [{ text: 'the film', pair: 'good', label: 'a', place: 'p' }] as never;
  const how = { maxLength: 9, file: 'f' };
  for (const tokenTypes of [true, false]) {
    const { examples } = encodeRecords(records, make(), space, { ...how, tokenTypes });
    assert.is(examples[0]?.typeIds !== undefined, tokenTypes);
  }
  assert.throws(() => make('input_ids'), /here, model_input_names\] expected a list of names/);
});

test('templates: TemplateProcessing, sequences, none, and what is refused', () => {
  const template = readTemplate({
    type: 'Sequence',
    processors: [
      { type: 'ByteLevel' },
      {
        type: 'TemplateProcessing',
        single: [{ SpecialToken: { id: 'X', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
        pair: [{ Sequence: { id: 'B', type_id: 1 } }, { Sequence: { id: 'A', type_id: 0 } }],
        special_tokens: { X: { id: 'X', ids: [7, 8], tokens: ['X', 'Y'] } },
      },
    ],
  });
  assert.equal(fillTemplate(template, [1, 2], null, 9).ids, [7, 8, 1, 2]);
  assert.equal(fillTemplate(template, [1, 2], [3], 9), {
    ids: [3, 1, 2],
    typeIds: [1, 0, 0],
    lost: 0,
  });
  assert.equal(fillTemplate(readTemplate(null), [1], [2], 9).ids, [1, 2]);
  assert.throws(() => readTemplate({ type: 'Strange' }), /one of TemplateProcessing.*"Strange"/);
  const bad = { type: 'BertProcessing', cls: '[CLS]', sep: ['[SEP]', 3] };
  assert.throws(() => readTemplate(bad), /cls as \[token, id\]/);
});

test('longest first, as Hugging Face’s tokenizers cut', () => {
  // From tokenizers 0.23: lengths of two texts, room, what stays.
  const rows = [
    [50, 5, 33, 28, 5],
    [50, 5, 3, 2, 1],
    [20, 18, 33, 17, 16],
    [18, 20, 33, 16, 17],
    [9, 7, 15, 8, 7],
    [2, 2, 3, 1, 2],
    [3, 2, 1, 1, 0],
    [3, 4, 9, 3, 4],
  ];
  for (const [a, b, room, keptA, keptB] of rows as [number, number, number, number, number][]) {
    assert.equal(longestFirst(a, b, room), [keptA, keptB], `${a} ${b} ${room}`);
  }
  // Each text is first cut to the whole length, 7 with 4 special tokens: 1 and 2 of 20 and 18.
  const roberta = readTemplate({ type: 'RobertaProcessing', cls: ['<s>', 0], sep: ['</s>', 2] });
  const { ids } = fillTemplate(roberta, new Array(20).fill(8), new Array(18).fill(9), 7);
  assert.equal(ids, [0, 8, 2, 2, 9, 9, 2]);
  fc.assert(
    fc.property(fc.nat(40), fc.nat(40), fc.nat(50), (a, b, room) => {
      const [x, y] = longestFirst(a, b, room);
      assert.is(x + y, Math.min(room, a + b));
      assert.ok(x >= 0 && y >= 0 && x <= a && y <= b);
    }),
    { numRuns: 200, seed: 4 },
  );
});

test('a length sampler’s batches: every item once an epoch, alike in length, by step alone', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 70 }),
      fc.integer({ min: 1, max: 9 }),
      fc.integer({ min: 1, max: 5 }),
      fc.nat(2 ** 40),
      fc.nat(3),
      (lengths, batchSize, window, seed, epoch) => {
        const make = () => new LengthSampler(lengths, { batchSize, window, seed });
        const sampler = make();
        const from = epoch * sampler.batchesPerEpoch;
        const batches = Array.from({ length: sampler.batchesPerEpoch }, (_, k) => [
          ...sampler.at(from + k),
        ]);
        assert.is(batches.length, Math.ceil(lengths.length / batchSize));
        assert.equal(
          batches.flat().sort((a, b) => a - b),
          lengths.map((_, i) => i),
        );
        const last = sampler.batchesPerEpoch - 1;
        assert.equal([...make().at(from + last)], batches[last]);
      },
    ),
    { numRuns: 80, seed: 21 },
  );
  const lengths = Array.from({ length: 64 }, (_, i) => 1 + ((i * 37) % 64));
  const padding = (window: number) => {
    const sampler = new LengthSampler(lengths, { batchSize: 4, window, seed: 1 });
    return Array.from({ length: 16 }, (_, k) => {
      const own = [...sampler.at(k)].map((i) => lengths[i] as number);
      return own.reduce((n, l) => n + Math.max(...own) - l, 0);
    }).reduce((n, p) => n + p, 0);
  };
  assert.ok(padding(16) < padding(1) / 4);
  assert.throws(() => new LengthSampler([1], { batchSize: 0, window: 1 }), /batchSize/);
  assert.throws(() => new LengthSampler([1], { batchSize: 1, window: 0 }), /window/);
});

const sequence = (length: number, label: number) => ({
  ids: new Int32Array(length).fill(4 + label),
  labels: [label],
});

test('batches of sequences: padding, types and labels; evaluation keeps its places', () => {
  const problemType = 'single_label_classification';
  const typed = { ids: Int32Array.of(5, 6), typeIds: Int32Array.of(0, 1), labels: [1] };
  const batch = collateSequences([typed, { ids: Int32Array.of(7), labels: [0] }], 9, problemType);
  assert.equal([...batch.inputIds], [5, 6, 7, 9]);
  assert.equal([...(batch.attentionMask ?? [])], [1, 1, 1, 0]);
  assert.equal([...(batch.tokenTypeIds ?? [])], [0, 1, 0, 0]);
  assert.equal(batch.labels, Int32Array.of(1, 0));
  const several = { ids: Int32Array.of(5), labels: [1, 0] };
  const floats = collateSequences([several], 0, 'multi_label_classification');
  assert.equal(floats.labels, Float32Array.of(1, 0));
  assert.is('tokenTypeIds' in floats, false);
  assert.is('labels' in collateSequences([{ ids: Int32Array.of(5) }], 0, problemType), false);
  const examples = [5, 2, 4, 3].map((length, i) => sequence(length, i));
  const placed = placedBatches(examples, { batchSize: 3, padId: 0, problemType });
  assert.equal(
    placed.map(({ rows }) => rows),
    [[1, 3, 2], [0]],
  );
  const source = sequenceSource(examples, {
    batchSize: 2,
    accumulation: 2,
    seed: 3,
    padId: 0,
    problemType,
  });
  const labelsOf = (step: number) =>
    [0, 1].flatMap((micro) => [...(source.batch(step, micro).labels as Int32Array)]);
  assert.equal(labelsOf(0).sort(), [0, 1, 2, 3]);
  assert.equal(labelsOf(5), labelsOf(5));
});

/** A tiny classifier and the loss that training would see. */
function classifier(labels: readonly string[], more: object = {}): SequenceClassifier {
  const config = encoderConfig({ type: 'roberta', labels, more: { ...more } });
  const model = buildModel(config, tinySource(TINY, reference));
  assert.instance(model, SequenceClassifier);
  return model as SequenceClassifier;
}

test('an evaluation’s loss is the training loss over all records, and its measures are right', () => {
  const rows = [
    [4, 5, 6],
    [7, 8],
    [9, 4, 5, 6],
    [10, 11],
  ];
  const batchOf = (which: readonly number[], labels: Int32Array | Float32Array): SequenceBatch => ({
    ...collateSequences(
      which.map((i) => ({ ids: Int32Array.from(rows[i] as number[]) })),
      1,
      'regression',
    ),
    labels,
  });
  const measure = (model: SequenceClassifier, values: readonly number[][], whole: boolean) => {
    const pack = (which: number[]) => {
      const flat = which.flatMap((i) => values[i] as number[]);
      return batchOf(which, whole ? Int32Array.from(flat) : Float32Array.from(flat));
    };
    const got = evaluateClassifier(model, [pack([0, 1, 2]), pack([3])]);
    const all = model.loss(pack([0, 1, 2, 3]));
    near(got.loss, all.loss.item(), 1e-6);
    all.loss.dispose();
    return got;
  };
  using three = classifier(['a', 'b', 'c']);
  const classes = rows.map(
    (ids) => three.predict(batchOf([rows.indexOf(ids)], Int32Array.of(0)))[0] as number[],
  );
  const best = classes.map((s) => s.indexOf(Math.max(...s)));
  const right: ClassifierEvaluation = measure(
    three,
    best.map((c) => [c]),
    true,
  );
  assert.equal([right.accuracy, right.records], [1, 4]);
  assert.is(right.problemType, 'single_label_classification');
  const off = measure(
    three,
    best.map((c, i) => [i === 0 ? (c + 1) % 3 : c]),
    true,
  );
  assert.is(off.accuracy, 0.75);
  const several = measure(
    three,
    [
      [1, 0, 0],
      [0, 1, 1],
      [0, 0, 0],
      [1, 1, 1],
    ],
    false,
  );
  assert.is(several.problemType, 'multi_label_classification');
  assert.type(several.microF1, 'number');
  assert.is(several.accuracy, undefined);
  using value = classifier(['score'], { problem_type: 'regression' });
  const scored = measure(value, [[0.5], [1], [-1], [2]], false);
  near(scored.mse, scored.loss, 1e-6);
  assert.type(scored.pearson, 'number');
  assert.throws(() => evaluateClassifier(three, []), /at least one batch/);
});

test('probabilities: softmax, sigmoid, or the values, without overflow', () => {
  const single = probabilities([1000, 1000, -1000], 'single_label_classification');
  assert.equal(single, [0.5, 0.5, 0]);
  const several = probabilities([0, 1000, -1000], 'multi_label_classification');
  assert.equal(several, [0.5, 1, 0]);
  assert.equal(probabilities([3, -2], 'regression'), [3, -2]);
});

test('the presets qv and attention reach layers of every architecture', () => {
  const common = { hidden_size: 8, num_attention_heads: 2, num_hidden_layers: 1, vocab_size: 13 };
  const sizes = { ...common, intermediate_size: 12, max_position_embeddings: 16, head_dim: 4 };
  const grouped = { ...sizes, num_key_value_heads: 1 };
  const chosen = (config: Record<string, unknown>, preset: string) => {
    const model = buildModel(config, tinySource(TINY, reference));
    const names = chooseTargets(model, [preset]).map((t) => t.path.replace(/^.*\d+\./, ''));
    model.dispose();
    return names.sort().join(' ');
  };
  const rows: [Record<string, unknown>, string, string][] = [
    [
      encoderConfig({ type: 'bert', labels: ['a', 'b'] }),
      'attention.self.query attention.self.value',
      'attention.output.dense attention.self.key attention.self.query attention.self.value',
    ],
    [
      { model_type: 'gpt2', n_embd: 8, n_head: 2, n_layer: 1, vocab_size: 13, n_positions: 16 },
      'attn.c_attn',
      'attn.c_attn attn.c_proj',
    ],
  ];
  const llama = 'self_attn.k_proj self_attn.o_proj self_attn.q_proj self_attn.v_proj';
  for (const type of modelTypes().filter((t) => !['bert', 'roberta', 'gpt2'].includes(t))) {
    rows.push([{ ...grouped, model_type: type }, 'self_attn.q_proj self_attn.v_proj', llama]);
  }
  for (const [config, qv, attention] of rows) {
    assert.is(chosen(config, 'qv'), qv, String(config.model_type));
    assert.is(chosen(config, 'attention'), attention, String(config.model_type));
  }
});

test.run();
