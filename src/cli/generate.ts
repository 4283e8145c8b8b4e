import { readFileSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import type { Command } from 'commander';
import type { SamplingOptions } from '../models/generate.js';
import { backendOptions, loadForUse, type ModelFlags, modelOptions } from './model.js';
import {
  command,
  commonOptions,
  needs,
  notNegative,
  number,
  positive,
  printJson,
  say,
  UsageError,
  wholeNumber,
} from './output.js';

interface GenerateFlags extends ModelFlags, SamplingOptions {
  readonly prompt: string;
  readonly maxNewTokens: number;
  /** False with --no-cache. */
  readonly cache: boolean;
  /** False with --no-echo. */
  readonly echo: boolean;
}

const EXAMPLES = [
  'lowrank generate --model base --adapter adapter --prompt "Call me"',
  'lowrank generate --model base --prompt "Once upon" --temperature 0.8 --top-p 0.95 --seed 7',
  'cat question.txt | lowrank generate --model base --prompt - --no-echo',
];

const SUMMARY = 'Continue a prompt, printing the text as it comes.';

const DETAILS =
  'The same options and seed give the same text. Without --temperature the likeliest token is ' +
  'taken.';

/** `lowrank generate`. */
export function generateCommand(): Command {
  const c = modelOptions(command('generate', SUMMARY, DETAILS, EXAMPLES), 'optional');
  needs(c, '--prompt <text>', 'text to continue; - reads it from standard input')
    .option('--max-new-tokens <n>', 'most tokens to make', wholeNumber(1), 100)
    .option('--temperature <t>', 'spread of the choice; 0: the likeliest (default: 0)', notNegative)
    .option('--top-k <k>', 'choose among the k likeliest; 0: all (default: 0)', wholeNumber(0))
    .option('--top-p <p>', 'choose among the likeliest of this total (default: 1)', share)
    .option('--repetition-penalty <x>', 'makes tokens seen less likely (default: 1)', positive)
    .option('--seed <n>', 'of the choice (default: 0)', wholeNumber(0))
    .option('--no-cache', 'compute every token from the whole text again, to compare')
    .option('--no-echo', 'print the continuation only, without the prompt');
  return commonOptions(backendOptions(c)).action(runGenerate);
}

const share = number('a number above 0, at most 1', (v) => v > 0 && v <= 1);

function checkSampling(flags: GenerateFlags): void {
  if ((flags.temperature ?? 0) > 0) return;
  const idle = (['topK', 'topP', 'seed'] as const).find((key) => flags[key] !== undefined);
  if (!idle) return;
  const name = idle.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
  throw new UsageError(
    `option --${name} does nothing without --temperature above 0: the likeliest token is taken`,
  );
}

/** The prompt; one newline at the end of standard input is not part of it. */
function readPrompt(prompt: string): string {
  return prompt === '-' ? readFileSync(0, 'utf8').replace(/\r?\n$/, '') : prompt;
}

async function runGenerate(flags: GenerateFlags): Promise<void> {
  checkSampling(flags);
  const prompt = readPrompt(flags.prompt);
  const [{ generate }, { promptIds }] = await Promise.all([
    import('../models/generate.js'),
    import('../models/text.js'),
  ]);
  const { model, tokenizer } = await loadForUse(flags);
  const ids = promptIds(tokenizer, prompt);
  const stream = tokenizer.decodeStream();
  const started = performance.now();
  const { json, cache, maxNewTokens } = flags;
  let text = '';
  let tokens = 0;
  // The prompt is shown with the first piece, so that a failure before it leaves nothing behind.
  let prefix = !json && flags.echo ? prompt : '';
  const emit = (piece: string, id?: number) => {
    text += piece;
    if (json) {
      if (id !== undefined) printJson({ type: 'token', id, text: piece });
    } else process.stdout.write(prefix + piece);
    prefix = '';
  };
  const settings = { ...flags, useCache: cache, stopIds: tokenizer.eosIds };
  for (const id of generate(model, ids, settings)) {
    tokens++;
    emit(stream.push(id), id);
    // Lets the terminal have the piece before the next one is computed.
    await setImmediate();
  }
  emit(stream.end());
  const full = ids.length + tokens >= model.maxPositions;
  const stop = tokens >= maxNewTokens ? 'length' : full ? 'positions' : 'eos';
  const seconds = (performance.now() - started) / 1000;
  if (json) printJson({ type: 'done', prompt, text, tokens, stop, seconds });
  else say('');
}
