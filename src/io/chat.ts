import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type * as Jinja from '@huggingface/jinja';
import { failure, onlyKnown } from '../tensor/errors.js';
import { plainName, readJson, readJsonObject, readText } from './files.js';
import { lazyPackage } from './lazy-packages.js';
import { strftime } from './strftime.js';
import type { Tokenizer } from './tokenizer.js';

const jinja = lazyPackage<typeof Jinja>('@huggingface/jinja');
type Program = ReturnType<typeof Jinja.parse>;

/** A message of a chat; what else a template may read (`name`, `tool_calls`, …) goes along. */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, `tool`: what the template knows. */
  readonly role: string;
  /** Text; or a list of parts, where the template takes them. */
  readonly content?: string | readonly object[] | null;
  readonly [key: string]: unknown;
}

/** What a template is given beside the messages. */
export interface ChatOptions {
  /** Functions that the model may call, as JSON schemas. */
  readonly tools?: readonly object[] | undefined;
  readonly documents?: readonly object[] | undefined;
  /** Ends with the header of the assistant's answer. Default true. */
  readonly addGenerationPrompt?: boolean | undefined;
  /**
   * Ends within the last message, which the model is to continue, in place of the header of
   * another. Default false.
   */
  readonly continueFinalMessage?: boolean | undefined;
  /** More variables of the template: `{ enable_thinking: false }`, say. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
  /** Which of several named templates; default as transformers: `tool_use` or `default`. */
  readonly template?: string | undefined;
}

const OPTIONS: readonly string[] = Object.keys({
  tools: true,
  documents: true,
  addGenerationPrompt: true,
  continueFinalMessage: true,
  variables: true,
  template: true,
} satisfies Record<keyof ChatOptions, true>);

/** A template called `raise_exception`. */
class Refusal extends Error {}

/** Marks the end of the message that is to be continued; a template that trims takes the space. */
const END_MARK = 'CONTINUE-HERE-3f1c7a ';

/**
 * Turns chats into the text that a model was trained on; see {@link openChatTemplate}. What
 * templates of models do comes out as in transformers. The engine (`@huggingface/jinja`) differs
 * from Python's in corners: it prints `true` and nothing for True and None, and counts the length
 * of a text in UTF-16 units.
 */
export class ChatTemplate {
  readonly #templates: ReadonlyMap<string, string>;
  readonly #tokens: Readonly<Record<string, string>>;
  readonly #place: string;
  readonly #parsed = new Map<string, Program>();

  /**
   * @param templates Jinja text, or several by name
   * @param tokens what the template may call `bos_token`, `eos_token` and so on
   * @param place for messages
   */
  constructor(
    templates: string | ReadonlyMap<string, string>,
    tokens: Readonly<Record<string, string>> = {},
    place = 'chat template',
  ) {
    this.#templates = typeof templates === 'string' ? new Map([['default', templates]]) : templates;
    this.#tokens = tokens;
    this.#place = place;
  }

  /** The names of its templates; `default` where there is one. */
  get names(): string[] {
    return [...this.#templates.keys()];
  }

  /**
   * The text of a chat, with the header of the assistant's answer at its end.
   * @throws on malformed messages, what the template itself refuses, and errors in it
   */
  render(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    onlyKnown('chat', options, OPTIONS);
    const { continueFinalMessage: goOn = false, variables = {} } = options;
    const { addGenerationPrompt = !goOn, tools = null, documents = null } = options;
    if (goOn && addGenerationPrompt) {
      throw failure('chat', 'addGenerationPrompt or continueFinalMessage', 'both');
    }
    checkMessages(messages, 'chat');
    const items = {
      ...this.#tokens,
      ...{ tools, documents, add_generation_prompt: addGenerationPrompt },
      ...variables,
    };
    if (!goOn) return this.#run(messages, items, options);
    const marked = markEnd(messages);
    const text = this.#run(marked, items, options);
    const at = text.lastIndexOf(END_MARK.trim());
    // As in transformers: where the message was trimmed, so is what is continued.
    if (at >= 0)
      return text.startsWith(END_MARK, at) ? text.slice(0, at) : text.slice(0, at).trimEnd();
    throw failure('chat', 'a template that ends with the last message', 'one that changes it');
  }

  #run(messages: readonly ChatMessage[], items: object, options: ChatOptions): string {
    const { Environment, Interpreter } = jinja();
    const environment = new Environment();
    const variables = { ...GLOBALS, ...items, messages };
    try {
      for (const [name, value] of Object.entries(variables)) environment.set(name, value);
      const result = new Interpreter(environment).run(this.#program(options));
      return String((result as { value: unknown }).value);
    } catch (error) {
      const { message } = error as Error;
      if (error instanceof Refusal) {
        throw failure(this.#place, 'messages that the template takes', JSON.stringify(message));
      }
      throw failure(this.#place, 'a template that works on these messages', message);
    }
  }

  #program({ template, tools }: ChatOptions): Program {
    const name = template ?? (tools && this.#templates.has('tool_use') ? 'tool_use' : 'default');
    const text = this.#templates.get(name);
    if (text === undefined) {
      throw new Error(`no template "${name}"; name one of ${this.names.join(', ')}`);
    }
    let program = this.#parsed.get(name);
    if (!program) {
      const { parse, tokenize } = jinja();
      program = parse(tokenize(text, { lstrip_blocks: true, trim_blocks: true }));
      this.#parsed.set(name, program);
    }
    return program;
  }
}

/** What every template may call, as transformers gives it. */
const GLOBALS: Readonly<Record<string, unknown>> = {
  ...{ true: true, false: false, none: null, True: true, False: false, None: null },
  raise_exception: (message: unknown) => {
    throw new Refusal(String(message));
  },
  strftime_now: (format: string) => strftime(new Date(), format),
  range: (...args: number[]) => {
    const [first = 0, last, step = 1] = args;
    const [from, to] = last === undefined ? [0, first] : [first, last];
    if (step === 0) throw new Error('range() of step 0');
    const size = Math.max(0, Math.ceil((to - from) / step));
    return Array.from({ length: size }, (_, i) => from + i * step);
  },
};

/** The last message with a mark behind its last text. */
function markEnd(messages: readonly ChatMessage[]): ChatMessage[] {
  const last = messages.at(-1) as ChatMessage;
  const { content } = last;
  const others = messages.slice(0, -1);
  if (typeof content === 'string') return [...others, { ...last, content: content + END_MARK }];
  const parts = [...(content ?? [])] as { text?: unknown }[];
  const at = parts.findLastIndex((p) => typeof p.text === 'string');
  if (at < 0) throw failure('chat', 'text in the last message, to continue', 'none');
  const part = parts[at] as { text: string };
  parts[at] = { ...part, text: part.text + END_MARK };
  return [...others, { ...last, content: parts }];
}

const kindOf = (value: unknown): string =>
  value === null ? 'null' : Array.isArray(value) ? 'a list' : typeof value;

/** @throws naming the first message that is none */
function checkMessages(
  messages: unknown,
  place: string,
): asserts messages is readonly ChatMessage[] {
  const wanted = 'a list of messages { role, content }, at least one';
  if (!Array.isArray(messages)) throw failure(place, wanted, kindOf(messages));
  if (messages.length === 0) throw failure(place, wanted, 'an empty list');
  messages.forEach((message: unknown, i) => {
    const where = `${place}, message ${i + 1}`;
    if (typeof message !== 'object' || message === null || Array.isArray(message)) {
      throw failure(where, '{ role, content }', kindOf(message));
    }
    const { role, content } = message as { role?: unknown; content?: unknown };
    if (typeof role !== 'string') throw failure(where, 'a text as role', kindOf(role));
    const fine = typeof content === 'string' || Array.isArray(content);
    // An assistant that calls tools may say nothing.
    if (fine || ('tool_calls' in message && (content === null || content === undefined))) return;
    throw failure(where, 'a text as content, or a list of parts', kindOf(content));
  });
}

/** A chat as it lies in a file: messages, and what else its template is given. */
export interface Chat {
  readonly messages: readonly ChatMessage[];
  readonly options: ChatOptions;
}

/**
 * A chat from the value of a JSON file: a list of messages, or an object with `messages` and, where
 * wanted, `tools`, `documents` and `chat_template_kwargs` (more variables of the template).
 * @param place for messages
 */
export function parseChat(value: unknown, place = 'chat'): Chat {
  if (Array.isArray(value)) {
    checkMessages(value, place);
    return { messages: value, options: {} };
  }
  if (typeof value !== 'object' || value === null) {
    throw failure(place, 'a list of messages, or an object with "messages"', kindOf(value));
  }
  onlyKnown(place, value, ['messages', 'tools', 'documents', 'chat_template_kwargs']);
  const {
    messages,
    tools,
    documents,
    chat_template_kwargs: variables,
  } = value as Record<string, unknown>;
  checkMessages(messages, place);
  for (const [name, list] of Object.entries({ tools, documents })) {
    const fine = list === undefined || (Array.isArray(list) && list.every((v) => isObject(v)));
    if (!fine) throw failure(place, `a list of objects as ${name}`, kindOf(list));
  }
  if (variables !== undefined && !isObject(variables)) {
    throw failure(place, 'an object as chat_template_kwargs', kindOf(variables));
  }
  const lists = { tools, documents } as Pick<ChatOptions, 'tools' | 'documents'>;
  return { messages, options: { ...lists, ...(variables ? { variables } : {}) } };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const JINJA = 'chat_template.jinja';
const MORE_TEMPLATES = 'additional_chat_templates';

/** The templates of a directory by name, and the file they are in; null where there are none. */
function templatesIn(dir: string): { templates: Map<string, string>; place: string } | null {
  const templates = new Map<string, string>();
  const jinja = join(dir, JINJA);
  if (existsSync(jinja)) templates.set('default', readText(jinja, 'chat template'));
  const more = join(dir, MORE_TEMPLATES);
  const others = existsSync(more) ? readdirSync(more).filter((n) => n.endsWith('.jinja')) : [];
  for (const name of others.sort()) {
    const text = readText(join(more, plainName(name)), 'chat template');
    templates.set(name.slice(0, -'.jinja'.length), text);
  }
  if (templates.size > 0) return { templates, place: `chat template ${jinja}` };
  for (const name of ['tokenizer_config.json', 'chat_template.json']) {
    const path = join(dir, name);
    const value = existsSync(path) ? readJsonObject(path, 'chat template').chat_template : null;
    if (value === undefined || value === null) continue;
    const place = `chat template ${path}`;
    return { templates: namedTemplates(value, place), place };
  }
  return null;
}

/** chat_template as it may be written: a text, a list of { name, template }, or an object. */
function namedTemplates(value: unknown, place: string): Map<string, string> {
  if (typeof value === 'string') return new Map([['default', value]]);
  const pairs: unknown[][] = Array.isArray(value)
    ? value.map((t) => [t?.name, t?.template])
    : Object.entries(value as object);
  const wrong = pairs.find((pair) => pair.some((v) => typeof v !== 'string'));
  if (!wrong) return new Map(pairs as [string, string][]);
  throw failure(place, 'a text, or a list of { name, template }', JSON.stringify(wrong));
}

const TOKENS = ['bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'].map((n) => `${n}_token`);

/** The spelling of special tokens by their names, from tokenizer_config.json or its older kin. */
function specialTokens(dir: string): Record<string, string> {
  const out: Record<string, string> = {};
  for (const name of ['special_tokens_map.json', 'tokenizer_config.json']) {
    const path = join(dir, name);
    const settings = existsSync(path) ? readJsonObject(path, 'chat template') : {};
    for (const key of TOKENS) {
      const value = settings[key];
      const text = isObject(value) ? value.content : value;
      if (typeof text === 'string') out[key] = text;
    }
  }
  return out;
}

/**
 * The chat template of a model directory: `chat_template.jinja` (and `additional_chat_templates/`),
 * else `chat_template` in tokenizer_config.json or chat_template.json.
 * @param dirs one directory, or several of which the first with a template counts (an adapter's
 *   before its base model's)
 * @param file a Jinja file to use in place of theirs
 * @throws when there is none
 */
export function openChatTemplate(dirs: string | readonly string[], file?: string): ChatTemplate {
  const list = typeof dirs === 'string' ? [dirs] : dirs;
  const tokens = Object.assign({}, ...[...list].reverse().map(specialTokens));
  if (file !== undefined) {
    const text = readText(file, 'chat template');
    return new ChatTemplate(text, tokens, `chat template ${file}`);
  }
  for (const dir of list) {
    const found = templatesIn(dir);
    if (found) return new ChatTemplate(found.templates, tokens, found.place);
  }
  throw failure(
    'chat template',
    `${JINJA}, or chat_template in tokenizer_config.json, in ${list.join(' or ')}`,
    'none',
    'A base model is not made for chats: give it a prompt of text, or the template it was tuned ' +
      'with as a Jinja file (openChatTemplate(dir, file), --chat-template FILE)',
  );
}

/** A chat from a JSON file; see {@link parseChat}. @throws with the file's name */
export function readChat(path: string): Chat {
  return parseChat(readJson(path, 'chat'), `chat ${path}`);
}

/**
 * The token ids of a chat, ready for `generate`. The template writes the bos and all other special
 * tokens itself; none is added.
 * @throws as {@link ChatTemplate.render}
 */
export function chatPrompt(
  tokenizer: Tokenizer,
  template: ChatTemplate,
  messages: readonly ChatMessage[],
  options: ChatOptions = {},
): number[] {
  return tokenizer.encode(template.render(messages, options), { addSpecialTokens: false });
}
