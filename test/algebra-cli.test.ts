import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { SafetensorsFile } from '../src/io/safetensors.js';
import { combine, plainFromMutated, readAdapter, writeAdapter } from '../src/lora/algebra/index.js';
import { apart, LAYERS, randomAdapter } from './support/adapters.js';
import { events, inside } from './support/cli.js';
import { withFolder } from './support/temp.js';

/** A folder with two adapters, a of rank 4 and b of rank 2. */
function withAdapters(body: (dir: string) => Promise<void>): Promise<void> {
  return withFolder((dir) => {
    writeAdapter(join(dir, 'a'), randomAdapter(1, 4, 8));
    writeAdapter(join(dir, 'b'), randomAdapter(2, 2, 6));
    return body(dir);
  });
}

test('combine: weights after colons, every method, JSON', async () => {
  await withAdapters(async (dir) => {
    const [a, b, out] = ['a', 'b', 'out'].map((n) => join(dir, n)) as [string, string, string];
    const run = (...rest: string[]) =>
      inside('adapters', 'combine', a, `${b}:-0.5`, '--out', out, '--overwrite', ...rest);
    const cat = await run();
    assert.is(cat.code, 0, cat.stderr);
    assert.match(cat.stdout, /out: rank 6 on 4 layers; nothing is lost/);
    const parts = [
      { adapter: readAdapter(a), weight: 1 },
      { adapter: readAdapter(b), weight: -0.5 },
    ];
    assert.ok(apart(readAdapter(out), combine(parts).adapter) < 1e-12);
    for (const method of ['ties', 'dare', 'dare-ties', 'prune'] as const) {
      const flags = ['--method', method, '--rank', '3', '--density', '0.5', '--seed', '4'];
      const made = await run(...flags, '--backend', 'reference', '--json');
      assert.is(made.code, 0, made.stderr);
      const [done] = events(made.stdout) as { type: string; rank: 1; alpha: 1; layers: [] }[];
      assert.equal([done?.type, done?.rank, done?.alpha], ['done', 3, 3]);
      assert.is(done?.layers.length, 4);
      const options = { method, rank: 3, density: 0.5, seed: 4 };
      assert.ok(apart(readAdapter(out), combine(parts, options).adapter) < 1e-4, method);
    }
  });
});

test('what is asked for in a wrong way ends with 2, what fails with 1; nothing is written', async () => {
  await withAdapters(async (dir) => {
    const [a, b, out] = ['a', 'b', 'out'].map((n) => join(dir, n)) as [string, string, string];
    const told = async (code: number, pattern: RegExp, ...argv: string[]) => {
      const ended = await inside('adapters', ...argv);
      assert.is(ended.code, code, `${argv.join(' ')}: ${ended.stderr}`);
      assert.match(ended.stderr, pattern);
      assert.is(existsSync(out), false);
    };
    await told(2, /adapters combine needs --out/, 'combine', a, b);
    await told(2, /missing required argument/, 'combine', '--out', out);
    await told(2, /Did you mean ties\?/, 'combine', a, b, '--out', out, '--method', 'tie');
    await told(1, /density\] expected 0 < density/, 'combine', a, '--out', out, '--method', 'dare');
    await told(1, /expected none for cat/, 'combine', a, '--out', out, '--rank', '2');
    await told(2, /needs one of --rank and --energy/, 'resize', a, '--out', out);
    await told(2, /unknown option '--rnak'.*--rank/, 'resize', a, '--out', out, '--rnak', '2');
    await told(2, /another place than/, 'resize', a, '--out', a, '--rank', '2', '--overwrite');
    await told(
      1,
      /resize rank\] expected at most 256/,
      'resize',
      a,
      '--out',
      out,
      '--rank',
      '1000000',
    );
    const svd = ['combine', a, b, '--out', out, '--method', 'svd', '--rank', '99999999'];
    await told(1, /combine rank\] expected at most 256 .*reaches every change/, ...svd);
    await told(1, /new or empty folder/, 'resize', a, '--out', b, '--rank', '2');
    await told(
      2,
      /for --from loralib only/,
      'convert',
      a,
      '--to',
      'mlx',
      '--out',
      out,
      '--alpha',
      '2',
    );
    await told(2, /unknown command 'combin'.*combine/, 'combin', a);
    assert.is((await inside('adapters')).code, 2);
    assert.equal(readdirSync(b).sort(), ['adapter_config.json', 'adapter_model.safetensors']);
  });
});

test('help of every command, with examples', async () => {
  for (const name of ['combine', 'resize', 'diff', 'convert']) {
    const { code, stdout } = await inside('adapters', name, '--help');
    assert.is(code, 0);
    assert.match(stdout, new RegExp(`Usage: lowrank adapters ${name} `));
    assert.match(stdout, new RegExp(`Examples:\n  \\$ lowrank adapters ${name} `));
  }
  assert.match((await inside('adapters', '--help')).stdout, /combine.*resize.*diff.*convert/s);
});

test('resize tells what is lost', async () => {
  await withAdapters(async (dir) => {
    const [a, out] = [join(dir, 'a'), join(dir, 'out')];
    const cut = await inside('adapters', 'resize', a, '--rank', '2', '--out', out);
    assert.is(cut.code, 0, cut.stderr);
    assert.match(cut.stdout, /rank 2 on 4 layers; \d+\.\d% of ‖ΔW‖² kept.*relative error 0\.\d+/);
    const energy = await inside(
      'adapters',
      'resize',
      a,
      '--energy',
      '0.9',
      '--out',
      out,
      '--json',
      '--overwrite',
    );
    const [done] = events(energy.stdout);
    const layers = done?.layers as { energy: number; error: number; from: number; to: number }[];
    assert.ok(layers.every((l) => l.energy >= 0.9 && l.from === 4 && l.to <= 4));
    for (const [path, m] of readAdapter(out).modules) {
      assert.ok(m.rank <= 4 && path in LAYERS);
    }
  });
});

test('diff: layers and settings', async () => {
  await withAdapters(async (dir) => {
    const [a, b] = [join(dir, 'a'), join(dir, 'b')];
    const same = await inside('adapters', 'diff', a, a);
    assert.match(same.stdout, /The same adapter\./);
    const other = await inside('adapters', 'diff', a, b);
    assert.is(other.code, 0);
    assert.match(other.stdout, /q_proj +4 \/ 2 .*lora_alpha: 8 \/ 6\nr: 4 \/ 2/s);
    const { stdout } = await inside('adapters', 'diff', a, b, '--json');
    const [json] = events(stdout) as { layers?: unknown[]; settings?: unknown[] }[];
    assert.is(json?.layers?.length, 4);
    assert.equal(json?.settings?.[0], { setting: 'lora_alpha', values: [8, 6] });
  });
});

test('convert: to mlx-lm and loralib and back; PiSSA to plain', async () => {
  await withAdapters(async (dir) => {
    const place = (n: string) => join(dir, n);
    const run = async (...argv: string[]) => {
      const ended = await inside('adapters', 'convert', ...argv);
      assert.is(ended.code, 0, ended.stderr);
      return ended.stdout;
    };
    assert.match(await run(place('a'), '--to', 'mlx', '--out', place('mlx')), /from peft to mlx/);
    await run(place('mlx'), '--to', 'loralib', '--out', place('lora.safetensors'));
    const back = await run(
      place('lora.safetensors'),
      '--to',
      'peft',
      '--out',
      place('c'),
      '--json',
    );
    assert.equal(events(back)[0], {
      ...{ type: 'done', out: place('c'), from: 'loralib', to: 'peft', layers: 4 },
    });
    const a = readAdapter(place('a'));
    assert.is(apart(readAdapter(place('c')), a), 0);
    const weights = (n: string) => readFileSync(join(place(n), 'adapter_model.safetensors'));
    assert.ok(weights('c').equals(weights('a')), 'the same bytes after three conversions');
    const pissa = { ...a, config: { ...a.config, init_lora_weights: 'pissa' } };
    writeAdapter(place('pissa'), pissa);
    const start = randomAdapter(9, 4, 8);
    writeAdapter(place('start'), start);
    const refused = await inside(
      'adapters',
      'convert',
      place('pissa'),
      '--to',
      'mlx',
      '--out',
      place('x'),
    );
    assert.is(refused.code, 1);
    assert.match(refused.stderr, /convert --initial/);
    await run(place('pissa'), '--initial', place('start'), '--to', 'peft', '--out', place('plain'));
    assert.ok(apart(readAdapter(place('plain')), plainFromMutated(pissa, start)) < 1e-12);
  });
});

test('convert: loralib’s fused layers and convolutions by option', async () => {
  await withAdapters(async (dir) => {
    const place = (n: string) => join(dir, n);
    const layer = (size: number, more: object) => ({
      ...{ kind: 'linear' as const, rank: 1, inFeatures: size, outFeatures: 4, scaling: 2 },
      ...{ a: new Float32Array(size).fill(0.5), b: Float32Array.of(3, 4, 0, 0), ...more },
    });
    const modules = new Map([
      ['c_attn', layer(2, {})],
      ['conv', layer(18, { convolution: [2, 3, 3] })],
    ]);
    const config = { peft_type: 'LORA', r: 1, lora_alpha: 2, target_modules: ['c_attn', 'conv'] };
    writeAdapter(place('own'), { config, modules, extras: new Map() });
    const run = async (code: number, ...argv: string[]) => {
      const ended = await inside('adapters', 'convert', ...argv, '--overwrite');
      assert.is(ended.code, code, ended.stderr);
      return ended.stderr;
    };
    const file = place('lora.safetensors');
    await run(0, place('own'), '--to', 'loralib', '--out', file, '--enabled', 'c_attn=q,-');
    const { tensors } = SafetensorsFile.open(file);
    assert.equal(tensors.get('c_attn.lora_B')?.shape, [2, 1]);
    assert.equal(tensors.get('conv.lora_A')?.shape, [3, 6]);
    await run(0, file, '--to', 'peft', '--out', place('back'));
    assert.equal(readAdapter(place('back')).modules, modules);
    const settings = ['--enabled', 'c_attn=q,-', '--kernels', 'conv=3', '--alpha', '2'];
    await run(0, file, '--to', 'peft', '--out', place('back'), ...settings);
    assert.equal(readAdapter(place('back')).modules, modules);
    const to = ['--to', 'loralib', '--out', place('x')];
    assert.match(await run(1, place('own'), ...to, '--enabled', '-,k'), /part 1 without a change/);
    assert.match(
      await run(2, place('own'), ...to, '--enabled', 'q'),
      /Expected the parts in order/,
    );
    assert.match(await run(2, place('own'), ...to, '--kernels', 'conv=3'), /--from loralib only/);
    const mlx = ['--to', 'mlx', '--out', place('x')];
    assert.match(await run(2, place('a'), ...mlx, '--enabled', 'q,-'), /or --to loralib only/);
    assert.match(
      await run(2, place('own'), ...to, '--enabled', 'q,-', '--enabled', 'a=q,-'),
      /Expected parts once/,
    );
  });
});

test.run();
