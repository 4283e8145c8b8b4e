import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/**
 * Runs one of the package's own programs, from node_modules, with its output shown.
 * @param {string} script path from the root
 * @param {readonly string[]} args
 * @returns {number} its exit status
 */
export function runScript(script, args = []) {
  const result = spawnSync(process.execPath, [join(ROOT, script), ...args], {
    cwd: ROOT,
    stdio: 'inherit',
  });
  if (result.error) console.error(result.error.message);
  return result.status ?? 1;
}

export const TSC = 'node_modules/typescript/bin/tsc';
export const TSX = 'node_modules/tsx/dist/cli.mjs';
export const BIOME = 'node_modules/@biomejs/biome/bin/biome';

/** Emits dist/ and removes from it what no longer has a source. @returns {number} exit status */
export function emit() {
  const status = runScript(TSC, ['-p', 'tsconfig.build.json']);
  const dist = join(ROOT, 'dist');
  if (!existsSync(dist)) return status;
  for (const path of readdirSync(dist, { recursive: true, encoding: 'utf8' })) {
    const stem = /^(.*?)\.(?:js|d\.ts)(?:\.map)?$/.exec(path)?.[1];
    if (stem !== undefined && !existsSync(join(ROOT, 'src', `${stem}.ts`))) {
      rmSync(join(dist, path));
    }
  }
  return status;
}
