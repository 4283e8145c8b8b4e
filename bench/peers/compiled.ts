/** The benchmark of a step joined into few files as the package is, so that it starts as that does. */
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildSync } from 'esbuild';
import { JOINED, ROOT } from '../../scripts/lib/steps.mjs';

/** A script that node runs without a loader. */
export interface Compiled {
  readonly script: string;
  /** Removes it. */
  dispose(): void;
}

/** Compiles `bench/step.ts` and the sources behind it to a temporary directory. */
export function compileStep(): Compiled {
  const dir = mkdtempSync(join(tmpdir(), 'lowrank-bench-'));
  const dispose = () => rmSync(dir, { recursive: true, force: true });
  try {
    for (const name of ['node_modules', 'build']) symlinkSync(join(ROOT, name), join(dir, name));
    writeFileSync(join(dir, 'package.json'), '{"type": "module"}\n');
    buildSync({
      ...JOINED,
      entryPoints: ['bench/step.ts'],
      outdir: join(dir, 'bench'),
    });
  } catch (error) {
    dispose();
    throw error;
  }
  return { script: join(dir, 'bench/step.js'), dispose };
}
