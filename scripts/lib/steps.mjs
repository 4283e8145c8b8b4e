import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
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

/**
 * The program's files of dist/, joined into few, which node loads sooner: the library, and the
 * command line, each with what it loads later in files of its own in a folder.
 */
const BUNDLES = [
  { entry: 'src/index.ts', folder: 'library' },
  { entry: 'src/cli/main.ts', folder: 'cli' },
];

/** How the package, and what is measured in its place, is joined. */
export const JOINED = /** @type {const} */ ({
  absWorkingDir: ROOT,
  bundle: true,
  splitting: true,
  packages: 'external',
  platform: 'node',
  format: 'esm',
  target: 'node20',
  logLevel: 'warning',
});

/**
 * Gives classes their names back: where one speaks of itself, esbuild writes `var X = class _X`.
 * A space at the end keeps every column, so that source maps stay right.
 * @param {string} text
 */
function ownNames(text) {
  const named = [...text.matchAll(/^var \w+ = class (_\w+) (?:extends [\w.]+ )?\{$/gm)];
  let result = text;
  for (const name of new Set(named.map((match) => /** @type {string} */ (match[1])))) {
    result = result.replace(
      new RegExp(`(?<![\\w$.#'"\`])${name}(?![\\w$'"\`])`, 'g'),
      `${name.slice(1)} `,
    );
  }
  return result;
}

/**
 * Writes the bundles.
 * @param {string} dist
 * @returns {Set<string>} paths in dist/
 */
export function bundle(dist) {
  // Not at the top: a fresh clone has it only after the installation.
  const esbuild = createRequire(import.meta.url)('esbuild');
  const written = new Set();
  for (const { entry, folder } of BUNDLES) {
    const { outputFiles } = esbuild.buildSync({
      ...JOINED,
      entryPoints: [entry],
      outdir: dist,
      outbase: 'src',
      chunkNames: `${folder}/[name]-[hash]`,
      sourcemap: true,
      write: false,
    });
    for (const { path, text } of outputFiles) {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, path.endsWith('.js') ? ownNames(text) : text);
      written.add(relative(dist, path));
    }
  }
  return written;
}

/** Emits dist/ and removes from it what no longer has a source. @returns {number} exit status */
export function emit() {
  const status = runScript(TSC, ['-p', 'tsconfig.build.json']);
  if (status !== 0) return status;
  const dist = join(ROOT, 'dist');
  const written = bundle(dist);
  for (const path of readdirSync(dist, { recursive: true, encoding: 'utf8' })) {
    const types = /^(.*)\.d\.ts$/.exec(path)?.[1];
    const stale = types
      ? !existsSync(join(ROOT, 'src', `${types}.ts`))
      : /\.js(\.map)?$/.test(path) && !written.has(path);
    if (stale) rmSync(join(dist, path));
  }
  return status;
}
