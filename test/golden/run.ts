/**
 * `npm run golden -- DIR… [--backend cpu|reference] [--json]`: runs golden cases and prints the
 * largest differences from what PyTorch and PEFT computed. With --json one object a line: `case`,
 * `backend`, `ok`, `savedEqual`, `figures` by name, `problems`, `notes`. Ends with 1 if a case
 * fails, with 2 if the command line is wrong.
 */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { Backend } from '../../src/tensor/backend.js';
import { failure } from '../../src/tensor/errors.js';
import { getBackend } from '../../src/tensor/registry.js';
import { type CaseReport, runCase } from './case.js';
import type { Figure } from './compare.js';

const HELP = `npm run golden -- DIR… [--backend cpu|reference] [--json]

Runs golden cases and prints how far we are from what PyTorch and PEFT computed.

  DIR                a case directory, or a folder of them
  --backend NAME     what computes: cpu, reference, … (default: the best there is)
  --json             one object a line instead of text

Ends with 0 if every case holds, 1 if one fails, 2 if the command line is wrong.`;

function asJson({ case: name, figures, ...rest }: CaseReport): string {
  const byName = Object.fromEntries(figures.map(({ name: n, ...figure }) => [n, figure]));
  const { backend, ok, savedEqual, problems, notes } = rest;
  return JSON.stringify({ case: name, backend, ok, savedEqual, figures: byName, problems, notes });
}

const short = (x: number) => x.toExponential(1).padStart(7);

function line(label: string, f: Figure, mark = f.ok ? ' ' : '!'): string {
  const wider =
    f.sensitivity === undefined ? '' : `, rounding alone ${short(f.sensitivity).trim()}`;
  const within = `within ${short(f.tolerance).trim()}${wider}`;
  return `  ${mark} ${label.padEnd(28)} ${short(f.absolute)} ${short(f.relative)}   ${within}`;
}

/** The worst of the figures that a prefix begins, and each that fails. */
function group(label: string, prefix: string, figures: readonly Figure[]): string[] {
  const members = figures.filter((f) => f.name.startsWith(prefix));
  const share = (f: Figure) => f.relative / f.tolerance;
  const worst = members.reduce<Figure | undefined>(
    (w, f) => (w && share(w) >= share(f) ? w : f),
    undefined,
  );
  if (!worst) return [];
  const failed = members.filter((f) => !f.ok);
  return [
    line(`${label} (worst of ${members.length})`, worst),
    ...failed.map((f) => line(`  ${f.name}`, f)),
  ];
}

function asText(report: CaseReport): string {
  const { figures } = report;
  const single = (names: readonly string[]) =>
    figures.filter((f) => names.includes(f.name)).map((f) => line(f.name, f));
  const saved = { true: 'equal to PEFT’s', false: 'NOT equal to PEFT’s', null: 'not reached' };
  return [
    `${report.ok ? 'ok  ' : 'FAIL'} ${report.case} (${report.backend})`,
    ...(figures.length > 0 ? [`    ${''.padEnd(28)}  largest     of the largest`] : []),
    ...single(['base_logits', 'logits', 'loss']),
    ...group('gradients', 'grad.', figures),
    ...single(['step_losses']),
    ...group('trained tensors', 'after.', figures),
    ...figures.filter((f) => f.name.endsWith('logits_after')).map((f) => line(f.name, f)),
    `    saved adapter: ${saved[`${report.savedEqual}`]}`,
    ...report.notes.map((n) => `    ${n}`),
    ...report.problems.map((p) => `  ! ${p}`),
  ].join('\n');
}

/** A folder of cases stands for each of them. */
function caseDirs(dir: string): string[] {
  if (!existsSync(dir) || existsSync(join(dir, 'case.json'))) return [dir];
  const inside = readdirSync(dir)
    .sort()
    .map((name) => join(dir, name));
  const cases = inside.filter((d) => existsSync(join(d, 'case.json')));
  return cases.length > 0 ? cases : [dir];
}

interface Arguments {
  readonly dirs: readonly string[];
  readonly backend: Backend;
  readonly json: boolean;
}

/** @throws on an unknown option or backend, or without a directory */
function readArguments(): Arguments | null {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      backend: { type: 'string', default: 'auto' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) return null;
  if (positionals.length === 0) {
    throw failure('golden', 'case directories: npm run golden -- DIR…', 'none');
  }
  const backend = getBackend(values.backend);
  return { dirs: positionals.flatMap(caseDirs), backend, json: values.json };
}

function main(): void {
  let given: Arguments | null;
  try {
    given = readArguments();
  } catch (error) {
    console.error((error as Error).message);
    process.exitCode = 2;
    return;
  }
  if (!given) {
    console.log(HELP);
    return;
  }
  let failed = 0;
  for (const dir of given.dirs) {
    const report = runCase(dir, given.backend);
    console.log(given.json ? asJson(report) : asText(report));
    if (!report.ok) failed++;
  }
  if (!given.json) console.log(`${given.dirs.length - failed} held, ${failed} failed`);
  if (failed > 0) process.exitCode = 1;
}

main();
