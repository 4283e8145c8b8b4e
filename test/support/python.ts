/** Python with PyTorch and PEFT, where it is at hand. */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { InteropCase } from '../interop/cases.js';
import type { ConvCase } from '../interop/conv.js';

const PEERS = ['torch', 'transformers', 'peft', 'safetensors'];

/** What a script prints of a case. */
export interface Checked {
  readonly name: string;
  readonly difference?: number;
  readonly warnings: readonly string[];
  readonly error?: string;
}

/** A Python that has the peers, or why there is none. @throws when the one asked for has not */
export function findPython(): { readonly python: string; readonly reason: string } {
  const asked = process.env.LOWRANK_PYTHON;
  const python = asked ?? 'python3';
  // Whether they are there, without the seconds that importing them takes.
  const code = `import importlib.util as u; print([n for n in ${JSON.stringify(PEERS)} if u.find_spec(n) is None])`;
  const { status, stdout, error } = spawnSync(python, ['-c', code], { encoding: 'utf8' });
  if (status === 0 && stdout.trim() === '[]') return { python, reason: '' };
  const why = error || status !== 0 ? 'does not run' : `lacks ${stdout.trim()}`;
  const wayOut = 'set LOWRANK_PYTHON to a Python with torch, transformers and peft';
  if (asked !== undefined) throw new Error(`[LOWRANK_PYTHON] ${asked} ${why}; ${wayOut}`);
  return { python: '', reason: `${python} ${why}; ${wayOut}` };
}

/**
 * Has a script of test/interop look at cases; one answer for each.
 * @param root a folder for the manifest
 */
export function checkCases(
  python: string,
  root: string,
  cases: readonly (InteropCase | ConvCase)[],
  script: 'check.py' | 'conv.py' = 'check.py',
): Checked[] {
  const path = fileURLToPath(new URL(`../interop/${script}`, import.meta.url));
  const manifest = join(root, 'manifest.json');
  writeFileSync(manifest, JSON.stringify(cases));
  const options = { encoding: 'utf8', maxBuffer: 2 ** 26 } as const;
  const { status, stdout, stderr } = spawnSync(python, [path, manifest], options);
  if (status !== 0) throw new Error(stderr);
  return stdout
    .trim()
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Checked);
}
