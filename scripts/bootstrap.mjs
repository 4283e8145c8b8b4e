/**
 * Installs the npm dependencies where node_modules is missing or does not match package-lock.json.
 * Uses nothing but Node, as it runs before anything is installed. No package's install script runs.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

/**
 * @typedef {{ version?: string, optional?: boolean, devOptional?: boolean, peer?: boolean, link?: boolean }} Locked
 */

/**
 * Why the installed packages do not match the lock file, or undefined where they do.
 * @param {string} root
 * @returns {string | undefined}
 */
export function staleness(root) {
  const hidden = join(root, 'node_modules/.package-lock.json');
  if (!existsSync(hidden)) return 'node_modules is missing or incomplete';
  /** @type {Record<string, Locked>} */
  const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages;
  /** @type {Record<string, Locked>} */
  const present = JSON.parse(readFileSync(hidden, 'utf8')).packages;
  for (const [path, { version, optional, devOptional }] of Object.entries(wanted)) {
    if (path === '') continue;
    const found = present[path];
    if (found === undefined) {
      // Optional packages are built for one platform each; only this platform's are installed.
      if (optional || devOptional) continue;
      return `${path} is not installed`;
    }
    if (found.version !== version)
      return `${path} is ${found.version}, the lock file says ${version}`;
    if (!existsSync(join(root, path, 'package.json'))) return `${path} is incomplete`;
  }
  return undefined;
}

/**
 * Runs npm: the one that runs this script, or the one on PATH.
 * @param {readonly string[]} args
 * @returns {boolean}
 */
function npm(args) {
  const cli = process.env.npm_execpath;
  /** @type {import('node:child_process').SpawnSyncOptions} */
  const options = { cwd: ROOT, stdio: ['ignore', 'inherit', 'inherit'] };
  const result = cli?.endsWith('.js')
    ? spawnSync(process.execPath, [cli, ...args], options)
    : spawnSync('npm', args, { ...options, shell: process.platform === 'win32' });
  return result.status === 0;
}

/**
 * Makes node_modules match the lock file.
 * @throws where npm cannot
 */
export function bootstrap() {
  const why = staleness(ROOT);
  if (why === undefined) return;
  console.log(`[install] npm ci: ${why}`);
  if (!npm(['ci', '--no-audit', '--no-fund', '--ignore-scripts', '--loglevel=warn'])) {
    throw new Error('[install] expected npm ci to succeed; what it printed stands above');
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    bootstrap();
  } catch (error) {
    console.error(/** @type {Error} */ (error).message);
    process.exitCode = 1;
  }
}
