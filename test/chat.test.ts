import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import {
  type ChatMessage,
  type ChatOptions,
  ChatTemplate,
  chatPrompt,
  openChatTemplate,
  parseChat,
  readChat,
} from '../src/io/chat.js';
import { strftime } from '../src/io/strftime.js';
import { openTokenizer } from '../src/io/tokenizer.js';
import { withFolder } from './support/temp.js';

/** What make.py wrote. */
interface Cases {
  readonly tokens: Record<string, string>;
  readonly tools: object[];
  readonly templates: Record<string, string>;
  readonly chats: Record<string, ChatMessage[]>;
  readonly cases: {
    readonly template: string;
    readonly chat: string;
    readonly options: Record<string, unknown>;
    readonly text?: string;
    readonly error?: string;
  }[];
}

const CASES = JSON.parse(readFileSync('test/chat/cases.json', 'utf8')) as Cases;
const HELLO = [{ role: 'user', content: 'Hello' }];

/** The options as ours are named; what is no setting is a variable of the template. */
function ours(options: Record<string, unknown>): ChatOptions {
  const { add_generation_prompt: add, continue_final_message: goOn, tools, ...variables } = options;
  return {
    ...(add === undefined ? {} : { addGenerationPrompt: add as boolean }),
    ...(goOn === undefined ? {} : { continueFinalMessage: goOn as boolean }),
    ...(tools === undefined ? {} : { tools: tools as object[] }),
    variables,
  };
}

test('templates make of chats what transformers makes of them', () => {
  assert.ok(CASES.cases.length > 20);
  for (const { template, chat, options, text, error } of CASES.cases) {
    const made = new ChatTemplate(CASES.templates[template] as string, CASES.tokens, template);
    const render = () => made.render(CASES.chats[chat] as ChatMessage[], ours(options));
    const label = `${template}, ${chat}, ${JSON.stringify(options)}`;
    if (error === undefined) assert.is(render(), text, label);
    else assert.throws(render, (e: Error) => e.message.includes(error), label);
  }
});

test('the template of a directory, wherever it stands', () => {
  const write = (dir: string, name: string, value: unknown) => {
    const text = typeof value === 'string' ? value : JSON.stringify(value);
    mkdirSync(join(dir, name, '..'), { recursive: true });
    writeFileSync(join(dir, name), text);
  };
  const config = 'tokenizer_config.json';
  withFolder((root) => {
    const dir = join(root, 'model');
    write(dir, 'chat_template.json', { chat_template: 'third {{ bos_token }}' });
    write(dir, 'special_tokens_map.json', { bos_token: '<old>', eos_token: '<end>' });
    const hello = (options: ChatOptions = {}) => openChatTemplate(dir).render(HELLO, options);
    assert.is(hello(), 'third <old>');
    write(dir, config, { bos_token: { content: '<s>' }, chat_template: 'second {{ bos_token }}' });
    assert.is(hello(), 'second <s>');
    const named = [
      { name: 'default', template: 'plain {{ eos_token }}' },
      { name: 'tool_use', template: '{{ tools | length }} tools' },
      { name: 'rag', template: '{{ documents[0].text }}' },
    ];
    write(dir, config, { chat_template: named });
    assert.is(hello(), 'plain <end>');
    assert.is(hello({ tools: [{}, {}] }), '2 tools');
    assert.is(hello({ template: 'rag', documents: [{ text: 'a page' }] }), 'a page');
    assert.equal(openChatTemplate(dir).names, ['default', 'tool_use', 'rag']);
    const unknown = /no template "rga"; name one of default, tool_use, rag/;
    assert.throws(() => hello({ template: 'rga' }), unknown);
    write(dir, config, { chat_template: named.slice(1) });
    assert.throws(() => hello(), /no template "default"; name one of tool_use, rag/);
    write(dir, config, { chat_template: [{ name: 'default' }] });
    assert.throws(() => hello(), /tokenizer_config\.json\] expected a text, or a list of/);
    write(dir, config, { chat_template: 'second' });
    write(dir, 'chat_template.jinja', 'first\n');
    write(dir, 'additional_chat_templates/tool_use.jinja', 'with tools');
    assert.is(hello(), 'first');
    assert.is(hello({ tools: [{}] }), 'with tools');

    // An adapter's own comes before its base's; a file given before all.
    const adapter = join(root, 'adapter');
    write(adapter, 'adapter_config.json', {});
    assert.is(openChatTemplate([adapter, dir]).render(HELLO), 'first');
    write(adapter, 'chat_template.jinja', 'own {{ eos_token }}');
    assert.is(openChatTemplate([adapter, dir]).render(HELLO), 'own <end>');
    write(root, 'mine.jinja', '{{ messages[0].content }}');
    assert.is(openChatTemplate(dir, join(root, 'mine.jinja')).render(HELLO), 'Hello');
    assert.throws(() => openChatTemplate(dir, join(root, 'mien.jinja')), /the folder has mine/);
  });
});

test('a model without a template says what to do', () => {
  const message =
    /expected chat_template\.jinja, or .* in assets\/base, received none\. A base model/;
  assert.throws(() => openChatTemplate('assets/base'), message);
});

test('the ids of a chat begin with one bos, the template’s own', () => {
  const tokenizer = openTokenizer('assets/base');
  const bos = tokenizer.token(tokenizer.bosId as number) as string;
  const template = new ChatTemplate('{{ bos_token }}User: {{ messages[0].content }}', {
    bos_token: bos,
  });
  const ids = chatPrompt(tokenizer, template, HELLO);
  assert.is(ids[0], tokenizer.bosId);
  assert.is(ids.filter((id) => id === tokenizer.bosId).length, 1);
  assert.is(tokenizer.decode(ids), 'User: Hello');
});

test('what is wrong with a chat or a template is said', () => {
  const plain = new ChatTemplate('{{ messages[0].content }}', {}, 'chat template x');
  const rows: [unknown, ChatOptions, RegExp][] = [
    [[], {}, /\[chat\] expected a list of messages .*, received an empty list/],
    ['Hello', {}, /\[chat\] expected a list of messages .*, received string/],
    [[...HELLO, 'x'], {}, /\[chat, message 2\] expected \{ role, content \}, received string/],
    [[{ content: 'x' }], {}, /message 1\] expected a text as role, received undefined/],
    [[{ role: 'user' }], {}, /message 1\] expected a text as content, .* received undefined/],
    [[{ role: 'user', content: 3 }], {}, /received number/],
    [HELLO, { tool: [] } as ChatOptions, /"tool"\. Nearest: tools/],
    [HELLO, { addGenerationPrompt: true, continueFinalMessage: true }, /received both/],
    [
      [{ role: 'user', content: [{}] }],
      { continueFinalMessage: true },
      /expected text in the last/,
    ],
  ];
  for (const [messages, options, message] of rows) {
    assert.throws(() => plain.render(messages as ChatMessage[], options), message);
  }
  const broken: [string, RegExp][] = [
    ['{% if %}', /\[chat template x\] expected a template that works on these messages/],
    ['{{ nothing() }}', /\[chat template x\]/],
    ['{{ raise_exception("No!") }}', /x\] expected messages that the template takes, .*No!/],
    ['{{ strftime_now("%Q") }}', /strftime_now does not know "%Q"/],
    ['{{ range(1, 2, 0) }}', /range\(\) of step 0/],
  ];
  for (const [text, message] of broken) {
    assert.throws(() => new ChatTemplate(text, {}, 'chat template x').render(HELLO), message);
  }
  const silent = new ChatTemplate('always this');
  assert.throws(() => silent.render(HELLO, { continueFinalMessage: true }), /ends with the last/);
});

test('a chat in a file: a list, or an object with tools and variables', () => {
  assert.equal(parseChat(HELLO), { messages: HELLO, options: {} });
  const variables = { enable_thinking: false };
  const tools = [{ type: 'function' }];
  const whole = parseChat({ messages: HELLO, tools, chat_template_kwargs: variables });
  assert.equal(whole.messages, HELLO);
  assert.equal(whole.options.tools, tools);
  assert.equal(whole.options.variables, variables);
  const rows: [unknown, RegExp][] = [
    ['x', /\[chat\] expected a list of messages, or an object with "messages", received string/],
    [{ message: HELLO }, /"message"\. Nearest: messages/],
    [{ messages: {} }, /received object/],
    [{ messages: HELLO, tools: {} }, /a list of objects as tools, received object/],
    [{ messages: HELLO, chat_template_kwargs: [] }, /an object as chat_template_kwargs/],
  ];
  for (const [value, message] of rows) assert.throws(() => parseChat(value), message);
  withFolder((dir) => {
    writeFileSync(join(dir, 'a.json'), JSON.stringify(HELLO));
    writeFileSync(join(dir, 'b.json'), '[{"role": 3}]');
    assert.equal(readChat(join(dir, 'a.json')).messages, HELLO);
    assert.throws(
      () => readChat(join(dir, 'b.json')),
      /b\.json, message 1\] expected a text as role/,
    );
    assert.throws(() => readChat(join(dir, 'c.json')), /the folder has a\.json/);
  });
});

test('the date as Python writes it', () => {
  const date = new Date(2024, 6, 4, 15, 3, 9, 45);
  const rows: [string, string][] = [
    ['%d %b %Y', '04 Jul 2024'],
    ['%A, %B %-d, %Y', 'Thursday, July 4, 2024'],
    ['%Y-%m-%dT%H:%M:%S', '2024-07-04T15:03:09'],
    ['%I:%M %p, day %j', '03:03 PM, day 186'],
    ['100%%, %y %a %e', '100%, 24 Thu  4'],
    ['%F %T %D %-m %f', '2024-07-04 15:03:09 07/04/24 7 045000'],
  ];
  for (const [format, text] of rows) assert.is(strftime(date, format), text, format);
  const now = new ChatTemplate('{{ strftime_now("%Y") }}').render(HELLO);
  assert.is(Number(now), new Date().getFullYear());
  for (const wrong of ['%', '%Q', '%-B']) {
    assert.throws(() => strftime(date, wrong), /strftime_now does not know/);
  }
});

test.run();
