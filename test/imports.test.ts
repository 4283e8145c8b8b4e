import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { checkNative } from '../scripts/imports/native.js';
import { scanImports } from '../scripts/imports/scan.js';
import { checkSource, MAY_IMPORT } from '../scripts/imports/source.js';

const test = suite('imports');
const roots: string[] = [];
test.after(() => {
  for (const root of roots) rmSync(root, { recursive: true, force: true });
});

function tree(files: Record<string, string>): string {
  const root = mkdtempSync(join(tmpdir(), 'imports-'));
  roots.push(root);
  const manifest =
    '{"dependencies":{"commander":"1","@scope/used":"1"},"devDependencies":{"uvu":"1"}}';
  for (const [path, text] of Object.entries({ 'package.json': manifest, ...files })) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  return root;
}

const problemsOf = (files: Record<string, string>) => checkSource(tree(files)).problems;

test('finds every form of import, and tells types from values', () => {
  const source = [
    "import a, { b } from './a.js';",
    "import type { C } from './c.js';",
    "import { type D, type E } from './d.js';",
    "import { type F, g } from './f.js';",
    "import './side.js';",
    "export * from './h.js';",
    "export type { I } from './i.js';",
    'import {\n  j,\n  k,\n} from "./j.js";',
    "const l = await import('./l.js');",
    "type M = import('./m.js').M;",
    "// import n from './n.js';",
    "/* import o from\n'./o.js'; */",
    'const text = "import p from \'./p.js\'";',
    "import * as q from './q.js'; // from './r.js'",
    'export const from = 1;',
  ].join('\n');
  const found = scanImports(source).map((i) => `${i.specifier}${i.typeOnly ? ' type' : ''}`);
  assert.equal(found, [
    './a.js',
    './c.js type',
    './d.js type',
    './f.js',
    './side.js',
    './h.js',
    './i.js type',
    './j.js',
    './l.js',
    './m.js type',
    './q.js',
  ]);
  assert.is(scanImports(source).at(-1)?.line, 18);
});

test('a tree in order has no problems', () => {
  const files = {
    'src/index.ts': "export * from './ops/add.js';\nexport * from './cli/main.js';\n",
    'src/tensor/tensor.ts': "import { readFileSync } from 'node:fs';\nimport './shape.js';\n",
    'src/tensor/shape.ts': 'export {};\n',
    'src/ops/add.ts': "import '../tensor/tensor.js';\n",
    'src/lora/files.ts': "import '../io/safetensors.js';\nimport x from '@scope/used/deep';\n",
    'src/io/safetensors.ts': "import '../tensor/tensor.js';\nimport type { A } from 'uvu';\n",
    'src/cli/main.ts': "import { Command } from 'commander';\nimport '../train/loop.js';\n",
    'src/train/loop.ts': "import '../models/llama.js';\n",
    'src/models/llama.ts': "import '../lora/files.js';\nimport '../io/safetensors.js';\n",
  };
  const report = checkSource(tree(files));
  assert.equal(report, { files: 9, problems: [] });
});

/** Every pair of folders the design forbids. */
test('every import against the order is a problem, types included', () => {
  const rank = [
    'tensor',
    'autograd',
    'ops',
    'nn linalg',
    'lora optim',
    'models',
    'train',
    'reproduce',
    'cli',
  ];
  const place = (folder: string) => rank.findIndex((names) => names.split(' ').includes(folder));
  const folders = Object.keys(MAY_IMPORT);
  assert.is(folders.length, 12);
  for (const from of folders) {
    for (const to of folders) {
      if (from === to) continue;
      const allowed =
        from === 'io'
          ? to === 'tensor'
          : to === 'io'
            ? place(from) >= place('lora') && from !== 'optim'
            : place(to) < place(from);
      for (const kind of ['import { x }', 'import type { x }']) {
        const problems = problemsOf({
          [`src/${from}/a.ts`]: `${kind} from '../${to}/b.js';\n`,
          [`src/${to}/b.ts`]: 'export const x = 1;\n',
        });
        assert.is(problems.length, allowed ? 0 : 1, `${from} → ${to}: ${problems}`);
        if (!allowed) assert.match(problems[0]!, `src/${from}/a.ts:1: ${from}/ may import`);
      }
    }
  }
});

test('a cycle of files is a problem; one closed by types only is not', () => {
  const cycle = {
    'src/ops/a.ts': "import './b.js';\n",
    'src/ops/b.ts': "import './c.js';\n",
    'src/ops/c.ts': "import './a.js';\n",
  };
  assert.equal(problemsOf(cycle), [
    'cycle: src/ops/a.ts → src/ops/b.ts → src/ops/c.ts → src/ops/a.ts',
  ]);
  const types = { ...cycle, 'src/ops/c.ts': "import type { A } from './a.js';\n" };
  assert.equal(problemsOf(types), []);
  assert.is(problemsOf({ 'src/ops/a.ts': "import './a.js';\n" }).length, 1);
});

test('unknown folders, missing files, index and packages not depended on are problems', () => {
  assert.match(problemsOf({ 'src/utils/a.ts': '' })[0]!, "'utils' has no place");
  assert.match(problemsOf({ 'src/helper.ts': '' })[0]!, 'has no place');
  assert.match(problemsOf({ 'src/ops/a.ts': "import './gone.js';\n" })[0]!, 'is no file');
  const index = { 'src/index.ts': '', 'src/ops/a.ts': "import '../index.js';\n" };
  assert.match(problemsOf(index)[0]!, 'nothing in src/ may import src/index.ts');
  assert.match(problemsOf({ 'src/ops/a.ts': "import 'uvu';\n" })[0]!, "'uvu' is not among");
});

test('native includes follow their order', () => {
  const good = {
    'native/common/view.h': '#pragma once\n#include <cstdint>\n',
    'native/cpu/gemm.cc': '#include "../common/view.h"\n#include "simd/avx2.h"\n',
    'native/cpu/simd/avx2.h': '#include "common/view.h"\n',
    'native/cuda/gemm.cu': '#include "../common/view.h"\n// #include "../cpu/simd/avx2.h"\n',
    'native/addon.cc': '#include <napi.h>\n#include "common/view.h"\n',
  };
  assert.equal(checkNative(tree(good)), { files: 5, problems: [] });
  const bad = {
    ...good,
    'native/common/a.cc': '#include "../cpu/simd/avx2.h"\n#include <node_api.h>\n',
    'native/cpu/b.cc': '#  include "cuda/c.h"\n',
    'native/cuda/c.h': '#include "../cpu/simd/avx2.h"\n',
    'native/extra/d.cc': '',
  };
  assert.equal(checkNative(tree(bad)).problems, [
    'native/common/a.cc:1: common/ may not include cpu/',
    'native/common/a.cc:2: only addon.cc may include node_api.h',
    'native/cpu/b.cc:1: cpu/ may not include cuda/',
    'native/cuda/c.h:1: cuda/ may not include cpu/',
    "native/extra/d.cc: the folder 'extra' has no place in the include order",
  ]);
});

test.run();
