import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { writeSafetensors } from '../src/io/safetensors.js';
import { LoraAdapters, loadAdapter } from '../src/lora/index.js';
import { openModel } from '../src/models/load.js';
import { reference } from './backends.js';
import { writeAdapter, writeModel } from './support/merge-dirs.js';

const CONFIG = 'adapter_config.json';
const WEIGHTS = 'adapter_model.safetensors';
const Q = 'base_model.model.model.layers.0.self_attn.q_proj';
let root = '';
let dir = '';
const at = (name: string) => join(root, name);
test.before(() => {
  root = mkdtempSync(join(tmpdir(), 'lowrank-adapters-'));
  writeModel(at('model'));
  writeAdapter(at('good'), at('model'), { rank: 2, targetModules: ['q_proj'] }, 1);
});
test.after(() => rmSync(root, { recursive: true, force: true }));
test.before.each(() => {
  dir = at('adapter');
  mkdirSync(dir);
  for (const name of [CONFIG, WEIGHTS]) copyFileSync(join(at('good'), name), join(dir, name));
});
test.after.each(() => rmSync(dir, { recursive: true, force: true }));

function load(path = dir): void {
  using model = openModel(at('model'), { backend: reference });
  const handles = reference.memory().handles;
  const adapters = new LoraAdapters(model);
  try {
    loadAdapter(adapters, 'a', path);
  } catch (error) {
    assert.equal(adapters.names(), [], 'the model is unchanged');
    assert.is(reference.memory().handles, handles, 'what was read is freed');
    throw error;
  }
  adapters.dispose();
}

/** Other settings. */
function set(change: Record<string, unknown>): () => void {
  return () => {
    const path = join(dir, CONFIG);
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), ...change }));
  };
}

const text = (contents: string | Uint8Array) => () => writeFileSync(join(dir, CONFIG), contents);

/** A file of the weights with tensors of these shapes beside or in place of the good ones. */
function tensors(shapes: Record<string, number[]>): () => void {
  return () => {
    const all = Object.entries(shapes).map(([name, shape]) => ({
      ...{ name, shape, dtype: 'f32' as const },
      bytes: () => new Uint8Array(4 * shape.reduce((n, d) => n * d, 1)),
    }));
    writeSafetensors(join(dir, WEIGHTS), all);
  };
}

const LAYERS = [0, 1].flatMap((i) => [
  [`${Q.replace('.0.', `.${i}.`)}.lora_A.weight`, [2, 8]] as const,
  [`${Q.replace('.0.', `.${i}.`)}.lora_B.weight`, [8, 2]] as const,
]);
const good = Object.fromEntries(LAYERS) as unknown as Record<string, number[]>;
const without = (name: string) => {
  return Object.fromEntries(Object.entries(good).filter(([n]) => n !== name));
};

function linkOut(name: string): () => void {
  return () => {
    renameSync(join(dir, name), at(`moved-${name}`));
    symlinkSync(at(`moved-${name}`), join(dir, name));
  };
}

const attacks: [name: string, prepare: () => void, message: RegExp][] = [
  ['settings that link out', linkOut(CONFIG), /"adapter_config\.json" to lie in the .*a link to/],
  [
    'weights that link out',
    linkOut(WEIGHTS),
    /"adapter_model\.safetensors" to lie in the .*a link/,
  ],
  [
    'a link to nowhere',
    () => {
      rmSync(join(dir, WEIGHTS));
      symlinkSync('nowhere', join(dir, WEIGHTS));
    },
    /a link that leads nowhere/,
  ],
  [
    'no settings',
    () => rmSync(join(dir, CONFIG)),
    /adapter_config\.json, received none; the folder/,
  ],
  [
    'no weights',
    () => rmSync(join(dir, WEIGHTS)),
    /adapter_model\.safetensors, received none; the/,
  ],
  [
    'a pickle for weights',
    () => renameSync(join(dir, WEIGHTS), join(dir, 'adapter_model.bin')),
    /the pickle file adapter_model\.bin\. Pickle files can run code when read: convert it/,
  ],
  [
    'a pickle under the name of safetensors',
    () => writeFileSync(join(dir, WEIGHTS), 'PK\x03\x04and so on'),
    /a pickle file of PyTorch: convert it/,
  ],
  [
    'weights a directory',
    () => {
      rmSync(join(dir, WEIGHTS));
      mkdirSync(join(dir, WEIGHTS));
    },
    /expected a file, received a directory/,
  ],
  [
    'weights cut short',
    () => truncateSync(join(dir, WEIGHTS), 200),
    /header that ends within|data wit/,
  ],
  ['settings no JSON', text('{"r": 2,'), /adapter_config\.json\] expected JSON/],
  ['settings an array', text('[]'), /a JSON object, received an array/],
  ['settings not UTF-8', text(Uint8Array.of(0x7b, 0xff, 0x7d)), /UTF-8 text/],
  ['another method', set({ peft_type: 'IA3' }), /peft_type LORA, received "IA3"/],
  ['no method', set({ peft_type: undefined }), /peft_type LORA/],
  ['a rank of 0', set({ r: 0 }), /rank.*received 0/],
  ['a rank and a half', set({ r: 1.5 }), /rank.*received 1\.5/],
  ['a rank in words', set({ r: '2' }), /r: a number, received "2"/],
  [
    'a rank that the tensors do not have',
    set({ r: 4 }),
    /rank 4.*expected \[4, 8\], received \[2, 8\]/s,
  ],
  ['no targets', set({ target_modules: [] }), /at least one name|target_modules/],
  ['targets a number', set({ target_modules: 7 }), /target_modules: names/],
  ['a target that is not there', set({ target_modules: ['k_prj'] }), /"k_prj", which matches none/],
  ['a pattern that is none', set({ target_modules: '([' }), /regular expression|matches none/],
  ['arithmetic that is not supported', set({ use_bdlora: true }), /use_bdlora/],
  ['another alpha', set({ lora_alpha: 'much' }), /lora_alpha: a number, received "much"/],
  [
    'whole modules without tensors',
    set({ modules_to_save: ['norm'] }),
    /missing base_model\.model\.model\.norm\.weight/,
  ],
  ['a tensor missing', tensors(without(`${Q}.lora_B.weight`)), /missing .*q_proj\.lora_B\.weight/],
  [
    'a tensor of a layer that is not chosen',
    tensors({ ...good, [`${Q.replace('q_', 'k_')}.lora_A.weight`]: [2, 8] }),
    /surplus .*k_proj\.lora_A\.weight \(nearest: /,
  ],
  [
    'a tensor of a prototype’s name',
    tensors({ ...good, constructor: [1] }),
    /surplus constructor \(nearest/,
  ],
  [
    'names without the prefix',
    tensors(
      Object.fromEntries(LAYERS.map(([n, s]) => [n.replace('base_model.model.', ''), [...s]])),
    ),
    /8 problems:\n {2}missing/,
  ],
  [
    'A and B exchanged',
    tensors(
      Object.fromEntries(LAYERS.map(([n, s]) => [n, [...s].reverse()])) as Record<string, number[]>,
    ),
    /lora_A\.weight: expected \[2, 8\], received \[8, 2\]/,
  ],
  ['no tensor at all', tensors({}), /4 problems:\n {2}missing/],
];

for (const [name, prepare, message] of attacks) {
  test(`refused: ${name}`, () => {
    prepare();
    assert.throws(load, message);
  });
}

test('there are at least 15 attacks and mistakes, each of its own name', () => {
  assert.ok(attacks.length >= 15);
  assert.is(new Set(attacks.map(([name]) => name)).size, attacks.length);
});

test('a good adapter loads, also through a link to its directory and from the Hub’s cache', () => {
  load();
  symlinkSync(dir, at('link'));
  load(at('link'));
  const cached = at('models--org--name');
  mkdirSync(join(cached, 'snapshots', 'abc'), { recursive: true });
  mkdirSync(join(cached, 'blobs'));
  for (const [i, name] of [CONFIG, WEIGHTS].entries()) {
    copyFileSync(join(dir, name), join(cached, 'blobs', `${i}`));
    symlinkSync(`../../blobs/${i}`, join(cached, 'snapshots', 'abc', name));
  }
  load(join(cached, 'snapshots', 'abc'));
});

test('what is no adapter directory is told as what it is', () => {
  assert.throws(
    () => load(at('nowhere')),
    /none; the folder has .*Give the path of a PEFT adapter/,
  );
  assert.throws(
    () => load(join(dir, WEIGHTS)),
    /a directory with .*received the file .*Give its dir/,
  );
  assert.throws(
    () => load(at('model')),
    /a PEFT adapter .*received a model\. Give the model as --mod/,
  );
});

test.run();
