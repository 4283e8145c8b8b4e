/**
 * `npm run golden -- DIR… [--backend cpu|reference] [--json]`: runs golden cases and prints the
 * largest differences from what PyTorch and PEFT computed. With --json one object a line. Ends
 * with 1 if a case fails.
 */
import { parseArgs } from 'node:util';
import { failure } from '../../src/tensor/errors.js';
import { getBackend } from '../../src/tensor/registry.js';
import { type CaseReport, runCase } from './case.js';

function asJson({ case: name, backend, ok, figures, problems }: CaseReport): string {
  const byName = Object.fromEntries(figures.map(({ name: n, ...figure }) => [n, figure]));
  return JSON.stringify({ case: name, backend, ok, figures: byName, problems });
}

function asText(report: CaseReport): string {
  const lines = [`${report.ok ? 'ok  ' : 'FAIL'} ${report.case} (${report.backend})`];
  for (const f of report.figures) {
    const numbers = [f.absolute, f.relative, f.tolerance].map((x) => x.toExponential(1));
    lines.push(
      `  ${f.ok ? ' ' : '!'} ${f.name}: ${numbers[0]}, ${numbers[1]} of the largest (≤ ${numbers[2]})`,
    );
  }
  for (const p of report.problems) lines.push(`  ! ${p}`);
  return lines.join('\n');
}

function main(): void {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      backend: { type: 'string', default: 'auto' },
      json: { type: 'boolean', default: false },
    },
  });
  if (positionals.length === 0) {
    throw failure('golden', 'case directories: npm run golden -- DIR…', 'none');
  }
  const backend = getBackend(values.backend);
  for (const dir of positionals) {
    const report = runCase(dir, backend);
    console.log(values.json ? asJson(report) : asText(report));
    if (!report.ok) process.exitCode = 1;
  }
}

main();
