/**
 * Makes everything that the bundled base model and the demo are made from, in order: the corpus,
 * the tokenizer, the token files, the task files. About half a minute; nothing is downloaded.
 *
 * Usage: npx tsx scripts/data/make.ts
 */
import { makeCorpus } from './corpus.js';
import { makeTasks } from './tasks.js';
import { makeTokenizer } from './tokenizer.js';
import { makeTokens } from './tokens.js';

makeCorpus();
makeTokenizer();
makeTokens();
makeTasks();
