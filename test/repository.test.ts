import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';

const test = suite('repository');
const root = resolve('.');
const read = (path: string) => readFileSync(join(root, path), 'utf8');
const manifest = JSON.parse(read('package.json'));
const lock = JSON.parse(read('package-lock.json'));

test('nothing of ours runs when the package is installed', () => {
  for (const name of ['preinstall', 'install', 'postinstall', 'prepare']) {
    assert.is(manifest.scripts[name], undefined, name);
  }
  // npm would otherwise see binding.gyp and run node-gyp.
  assert.is(manifest.gypfile, false);
});

test('no dependency of the published package has an install script', () => {
  const entries = Object.entries(lock.packages) as [string, Record<string, unknown>][];
  const withScripts = entries.filter(([, p]) => p.hasInstallScript && !p.dev).map(([path]) => path);
  assert.equal(withScripts, []);
});

test('the package is what it says: ESM, typed, MIT, Node 20', () => {
  assert.is(manifest.name, 'lowrank');
  assert.is(manifest.type, 'module');
  assert.is(manifest.license, 'MIT');
  assert.match(read('LICENSE'), 'MIT License');
  assert.match(read('LICENSE'), 'The lowrank authors');
  assert.is(manifest.engines.node, '>=20');
  assert.equal(Object.keys(manifest.exports), ['.', './package.json']);
  assert.is(manifest.exports['.'].types, './dist/index.d.ts');
});

test('every published file and every script of package.json is there', () => {
  for (const path of manifest.files as string[]) {
    if (path !== 'dist') assert.ok(existsSync(join(root, path)), path);
  }
  for (const target of [manifest.exports['.'].default, manifest.bin.lowrank] as string[]) {
    const source = target.replace(/^(\.\/)?dist\//, 'src/').replace(/\.js$/, '.ts');
    assert.ok(existsSync(join(root, source)), `${target} has no source ${source}`);
  }
  for (const [name, command] of Object.entries(manifest.scripts) as [string, string][]) {
    for (const [path] of command.matchAll(/\b(?:scripts|test|bench)\/[\w./-]+\.(?:mjs|ts)\b/g)) {
      assert.ok(existsSync(join(root, path)), `${name}: ${path}`);
    }
  }
});

test('the published package can build its addon, and holds no tests', () => {
  const args = ['pack', '--dry-run', '--json', '--ignore-scripts'];
  const packed = spawnSync('npm', args, { cwd: root, encoding: 'utf8' });
  assert.is(packed.status, 0, packed.stderr);
  const files = JSON.parse(packed.stdout)[0].files.map((file: { path: string }) => file.path);
  const sources = JSON.parse(read('native/sources.json')).cpu as string[];
  const needed = ['binding.gyp', 'CMakeLists.txt', 'LICENSE', 'README.md', ...sources];
  const [script, ...parts] = ['build-native', 'lib/lock', 'lib/toolchain'].map((n) => `${n}.mjs`);
  const imported = [...read(`scripts/${script}`).matchAll(/from '\.\/([\w/.-]+)'/g)].map(
    (m) => m[1]!,
  );
  assert.equal(imported.sort(), parts);
  for (const path of [script, ...parts]) needed.push(`scripts/${path}`);
  for (const path of needed) assert.ok(files.includes(path), path);
  assert.equal(
    files.filter((path: string) => /^(test|bench|src|build)\//.test(path)),
    [],
  );
});

test('the lock file matches package.json and names no registry', () => {
  const top = lock.packages[''];
  assert.equal(top.dependencies, manifest.dependencies);
  assert.equal(top.devDependencies, manifest.devDependencies);
  for (const [path, entry] of Object.entries(lock.packages) as [string, { resolved?: string }][]) {
    assert.ok(
      entry.resolved === undefined || /^https:\/\/registry\.npmjs\.org\//.test(entry.resolved),
      path,
    );
  }
});

// `npm ci` refuses a lock file that leaves out another platform's optional packages.
test('the lock file holds the packages of every platform', () => {
  const packages = lock.packages as Record<string, { optionalDependencies?: object }>;
  for (const [path, { optionalDependencies }] of Object.entries(packages)) {
    for (const name of Object.keys(optionalDependencies ?? {})) {
      const places = [`${path}/node_modules/${name}`, `node_modules/${name}`];
      assert.ok(
        places.some((place) => place in packages),
        `${path}: ${name}`,
      );
    }
  }
});

test('links between the documents lead somewhere', () => {
  const docs = existsSync(join(root, 'docs')) ? readdirSync(join(root, 'docs')) : [];
  const pages = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', ...docs.map((d) => `docs/${d}`)];
  let links = 0;
  for (const page of pages.filter((p) => p.endsWith('.md') && existsSync(join(root, p)))) {
    for (const match of read(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      const target = match[1]!.replace(/#.*$/, '');
      if (target === '' || /^[a-z]+:/.test(target)) continue;
      links++;
      assert.ok(existsSync(join(root, dirname(page), target)), `${page}: ${target}`);
    }
  }
  assert.ok(links > 0);
});

test('.ci/run can be run', () => {
  assert.ok((statSync(join(root, '.ci/run')).mode & 0o111) !== 0);
  assert.is(spawnSync('bash', ['-n', '.ci/run'], { cwd: root }).status, 0);
});

test.run();
