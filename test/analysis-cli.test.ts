import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { writeAdapter } from '../src/lora/algebra/index.js';
import { randomAdapter } from './support/adapters.js';
import { events, inside } from './support/cli.js';
import { writeTinyModel } from './support/model-dir.js';
import { withFolder } from './support/temp.js';

/** Layers of the tiny model: [out, in]. */
const TINY_LAYERS = {
  'model.layers.0.self_attn.q_proj': [16, 16],
  'model.layers.0.mlp.down_proj': [16, 24],
} as const;

function withFiles(body: (dir: string) => Promise<void>): Promise<void> {
  return withFolder((dir) => {
    writeTinyModel(join(dir, 'model'));
    writeAdapter(join(dir, 'a'), randomAdapter(1, 2, 4, TINY_LAYERS));
    writeAdapter(join(dir, 'b'), randomAdapter(2, 5, 10, TINY_LAYERS));
    return body(dir);
  });
}

test('analyze: a table of one adapter, of two, and beside the base', async () => {
  await withFiles(async (dir) => {
    const [a, b, model] = ['a', 'b', 'model'].map((n) => join(dir, n)) as [string, string, string];
    const one = await inside('analyze', a);
    assert.is(one.code, 0, one.stderr);
    const lines = one.stdout.trimEnd().split('\n');
    assert.is(lines.length, 3);
    assert.match(lines[0] as string, /^layer +rank +‖ΔW‖ +s₁ +effective +stable +90% +99%$/);
    const two = await inside('analyze', a, b, '--model', model, '--backend', 'reference');
    assert.is(two.code, 0, two.stderr);
    assert.match(two.stdout, /99% +φ +random +‖UᵀWV‖ +random +amplified\n/);
    // max(2, 5) / 16 of the inputs of q_proj.
    assert.match(two.stdout, /q_proj .* 0\.313 /);
  });
});

test('analyze --json: an object a layer, and the end', async () => {
  await withFiles(async (dir) => {
    const [a, b] = [join(dir, 'a'), join(dir, 'b')];
    const { stdout } = await inside('analyze', a, b, '--space', 'left', '--json');
    const [first, second, done] = events(stdout);
    assert.equal([first?.type, second?.type, done?.type], ['layer', 'layer', 'done']);
    const { spectrum, similarity, path } = first as {
      path: string;
      spectrum: { singularValues: number[]; effectiveRank: number };
      similarity: { phi: number[][]; dimensions: number };
    };
    assert.is(path, 'model.layers.0.mlp.down_proj');
    assert.is(spectrum.singularValues.length, 2);
    assert.ok(spectrum.effectiveRank > 1 && spectrum.effectiveRank <= 2);
    assert.equal(
      [similarity.phi.length, similarity.phi[0]?.length, similarity.dimensions],
      [2, 5, 16],
    );
  });
});

test('analyze --out: a page that stands alone', async () => {
  await withFiles(async (dir) => {
    const [a, b, out] = ['a', 'b', 'page.html'].map((n) => join(dir, n)) as [
      string,
      string,
      string,
    ];
    const ended = await inside('analyze', a, b, '--model', join(dir, 'model'), '--out', out);
    assert.is(ended.code, 0, ended.stderr);
    const page = readFileSync(out, 'utf8');
    for (const part of ['Singular values', 'Similarity', 'Amplification', 'Layer by layer']) {
      assert.match(page, new RegExp(`<h2>${part}`));
    }
    assert.match(page, /<title>i 2, j 5: φ 0\.\d{3}<\/title>/);
    assert.not.match(page, /NaN|undefined|(src|href)=|https?:\/\//);
    for (const tag of ['svg', 'figure', 'div', 'table', 'p']) {
      const count = (pattern: string) => page.match(new RegExp(pattern, 'g'))?.length ?? 0;
      assert.is(count(`<${tag}[ >]`), count(`</${tag}>`), tag);
    }
    const alone = await inside('analyze', a, '--out', out);
    assert.is(alone.code, 0, alone.stderr);
    assert.not.match(readFileSync(out, 'utf8'), /Similarity|Amplification/);
  });
});

test('analyze --out x.svg: the plots as one picture that stands alone', async () => {
  await withFiles(async (dir) => {
    const [a, b, out] = ['a', 'b', 'plots.svg'].map((n) => join(dir, n)) as [
      string,
      string,
      string,
    ];
    const ended = await inside('analyze', a, b, '--model', join(dir, 'model'), '--out', out);
    assert.is(ended.code, 0, ended.stderr);
    const picture = readFileSync(out, 'utf8');
    assert.match(
      picture,
      /^<\?xml version="1\.0" encoding="UTF-8"\?>\n<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg"/,
    );
    for (const part of ['Singular values of ΔW', 'Similarity', 'Amplification']) {
      assert.match(picture, new RegExp(`<text class="heading"[^>]*>${part}`));
    }
    assert.match(picture, /<title>i 2, j 5: φ 0\.\d{3}<\/title>/);
    assert.match(picture, />model\.layers\.0\.self_attn\.q_proj: φ</);
    assert.not.match(picture, /NaN|undefined|var\(|<(html|figure|div)|href=/);
    // Well formed: every element is closed in the order of opening.
    const open: string[] = [];
    for (const [, end, tag, own] of picture.matchAll(/<(\/?)([a-z]+)[^>]*?(\/?)>/g)) {
      if (end) assert.is(open.pop(), tag);
      else if (!own) open.push(tag as string);
    }
    assert.equal(open, []);
  });
});

test('analyze: what does not fit is told', async () => {
  await withFiles(async (dir) => {
    const told = async (code: number, pattern: RegExp, ...argv: string[]) => {
      const ended = await inside('analyze', ...argv);
      assert.is(ended.code, code, ended.stderr);
      assert.match(ended.stderr, pattern);
    };
    const [a, model] = [join(dir, 'a'), join(dir, 'model')];
    writeAdapter(join(dir, 'other'), randomAdapter(1, 2, 4, { 'x.y': [3, 4] }));
    await told(1, /same layers/, a, join(dir, 'other'));
    await told(
      1,
      /--model .*\] expected layers of the adapter/,
      join(dir, 'other'),
      '--model',
      model,
    );
    await told(2, /missing required argument/);
    await told(2, /one of A, right, left/, a, '--space', 'up');
    await told(2, /ends in \.html or \.svg/, a, '--out', join(dir, 'page.png'));
    const dora = randomAdapter(1, 2, 4, TINY_LAYERS);
    writeAdapter(join(dir, 'dora'), { ...dora, config: { ...dora.config, use_dora: true } });
    await told(0, /DoRA: what is shown is B A/, join(dir, 'dora'));
    assert.is(existsSync(join(dir, 'page.html')), false);
  });
});

test.run();
