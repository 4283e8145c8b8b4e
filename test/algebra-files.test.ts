import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { writeJsonAtomic } from '../src/io/files.js';
import { SafetensorsFile, writeSafetensors } from '../src/io/safetensors.js';
import {
  type Adapter,
  combine,
  layoutOf,
  readAdapter,
  readAnyAdapter,
  readLoralib,
  readMlx,
  resize,
  scaleAdapter,
  writeAdapter,
  writeLoralib,
  writeMlx,
} from '../src/lora/algebra/index.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { reference } from './backends.js';
import { apart, deltaOf, forPairs, LAYERS, randomAdapter, relative } from './support/adapters.js';
import { withFolder } from './support/temp.js';
import { skipUnless } from './support.js';

const GOLDEN = '../shared/golden';

function random(shape: readonly number[], seed: number): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  const values = Float32Array.from(normal({ seed, stream: 9 }, size));
  return tensor(values, shape, { backend: reference });
}

function read(dir: string, file: string): Record<string, unknown> {
  return JSON.parse(readFileSync(join(dir, file), 'utf8')) as Record<string, unknown>;
}

/** Modules in the order of their paths. */
const sorted = (a: Adapter) => [...a.modules].sort(([x], [y]) => (x < y ? -1 : 1));

test('PEFT’s layout: written and read, every bit', () => {
  forPairs(10, (a) => {
    withFolder((dir) => {
      writeAdapter(dir, a);
      const back = readAdapter(dir);
      assert.equal(back.config, { ...a.config, inference_mode: true });
      for (const [path, m] of a.modules) assert.equal(back.modules.get(path), m);
    });
  });
});

test('ranks and scalings by layer, rsLoRA, convolutions, embeddings and whole modules', () => {
  withFolder((dir) => {
    const tensors = new Map([
      ['base_model.model.m.conv.lora_A.weight', random([2, 3, 5, 5], 1)],
      ['base_model.model.m.conv.lora_B.weight', random([7, 2, 1, 1], 2)],
      ['base_model.model.m.embed.lora_embedding_A', random([3, 11], 3)],
      ['base_model.model.m.embed.lora_embedding_B', random([4, 3], 4)],
      ['base_model.model.score.weight', random([2, 4], 5)],
    ]);
    writeSafetensors(join(dir, 'adapter_model.safetensors'), tensors);
    writeJsonAtomic(join(dir, 'adapter_config.json'), {
      ...{ peft_type: 'LORA', r: 2, lora_alpha: 6, use_rslora: true },
      ...{ rank_pattern: { embed: 3 }, alpha_pattern: { '^m.embed': 1, 'e.*': 9 } },
    });
    const adapter = readAdapter(dir);
    const conv = adapter.modules.get('m.conv');
    assert.equal([conv?.inFeatures, conv?.convolution, conv?.rank], [75, [3, 5, 5], 2]);
    assert.is(conv?.scaling, 6 / Math.sqrt(2));
    const embed = adapter.modules.get('m.embed');
    assert.equal([embed?.kind, embed?.rank, embed?.scaling], ['embedding', 3, 1 / Math.sqrt(3)]);
    assert.equal([...adapter.extras.keys()], ['score.weight']);
    const again = join(dir, 'again');
    writeAdapter(again, adapter);
    const names = (d: string) => [
      ...SafetensorsFile.open(join(d, 'adapter_model.safetensors')).tensors.keys(),
    ];
    assert.equal(names(again), names(dir));
    // Patterns of its own: both layers keep their ranks and get scaling 1.
    const twice = { ...scaleAdapter({ ...adapter, extras: new Map() }, 2), extras: adapter.extras };
    const doubled = resize(twice, { energy: 1 }).adapter;
    writeAdapter(again, doubled);
    assert.equal(read(again, 'adapter_config.json').use_rslora, false);
    const back = readAdapter(again);
    for (const [path, m] of back.modules) {
      assert.is(m.scaling, 1);
      assert.ok(relative(deltaOf(back, path), deltaOf(twice, path)) < 1e-6);
    }
  });
});

test('a file that does not fit its settings is refused by name', () => {
  withFolder((dir) => {
    const a = randomAdapter(1, 2, 4);
    writeAdapter(dir, { ...a, config: { ...a.config, r: 3 } });
    assert.throws(() => readAdapter(dir), /down_proj\] expected A \[3, in\] and B \[out, 3\]/);
    const lone = new Map([['base_model.model.x.lora_A.weight', random([2, 3], 1)]]);
    writeSafetensors(join(dir, 'adapter_model.safetensors'), lone);
    assert.throws(() => readAdapter(dir), /, x\] expected both A and B/);
    writeSafetensors(join(dir, 'adapter_model.safetensors'), new Map([['y', random([2], 1)]]));
    assert.throws(() => readAdapter(dir), /expected names that begin with base_model.model./);
    assert.throws(() => readAdapter(join(dir, 'none')), /\[adapter/);
    assert.throws(() => layoutOf(join(dir, 'none')), /adapter_model.safetensors.*nothing/);
  });
});

test('mlx-lm’s layout, both ways: lora_a [in, r], lora_b [r, out], one scale', () => {
  forPairs(10, (a) => {
    withFolder((dir) => {
      writeMlx(dir, a);
      assert.is(layoutOf(dir), 'mlx');
      const json = read(dir, 'adapter_config.json');
      const { rank, scale, keys } = json.lora_parameters as Record<string, unknown>;
      assert.equal([rank, scale], [a.config.r, Number(a.config.lora_alpha) / Number(rank)]);
      assert.equal(keys, ['self_attn.q_proj', 'mlp.down_proj'], 'within a block');
      const file = SafetensorsFile.open(join(dir, 'adapters.safetensors'));
      const path = 'model.layers.0.self_attn.q_proj';
      assert.equal(file.entry(`${path}.lora_a`).shape, [10, rank]);
      assert.equal(file.entry(`${path}.lora_b`).shape, [rank, 12]);
      const back = readAnyAdapter(dir);
      assert.equal(sorted(back), sorted(a));
      assert.equal(back.config.target_modules, ['down_proj', 'q_proj']);
      assert.equal(back.config.layers_to_transform, null);
    });
  });
});

test('mlx-lm: different ranks and scalings become one; DoRA’s m is the magnitude', () => {
  withFolder((dir) => {
    const a = randomAdapter(1, 4, 8);
    const [first, ...others] = [...a.modules];
    if (!first) throw new Error('no layer');
    const wide = randomAdapter(2, 6, 3).modules.get(first[0]);
    const magnitude = { dtype: 'F32', shape: [12], bytes: new Uint8Array(48).fill(1) };
    const mixed = {
      config: { ...a.config, use_dora: true },
      modules: new Map([[first[0], wide as (typeof first)[1]], ...others]),
      extras: new Map([[`${first[0]}.lora_magnitude_vector`, magnitude]]),
    };
    writeMlx(dir, mixed);
    assert.is(read(dir, 'adapter_config.json').fine_tune_type, 'dora');
    const back = readMlx(dir);
    assert.is(back.config.r, 6);
    assert.is(back.config.use_dora, true);
    assert.ok(apart(back, mixed) < 1e-6);
    assert.equal(back.extras, mixed.extras);
  });
});

test('the hash of the base is kept, and different ones are told of', () => {
  withFolder((dir) => {
    const [first, second, none] = [1, 2, 3].map((seed) => randomAdapter(seed, 2, 4)) as [
      Adapter,
      Adapter,
      Adapter,
    ];
    const [a, b] = [
      { ...first, base: 'sha256:01' },
      { ...second, base: 'sha256:02' },
    ];
    writeAdapter(dir, a);
    assert.is(readAdapter(dir).base, 'sha256:01');
    writeAdapter(dir, none);
    assert.is(readAdapter(dir).base, undefined);
    assert.is(resize(a, { rank: 1 }).adapter.base, 'sha256:01');
    assert.is(scaleAdapter(a, 3).base, 'sha256:01');
    const lines: string[] = [];
    const { error } = console;
    console.error = (line: string) => void lines.push(line);
    try {
      const sum = (...adapters: Adapter[]) =>
        combine(adapters.map((adapter) => ({ adapter, weight: 1 }))).adapter.base;
      assert.is(sum(a, none), 'sha256:01');
      // The hash of one that holds weights whole leaves them out: it is another one.
      const t = { dtype: 'F32', shape: [1], bytes: new Uint8Array(4) };
      assert.is(sum(a, { ...b, extras: new Map([['score.weight', t]]) }), 'sha256:02');
      assert.equal(lines, []);
      assert.is(sum(a, b), undefined);
      assert.match(lines.join('\n'), /WARNING: .*different bases[\s\S]*sha256:01 and sha256:02/);
    } finally {
      console.error = error;
    }
  });
});

test('mlx-lm: modules saved whole go along; what mlx-lm would pass over is refused', () => {
  withFolder((dir) => {
    const a = randomAdapter(1, 2, 4);
    const t = { dtype: 'F32', shape: [3], bytes: new Uint8Array(12).fill(7) };
    const whole = { ...a, extras: new Map([['model.norm.weight', t]]) };
    writeMlx(dir, whole);
    const back = readMlx(dir);
    assert.equal(back.extras, whole.extras);
    assert.equal(back.config.modules_to_save, ['model.norm']);
    writeMlx(dir, a);
    assert.is(readMlx(dir).config.modules_to_save, null);
    for (const name of [
      'model.embed_tokens.token_adapter.trainable_tokens_delta',
      'model.layers.0.self_attn.q_proj.base_layer.bias',
      'model.layers.0.self_attn.q_proj.lora_B.bias',
    ]) {
      const odd = { ...a, extras: new Map([[name, t]]) };
      assert.throws(() => writeMlx(dir, odd), new RegExp(`convert to mlx.*${name}`));
    }
  });
});

test('mlx-lm: only some layers, and what is no LoRA', () => {
  withFolder((dir) => {
    const some = Object.fromEntries(
      [6, 7].map((i) => [`model.layers.${i}.self_attn.v_proj`, [4, 6] as const]),
    );
    writeMlx(dir, randomAdapter(1, 2, 4, some));
    const { config } = readMlx(dir);
    assert.equal([config.target_modules, config.layers_to_transform], [['v_proj'], [6, 7]]);
    writeJsonAtomic(join(dir, 'adapter_config.json'), { fine_tune_type: 'full', num_layers: 2 });
    assert.throws(() => readMlx(dir), /fine_tune_type lora or dora/);
  });
});

test('loralib’s names, both ways', () => {
  forPairs(10, (a, b) => {
    withFolder((dir) => {
      const file = join(dir, 'lora.safetensors');
      writeLoralib(file, a);
      assert.is(layoutOf(file), 'loralib');
      assert.equal(sorted(readLoralib(file)), sorted(a));
      const mixed = combine([
        { adapter: a, weight: 1 },
        { adapter: b, weight: 0.3 },
      ]).adapter;
      writeLoralib(file, mixed);
      assert.ok(apart(readLoralib(file), mixed) < 1e-6);
    });
  });
});

test('loralib’s MergedLinear: q and v of a fused q,k,v', () => {
  withFolder((dir) => {
    const file = join(dir, 'lora.safetensors');
    const [rank, inner, part] = [3, 8, 5];
    const a = random([2 * rank, inner], 1);
    const b = random([2 * part, rank], 2);
    const layer = 'transformer.h.0.attn.c_attn';
    const tensors = new Map([
      [`${layer}.lora_A`, a],
      [`${layer}.lora_B`, b],
    ]);
    writeSafetensors(file, tensors);
    assert.throws(() => readLoralib(file), /expected a lora_alpha.*--alpha/);
    assert.throws(() => readLoralib(file, { alpha: 6 }), /2 enabled parts.*--enabled/);
    const enabled = [true, false, true];
    const m = readLoralib(file, { alpha: 6, enabled }).modules.get(layer);
    assert.equal([m?.rank, m?.outFeatures, m?.scaling], [6, 15, 2]);
    const delta = deltaOf(readLoralib(file, { alpha: 6, enabled }), layer);
    const [av, bv] = [a.toNumbers(), b.toNumbers()];
    for (let o = 0; o < 15; o++) {
      for (let i = 0; i < inner; i++) {
        // Part 0 meets the first r rows of A, part 2 the last; part 1 has none.
        const group = [0, -1, 1][Math.floor(o / part)] as number;
        let wanted = 0;
        for (let k = 0; group >= 0 && k < rank; k++) {
          const row = group * part + (o % part);
          wanted +=
            2 * (bv[row * rank + k] as number) * (av[(group * rank + k) * inner + i] as number);
        }
        assert.ok(Math.abs(delta.at(o, i) - wanted) < 1e-5);
      }
    }
    writeSafetensors(file, new Map([...tensors, ['transformer.wte.weight', random([2, 2], 3)]]));
    assert.throws(() => readLoralib(file, { alpha: 6, enabled }), /wte\.weight.*--drop-others/);
    const kept = readLoralib(file, { alpha: 6, enabled, dropOthers: true });
    assert.is(kept.modules.size, 1);
  });
});

const onGolden = skipUnless(test, existsSync(GOLDEN), 'the shared golden cases are not here');
onGolden('golden PEFT adapters: read and written again, the same bytes of weights', () => {
  for (const name of ['llama-all-linear', 'gpt2-c_attn', 'roberta-cls', 'llama-dora']) {
    withFolder((dir) => {
      const from = join(GOLDEN, name, 'adapter');
      const adapter = readAdapter(from);
      writeAdapter(dir, adapter);
      const [x, y] = [from, dir].map((d) => readFileSync(join(d, 'adapter_model.safetensors')));
      assert.ok((x as Buffer).equals(y as Buffer), name);
      assert.equal(read(dir, 'adapter_config.json'), read(from, 'adapter_config.json'));
    });
  }
});

test('layers named short where the adapters agree, by path where they do not', () => {
  const a = randomAdapter(1, 2, 4);
  const { adapter } = combine([
    { adapter: a, weight: 1 },
    { adapter: randomAdapter(2, 2, 4), weight: 1 },
  ]);
  assert.equal(adapter.config.target_modules, ['q_proj', 'down_proj']);
  const few = randomAdapter(3, 2, 4, { 'model.layers.0.mlp.up_proj': [17, 10] });
  const union = combine([
    { adapter: a, weight: 1 },
    { adapter: few, weight: 1 },
  ]).adapter;
  assert.equal(union.config.target_modules, [...Object.keys(LAYERS), 'model.layers.0.mlp.up_proj']);
});

test.run();
