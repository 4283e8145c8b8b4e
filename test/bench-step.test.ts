// time-limit: 180
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { CASES } from '../bench/peers/cases.js';
import { native } from './backends.js';
import { skipUnless } from './support.js';

const test = suite('bench:step');
const root = mkdtempSync(join(tmpdir(), 'lowrank-bench-step-'));
test.after(() => rmSync(root, { recursive: true, force: true }));
const onNative = skipUnless(test, native !== null, 'no native addon is built');

const SMALL = ['--model', 'tiny', '--batch', '1', '--seq', '8', '--steps', '2', '--warmup', '1'];

function bench(script: string, ...args: readonly string[]) {
  const command = ['--import', import.meta.resolve('tsx'), script, ...args];
  return spawnSync(process.execPath, command, { encoding: 'utf8' });
}

function json(...args: readonly string[]): Record<string, unknown> {
  const { status, stdout, stderr } = bench('bench/step.ts', ...SMALL, ...args, '--json');
  assert.is(status, 0, stderr);
  return JSON.parse(stdout) as Record<string, unknown>;
}

onNative('a step is told in seconds, tokens, operations and bytes', () => {
  const start = Date.now() / 1000;
  const r = json('--dtype', 'bf16', '--compute', 'bf16', '--label-share', '0.5', '--threads', '1');
  for (const key of ['step_s', 'tok_s', 'peak_rss_mb', 'gflops', 'share_of_peak', 'trainable']) {
    assert.ok((r[key] as number) > 0, `${key}: ${r[key]}`);
  }
  assert.ok(Number.isFinite(r.loss as number));
  assert.equal([r.compute, r.threads, r.dtype], ['bf16', 1, 'bf16']);
  // Gradients and moments of what is trained, and no others.
  const { trainable, gradient, optimizer } = r.bytes as Record<string, number>;
  assert.equal(
    [trainable, gradient, optimizer],
    [1, 1, 2].map((n) => 4 * n * Number(r.trainable)),
  );
  const at = r.first_step_at as number;
  assert.ok(at > start && at < Date.now() / 1000);
});

onNative('a profile has the calls, and what they cost beside their work', () => {
  const p = json('--profile') as unknown as {
    calls: number;
    ns_per_call: number;
    js_ms: number;
    kernels: { kernel: string; calls: number; ms: number }[];
  };
  assert.is(
    p.calls,
    p.kernels.reduce((n, k) => n + k.calls, 0),
  );
  assert.ok(p.kernels.some((k) => k.kernel === 'matmul'));
  assert.ok(p.ns_per_call > 0 && p.js_ms > 0);
});

const WRONG: readonly [string[], string][] = [
  [
    ['--model', 'gpt5'],
    '--model gpt2, smollm2-135m, llama-1b, tiny or a config.json, received gpt5',
  ],
  [['--steps', '0'], '--steps a whole number above 0, received 0'],
  [['--label-share', '2'], '--label-share above 0, at most 1, received 2'],
  [['--compute', 'fp8'], '--compute exact or bf16, received fp8'],
];

onNative('a wrong option is refused', () => {
  for (const [args, expected] of WRONG) {
    const { status, stderr } = bench('bench/step.ts', ...SMALL, ...args);
    assert.is(status, 2);
    assert.match(stderr, `[bench:step] expected ${expected}`);
  }
});

// It takes the place of PyTorch and PEFT: two looks at the clock a step, and a line of JSON.
const PEER = `
import json, sys, time
for step in range(3):
    start = time.perf_counter()
    time.sleep(0.05)
    taken = time.perf_counter() - start
print(json.dumps(dict(step_s=taken, peak_rss_mb=400, args=sys.argv[1:])))
`;
const python = spawnSync('python3', ['--version']).status === 0;
const withPeer = skipUnless(test, native !== null && python, 'needs the addon and a python3');

withPeer('steps beside a peer are timed from the start of its process, too', () => {
  const peer = join(root, 'peer.py');
  writeFileSync(peer, PEER);
  const how = ['--peer', 'python3', peer, '--rounds', '1', '--case', 'tiny-start'];
  const { status, stdout, stderr } = bench('bench/peers/step.ts', ...how);
  assert.is(status, 0, stderr);
  const lines = stdout.trim().split('\n');
  const row = JSON.parse(lines[1] as string) as Record<string, number>;
  assert.is(row.case as unknown, 'tiny-start');
  const { first_s: ours, peer_first_s: theirs } = row as Record<string, number>;
  assert.ok((ours as number) > 0.02, `ours: ${ours}`);
  // One step of three.
  assert.ok((theirs as number) > 0.05 && (theirs as number) < 60, `theirs: ${theirs}`);
  assert.is(row.peer_peak_rss_mb, 400);
  assert.match(lines.at(-1) as string, /^tiny-start, start to first step .* ≤ 0\.1 +≤ 0\.05/);
});

test('a case that is not there is refused', () => {
  const how = ['--peer', 'python3', 'peer.py', '--case', 'tinny'];
  const { status, stderr } = bench('bench/peers/step.ts', ...how);
  assert.is(status, 2);
  for (const name of [...Object.keys(CASES), 'lora-to-full']) assert.match(stderr, name);
});

test.run();
