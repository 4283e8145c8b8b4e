// The script that builds the CUDA library, with a compiler that only notes what it was asked.
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { pickArchitectures } from '../scripts/build-cuda.mjs';
import { parseReport } from '../scripts/cuda-report.mjs';

const test = suite('cuda build');
const KNOWN = ['75', '80', '86', '90', '120'];

test('the architectures are those asked for, the GPU here, or 90', () => {
  assert.equal(pickArchitectures(undefined, KNOWN, []), ['90']);
  assert.equal(pickArchitectures(undefined, KNOWN, ['86']), ['86']);
  assert.equal(pickArchitectures(undefined, KNOWN, ['121']), ['90'], 'by PTX');
  assert.equal(pickArchitectures('all', KNOWN, ['86']), ['80', '86', '90', '120']);
  assert.equal(pickArchitectures('120, 80', KNOWN, []), ['80', '120']);
  const some = '[--cuda-arch] expected all, or some of 80, 86, 90, 120, received';
  for (const bad of ['70', '75', 'sm_90', '']) {
    assert.throws(() => pickArchitectures(bad, KNOWN, []), `${some} ${bad || 'nothing'}`);
  }
});

const NVCC = `#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0 ;;
  --list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\n'; exit 0 ;;
esac
echo "$*" >> "$(dirname "$0")/calls"
while [ $# -gt 0 ]; do
  case "$1" in
    -o) out=$2; shift ;;
    -MF) list=$2; shift ;;
  esac
  last=$1; shift
done
if [ -n "$list" ]; then
  if grep -q BROKEN "$last"; then echo "$last: error: broken"; exit 1; fi
  echo "$out: $last native/common/shared.h" > "$list"
  cat "$last" > "$out"
else
  echo library >> "$out"
fi
`;

test('the report has a row for each kernel', () => {
  const said = [
    'ptxas info    : 0 bytes gmem',
    "ptxas info    : Compiling entry function '_Z1av' for 'sm_90'",
    'ptxas info    : Function properties for _Z1av',
    '    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads',
    'ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 4224 bytes smem',
    "ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'",
    '    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads',
    'ptxas info    : Used 32 registers, used 0 barriers',
  ];
  assert.equal(parseReport(said.join('\n')), [
    { name: '_Z1av', target: 'sm_90', registers: 255, spilled: 8, stack: 16, shared: 4224 },
    { name: '_Z1bv', target: 'sm_90', registers: 32, spilled: 0, stack: 0, shared: 0 },
  ]);
});

const roots: string[] = [];
test.after(() => {
  for (const root of roots) rmSync(root, { recursive: true, force: true });
});

function put(root: string, path: string, text: string): void {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), text);
}

function project(): string {
  const root = mkdtempSync(join(tmpdir(), 'cuda-build-'));
  roots.push(root);
  for (const path of ['build-cuda.mjs', 'lib/lock.mjs', 'lib/toolchain.mjs']) {
    put(root, `scripts/${path}`, readFileSync(resolve('scripts', path), 'utf8'));
  }
  put(root, 'package.json', '{"name":"p","type":"module"}');
  for (const name of ['call', 'mapped_file', 'memory']) put(root, `native/common/${name}.cc`, name);
  put(root, 'native/common/shared.h', 'one');
  put(root, 'native/cuda/a.cu', 'a');
  put(root, 'native/cuda/b.cu', 'b');
  put(root, 'bin/nvcc', NVCC);
  chmodSync(join(root, 'bin/nvcc'), 0o755);
  return root;
}

/** Runs the script; answers its output and what the compiler was asked since the last time. */
function build(root: string, ...args: string[]) {
  const log = join(root, 'bin/calls');
  rmSync(log, { force: true });
  const script = join(root, 'scripts/build-cuda.mjs');
  const result = spawnSync(process.execPath, [script, ...args], {
    encoding: 'utf8',
    env: { ...process.env, CUDACXX: join(root, 'bin/nvcc') },
  });
  const calls = existsSync(log) ? readFileSync(log, 'utf8').trim().split('\n') : [];
  const compiled = calls.filter((c) => c.includes(' -c ')).map((c) => c.split(' ').at(-1));
  return { ...result, output: result.stdout + result.stderr, calls, compiled: compiled.sort() };
}

const ALL = [
  'native/common/call.cc',
  'native/common/mapped_file.cc',
  'native/common/memory.cc',
  'native/cuda/a.cu',
  'native/cuda/b.cu',
];

test('only what changed is compiled again, by content', () => {
  const root = project();
  const library = join(root, 'build/Release/liblowrank_cuda.so');
  const first = build(root, '--arch', '90');
  assert.is(first.status, 0, first.output);
  assert.equal(first.compiled, ALL);
  assert.ok(existsSync(library));
  assert.match(first.calls[0]!, 'arch=compute_90,code=sm_90');
  assert.match(first.calls[0]!, 'arch=compute_90,code=compute_90');
  const again = build(root, '--arch', '90');
  assert.equal(again.calls, []);
  assert.match(again.output, 'is up to date (sm_90)');
  put(root, 'native/cuda/b.cu', 'changed');
  const one = build(root, '--arch', '90');
  assert.equal(one.compiled, ['native/cuda/b.cu']);
  assert.is(one.calls.length, 2, 'and a link');
  put(root, 'native/common/shared.h', 'two');
  assert.equal(build(root, '--arch', '90').compiled, ALL);
  assert.equal(build(root, '--arch', '80,90').compiled, ALL);
  rmSync(join(root, 'build'), { recursive: true });
  assert.equal(build(root, '--arch', '80,90').calls, [], 'put back in its place');
  assert.ok(existsSync(library));
});

test('what was built with warnings as errors serves both ways', () => {
  const root = project();
  build(root);
  const strict = build(root, '--werror');
  assert.equal(strict.compiled, ALL);
  assert.match(strict.calls[0]!, '-Werror all-warnings');
  assert.equal(build(root, '--werror').calls, []);
  assert.equal(build(root).calls, []);
});

test('a failed build says why, exits with 1 and keeps the library there was', () => {
  const root = project();
  const library = join(root, 'build/Release/liblowrank_cuda.so');
  put(root, 'build/Release/liblowrank_cuda.so', 'old');
  put(root, 'native/cuda/b.cu', 'BROKEN');
  const { status, output } = build(root);
  assert.is(status, 1);
  assert.match(output, 'native/cuda/b.cu: error: broken');
  assert.is(readFileSync(library, 'utf8'), 'old');
  const unknown = build(root, '--arch', '70');
  assert.is(unknown.status, 1);
  assert.match(unknown.output, '[--cuda-arch] expected all, or some of 80, 90, received 70');
});

test('without nvcc the script says what it looked for', () => {
  const root = project();
  rmSync(join(root, 'bin/nvcc'));
  const { status, output } = build(root);
  assert.is(status, 1);
  assert.match(output, 'no nvcc was found (CUDACXX, PATH, /usr/local/cuda/bin)');
});

test.run();
