/**
 * `npm run cuda:report [-- --arch 90]`: compiles native/cuda anew and prints for each kernel the
 * registers of a thread, what it spills, its stack and its static shared memory, as ptxas says; the
 * kernels that spill first. Takes a GPU no more than any build does.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { buildCuda } from './build-cuda.mjs';

/** @typedef {{ name: string, target: string, registers: number, spilled: number, stack: number, shared: number }} Kernel */

/**
 * What ptxas said with -v, a kernel a row.
 * @param {string} text
 * @returns {Kernel[]}
 */
export function parseReport(text) {
  /** @type {Kernel[]} */
  const kernels = [];
  for (const line of text.split('\n')) {
    const entry = /Compiling entry function '([^']+)' for '([^']+)'/.exec(line);
    if (entry) {
      const [, name = '', target = ''] = entry;
      kernels.push({ name, target, registers: 0, spilled: 0, stack: 0, shared: 0 });
    }
    const kernel = kernels.at(-1);
    if (!kernel) continue;
    const number = (/** @type {RegExp} */ pattern) => Number(pattern.exec(line)?.[1] ?? 0);
    kernel.registers ||= number(/Used (\d+) registers/);
    kernel.shared ||= number(/(\d+) bytes smem/);
    kernel.stack ||= number(/(\d+) bytes stack frame/);
    kernel.spilled ||= number(/(\d+) bytes spill stores/);
  }
  return kernels;
}

/** @param {readonly string[]} names mangled @returns {string[]} as they are written, in short */
function demangle(names) {
  for (const tool of ['cu++filt', 'c++filt']) {
    const { status, stdout } = spawnSync(tool, { input: names.join('\n'), encoding: 'utf8' });
    if (status !== 0) continue;
    return stdout
      .trimEnd()
      .split('\n')
      .map((name) =>
        name
          .replace(/^void /, '')
          .replace(/lowrank::|\(anonymous namespace\)::|<unnamed>::/g, '')
          .replace(/\(.*\)$/, ''),
      );
  }
  return [...names];
}

/** @param {readonly Kernel[]} kernels */
function print(kernels) {
  const names = demangle(kernels.map((k) => k.name));
  const rows = kernels.map((k, i) => ({ ...k, name: /** @type {string} */ (names[i]) }));
  rows.sort((a, b) => b.spilled - a.spilled || b.registers - a.registers);
  const width = Math.min(70, Math.max(...rows.map((r) => r.name.length)));
  const line = (/** @type {(string | number)[]} */ [name, ...cells]) =>
    console.log(
      `${String(name).slice(0, width).padEnd(width)}${cells.map((c) => String(c).padStart(11)).join('')}`,
    );
  line(['kernel', 'target', 'registers', 'spilled', 'stack', 'shared']);
  for (const r of rows) line([r.name, r.target, r.registers, r.spilled, r.stack, r.shared]);
  const spilling = rows.filter((r) => r.spilled > 0).length;
  console.log(`${rows.length} kernels, ${spilling} of them spill; sizes in bytes`);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const folder = mkdtempSync(join(tmpdir(), 'cuda-report-'));
  try {
    const file = join(folder, 'report');
    process.exitCode = buildCuda(['--report', file, ...process.argv.slice(2)]);
    if (process.exitCode === 0) print(parseReport(readFileSync(file, 'utf8')));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
