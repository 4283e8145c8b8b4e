// Layers with their activation in one call: the bits of the calls one by one, whichever way the
// product takes.
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope, setTrainable } from '../src/autograd/index.js';
import { LoraLinear } from '../src/lora/layer.js';
import { activatedLayer, gatedLayers, Linear } from '../src/nn/index.js';
import {
  type Activation,
  activatedLinear,
  activationOf,
  cast,
  gatedLinear,
  linear,
  mul,
  relu,
  sum,
  swiglu,
} from '../src/ops/index.js';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import type { ActivationDType, DType } from '../src/tensor/dtype.js';
import { normal } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { native, onEachBackend, onNative } from './backends.js';
import { cudaShim } from './cuda.js';
import { skipUnless } from './support.js';

const ACTIVATIONS: readonly Activation[] = ['relu', 'silu', 'gelu', 'geluTanh'];

/** Rows, outputs, inputs. */
type Size = readonly [number, number, number];

/** Odd sizes, few rows, few columns, several blocks of K. */
const SMALL: readonly Size[] = [
  [1, 1, 1],
  [1, 35, 17],
  [3, 33, 40],
  [9, 64, 65],
  [40, 24, 48],
  [70, 70, 50],
];
/** Ways that the processor's products take only where there is more to do. */
const LARGE: readonly Size[] = [
  [2, 1100, 800],
  [16, 1030, 770],
  [50, 300, 900],
  [700, 40, 1000],
  [300, 77, 1601],
  [130, 515, 1700],
  [900, 530, 800],
];

function maker(backend: Backend) {
  return (shape: Shape, stream: number, dtype: DType = 'f32') =>
    tensor(normal({ seed: 8, stream }, numel(shape)), shape, { backend, dtype });
}

interface Layer {
  readonly x: Tensor;
  readonly w: Tensor;
  readonly v: Tensor;
  readonly b: Tensor | null;
  readonly transposed: boolean;
  /** What results are stored in. */
  readonly stored: ActivationDType;
}

const biased = ([, n]: Size) => n % 2 === 1;
const turned = ([, , k]: Size) => k % 2 === 1;

function layerOf(backend: Backend, size: Size, dtype: DType, stored: ActivationDType): Layer {
  const make = maker(backend);
  const [m, n, k] = size;
  const transposed = turned(size);
  const weight = (stream: number) => make(transposed ? [k, n] : [n, k], stream, dtype);
  const b = biased(size) ? make([n], 4) : null;
  return { x: make([m, k], 1, stored), w: weight(2), v: weight(3), b, transposed, stored };
}

/** Each way to have f of a layer, and SwiGLU of two, in one call and in several. */
function pairs({ x, w, v, b, transposed, stored }: Layer) {
  const options = { transposed, dtype: stored };
  const apart = (weight: Tensor) => linear(x, weight, b, options);
  const both = (weight: Tensor) => ({ weight, bias: b });
  return [
    ...ACTIVATIONS.map((f) => ({
      name: f as string,
      one: () => activatedLinear(x, w, b, f, options),
      // Of these relu alone answers f32 to bf16 by itself.
      several: () => (f === 'relu' ? cast(relu(apart(w)), stored) : activationOf(f)(apart(w))),
    })),
    {
      name: 'swiglu',
      one: () => gatedLinear(x, both(w), both(v), options),
      several: () => swiglu(apart(w), apart(v)),
    },
  ];
}

/** The result and the gradients of x, the weights and the bias, or the result alone. */
function taken({ x, w, v, b }: Layer, make: () => Tensor, trained: boolean): string[] {
  const inputs = [x, w, v, ...(b ? [b] : [])];
  const hex = (t: Tensor | null) => (t ? Buffer.from(t.bytes()).toString('hex') : 'none');
  return scope(() => {
    if (!trained) return [hex(noGrad(make))];
    for (const t of inputs) setTrainable(t, true);
    const y = make();
    backward(y, maker(x.backend)(y.shape, 9));
    const all = [y, ...inputs.map((t) => t.grad)].map(hex);
    for (const t of inputs) setTrainable(t, false);
    return all;
  });
}

function sameBits(
  backend: Backend,
  size: Size,
  dtype: DType,
  trained: boolean,
  stored: ActivationDType = 'f32',
): void {
  scope(() => {
    const layer = layerOf(backend, size, dtype, stored);
    for (const { name, one, several } of pairs(layer)) {
      const what = `${name}, ${size}, ${dtype} to ${stored}, ${trained ? 'trained' : 'frozen'}`;
      const [got, want] = [taken(layer, one, trained), taken(layer, several, trained)];
      got.forEach((bytes, i) => {
        assert.ok(bytes === want[i], `${what}: tensor ${i}`);
      });
    }
  });
}

onEachBackend(test, 'the same bits as a layer and its activation apart', (backend) => {
  for (const size of SMALL) {
    for (const dtype of ['f32', 'bf16'] as const) {
      for (const trained of [false, true]) {
        for (const stored of ['f32', 'bf16'] as const) {
          sameBits(backend, size, dtype, trained, stored);
        }
      }
    }
  }
});

onNative(
  test,
  'the same bits by every way of the products, on one and three threads',
  (backend) => {
    const { threads, isa, isas } = backend.info();
    try {
      for (const name of isas) {
        backend.setIsa(name);
        for (const count of name === isa ? [1, 3] : [2]) {
          backend.setThreads(count);
          for (const size of LARGE) sameBits(backend, size, 'f32', false);
          backend.setCompute('bf16');
          for (const size of LARGE) sameBits(backend, size, 'bf16', false);
          backend.setCompute('exact');
        }
      }
      backend.setIsa(isa);
      for (const size of LARGE.slice(-2)) sameBits(backend, size, 'bf16', true, 'bf16');
      for (const size of LARGE.slice(-1)) sameBits(backend, size, 'f32', true);
    } finally {
      backend.setCompute('exact');
      backend.setThreads(threads);
      backend.setIsa(isa);
    }
  },
);

const onCuda = skipUnless(test, native !== null, 'no native addon, and so no CUDA shim');
onCuda('the same bits on CUDA', () => {
  const backend = cudaShim();
  for (const size of SMALL) {
    for (const trained of [false, true]) {
      sameBits(backend, size, 'f32', trained);
      sameBits(backend, size, 'bf16', trained, 'bf16');
    }
  }
  backend.setCompute('bf16');
  try {
    for (const size of [...SMALL, [9, 136, 264]] as const) {
      sameBits(backend, size, 'bf16', false);
      sameBits(backend, size, 'bf16', true, 'bf16');
    }
  } finally {
    backend.setCompute('exact');
  }
});

/** Bytes of activations alive after `body`, less those before. */
function heldBy(backend: Backend, body: () => Tensor | null): number {
  const before = backend.memory().live.activation;
  return scope(() => {
    const held = body();
    const bytes = backend.memory().live.activation - before;
    held?.dispose();
    return bytes;
  });
}

onEachBackend(test, 'what is kept for a gradient is what the activation is taken of, once', (b) => {
  const make = maker(b);
  scope(() => {
    const [rows, inner, outer] = [64, 96, 128];
    const bytes = rows * outer * 4;
    const x = make([rows, inner], 1);
    const [w, v, down] = [make([outer, inner], 2), make([outer, inner], 3), make([4, outer], 4)];
    const frozen = heldBy(b, () => activatedLinear(x, w, null, 'gelu'));
    assert.is(frozen, bytes, 'frozen: the result alone');
    setTrainable(x, true);
    // A trained layer behind reads the result again; it is not kept beside what it is made of.
    setTrainable(down, true);
    const small = rows * 4 * 4;
    const through = (y: Tensor) => {
      const out = linear(y, down);
      y.dispose();
      return out;
    };
    const layer = heldBy(b, () => through(activatedLinear(x, w, null, 'gelu')));
    assert.is(layer, bytes + small, 'one layer');
    const gated = heldBy(b, () =>
      through(gatedLinear(x, { weight: w, bias: null }, { weight: v, bias: null })),
    );
    assert.is(gated, 2 * bytes + small, 'two layers');
  });
});

onEachBackend(test, 'a trained layer behind reads the result that is made again', (b) => {
  const make = maker(b);
  const gradients = (one: boolean) =>
    scope(() => {
      const [x, w, v] = [make([5, 7], 1), make([11, 7], 2), make([11, 7], 3)];
      const [down, gate] = [make([3, 11], 4), make([3, 11], 5)];
      for (const t of [x, down, gate]) setTrainable(t, true);
      const y = scope(() => {
        const inner = one
          ? activatedLinear(x, w, null, 'silu')
          : activationOf('silu')(linear(x, w));
        const other = one
          ? gatedLinear(x, { weight: w, bias: null }, { weight: v, bias: null })
          : swiglu(linear(x, w), linear(x, v));
        return mul(linear(inner, down), linear(other, gate));
      });
      backward(sum(y));
      return [x, down, gate].map((t) => (t.grad as Tensor).toNumbers());
    });
  const [got, want] = [gradients(true), gradients(false)];
  got.forEach((values, i) => {
    const largest = Math.max(...(want[i] as number[]).map(Math.abs));
    values.forEach((value, k) => {
      const off = Math.abs(value - (want[i]?.[k] as number));
      assert.ok(off <= 1e-5 * largest, `tensor ${i}, element ${k}`);
    });
  });
});

onEachBackend(test, 'NaN and infinities pass', (b) => {
  scope(() => {
    const x = tensor([Number.NaN, 1, 2, Number.POSITIVE_INFINITY], [4, 1], { backend: b });
    const w = tensor([1, 1], [2, 1], { backend: b });
    for (const f of ACTIVATIONS) {
      const y = activatedLinear(x, w, null, f).toNumbers();
      assert.ok(Number.isNaN(y[0]) && Number.isNaN(y[1]), `${f}: NaN`);
      assert.is(y[6], Number.POSITIVE_INFINITY, `${f}: Inf`);
    }
    const layer = { weight: w, bias: null };
    assert.ok(Number.isNaN(gatedLinear(x, layer, layer).toNumbers()[0]));
  });
});

onEachBackend(test, 'what does not fit is refused by ops and kernels', (b) => {
  const make = maker(b);
  scope(() => {
    const [x, w, y] = [make([3, 5], 1), make([7, 5], 2), make([3, 7], 3)];
    const layer = (weight: Tensor, bias: Tensor | null = null) => ({ weight, bias });
    const throws = (body: () => unknown, pattern: RegExp) => assert.throws(body, pattern);
    throws(() => activatedLinear(x, make([7, 6], 1), null, 'gelu'), /activatedLinear.*\[7, 6\]/);
    throws(() => activatedLinear(x, w, make([6], 1), 'gelu'), /activatedLinear.*a bias \[7\]/);
    throws(() => gatedLinear(x, layer(w), layer(make([6, 5], 1))), /two weights of one shape/);
    const one = () => gatedLinear(x, layer(w, make([7], 1)), layer(w));
    throws(one, /a bias of both layers or of neither/);
    const run = (name: string, tensors: Tensor[], attrs: number[]) => () =>
      b.run(name, tensors, attrs);
    throws(run('activatedLinear', [x, w, y], [0, 4, 0]), /attribute 1/);
    throws(run('activatedLinear', [x, w, y], [0, 0]), /3 attributes/);
    throws(run('activatedLinear', [x, w, y], [0, 0, 1]), /4 or 5 tensors/);
    throws(run('activatedLinear', [x, w, y, make([3, 6], 1)], [0, 0, 1]), /\[3, 7\]/);
    throws(run('activatedLinear', [x, w, make([3, 6], 1)], [0, 0, 0]), /7\]/);
    throws(run('gatedLinear', [x, w, w, y, y], [0, 0]), /4 or 6 tensors/);
    throws(run('gatedLinear', [x, w, w, y, y, make([3, 6], 1)], [0, 1]), /\[3, 7\]/);
    throws(run('gatedLinear', [x, w, make([6, 5], 1), y], [0, 0]), /\[7, 5\]|\[3, 6\]/);
  });
});

onNative(
  test,
  'layers in one call where they are plain, and as they are where they are not',
  (b) => {
    class Doubled extends Linear {
      override forward(x: Tensor): Tensor {
        return mul(super.forward(x), tensor([2], [1], { backend: x.backend }));
      }
    }
    const make = maker(b);
    const calls = (body: () => void) => {
      const names: string[] = [];
      const { run } = b;
      b.run = (name, tensors, attrs) => {
        names.push(name);
        run.call(b, name, tensors, attrs);
      };
      try {
        body();
      } finally {
        b.run = run;
      }
      return names;
    };
    noGrad(() =>
      scope(() => {
        const x = make([3, 5], 1);
        const [gate, up] = [new Linear(make([7, 5], 2)), new Linear(make([7, 5], 3))];
        const own = new Doubled(make([7, 5], 2));
        const wrapped = new LoraLinear(gate, 'gate');
        const gated = (g: Linear | LoraLinear) => calls(() => gatedLayers(g, up, x));
        assert.equal(
          calls(() => activatedLayer(gate, x, 'relu')),
          ['activatedLinear'],
        );
        assert.equal(
          calls(() => activatedLayer(wrapped, x, 'relu')),
          ['activatedLinear'],
        );
        assert.equal(
          calls(() => activatedLayer(own, x, 'relu')),
          ['linear', 'mul', 'relu'],
        );
        assert.equal(gated(gate), ['gatedLinear']);
        assert.equal(gated(wrapped), ['gatedLinear']);
        assert.equal(gated(own), ['linear', 'mul', 'linear', 'swiglu']);
        const biasedUp = new Linear(up.weight, make([7], 4));
        assert.equal(
          calls(() => gatedLayers(gate, biasedUp, x)),
          ['linear', 'linear', 'swiglu'],
        );
      }),
    );
  },
);

test.run();
