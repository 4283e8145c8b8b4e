/**
 * Runs the benchmarks and prints time, GFLOP/s and share of this machine's measured peak.
 *
 * usage: npm run bench -- [NAME…] [--save]     NAME: part of a file's name (gemm, step, …)
 * --save writes bench/results/<date>-<processor>.json
 */
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { writeJsonAtomic } from '../src/io/files.js';
import { type BenchFile, machine, type Result, tableOf } from './support.js';

const here = fileURLToPath(new URL('.', import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { save: { type: 'boolean', default: false } },
});
const files = readdirSync(here)
  .filter((f) => f.endsWith('.bench.ts'))
  .sort();
const chosen = files.filter(
  (f) => positionals.length === 0 || positionals.some((p) => f.includes(p)),
);
const unknown = positionals.filter((p) => !files.some((f) => f.includes(p)));
if (unknown.length > 0) {
  console.error(`[bench] expected names among ${files.join(', ')}, received ${unknown.join(', ')}`);
  process.exit(2);
}
const about = machine();
console.log(
  Object.entries(about)
    .map(([k, v]) => `${k}: ${JSON.stringify(v)}`)
    .join('  '),
);
const results: Record<string, Result[]> = {};
for (const file of chosen) {
  const bench = (await import(pathToFileURL(join(here, file)).href)) as BenchFile;
  const name = file.replace('.bench.ts', '');
  const made = await bench.run();
  results[name] = made;
  console.log(`\n${name}\n${tableOf(made)}`);
}
if (values.save) {
  const cpu = String(about.cpu)
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-');
  mkdirSync(join(here, 'results'), { recursive: true });
  const path = join(here, 'results', `${about.date}-${cpu}.json`);
  writeJsonAtomic(path, { machine: about, results });
  console.log(`\nwritten: ${path}`);
}
