/**
 * `npm run format`: formats and tidies TypeScript and JSON with Biome, and C++ with clang-format.
 * `--check` changes nothing and fails where something would change. Only one major version of
 * clang-format is taken, as each formats a little differently; without it, C++ is left alone.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { BIOME, ROOT, runScript } from './lib/steps.mjs';
import { findTool } from './lib/toolchain.mjs';

const CLANG_FORMAT_MAJOR = 14;
const check = process.argv.includes('--check');

/** @returns {number} exit status */
function formatNative() {
  const folder = join(ROOT, 'native');
  if (!existsSync(folder) || !existsSync(join(ROOT, '.clang-format'))) return 0;
  const files = readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((path) => /\.(cc|h|cu|cuh)$/.test(path))
    .map((path) => join(folder, path));
  const tool = findTool([`clang-format-${CLANG_FORMAT_MAJOR}`, 'clang-format']);
  const major = Number(/version (\d+)/.exec(tool?.version ?? '')?.[1]);
  if (tool === undefined || major !== CLANG_FORMAT_MAJOR) {
    const found = tool === undefined ? 'none' : `version ${major}`;
    console.log(
      `[format] C++ skipped: clang-format ${CLANG_FORMAT_MAJOR} is wanted, found ${found}`,
    );
    return 0;
  }
  const mode = check ? ['--dry-run', '-Werror'] : ['-i'];
  return (
    spawnSync(tool.path, [...mode, '--style=file', ...files], { stdio: 'inherit' }).status ?? 1
  );
}

const biome = runScript(BIOME, check ? ['ci', '--colors=off'] : ['check', '--write']);
const native = formatNative();
process.exitCode = biome || native;
