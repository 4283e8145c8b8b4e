/** loralib's MergedLinear and Conv2d, both ways, against its own formulas. */
import { join } from 'node:path';
import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { SafetensorsFile, writeSafetensors } from '../src/io/safetensors.js';
import {
  type Adapter,
  type AdapterModule,
  readAdapter,
  readLoralib,
  writeAdapter,
  writeLoralib,
} from '../src/lora/algebra/index.js';
import { LoraAdapters, saveAdapter } from '../src/lora/index.js';
import { buildCausalLM } from '../src/models/load.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { reference } from './backends.js';
import { withFolder } from './support/temp.js';
import { randomize, TINY, tinySource } from './support/tiny.js';

const random = (size: number, seed: number) =>
  Float32Array.from(normal({ seed, stream: 3 }, size), (z) => Math.fround(z));

/** ΔW of a module, row-major [out, in]. */
function deltaOf({ a, b, rank, inFeatures, outFeatures, scaling }: AdapterModule): number[] {
  return Array.from({ length: outFeatures * inFeatures }, (_, i) => {
    const [o, c] = [Math.floor(i / inFeatures), i % inFeatures];
    let sum = 0;
    for (let k = 0; k < rank; k++) {
      sum += (b[o * rank + k] as number) * (a[k * inFeatures + c] as number);
    }
    return scaling * sum;
  });
}

/** What loralib adds to the weight of a MergedLinear: a grouped product, zeros where a part is off. */
function mergedLinear(
  { a, b }: { a: Float32Array; b: Float32Array },
  r: number,
  inner: number,
  on: readonly boolean[],
  alpha: number,
): number[] {
  const groups = on.filter(Boolean).length;
  const size = b.length / r / groups;
  return on.flatMap((part, p) => {
    const g = on.slice(0, p).filter(Boolean).length;
    return Array.from({ length: size * inner }, (_, i) => {
      if (!part) return 0;
      const [row, c] = [g * size + Math.floor(i / inner), i % inner];
      let sum = 0;
      for (let k = 0; k < r; k++) {
        sum += (b[row * r + k] as number) * (a[(g * r + k) * inner + c] as number);
      }
      return (alpha / r) * sum;
    });
  });
}

/** What it adds to that of a Conv2d: (lora_B @ lora_A).view(weight.shape) * scaling. */
function conv2d({ a, b }: { a: Float32Array; b: Float32Array }, width: number, scaling: number) {
  const piece = a.length / width;
  return Array.from({ length: (b.length / width) * piece }, (_, i) => {
    const [row, c] = [Math.floor(i / piece), i % piece];
    let sum = 0;
    for (let k = 0; k < width; k++) {
      sum += (b[row * width + k] as number) * (a[k * piece + c] as number);
    }
    return scaling * sum;
  });
}

function close(got: readonly number[], wanted: readonly number[]): void {
  assert.is(got.length, wanted.length);
  got.forEach((v, i) => {
    const w = wanted[i] as number;
    assert.ok(Math.abs(v - w) <= 1e-5 * (1 + Math.abs(w)), `${i}: ${v} ${w}`);
  });
}

const adapterOf = (modules: Record<string, AdapterModule>): Adapter => ({
  config: { peft_type: 'LORA', r: 1, lora_alpha: 1, target_modules: Object.keys(modules) },
  modules: new Map(Object.entries(modules)),
  extras: new Map(),
});

/** The tensors of a layer in a file of loralib's. */
function layerIn(path: string, layer: string) {
  const file = SafetensorsFile.open(path);
  const read = (end: string) => new Float32Array(file.bytes(`${layer}.${end}`).slice().buffer);
  const shape = (end: string) => file.entry(`${layer}.${end}`).shape;
  return {
    ...{ a: read('lora_A'), b: read('lora_B'), metadata: file.metadata },
    shapes: [shape('lora_A'), shape('lora_B')],
  };
}

const parts = fc
  .array(fc.boolean(), { minLength: 2, maxLength: 4 })
  .filter((on) => on.some(Boolean));

test('MergedLinear: written from any ΔW of its parts, and from its own blocks with their rank', () => {
  const shapes = fc.record({
    on: parts,
    rank: fc.integer({ min: 1, max: 4 }),
    inner: fc.integer({ min: 1, max: 6 }),
    size: fc.integer({ min: 1, max: 4 }),
    alpha: fc.integer({ min: 1, max: 20 }),
    seed: fc.integer({ min: 0, max: 2 ** 30 }),
  });
  fc.assert(
    fc.property(shapes, ({ on, rank, inner, size, alpha, seed }) => {
      withFolder((dir) => {
        const file = join(dir, 'lora.safetensors');
        const b = random(on.length * size * rank, seed);
        on.forEach((part, p) => {
          if (!part) b.fill(0, p * size * rank, (p + 1) * size * rank);
        });
        const any: AdapterModule = {
          ...{ kind: 'linear', a: random(rank * inner, seed + 1), b, rank },
          ...{ inFeatures: inner, outFeatures: on.length * size, scaling: alpha / rank },
        };
        writeLoralib(file, adapterOf({ 'h.0.c_attn': any }), on);
        const first = layerIn(file, 'h.0.c_attn');
        const groups = on.filter(Boolean).length;
        const r = first.shapes[1]?.[1] as number;
        assert.equal(first.shapes, [
          [groups * r, inner],
          [groups * size, r],
        ]);
        const noted = Number(first.metadata.get('lora_alpha'));
        close(mergedLinear(first, r, inner, on, noted), deltaOf(any));
        // Read, it is one layer; written again it has its own rank and its own numbers.
        const back = readLoralib(file);
        close(deltaOf(back.modules.get('h.0.c_attn') as AdapterModule), deltaOf(any));
        assert.equal(back.parts, new Map([['h.0.c_attn', on]]));
        writeLoralib(file, back);
        const second = layerIn(file, 'h.0.c_attn');
        assert.equal([second.shapes, second.a, second.b], [first.shapes, first.a, first.b]);
      });
    }),
    { numRuns: 40 },
  );
});

test('MergedLinear: by hand', () => {
  withFolder((dir) => {
    const file = join(dir, 'lora.safetensors');
    const m: AdapterModule = {
      ...{ kind: 'linear', rank: 2, inFeatures: 2, outFeatures: 3, scaling: 3 },
      // q takes the first row of A, v the second; k has none.
      ...{ a: Float32Array.of(1, 2, 3, 4), b: Float32Array.of(5, 0, 0, 0, 0, 6) },
    };
    writeLoralib(file, adapterOf({ c_attn: m }), { c_attn: [true, false, true] });
    const { a, b, shapes, metadata } = layerIn(file, 'c_attn');
    assert.equal(
      [[...a], [...b]],
      [
        [1, 2, 3, 4],
        [5, 6],
      ],
    );
    assert.equal(shapes, [
      [2, 2],
      [2, 1],
    ]);
    assert.is(metadata.get('lora_alpha'), '3');
    assert.is(metadata.get('enable_lora'), '{"c_attn":[true,false,true]}');
    // Every part takes all of A where B is no blocks.
    const full = { ...m, b: Float32Array.of(5, 7, 0, 0, 0, 6) };
    writeLoralib(file, adapterOf({ c_attn: full }), [true, false, true]);
    const wide = layerIn(file, 'c_attn');
    assert.equal([...wide.a], [1, 2, 3, 4, 1, 2, 3, 4]);
    assert.equal([...wide.b], [5, 7, 0, 6]);
    const write = (on: boolean[]) => () => writeLoralib(file, adapterOf({ c_attn: full }), on);
    assert.throws(write([false, true, true]), /part 1 without a change, received 5 in B/);
    assert.throws(write([true, true]), /2 equal parts, one of them on, received 3 outputs/);
    const stray = () => writeLoralib(file, adapterOf({ c_attn: full }), { c_atn: [true, true] });
    assert.throws(stray, /loralib enabled.*"c_atn".*Nearest: c_attn/);
  });
});

test('an adapter trained on parts is written as MergedLinear, others beside it as Linear', () => {
  const config = { model_type: 'gpt2', n_embd: 6, n_layer: 1, n_head: 2, vocab_size: 13 };
  using model = buildCausalLM({ ...config, n_positions: 16 }, tinySource(TINY, reference));
  using adapters = new LoraAdapters(model);
  const enableLora = { c_attn: [true, false, true] };
  adapters.add('a', { targetModules: ['attention'], rank: 2, alpha: 6, enableLora }, 1);
  randomize(adapters, 'a', 5);
  withFolder((dir) => {
    const file = join(dir, 'lora.safetensors');
    saveAdapter(adapters, 'a', join(dir, 'peft'));
    const own = readAdapter(join(dir, 'peft'));
    writeLoralib(file, own);
    const path = 'transformer.h.0.attn.c_attn';
    const { shapes, ...sides } = layerIn(file, path);
    assert.equal(shapes, [
      [4, 6],
      [12, 2],
    ]);
    const trained = [...adapters.tensors('a')].filter(([key]) => key.includes('c_attn'));
    assert.equal(
      trained.map(([, t]) => t.toNumbers()),
      [[...sides.a], [...sides.b]],
    );
    assert.equal(layerIn(file, 'transformer.h.0.attn.c_proj').shapes, [
      [2, 6],
      [6, 2],
    ]);
    const back = readLoralib(file);
    for (const [layer, m] of own.modules) {
      close(deltaOf(back.modules.get(layer) as AdapterModule), deltaOf(m));
    }
    // The settings of a file by others, by name or for all fused layers.
    const plain = join(dir, 'plain.safetensors');
    const { tensors } = SafetensorsFile.open(file);
    const bare = SafetensorsFile.open(file);
    writeSafetensors(plain, new Map([...tensors.keys()].map((k) => [k, bare.load(k, {})])));
    for (const enabled of [{ c_attn: [true, false, true] }, [true, false, true]]) {
      assert.equal(readLoralib(plain, { alpha: 6, enabled }).modules, back.modules);
    }
    const wrong = { c_attn: [true, true, true] };
    assert.throws(
      () => readLoralib(plain, { alpha: 6, enabled: wrong }),
      /2 enabled parts.*on, on/,
    );
    assert.throws(() => readLoralib(plain, { alpha: 6 }), /2 enabled parts.*none named/);
    writeLoralib(plain, adapterOf({ a: own.modules.get('transformer.h.0.attn.c_proj') as never }));
    assert.throws(() => readLoralib(plain, { enabled: [true, false, true] }), /plain ones only/);
  });
});

test('Conv2d: loralib’s formula on what is written, and the same ΔW of what is read', () => {
  const sizes = fc.record({
    k: fc.integer({ min: 1, max: 3 }),
    rank: fc.integer({ min: 1, max: 3 }),
    inner: fc.integer({ min: 1, max: 4 }),
    out: fc.integer({ min: 1, max: 4 }),
    alpha: fc.integer({ min: 1, max: 20 }),
    seed: fc.integer({ min: 0, max: 2 ** 30 }),
  });
  fc.assert(
    fc.property(sizes, ({ k, rank, inner, out, alpha, seed }) => {
      withFolder((dir) => {
        const file = join(dir, 'lora.safetensors');
        const m: AdapterModule = {
          ...{ kind: 'linear', rank, inFeatures: inner * k * k, outFeatures: out },
          ...{ a: random(rank * inner * k * k, seed), b: random(out * rank, seed + 1) },
          ...{ scaling: alpha / rank, convolution: [inner, k, k] },
        };
        writeLoralib(file, adapterOf({ conv: m }));
        const written = layerIn(file, 'conv');
        assert.equal(written.shapes, [
          [rank * k, inner * k],
          [out * k, rank * k],
        ]);
        const noted = Number(written.metadata.get('lora_alpha'));
        close(conv2d(written, rank * k, noted / rank), deltaOf(m));
        // Its own file comes back as it was, of the same rank.
        const back = readLoralib(file).modules.get('conv') as AdapterModule;
        assert.equal([back.a, back.b, back.rank], [m.a, m.b, rank]);
        assert.equal(back.convolution, [inner, k, k]);
        // A file that loralib trained has any lora_B.
        const theirs = {
          a: random(rank * k * inner * k, seed + 2),
          b: random(out * k * rank * k, seed + 3),
        };
        const entry = (values: Float32Array, rows: number) =>
          tensor(values, [rows, values.length / rows], { backend: reference });
        const tensors = new Map([
          ['conv.lora_A', entry(theirs.a, rank * k)],
          ['conv.lora_B', entry(theirs.b, out * k)],
        ]);
        writeSafetensors(file, tensors);
        const adapter = readLoralib(file, { alpha, kernels: { conv: k } });
        const read = adapter.modules.get('conv') as AdapterModule;
        close(deltaOf(read), conv2d(theirs, rank * k, alpha / rank));
        // PEFT's layout holds it, and gives it back.
        writeAdapter(join(dir, 'peft'), adapter);
        assert.equal(readAdapter(join(dir, 'peft')).modules.get('conv'), read);
      });
    }),
    { numRuns: 40 },
  );
});

test('Conv2d: what does not fit is an error', () => {
  withFolder((dir) => {
    const file = join(dir, 'lora.safetensors');
    const conv = (convolution: number[]): AdapterModule => {
      const size = convolution.reduce((x, y) => x * y);
      return {
        ...{ kind: 'linear', rank: 1, inFeatures: size, outFeatures: 2, scaling: 1, convolution },
        ...{ a: random(size, 1), b: random(2, 2) },
      };
    };
    const write = (m: AdapterModule) => () => writeLoralib(file, adapterOf({ conv: m }));
    assert.throws(write(conv([2, 3, 2])), /square kernels over two dimensions.*conv.*3 × 2/);
    assert.throws(write(conv([2, 3])), /square kernels over two dimensions.*a kernel of 3/);
    const enabled = () =>
      writeLoralib(file, adapterOf({ conv: conv([2, 3, 3]) }), { conv: [true] });
    assert.throws(enabled, /enabled\] expected dense layers, received conv/);
    write(conv([2, 3, 3]))();
    const read = (kernels: Record<string, number>) => () => readLoralib(file, { kernels });
    assert.throws(
      read({ conv: 2 }),
      /lora_A \[r·2, in·2\].*of a Conv2d, received \[3, 6\] and \[6, 3\]/,
    );
    assert.throws(read({ conv: 3, head: 3 }), /loralib kernels.*"head"/);
  });
});

test.run();
