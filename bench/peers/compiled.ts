/** The benchmark of a step compiled as the package is, so that it starts as an installed one does. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** A script that node runs without a loader. */
export interface Compiled {
  readonly script: string;
  /** Removes it. */
  dispose(): void;
}

/** Compiles `bench/step.ts` and the sources behind it to a temporary directory. */
export function compileStep(): Compiled {
  const root = fileURLToPath(new URL('../../', import.meta.url));
  const dir = mkdtempSync(join(tmpdir(), 'lowrank-bench-'));
  const dispose = () => rmSync(dir, { recursive: true, force: true });
  try {
    for (const name of ['node_modules', 'build']) symlinkSync(join(root, name), join(dir, name));
    writeFileSync(join(dir, 'package.json'), '{"type": "module"}\n');
    const compilerOptions = { rootDir: root, outDir: dir, noEmit: false, checkJs: false };
    const config = {
      extends: join(root, 'tsconfig.json'),
      compilerOptions: { ...compilerOptions, typeRoots: [join(root, 'node_modules/@types')] },
      include: [],
      files: [join(root, 'bench/step.ts')],
    };
    const file = join(dir, 'tsconfig.json');
    writeFileSync(file, JSON.stringify(config));
    const tsc = join(root, 'node_modules/typescript/bin/tsc');
    execFileSync(process.execPath, [tsc, '-p', file], { stdio: ['ignore', 2, 2] });
  } catch (error) {
    dispose();
    throw error;
  }
  return { script: join(dir, 'bench/step.js'), dispose };
}
