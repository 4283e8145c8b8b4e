import { readFileSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { Ended } from '../models/generate.js';
import type { TextOptions } from '../models/text.js';
import { failure } from '../tensor/errors.js';
import {
  backendOptions,
  loadForUse,
  type ModelFlags,
  modelOptions,
  precisionOptions,
  resolveFlags,
} from './model.js';
import {
  command,
  commonOptions,
  notNegative,
  number,
  positive,
  printJson,
  say,
  UsageError,
  wholeNumber,
} from './output.js';

/** Options of the command that have the names of {@link TextOptions}. */
const SETTINGS = [
  ...(['maxNewTokens', 'temperature', 'topK', 'topP', 'repetitionPenalty'] as const),
  ...(['noRepeatNgramSize', 'numBeams', 'lengthPenalty', 'earlyStopping', 'stop', 'seed'] as const),
];

interface GenerateFlags extends ModelFlags, Pick<TextOptions, (typeof SETTINGS)[number]> {
  readonly prompt?: string;
  readonly chat?: string;
  readonly system?: string;
  readonly chatTemplate?: string;
  readonly modelDefaults?: boolean;
  /** False with --no-cache. */
  readonly cache: boolean;
  /** False with --no-echo. */
  readonly echo: boolean;
}

const EXAMPLES = [
  'lowrank generate --model base --adapter adapter --prompt "Call me"',
  'lowrank generate --model base --prompt "Once upon" --temperature 0.8 --top-p 0.95 --seed 7',
  `lowrank generate --model base --prompt "Q: Who? A:" --stop "Q:" --stop $'\\n'`,
  'lowrank generate --model base --prompt "name: x |" --num-beams 10 --length-penalty 0.9 --no-repeat-ngram-size 4',
  'lowrank generate --model chat-model --chat messages.json',
  `echo '[{"role": "user", "content": "Hello!"}]' | lowrank generate --model chat-model --chat -`,
];

const SUMMARY = 'Continue a prompt or a chat, printing the text as it comes.';

const DETAILS =
  'The same options and seed give the same text. Without --temperature or --num-beams the ' +
  'likeliest token is taken, whatever the model directory recommends; --model-defaults takes the ' +
  'settings of its generation_config.json. It ends at the end-of-sequence tokens that the ' +
  "directory names, at a --stop text, after --max-new-tokens, or at the model's last position. " +
  'A chat is a JSON list of {"role", "content"}, or an object with such a list as "messages" and, ' +
  'if wanted, "tools", "documents" and "chat_template_kwargs"; a last message of the assistant is ' +
  'continued.';

/** `lowrank generate`. */
export function generateCommand(): Command {
  const c = modelOptions(command('generate', SUMMARY, DETAILS, EXAMPLES), 'optional');
  c.option('--prompt <text>', 'text to continue; - reads it from standard input')
    .option('--chat <file>', 'messages to answer, as JSON; - reads them from standard input')
    .option('--system <text>', 'message of the system before those of --chat')
    .option('--chat-template <file>', 'Jinja file in place of the template of the model')
    .option('--max-new-tokens <n>', 'most tokens to make (default: 100)', wholeNumber(1))
    .option('--temperature <t>', 'spread of the choice; 0: the likeliest (default: 0)', notNegative)
    .option('--top-k <k>', 'choose among the k likeliest; 0: all (default: 0)', wholeNumber(0))
    .option('--top-p <p>', 'choose among the likeliest of this total (default: 1)', share)
    .option('--seed <n>', 'of the choice (default: 0)', wholeNumber(0))
    .option('--repetition-penalty <x>', 'makes tokens seen less likely (default: 1)', positive)
    .addOption(noRepeatOption())
    .option('--num-beams <n>', 'search with n beams; the text comes at the end', wholeNumber(1))
    .option('--length-penalty <x>', 'of beams: above 0 favours longer ones (default: 1)', finite)
    .option(
      '--early-stopping [never]',
      'of beams: stop at n complete ones; never: search on',
      never,
    )
    .option('--stop <text>', 'end before this text; may be given several times', collected)
    .option('--model-defaults', "start from the settings of the model's generation_config.json")
    .option('--no-cache', 'compute every token from the whole text again, to compare')
    .option('--no-echo', 'print the continuation only, without the prompt');
  return commonOptions(precisionOptions(backendOptions(c))).action(runGenerate);
}

/** An option of its own, which Commander would take for the negation of one. */
function noRepeatOption(): Option {
  const description = 'no n tokens in a row twice; 0: any (default: 0)';
  const option = new Option('--no-repeat-ngram-size <n>', description).argParser(wholeNumber(0));
  option.negate = false;
  return option;
}

const share = number('a number above 0, at most 1', (v) => v > 0 && v <= 1);
const finite = number('a number', () => true);

function never(text: string): 'never' {
  if (text === 'never') return text;
  throw new InvalidArgumentError('Expected nothing, or never.');
}

function collected(text: string, before: readonly string[] = []): string[] {
  if (text === '') throw new InvalidArgumentError('Expected some text.');
  return [...before, text];
}

/** What does nothing, or cannot be together, is told before anything is loaded. */
function checkFlags(flags: GenerateFlags, echoGiven: boolean): void {
  const { prompt, chat, numBeams = 1, temperature = 0, modelDefaults } = flags;
  const wrong = (message: string) => new UsageError(`option ${message}`);
  if (prompt === undefined && chat === undefined) {
    throw new UsageError(
      'generate needs --prompt <text> or --chat <file>; see lowrank generate --help',
    );
  }
  if (prompt !== undefined && chat !== undefined) {
    throw wrong('--prompt <text> cannot be used with option --chat <file>');
  }
  for (const name of ['system', 'chatTemplate'] as const) {
    if (chat === undefined && flags[name] !== undefined) {
      throw wrong(`${dashed(name)} does nothing without --chat`);
    }
  }
  if (chat !== undefined && echoGiven) {
    throw wrong('--no-echo does nothing with --chat: only the answer is printed');
  }
  if (numBeams > 1 && temperature > 0) {
    throw wrong('--temperature cannot be used with --num-beams above 1: beams take the likeliest');
  }
  if (modelDefaults) return;
  const idle = (names: readonly (keyof GenerateFlags)[]) =>
    names.filter((name) => flags[name] !== undefined).map(dashed)[0];
  const sampling = temperature > 0 ? undefined : idle(['topK', 'topP', 'seed']);
  if (sampling) {
    const why = numBeams > 1 ? 'beams take the likeliest' : 'the likeliest token is taken';
    throw wrong(`${sampling} does nothing without --temperature above 0: ${why}`);
  }
  const beams = numBeams > 1 ? undefined : idle(['lengthPenalty', 'earlyStopping']);
  if (beams) throw wrong(`${beams} does nothing without --num-beams above 1`);
}

const dashed = (name: string) => `--${name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`;

/** Standard input; one newline at its end is not part of it. */
function standardInput(): string {
  return readFileSync(0, 'utf8').replace(/\r?\n$/, '');
}

/** The text to continue, and its ids where a template wrote it. */
async function readInput(flags: GenerateFlags): Promise<{ text: string; isChat: boolean }> {
  const { prompt, chat, system } = flags;
  if (prompt !== undefined) {
    return { text: prompt === '-' ? standardInput() : prompt, isChat: false };
  }
  const { openChatTemplate, parseChat, readChat } = await import('../io/chat.js');
  const read = () => {
    if (chat !== '-') return readChat(chat as string);
    const text = standardInput();
    try {
      return parseChat(JSON.parse(text), 'chat from standard input');
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      throw failure('chat from standard input', 'JSON', error.message);
    }
  };
  const { messages, options } = read();
  if (system !== undefined && messages[0]?.role === 'system') {
    throw failure('--system', 'a chat that does not begin with a system message', 'one that does');
  }
  const all = system === undefined ? messages : [{ role: 'system', content: system }, ...messages];
  const dirs = flags.adapter === undefined ? [flags.model] : [flags.adapter, flags.model];
  const template = openChatTemplate(dirs, flags.chatTemplate);
  const continueFinalMessage = all.at(-1)?.role === 'assistant';
  return { text: template.render(all, { ...options, continueFinalMessage }), isChat: true };
}

/** The settings of the generation that were given, over the model's where it is asked. */
async function readSettings(flags: GenerateFlags): Promise<TextOptions> {
  const given: TextOptions = Object.fromEntries(
    SETTINGS.filter((name) => flags[name] !== undefined).map((name) => [name, flags[name]]),
  );
  const settings = { ...given, useCache: flags.cache };
  if (!flags.modelDefaults) return settings;
  const { generationDefaults, withDefaults } = await import('../models/generation-config.js');
  const defaults = generationDefaults(flags.model);
  if (Object.keys(defaults).length === 0) {
    const expected = `settings of generation in a generation_config.json of ${flags.model}`;
    throw failure('--model-defaults', expected, 'none');
  }
  return withDefaults(defaults, settings);
}

async function runGenerate(given: GenerateFlags, c: Command): Promise<void> {
  checkFlags(given, c.getOptionValueSource('echo') === 'cli');
  const flags = await resolveFlags(given);
  const { text: prompt, isChat } = await readInput(flags);
  const settings = await readSettings(flags);
  const { textSteps } = await import('../models/text.js');
  const loaded = await loadForUse(flags, 'causal-lm');
  using model = loaded.model;
  const { tokenizer } = loaded;
  const ids = isChat ? tokenizer.encode(prompt, { addSpecialTokens: false }) : prompt;
  const started = performance.now();
  const steps = textSteps(model, tokenizer, ids, settings);
  const { json } = flags;
  let text = '';
  let tokens = 0;
  // The prompt is shown with the first piece, so that a failure before it leaves nothing behind.
  let prefix = !json && !isChat && flags.echo ? prompt : '';
  const emit = (piece: string) => {
    text += piece;
    if (!json) process.stdout.write(shown(prefix + piece));
    prefix = '';
  };
  let end: Ended;
  for (;;) {
    const step = steps.next();
    if (step.done) {
      end = step.value;
      break;
    }
    emit(step.value.text);
    if (step.value.id !== null) tokens++;
    if (json) printJson({ type: 'token', ...step.value });
    // Lets the terminal have the piece before the next one is computed.
    await setImmediate();
  }
  emit('');
  const seconds = (performance.now() - started) / 1000;
  const { reason: stop, score } = end;
  if (!json) say('');
  else {
    const ofBeams = score === null ? {} : { score };
    printJson({ type: 'done', prompt, text, tokens, stop, ...ofBeams, seconds });
  }
}

/** A terminal is not given control characters that a model makes up: they could rule it. */
function shown(text: string): string {
  if (!process.stdout.isTTY) return text;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: those are meant
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, '\uFFFD');
}
