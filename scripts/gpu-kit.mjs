/**
 * `node scripts/gpu-kit.mjs`: bundles the GPU's tests and its benchmark into build-gpu/kit, a file
 * each, to be run on a machine that has a GPU and Node but no npm. docs/gpu.md says what to carry.
 */
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { basename, join, relative } from 'node:path';
import { build } from 'esbuild';
import { ROOT } from './lib/steps.mjs';

const KIT = join(ROOT, 'build-gpu/kit');
const TESTS = /'(test\/[\w-]+\.test\.ts)'/g;

/** Lets each module find files beside the place it had before it was bundled. */
const places = {
  name: 'places',
  /** @param {import('esbuild').PluginBuild} bundler */
  setup(bundler) {
    bundler.onLoad({ filter: /\.(ts|mjs)$/ }, ({ path }) => {
      if (path.includes('node_modules')) return undefined;
      const url = `new URL(${JSON.stringify(relative(ROOT, path))}, globalThis.lowrankRoot).href`;
      const contents = readFileSync(path, 'utf8').replaceAll('import.meta.url', url);
      return { contents, loader: path.endsWith('.ts') ? 'ts' : 'js' };
    });
  },
};

const list = readFileSync(join(ROOT, 'scripts/test-gpu.mjs'), 'utf8');
const tests = [...list.matchAll(TESTS)].map((m) => /** @type {string} */ (m[1]));
rmSync(KIT, { recursive: true, force: true });
mkdirSync(KIT, { recursive: true });
for (const path of [...tests, 'bench/gpu.ts']) {
  const name = path === 'bench/gpu.ts' ? 'bench-gpu' : basename(path, '.ts');
  await build({
    entryPoints: [join(ROOT, path)],
    outfile: join(KIT, `${name}.mjs`),
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    plugins: [places],
    banner: {
      js: [
        "import { createRequire as lowrankRequire } from 'node:module';",
        'const require = lowrankRequire(import.meta.url);',
        "globalThis.lowrankRoot = new URL('../../', import.meta.url).href;",
      ].join('\n'),
    },
    logLevel: 'warning',
  });
}
console.log(`[gpu-kit] ${tests.length + 1} files in ${relative(ROOT, KIT)}`);
