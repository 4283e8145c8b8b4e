// time-limit: 120
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { openCheckpoint } from '../src/io/checkpoint.js';
import { type HubEvent, type HubOptions, pullModel, resolveModel } from '../src/io/hub.js';
import {
  cachedSnapshot,
  hubCacheDir,
  hubEndpoint,
  hubOffline,
  hubToken,
  parseHubId,
} from '../src/io/hub-cache.js';
import { HubClient } from '../src/io/hub-client.js';
import { safetensorsParts } from '../src/io/safetensors.js';
import { FakeHub, type FakeRepository, sha256 } from './support/hub.js';

const test = suite('hub');
const root = mkdtempSync(join(tmpdir(), 'lowrank-hub-'));
const hub = await FakeHub.start();
HubClient.delays = [0, 0, 0];
test.after(() => {
  hub.stop();
  rmSync(root, { recursive: true, force: true });
});
test.before.each(() => {
  hub.repositories.clear();
  hub.answer = undefined;
  hub.cuts = [];
  hub.damage = false;
  hub.asked.length = 0;
  hub.storageAsked.length = 0;
});

const COMMIT = '0123456789abcdef0123456789abcdef01234567';
const text = (s: string) => new TextEncoder().encode(s);

/** A safetensors file of one F32 tensor. */
function weights(name: string, elements = 1000): Uint8Array {
  const data = Float32Array.from({ length: elements }, (_, i) => i);
  const bytes = () => new Uint8Array(data.buffer);
  const parts = safetensorsParts([{ name, dtype: 'F32', shape: [elements], bytes }]);
  return Buffer.concat([...parts]);
}

const WEIGHTS = weights('w');
const CONFIG = text('{"model_type": "llama"}');

/** Puts a repository on the fake Hub. */
function publish(
  name: string,
  files: Record<string, Uint8Array>,
  more: Partial<FakeRepository> = {},
) {
  hub.repositories.set(name, { files: new Map(Object.entries(files)), commit: COMMIT, ...more });
}

function publishModel(name = 'org/model', more: Partial<FakeRepository> = {}) {
  publish(
    name,
    {
      'README.md': text('# A model'),
      'config.json': CONFIG,
      'model.safetensors': WEIGHTS,
      'model.onnx': weights('onnx'),
      'pytorch_model.bin': weights('pickle'),
      'tokenizer.json': text('{}'),
      'chat_template.jinja': text('{{ messages }}'),
    },
    more,
  );
}

let folders = 0;
/** Options with a new cache folder of their own. */
function fresh(more: HubOptions = {}): HubOptions & { cacheDir: string } {
  const cacheDir = join(root, `cache${folders++}`);
  return { cacheDir, endpoint: hub.endpoint, token: '', offline: false, ...more };
}

async function messageOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    return (error as Error).message;
  }
  throw new Error('nothing was thrown');
}

const repositoryOf = (cacheDir: string, name = 'org/model') =>
  join(cacheDir, `models--${name.replace('/', '--')}`);
const blobsOf = (cacheDir: string) => readdirSync(join(repositoryOf(cacheDir), 'blobs')).sort();

test('names of repositories, with revisions', () => {
  const good: [string, string, string][] = [
    ['org/name', 'org/name', 'main'],
    ['gpt2', 'gpt2', 'main'],
    ['meta-llama/Llama-3.2-1B', 'meta-llama/Llama-3.2-1B', 'main'],
    ['org/name@v1.0', 'org/name', 'v1.0'],
    ['org/name@refs/pr/1', 'org/name', 'refs/pr/1'],
    [`org/name@${COMMIT}`, 'org/name', COMMIT],
  ];
  for (const [given, name, revision] of good) {
    assert.equal(parseHubId(given), { name, revision }, given);
  }
  const bad = ['', '/a', 'a/', './a', '../a', 'a/b/c', '~/a', 'C:\\a', 'a b/c', 'a--b/c', 'a..b'];
  const revisions = ['org/name@', 'org/name@../x', 'org/name@a//b', 'org/name@/x', 'org/name@a b'];
  for (const given of [...bad, ...revisions, 'org/name.git', '-a/b', 'a/.b', 'x'.repeat(97)]) {
    assert.is(parseHubId(given), undefined, given);
  }
});

test('the cache folder, the token and the rest come from the variables that Python reads', () => {
  const HOME = '/home/me';
  const folderOf: [Record<string, string>, string][] = [
    [{}, '/home/me/.cache/huggingface/hub'],
    [{ XDG_CACHE_HOME: '/xdg' }, '/xdg/huggingface/hub'],
    [{ XDG_CACHE_HOME: '/xdg', HF_HOME: '/hf' }, '/hf/hub'],
    [{ HF_HOME: '/hf', HUGGINGFACE_HUB_CACHE: '/old' }, '/old'],
    [{ HUGGINGFACE_HUB_CACHE: '/old', HF_HUB_CACHE: '/new' }, '/new'],
    [{ HF_HUB_CACHE: '' }, '/home/me/.cache/huggingface/hub'],
    [{ HF_HUB_CACHE: '~/models' }, '/home/me/models'],
    [{ HF_HUB_CACHE: '$DISK/hf', DISK: '/disk' }, '/disk/hf'],
  ];
  for (const [env, expected] of folderOf) assert.is(hubCacheDir({ HOME, ...env }), expected);

  const file = join(root, 'home', 'token');
  mkdirSync(join(root, 'home'));
  writeFileSync(file, ' hf_file\n');
  const HF_HOME = join(root, 'home');
  assert.is(hubToken({ HF_HOME }), 'hf_file');
  assert.is(hubToken({ HF_HOME, HF_TOKEN: 'hf_env\n' }), 'hf_env');
  assert.is(hubToken({ HF_HOME, HUGGING_FACE_HUB_TOKEN: 'hf_old' }), 'hf_old');
  assert.is(hubToken({ HF_HOME: root, HF_TOKEN_PATH: file }), 'hf_file');
  assert.is(hubToken({ HF_HOME: root }), undefined);
  assert.is(hubToken({ HF_HOME, HF_HUB_DISABLE_IMPLICIT_TOKEN: '1' }), undefined);

  for (const yes of ['1', 'true', 'YES', 'On']) assert.ok(hubOffline({ HF_HUB_OFFLINE: yes }), yes);
  assert.ok(hubOffline({ TRANSFORMERS_OFFLINE: '1' }));
  for (const no of ['', '0', 'no']) assert.not(hubOffline({ HF_HUB_OFFLINE: no }));

  assert.is(hubEndpoint({}), 'https://huggingface.co');
  assert.is(hubEndpoint({ HF_ENDPOINT: 'http://mirror/hf/' }), 'http://mirror/hf');
  assert.throws(() => hubEndpoint({ HF_ENDPOINT: 'mirror' }), /HF_ENDPOINT.*received "mirror"/);
});

test('pull brings what is needed, laid out as Python lays it out, and nothing twice', async () => {
  publishModel();
  const options = fresh();
  const seen: HubEvent[] = [];
  const done = await pullModel('org/model', { ...options, onEvent: (e) => seen.push(e) });
  const repository = repositoryOf(options.cacheDir);
  assert.is(done.dir, join(repository, 'snapshots', COMMIT));
  assert.equal(readdirSync(done.dir).sort(), [
    ...['chat_template.jinja', 'config.json', 'model.safetensors', 'tokenizer.json'],
  ]);
  // Links are relative, so that the cache can be moved; the large file's name is its SHA-256.
  const link = join(done.dir, 'model.safetensors');
  assert.is(readlinkSync(link), `../../blobs/${sha256(WEIGHTS)}`);
  assert.equal(new Uint8Array(readFileSync(link)), new Uint8Array(WEIGHTS));
  assert.is(readFileSync(join(repository, 'refs', 'main'), 'utf8'), COMMIT);
  assert.ok(lstatSync(join(repository, 'blobs', sha256(WEIGHTS))).isFile());
  assert.not(blobsOf(options.cacheDir).some((b) => b.includes('incomplete')));
  assert.ok(openCheckpoint(done.dir).has('w'), 'the checkpoint reader takes the links');

  const start = seen[0] as Extract<HubEvent, { type: 'start' }>;
  assert.equal([start.type, start.commit, start.files, start.cached], ['start', COMMIT, 4, 0]);
  const came = seen.reduce((n, e) => n + (e.type === 'progress' ? e.received : 0), 0);
  assert.is(came, start.bytes);
  assert.is(done.received, start.bytes);
  assert.is(seen.filter((e) => e.type === 'file').length, 4);

  hub.taken();
  const again = await pullModel('org/model', options);
  assert.is(again.dir, done.dir);
  assert.is(again.received, 0);
  assert.ok(
    hub.taken().every((path) => path.startsWith('/api/')),
    'no file is asked for again',
  );
});

test('of shards those that the index names; of an adapter its two files', async () => {
  const map = { weight_map: { a: 'model-00001-of-00002.safetensors', b: 'b.safetensors' } };
  publish('org/model', {
    'config.json': CONFIG,
    'model.safetensors.index.json': text(JSON.stringify(map)),
    'model-00001-of-00002.safetensors': weights('a'),
    'b.safetensors': weights('b'),
    'consolidated.safetensors': weights('again'),
    'adapter_config.json': text('{}'),
    'adapter_model.safetensors': weights('adapter'),
    'adapter_model.bin': weights('pickle'),
  });
  const names = async (more: HubOptions) => {
    const { dir } = await pullModel('org/model', fresh(more));
    return readdirSync(dir).sort();
  };
  const adapter = ['adapter_config.json', 'adapter_model.safetensors'];
  assert.equal(await names({ kind: 'adapter' }), [...adapter, 'config.json']);
  const model = ['b.safetensors', 'config.json', 'model-00001-of-00002.safetensors'];
  const index = 'model.safetensors.index.json';
  const all = ['adapter_config.json', ...model, index];
  assert.equal(await names({ kind: 'model' }), all);
  assert.equal(await names({}), [...all, 'adapter_model.safetensors'].sort());
});

test('a repository without safetensors is refused with what it has and the way out', async () => {
  const cases: [Record<string, Uint8Array>, HubOptions, RegExp][] = [
    [
      { 'config.json': CONFIG, 'training_args.bin': CONFIG, 'pytorch_model.bin': WEIGHTS },
      {},
      /pickle file pytorch_model\.bin\. Pickle.*--revision refs\/pr\/1.*save_pretrained/,
    ],
    [{ 'config.json': CONFIG, 'q4.gguf': WEIGHTS }, {}, /received q4\.gguf\. Use the repository/],
    [{ 'config.json': CONFIG, 'README.md': CONFIG }, {}, /received only config\.json, README\.md/],
    [{}, {}, /an empty repository/],
    [{ 'model.safetensors': WEIGHTS }, {}, /expected config\.json beside the weights/],
    [
      { 'adapter_config.json': CONFIG, 'adapter_model.safetensors': WEIGHTS },
      { kind: 'model' },
      /expected a model, received an adapter\. Give it as the adapter/,
    ],
    [
      { 'config.json': CONFIG, 'model.safetensors': WEIGHTS },
      { kind: 'adapter' },
      /expected an adapter .*received a model/,
    ],
    [
      {
        'config.json': CONFIG,
        'model.safetensors.index.json': text('{"weight_map": {"a": "../a.safetensors"}}'),
      },
      {},
      /index\.json\] expected a safetensors file \.\.\/a\.safetensors, received none/,
    ],
    [
      { 'config.json': CONFIG, 'model.safetensors.index.json': text('{"weight_map": 1}') },
      {},
      /expected an object weight_map/,
    ],
  ];
  for (const [files, more, pattern] of cases) {
    publish('org/model', files);
    assert.match(await messageOf(pullModel('org/model', fresh(more))), pattern);
  }
});

test('refusals of the Hub say what to do', async () => {
  publishModel('org/model');
  publishModel('org/private', { token: 'hf_right' });
  publishModel('org/gated', { gated: true });
  publishModel('org/evil', { commit: '../../../evil' });
  const pull = (id: string, more: HubOptions = {}) => messageOf(pullModel(id, fresh(more)));
  assert.match(await pull('org/none'), /org\/none\] expected a repository of that name, .*401/);
  assert.match(await pull('org/private'), /private or gated, give a token .*HF_TOKEN/);
  assert.match(await pull('org/private', { token: 'hf_wrong' }), /a token that the Hub accepts/);
  assert.match(await pull('org/gated'), /it is gated\. Ask for access at .*\/org\/gated, then/);
  assert.match(await pull('org/gated', { token: 'hf_x' }), /with the account of your token/);
  assert.match(await pull('org/model@nope'), /expected a revision "nope", received 404/);
  assert.match(await pull('a/b/c'), /org\/name or org\/name@revision, received "a\/b\/c"/);
  assert.match(await pull('org/evil'), /expected a hash of 40 hexadecimal digits/);

  hub.answer = (r) => r.writeHead(404).end();
  assert.match(await pull('org/model'), /a repository of that name, received 404/);
  hub.answer = (r) => r.writeHead(200, { 'Content-Type': 'text/html' }).end('<p>Log in</p>');
  assert.match(await pull('org/model'), /expected JSON .*text\/html\. Something else answers/);
  hub.answer = (r) => r.writeHead(429).end();
  assert.match(await pull('org/model'), /received 429\. Try again in some minutes/);
  hub.answer = (r) => r.writeHead(503).end();
  hub.taken();
  assert.match(await pull('org/model'), /received 503\. Try again later/);
  assert.is(hub.taken().length, 4, 'once, and three more times');
  hub.answer = (r) => r.destroy();
  assert.match(await pull('org/model'), /expected to reach .*\(no network\?\).*in the cache/);

  let refusals = 2;
  hub.answer = (r) => {
    if (--refusals === 0) hub.answer = undefined;
    r.writeHead(500).end();
  };
  await pullModel('org/model', fresh());
});

test('a token goes to the Hub and not to the storage it leads to', async () => {
  publishModel('org/model', { token: 'any_form' });
  await pullModel('org/model', fresh({ token: 'any_form' }));
  assert.ok(hub.asked.length > 3);
  assert.ok(hub.asked.every((a) => a.token === 'any_form'));
  assert.ok(hub.storageAsked.length > 0);
  assert.ok(hub.storageAsked.every((a) => a.token === undefined));
});

test('a download that breaks off is continued, in the same run and in the next one', async () => {
  const large = weights('w', 300_000);
  publish('org/model', { 'config.json': CONFIG, 'model.safetensors': large });
  const options = fresh();
  const fetched = () => hub.storageAsked.splice(0).filter((a) => a.range !== 'bytes=0-0');
  hub.cuts = [200_000];
  const { dir } = await pullModel('org/model', options);
  const [first, second, ...none] = fetched();
  assert.equal(none, []);
  assert.is(first?.range, undefined);
  assert.match(second?.range ?? '', /^bytes=[1-9]\d*-\d+$/);
  assert.equal(readFileSync(join(dir, 'model.safetensors')), Buffer.from(large));

  const other = fresh();
  hub.cuts = [200_000, 0, 0, 0, 0, 0];
  const message = await messageOf(pullModel('org/model', other));
  assert.match(message, /model\.safetensors of \d+ bytes, received \d+ bytes, then: .*goes on/);
  assert.is(cachedSnapshot(other.cacheDir, { name: 'org/model', revision: 'main' }), undefined);
  const partial = blobsOf(other.cacheDir).find((b) => b.endsWith('.incomplete')) as string;
  assert.ok(lstatSync(join(repositoryOf(other.cacheDir), 'blobs', partial)).size > 0);
  fetched();
  hub.cuts = [];
  const done = await pullModel('org/model', other);
  assert.ok(done.received < large.length, 'what had come is not fetched again');
  assert.ok(fetched().every((a) => /^bytes=[1-9]/.test(a.range ?? '')));
  assert.equal(readFileSync(join(done.dir, 'model.safetensors')), Buffer.from(large));
  assert.not(blobsOf(other.cacheDir).some((b) => b.includes('incomplete')));
});

test('bytes that were damaged on the way never get into the cache', async () => {
  publishModel();
  hub.damage = true;
  const options = fresh();
  const message = await messageOf(pullModel('org/model', options));
  assert.match(message, /model\.safetensors with the hash .*damaged on the way: try again/);
  assert.not(blobsOf(options.cacheDir).some((b) => b.startsWith(sha256(WEIGHTS))));
  hub.damage = false;
  await pullModel('org/model', options);
});

test('a folder that cannot be written and a disk that is too small are told', async () => {
  publishModel();
  const file = join(root, 'a-file');
  writeFileSync(file, '');
  const message = await messageOf(pullModel('org/model', fresh({ cacheDir: join(file, 'hub') })));
  assert.match(message, /expected to write .*a-file.*HF_HUB_CACHE to another folder/);
  publishModel('org/model', { claimed: 1e18 });
  const small = await messageOf(pullModel('org/model', fresh()));
  assert.match(small, /expected 1,000,000,\d{3},\d{3} MB of space in .*Make room/);
});

test('a revision is recorded under its own name, and found offline by it', async () => {
  publishModel('org/model', { branches: ['dev', 'refs/pr/1'] });
  const options = fresh();
  const { dir } = await pullModel('org/model@dev', options);
  await pullModel('org/model@refs/pr/1', options);
  const offline = { ...options, offline: true };
  for (const id of ['org/model@dev', 'org/model@refs/pr/1', `org/model@${COMMIT}`]) {
    assert.is((await pullModel(id, offline)).dir, dir, id);
    assert.is(await resolveModel(id, { ...offline, kind: 'model' }), dir, id);
  }
  assert.match(await messageOf(pullModel('org/model', offline)), /HF_HUB_OFFLINE forbids/);
  const unknown = await messageOf(resolveModel('org/model@v2', offline));
  assert.match(unknown, /revision v2 in the cache .*As a path: there is no "org\/model@v2" here/);
});

test('a path wins; then the cache, without network; then the Hub', async () => {
  publishModel();
  const options = fresh({ kind: 'model' });
  const local = join(root, 'org', 'model');
  mkdirSync(local, { recursive: true });
  assert.is(await resolveModel(local, options), local);
  const dir = await resolveModel('org/model', options);
  assert.is(dir, join(repositoryOf(options.cacheDir), 'snapshots', COMMIT));
  hub.taken();
  hub.answer = (r) => r.destroy();
  assert.is(await resolveModel('org/model', options), dir);
  assert.equal(hub.taken(), [], 'the network is not asked');

  const none = await messageOf(resolveModel('org/none', options));
  assert.match(none, /hub org\/none\].*no network.*As a path: there is no "org\/none" here/);
  const path = await messageOf(resolveModel('./none', options));
  assert.match(path, /\[model\] expected a file \.\/none.*A model of the Hub is named org\/name/);
  hub.taken();
  const bare = await messageOf(resolveModel('modle', options));
  assert.match(bare, /"modle": no such directory here, .*lowrank pull modle brings it/);
  assert.equal(hub.taken(), [], 'a bare name is not asked for');
  const revision = await messageOf(resolveModel('org/model@a b', options));
  assert.match(revision, /A revision is a branch, a tag or a commit/);
});

test('a cache that Python made is taken as it is; what it lacks is fetched', async () => {
  publishModel();
  const options = fresh({ kind: 'model' });
  const repository = repositoryOf(options.cacheDir);
  const snapshot = join(repository, 'snapshots', COMMIT);
  // As newer versions of huggingface_hub do: the blob is itself a link, into a shared store.
  const store = join(options.cacheDir, 'blobs');
  mkdirSync(join(store, 'ab'), { recursive: true });
  mkdirSync(join(repository, 'blobs'), { recursive: true });
  mkdirSync(join(repository, 'refs'));
  mkdirSync(snapshot, { recursive: true });
  writeFileSync(join(repository, 'refs', 'main'), COMMIT);
  writeFileSync(join(store, '.huggingface-shared-blobs'), '1\n');
  writeFileSync(join(store, 'ab', 'abcd'), WEIGHTS);
  symlinkSync('../../blobs/ab/abcd', join(repository, 'blobs', sha256(WEIGHTS)));
  symlinkSync(`../../blobs/${sha256(WEIGHTS)}`, join(snapshot, 'model.safetensors'));
  writeFileSync(join(repository, 'blobs', 'c'), CONFIG);
  symlinkSync('../../blobs/c', join(snapshot, 'config.json'));
  const offline = { ...options, offline: true };
  assert.is(await resolveModel('org/model', offline), snapshot);
  assert.ok(openCheckpoint(snapshot).has('w'));

  // The tokenizer is not there: online it is fetched, and nothing else is.
  assert.is(await resolveModel('org/model', options), snapshot);
  const files = hub.taken().filter((p) => !p.startsWith('/api/'));
  assert.not(files.some((p) => p.endsWith('.safetensors') || p.endsWith('config.json')));
  assert.ok(existsSync(join(snapshot, 'tokenizer.json')));

  rmSync(join(store, '.huggingface-shared-blobs'));
  assert.throws(() => openCheckpoint(snapshot), /to lie in the model directory, received a link/);
});

test('a repository without a tokenizer is not looked through again', async () => {
  publish('org/model', { 'config.json': CONFIG, 'model.safetensors': WEIGHTS });
  const options = fresh({ kind: 'model' });
  const dir = await resolveModel('org/model', options);
  hub.taken();
  assert.is(await resolveModel('org/model', options), dir);
  assert.equal(hub.taken(), []);
});

test('a tokenizer comes without the weights, and is no model', async () => {
  publishModel();
  const options = fresh({ kind: 'tokenizer' });
  const dir = await resolveModel('org/model', options);
  assert.equal(readdirSync(dir).sort(), ['chat_template.jinja', 'config.json', 'tokenizer.json']);
  hub.taken();
  assert.is(await resolveModel('org/model', options), dir);
  assert.equal(hub.taken(), []);
  const offline: HubOptions = { ...options, offline: true, kind: 'model' };
  assert.match(await messageOf(resolveModel('org/model', offline)), /nothing whole there/);
  assert.is(await resolveModel('org/model', { ...options, kind: 'model' }), dir);
  assert.ok(existsSync(join(dir, 'model.safetensors')));
  publish('org/other', { 'config.json': CONFIG });
  const none = await messageOf(resolveModel('org/other', options));
  assert.match(none, /expected tokenizer\.json, received only config\.json/);
});

test('a snapshot that lacks a shard is no model yet', async () => {
  const options = fresh({ kind: 'model', offline: true });
  const dir = join(repositoryOf(options.cacheDir), 'snapshots', COMMIT);
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, 'config.json'), CONFIG);
  const map = { weight_map: { a: 'a.safetensors', b: 'b.safetensors' } };
  writeFileSync(join(dir, 'model.safetensors.index.json'), JSON.stringify(map));
  writeFileSync(join(dir, 'a.safetensors'), WEIGHTS);
  const id = `org/model@${COMMIT}`;
  assert.match(await messageOf(resolveModel(id, options)), /nothing whole there/);
  writeFileSync(join(dir, 'b.safetensors'), WEIGHTS);
  assert.is(await resolveModel(id, options), dir);
});

test.run();
