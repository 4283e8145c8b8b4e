// time-limit: 120
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { HubClient } from '../src/io/hub-client.js';
import { events, inside, outside } from './support/cli.js';
import { FakeHub } from './support/hub.js';
import { writeTinyModel } from './support/model-dir.js';

const test = suite('hub-cli');
const root = mkdtempSync(join(tmpdir(), 'lowrank-hub-cli-'));
const hub = await FakeHub.start();
const COMMIT = 'fedcba9876543210fedcba9876543210fedcba98';
const VARIABLES = ['HF_ENDPOINT', 'HF_HUB_CACHE', 'HF_HUB_OFFLINE', 'HF_TOKEN', 'HF_HOME'];
const kept = VARIABLES.map((name) => [name, process.env[name]] as const);
HubClient.delays = [0, 0, 0];

test.before(() => {
  writeTinyModel(join(root, 'model'));
  const names = readdirSync(join(root, 'model'));
  const files = new Map(
    names.map((n) => [n, new Uint8Array(readFileSync(join(root, 'model', n)))] as const),
  );
  hub.repositories.set('org/tiny', { files, commit: COMMIT, branches: ['dev'] });
});
test.before.each(() => {
  for (const name of VARIABLES) delete process.env[name];
  process.env.HF_ENDPOINT = hub.endpoint;
  process.env.HF_HOME = join(root, 'home');
  hub.storageAsked.length = 0;
  hub.taken();
});
test.after(() => {
  hub.stop();
  rmSync(root, { recursive: true, force: true });
  for (const [name, value] of kept) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
});

const snapshot = () => join(root, 'home', 'hub', 'models--org--tiny', 'snapshots', COMMIT);

test('inspect reads the headers of a model on the Hub, and downloads neither weights nor more', async () => {
  const { code, stdout, stderr } = await inside('inspect', 'org/tiny');
  assert.is(code, 0, stderr);
  assert.match(stderr, 'org/tiny is not in the cache: reading its headers on the Hub');
  assert.match(stdout, /^org\/tiny\n {2}architecture {2}LlamaForCausalLM/);
  assert.match(stdout, /parameters {4}67,504 in 11 tensors/);
  assert.ok(hub.storageAsked.length > 0);
  assert.ok(
    hub.storageAsked.every((a) => a.range !== undefined),
    'parts of files only',
  );
  assert.not(hub.taken().some((p) => p.includes('tokenizer')));
  assert.throws(() => readdirSync(join(root, 'home')), /ENOENT/, 'nothing is left in the cache');
});

test('generate downloads a model that is not there, says so, and finds it offline', async () => {
  const run = (...more: string[]) =>
    inside('generate', '--model', 'org/tiny', '--prompt', 'Call', '--max-new-tokens', '3', ...more);
  const first = await run();
  assert.is(first.code, 0, first.stderr);
  const files = [...(hub.repositories.get('org/tiny')?.files.values() ?? [])];
  const bytes = files.reduce((n, f) => n + f.length, 0);
  const size = `4 files, ${(bytes / 1000).toFixed(0)} KB`;
  assert.ok(first.stderr.includes(`Downloading org/tiny at main (fedcba9): ${size}`), first.stderr);
  assert.match(first.stderr, /^model\.safetensors \(136 KB\)$/m);
  const local = await inside(
    ...['generate', '--model', join(root, 'model'), '--prompt', 'Call', '--max-new-tokens', '3'],
  );
  assert.is(first.stdout, local.stdout);
  hub.taken();
  process.env.HF_HUB_OFFLINE = '1';
  const again = await run();
  assert.equal([again.code, again.stdout, again.stderr], [0, first.stdout, '']);
  assert.equal(hub.taken(), []);
});

test('pull prints the directory alone on standard output', async () => {
  const { code, stdout, stderr } = await inside('pull', 'org/tiny');
  assert.is(code, 0, stderr);
  assert.is(stdout, `${snapshot()}\n`);
  assert.match(stderr, 'Everything is in the cache already');
  process.env.HF_HUB_CACHE = join(root, 'other');
  const other = await inside('pull', 'org/tiny', '--revision', 'dev');
  assert.is(other.stdout, `${join(root, 'other', 'models--org--tiny', 'snapshots', COMMIT)}\n`);
  assert.match(other.stderr, 'Downloading org/tiny at dev (fedcba9)');
});

test('pull --json tells what comes as events', async () => {
  process.env.HF_HUB_CACHE = join(root, 'json');
  const { code, stdout, stderr } = await inside('pull', 'org/tiny@dev', '--json');
  assert.is(code, 0, stderr);
  assert.is(stderr, '');
  const all = events(stdout);
  assert.equal([all[0]?.type, all[0]?.revision, all[0]?.commit], ['start', 'dev', COMMIT]);
  assert.is(all.filter((e) => e.type === 'file' && e.cached === false).length, 4);
  const done = all.at(-1) as Record<string, unknown>;
  assert.equal([done.type, done.commit, done.files], ['done', COMMIT, 4]);
  assert.is(done.received, all[0]?.bytes);
});

test('Ctrl-C ends a download with 130; what came is kept', async () => {
  process.env.HF_HUB_CACHE = join(root, 'stopped');
  hub.stalls = 50_000;
  const stopped = await outside(['pull', 'org/tiny', '--json'], (line, child) => {
    if (line.includes('"type":"progress","path":"tokenizer.json"')) child.kill('SIGINT');
  });
  hub.stalls = undefined;
  assert.is(stopped.code, 130, stopped.stderr);
  assert.match(stopped.stderr, 'Stopped: what came is kept');
  const done = await inside('pull', 'org/tiny', '--json');
  const last = events(done.stdout).at(-1) as unknown as { received: number; bytes: number };
  assert.ok(last.received < last.bytes - 10_000, `${last.received} of ${last.bytes}`);
});

test('what fails ends with 1, what cannot be meant with 2', async () => {
  const cases: [string[], number, RegExp][] = [
    [['pull', 'org/none'], 1, /\[hub org\/none\] expected a repository of that name/],
    [['pull', 'org/tiny@v9'], 1, /expected a revision "v9"/],
    [['pull', './model'], 1, /received "\.\/model"/],
    [['pull', 'org/tiny@dev', '--revision', 'dev'], 2, /a revision is given twice/],
    [['pull'], 2, /missing required argument/],
    [['inspect', 'org/none'], 1, /As a path: there is no "org\/none" here/],
    [['eval', '--model', 'tiny', '--data', 'x'], 1, /./],
  ];
  for (const [argv, expected, message] of cases) {
    const { code, stderr } = await inside(...argv);
    assert.is(code, expected, `${argv.join(' ')}: ${stderr}`);
    assert.match(stderr, message);
  }
  process.env.HF_ENDPOINT = 'http://127.0.0.1:9';
  const unreachable = await inside('pull', 'org/tiny', '--json');
  assert.is(unreachable.code, 1);
  assert.match(events(unreachable.stdout)[0]?.message as string, /expected to reach/);
});

test.run();
