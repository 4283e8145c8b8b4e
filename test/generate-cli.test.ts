// time-limit: 240
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { openTokenizer } from '../src/io/tokenizer.js';
import { generationDefaults, withDefaults } from '../src/models/generation-config.js';
import { openModel } from '../src/models/load.js';
import { generateText, type TextOptions } from '../src/models/text.js';
import { events, inside, outside } from './support/cli.js';
import { writeTinyModel } from './support/model-dir.js';
import { withFolder } from './support/temp.js';

const test = suite('generate command');
const root = mkdtempSync(join(tmpdir(), 'lowrank-generate-'));
test.after(() => rmSync(root, { recursive: true, force: true }));
const at = (name: string) => join(root, name);
writeTinyModel(at('model'), 3);

const COMMAND = ['generate', '--model', at('model'), '--backend', 'reference'];
const FEW = ['--max-new-tokens', '10'];
const PROMPT = 'Call me';

/** What the library makes of the same. */
function library(options: TextOptions, prompt: string | number[] = PROMPT): string {
  using model = openModel(at('model'), { task: 'causal-lm', backend: 'reference' });
  const tokenizer = openTokenizer(at('model'));
  return generateText(model, tokenizer, prompt, { maxNewTokens: 10, ...options });
}

/** Runs the command and answers what it prints, which must be all well. */
async function run(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await inside(...COMMAND, ...args, ...FEW);
  assert.is(code, 0, stderr);
  assert.is(stderr, '');
  return stdout;
}
const done = (text: string) => events(text).at(-1) as Record<string, unknown>;

test('every option reaches the library', async () => {
  const rows: [string[], TextOptions][] = [
    [
      ['--num-beams', '3', '--length-penalty', '0.9', '--no-repeat-ngram-size', '2'],
      { numBeams: 3, lengthPenalty: 0.9, noRepeatNgramSize: 2 },
    ],
    [['--num-beams', '2', '--early-stopping'], { numBeams: 2, earlyStopping: true }],
    [['--num-beams', '2', '--early-stopping', 'never'], { numBeams: 2, earlyStopping: 'never' }],
    [['--no-repeat-ngram-size', '1'], { noRepeatNgramSize: 1 }],
    [['--repetition-penalty', '1.8'], { repetitionPenalty: 1.8 }],
    [
      ['--temperature', '1.5', '--top-k', '900', '--top-p', '0.9', '--seed', '3'],
      { temperature: 1.5, topK: 900, topP: 0.9, seed: 3 },
    ],
  ];
  const seen = new Set<string>();
  for (const [args, options] of rows) {
    const text = library(options);
    assert.is(await run('--prompt', PROMPT, ...args), `${PROMPT}${text}\n`, args.join(' '));
    seen.add(text);
  }
  assert.ok(seen.size >= 4, [...seen].join('\n'));
});

test('TF32 on another backend than cuda is an error, batch-invariance is not', async () => {
  const { code, stderr } = await inside(...COMMAND, '--prompt', PROMPT, '--tf32', ...FEW);
  assert.is(code, 1);
  assert.match(stderr, /\[tf32\] expected the cuda backend, received \w+\. Leave it out/);
  assert.match(await run('--prompt', PROMPT, '--batch-invariant'), PROMPT);
});

test('--stop ends before each of its texts', async () => {
  const free = library({ noRepeatNgramSize: 1 });
  const base = ['--prompt', PROMPT, '--no-repeat-ngram-size', '1', '--no-echo'];
  const stop = free.slice(9, 13);
  const cut = free.slice(0, free.indexOf(stop));
  const stops = ['--stop', 'never there', '--stop', stop];
  assert.is(await run(...base, ...stops), `${cut}\n`);
  const json = await run(...base.slice(0, -1), ...stops, '--json');
  const end = done(json);
  assert.is(end.stop, 'stop');
  assert.is(end.text, cut);
  assert.not.ok('score' in end);
  const tokens = events(json).filter((e) => e.type === 'token');
  assert.is(tokens.length, end.tokens);
  assert.is(tokens.map((e) => e.text).join(''), cut);
});

const TEMPLATE =
  '{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}' +
  '{% if tools %}{{ tools | length }} tools\n{% endif %}' +
  '{% if add_generation_prompt %}assistant:{% endif %}';
const BOS = '<|endoftext|>';

test('a chat is answered by the template of the model, of the adapter, or of a file', async () => {
  const hello = [{ role: 'user', content: 'Hello' }];
  writeFileSync(at('chat.json'), JSON.stringify(hello));
  writeFileSync(at('mine.jinja'), 'Mine: {{ messages[-1].content }}');
  const chat = ['--chat', at('chat.json')];
  const without = await inside(...COMMAND, ...chat);
  assert.is(without.code, 1);
  assert.is(without.stdout, '');
  assert.match(without.stderr, /expected chat_template\.jinja, .*--chat-template FILE/);
  const own = await run(...chat, '--chat-template', at('mine.jinja'), '--json');
  assert.is(done(own).prompt, 'Mine: Hello');

  writeFileSync(at('model/chat_template.jinja'), TEMPLATE);
  const rendered = `${BOS}user: Hello\nassistant:`;
  const ids = openTokenizer(at('model')).encode(rendered, { addSpecialTokens: false });
  assert.is(ids.filter((id) => id === 0).length, 1);
  const answer = library({}, ids);
  assert.is(await run(...chat), `${answer}\n`);
  const json = done(await run(...chat, '--json'));
  assert.equal([json.prompt, json.text], [rendered, answer]);
  const system = done(await run(...chat, '--system', 'Be kind.', '--json'));
  assert.is(system.prompt, `${BOS}system: Be kind.\nuser: Hello\nassistant:`);

  const open = [...hello, { role: 'assistant', content: 'Hi, I' }];
  writeFileSync(at('open.json'), JSON.stringify({ messages: open, tools: [{}, {}] }));
  const goesOn = done(await run('--chat', at('open.json'), '--json'));
  assert.is(goesOn.prompt, `${BOS}user: Hello\nassistant: Hi, I`);
  const piped = await outside([...COMMAND, '--chat', '-', ...FEW], () => {}, JSON.stringify(hello));
  assert.is(piped.stdout, `${answer}\n`, piped.stderr);
});

test('--model-defaults takes what the model directory recommends; flags go before', async () => {
  const file = at('model/generation_config.json');
  const sampled = { do_sample: true, temperature: 1.5, top_p: 0.9, repetition_penalty: 1.2 };
  const base = ['--prompt', PROMPT, '--no-echo'];
  const missing = await inside(...COMMAND, ...base, '--model-defaults');
  assert.is(missing.code, 1);
  assert.match(missing.stderr, /--model-defaults\] expected settings of generation/);
  writeFileSync(file, JSON.stringify(sampled));
  const want = { temperature: 1.5, topK: 50, topP: 0.9, repetitionPenalty: 1.2 };
  assert.is(await run(...base, '--model-defaults'), `${library(want)}\n`);
  const greedy = library({ repetitionPenalty: 1.2 });
  assert.is(await run(...base, '--model-defaults', '--temperature', '0'), `${greedy}\n`);
  // Without it the text is the likeliest, but the ids at which to end count.
  const plain = library({});
  assert.is(await run(...base), `${plain}\n`);
  const first = openTokenizer(at('model')).encode(plain, { addSpecialTokens: false })[0];
  writeFileSync(file, JSON.stringify({ eos_token_id: [1, first] }));
  const ended = done(await run(...base, '--json'));
  assert.equal([ended.stop, ended.tokens, ended.text], ['eos', 0, '']);
  rmSync(file);
});

test('what generation_config.json says, and what is not supported', () => {
  withFolder((dir) => {
    const read = (value: object) => {
      writeFileSync(join(dir, 'generation_config.json'), JSON.stringify(value));
      return generationDefaults(dir);
    };
    assert.equal(generationDefaults(join(dir, 'other')), {});
    assert.equal(read({ temperature: 0.5, top_k: 3, max_length: 20, eos_token_id: 2 }), {});
    const beams = { num_beams: 4, length_penalty: 0.9, early_stopping: true, max_new_tokens: 9 };
    const own = { numBeams: 4, lengthPenalty: 0.9, earlyStopping: true, maxNewTokens: 9 };
    assert.equal(read({ ...beams, do_sample: false, typical_p: 1, min_p: null }), own);
    assert.equal(read({ num_beams: 1, length_penalty: 2 }), {});
    assert.equal(read({ do_sample: true, top_k: null, stop_strings: 'x' }), {
      ...{ temperature: 1, topK: 50, topP: 1 },
      stop: ['x'],
    });
    for (const key of ['min_p', 'bad_words_ids', 'suppress_tokens', 'min_new_tokens']) {
      assert.throws(() => read({ [key]: 0.5 }), new RegExp(`received ${key} 0\\.5`));
    }
    const sampling = { temperature: 0.6, topK: 50, topP: 0.9, repetitionPenalty: 1.1 };
    assert.equal(withDefaults(sampling, { numBeams: 2 }), { repetitionPenalty: 1.1, numBeams: 2 });
    assert.equal(withDefaults(own, { temperature: 1 }), { maxNewTokens: 9, temperature: 1 });
    assert.equal(withDefaults(sampling, { topK: 5 }), { ...sampling, topK: 5 });
  });
});

test('a terminal is not given the control characters of a text', async () => {
  const { isTTY } = process.stdout;
  process.stdout.isTTY = true;
  try {
    const text = await run('--prompt', 'a\x1b[2J\tb\nc');
    assert.ok(text.startsWith('a\uFFFD[2J\tb\nc'), JSON.stringify(text));
  } finally {
    process.stdout.isTTY = isTTY;
  }
  assert.ok((await run('--prompt', 'a\x1b[2Jb')).startsWith('a\x1b[2Jb'));
});

test('what people do wrong is one line, with exit code 2 before anything is loaded', async () => {
  const base = ['generate', '--model', at('nothing'), '--prompt', 'a'];
  const rows: [string[], string | RegExp][] = [
    [base.slice(0, 3), 'generate needs --prompt <text> or --chat <file>'],
    [[...base, '--chat', 'x'], '--prompt <text> cannot be used with option --chat <file>'],
    [[...base, '--system', 'x'], '--system does nothing without --chat'],
    [[...base, '--chat-template', 'x'], '--chat-template does nothing without --chat'],
    [[...base.slice(0, 3), '--chat', 'x', '--no-echo'], '--no-echo does nothing with --chat'],
    [[...base, '--num-beams', '2', '--temperature', '1'], /--temperature cannot .*--num-beams/],
    [[...base, '--num-beams', '2', '--top-k', '1'], /--top-k does nothing .*beams take/],
    [[...base, '--seed', '1'], '--seed does nothing without --temperature'],
    [[...base, '--length-penalty', '2'], '--length-penalty does nothing without --num-beams'],
    [[...base, '--early-stopping'], '--early-stopping does nothing without --num-beams'],
    [[...base, '--early-stopping', 'soon'], 'Expected nothing, or never.'],
    [[...base, '--num-beams', '0'], 'Expected a whole number of 1 or more'],
    [[...base, '--length-penalty', 'x'], 'Expected a number'],
    [[...base, '--no-repeat-ngram-size', '1.5'], 'Expected a whole number of 0 or more'],
    [[...base, '--repetition-penalty', '0'], 'Expected a number above 0'],
    [[...base, '--stop', ''], 'Expected some text'],
  ];
  for (const [argv, message] of rows) {
    const { code, stdout, stderr } = await inside(...argv);
    assert.is(code, 2, `${argv.join(' ')}\n${stderr}`);
    assert.is(stdout, '');
    assert.match(stderr, message);
    assert.is(stderr.trimEnd().split('\n').length, 1, stderr);
  }
});

test('a chat that fails says why, with exit code 1', async () => {
  writeFileSync(at('model/chat_template.jinja'), '{{ raise_exception("Only on Sundays") }}');
  const chat = (value: string, ...more: string[]): [string[], string] => {
    writeFileSync(at('bad.json'), value);
    return [[...COMMAND, '--chat', at('bad.json'), ...more], value];
  };
  const rows: [string, string[], RegExp][] = [
    ['{', [], /bad\.json\] expected JSON/],
    ['[]', [], /bad\.json\] expected a list of messages .* an empty list/],
    ['[{"role": "user"}]', [], /bad\.json, message 1\] expected a text as content/],
    ['[{"role": "user", "content": "a"}]', [], /chat_template\.jinja\] .*Only on Sundays/],
    ['[{"role": "system", "content": "a"}]', ['--system', 'b'], /--system\] expected a chat that/],
  ];
  for (const [value, more, message] of rows) {
    const [argv] = chat(value, ...more);
    const { code, stdout, stderr } = await inside(...argv);
    assert.is(code, 1, stderr);
    assert.is(stdout, '');
    assert.match(stderr, message);
  }
  const none = await inside(...COMMAND, '--chat', at('none.json'));
  assert.is(none.code, 1);
  assert.match(none.stderr, /none\.json/);
  const piped = await outside([...COMMAND, '--chat', '-'], () => {}, 'Hello');
  assert.is(piped.code, 1);
  assert.match(piped.stderr, /chat from standard input\] expected JSON/);
  rmSync(at('model/chat_template.jinja'));
});

test.run();
