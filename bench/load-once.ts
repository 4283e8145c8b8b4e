/**
 * Loads a model in a process of its own, and prints one line of JSON: milliseconds of the load, and
 * how many private bytes it and a first forward of 8 tokens added.
 *
 * usage: node --expose-gc --import tsx bench/load-once.ts DIR
 */
import { readFileSync } from 'node:fs';
import { noGrad, scope } from '../src/autograd/index.js';
import { openModel } from '../src/models/load.js';
import { native } from './support.js';

/**
 * Resident bytes that this process alone has. Clean ones are pages of files, which the system keeps
 * anyway; a copy of weights is dirty.
 */
function privateBytes(): { all: number; dirty: number } {
  (globalThis as { gc?: () => void }).gc?.();
  const text = readFileSync('/proc/self/smaps_rollup', 'utf8');
  const of = (field: string) =>
    1024 * Number(new RegExp(`^${field}: +(\\d+) kB$`, 'm').exec(text)?.[1]);
  const dirty = of('Private_Dirty') + of('Private_Hugetlb');
  return { all: of('Private_Clean') + dirty, dirty };
}

const [dir = ''] = process.argv.slice(2);
const backend = native();
const before = privateBytes();
const started = performance.now();
const model = openModel(dir, { task: 'causal-lm', backend });
const milliseconds = performance.now() - started;
const loaded = privateBytes();
const inputIds = Int32Array.from({ length: 8 }, (_, i) => i);
const batch = { inputIds, batch: 1, length: inputIds.length };
noGrad(() => scope(() => model.logits(batch).toNumbers()));
const used = privateBytes();
model.dispose();
console.log(
  JSON.stringify({
    milliseconds,
    privateByLoad: loaded.all - before.all,
    dirtyByForward: used.dirty - loaded.dirty,
  }),
);
