/**
 * Fails on an import against the order of the folders, on a cycle of files, on a package that src/
 * uses without depending on it, and on a native include against the order.
 *
 *     tsx scripts/check-imports.ts [root]
 */
import { resolve } from 'node:path';
import { checkNative } from './imports/native.js';
import { checkSource } from './imports/source.js';

const root = resolve(process.argv[2] ?? '.');
const source = checkSource(root);
const native = checkNative(root);
const problems = [...source.problems, ...native.problems];
for (const problem of problems) console.log(problem);
console.log(
  `[imports] ${source.files} TypeScript and ${native.files} native files, ${problems.length} problems`,
);
if (problems.length > 0) process.exitCode = 1;
