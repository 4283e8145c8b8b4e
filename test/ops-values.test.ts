import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { Backend } from '../src/tensor/backend.js';
import { tensor } from '../src/tensor/create.js';
import { normal } from '../src/tensor/random.js';
import { numel, type Shape } from '../src/tensor/shape.js';
import { Tensor } from '../src/tensor/tensor.js';
import { onEachBackend } from './backends.js';
import { expectClose } from './op-cases.js';

// Values straight from the definitions in docs/kernels.md, written here a second time and as
// plainly as can be: where every backend might share one mistake, this does not.

const numbers = (shape: Shape, stream: number) =>
  Array.from(normal({ seed: 3, stream }, numel(shape)), Math.fround);

function call(
  backend: Backend,
  kernel: string,
  inputs: readonly Tensor[],
  shapes: readonly Shape[],
  attrs: readonly number[] = [],
): number[][] {
  const outputs = shapes.map((shape) => Tensor.empty(backend, shape, 'f32'));
  backend.run(kernel, [...inputs, ...outputs], attrs);
  return outputs.map((t) => t.toNumbers());
}

interface AttentionCase {
  readonly label: string;
  readonly T: number;
  readonly S: number;
  readonly causal: boolean;
  readonly window: number;
  readonly keyLength: number;
  readonly masked: boolean;
}

const ATTENTIONS: readonly AttentionCase[] = [
  { label: 'full', T: 3, S: 5, causal: false, window: 0, keyLength: -1, masked: false },
  { label: 'causal', T: 5, S: 5, causal: true, window: 0, keyLength: -1, masked: false },
  { label: 'cache', T: 2, S: 7, causal: true, window: 0, keyLength: 5, masked: false },
  { label: 'window', T: 6, S: 6, causal: true, window: 2, keyLength: -1, masked: false },
  { label: 'window alone', T: 4, S: 6, causal: false, window: 2, keyLength: 5, masked: false },
  { label: 'all of it', T: 3, S: 9, causal: true, window: 4, keyLength: 8, masked: true },
];

onEachBackend(test, 'attention by its definition', (backend) => {
  const [B, H, G, D, scale] = [2, 4, 2, 3, 0.7];
  for (const { label, T, S, causal, window, keyLength, masked } of ATTENTIONS) {
    const q = numbers([B, T, H, D], 1);
    const k = numbers([B, S, G, D], 2);
    const v = numbers([B, S, G, D], 3);
    const mask = Array.from({ length: B * S }, (_, i) => (i % 4 === 1 ? 0 : 1));
    const L = keyLength < 0 ? S : keyLength;
    const want = new Array<number>(B * T * H * D).fill(0);
    const lse = new Array<number>(B * H * T).fill(Number.NEGATIVE_INFINITY);
    for (let b = 0; b < B; b++) {
      for (let h = 0; h < H; h++) {
        for (let t = 0; t < T; t++) {
          const g = Math.floor(h / (H / G));
          const seen = Array.from({ length: S }, (_, s) => s).filter(
            (s) =>
              s < L &&
              (!causal || s <= t + L - T) &&
              (window === 0 || s > t + L - T - window) &&
              (!masked || mask[b * S + s] === 1),
          );
          const at = (x: number[], n: number, heads: number, i: number, head: number, d: number) =>
            x[((b * n + i) * heads + head) * D + d] as number;
          const weights = seen.map((s) => {
            let dot = 0;
            for (let d = 0; d < D; d++) dot += at(q, T, H, t, h, d) * at(k, S, G, s, g, d);
            return Math.exp(scale * dot);
          });
          const total = weights.reduce((a, w) => a + w, 0);
          if (seen.length > 0) lse[(b * H + h) * T + t] = Math.log(total);
          for (let d = 0; d < D; d++) {
            want[((b * T + t) * H + h) * D + d] = seen.reduce(
              (sum, s, i) => sum + ((weights[i] as number) / total) * at(v, S, G, s, g, d),
              0,
            );
          }
        }
      }
    }
    const on = { backend };
    const inputs = [
      tensor(q, [B, T, H, D], on),
      tensor(k, [B, S, G, D], on),
      tensor(v, [B, S, G, D], on),
      ...(masked ? [tensor(mask, [B, S], { ...on, dtype: 'u8' })] : []),
    ];
    const shapes = [
      [B, T, H, D],
      [B, H, T],
    ];
    const attrs = [masked ? 1 : 0, causal ? 1 : 0, scale, window, keyLength];
    const [y, logs] = call(backend, 'attention', inputs, shapes, attrs) as [number[], number[]];
    expectClose(y, want, 1e-5, label);
    expectClose(logs, lse, 1e-5, `${label}, log-sum`);
  }
});

onEachBackend(test, 'rope turns pairs as complex numbers', (backend) => {
  const [B, T, H, D, half] = [2, 3, 2, 7, 3];
  const x = numbers([B, T, H, D], 1);
  const positions = [0, 1, 2, 7, 30, 100];
  const invFreq = [1, 0.3, 0.01].map(Math.fround);
  for (const inverse of [0, 1]) {
    const want = x.map((value, i) => {
      const c = i % D;
      if (c >= 2 * half) return value;
      const pair = c % half;
      const base = i - c;
      const turn = (positions[Math.floor(i / (H * D))] as number) * (invFreq[pair] as number);
      const [re, im] = [x[base + pair] as number, x[base + pair + half] as number];
      const [cos, sin] = [Math.cos(turn), inverse ? -Math.sin(turn) : Math.sin(turn)];
      return 1.5 * (c < half ? re * cos - im * sin : re * sin + im * cos);
    });
    const inputs = [
      tensor(x, [B, T, H, D], { backend }),
      tensor(positions, [B, T], { backend, dtype: 'i32' }),
      tensor(invFreq, [half], { backend }),
    ];
    const [y] = call(backend, 'rope', inputs, [[B, T, H, D]], [inverse, 1.5]) as [number[]];
    expectClose(y, want, 1e-5, `inverse ${inverse}`);
  }
});

onEachBackend(test, 'elementwise functions at known points', (backend) => {
  const points = [-2, -0.5, 0, 1, 3];
  const x = tensor(points, undefined, { backend });
  // Φ(x) and the functions of x as tables give them.
  const known: [string, number[], number[]][] = [
    ['gelu', [0], [-0.04550026, -0.15426877, 0, 0.84134475, 2.99595031]],
    ['gelu', [1], [-0.04540231, -0.154286, 0, 0.84119199, 2.99636263]],
    ['silu', [], [-0.23840584, -0.18877033, 0, 0.73105858, 2.85772238]],
    ['sigmoid', [], [0.11920292, 0.37754067, 0.5, 0.73105858, 0.95257413]],
    ['tanh', [], [-0.96402758, -0.46211716, 0, 0.76159416, 0.99505475]],
    ['exp', [], [0.13533528, 0.60653066, 1, Math.E, 20.08553692]],
    ['abs', [], [2, 0.5, 0, 1, 3]],
    ['neg', [], [2, 0.5, 0, -1, -3]],
    ['relu', [], [0, 0, 0, 1, 3]],
    ['affine', [2, -1], [-5, -2, -1, 1, 5]],
  ];
  for (const [kernel, attrs, want] of known) {
    const [y] = call(backend, kernel, [x], [[5]], attrs) as [number[]];
    expectClose(y, want, 1e-6, kernel);
  }
  const positive = tensor([0.25, 2, 9], undefined, { backend });
  expectClose(
    call(backend, 'log', [positive], [[3]])[0] ?? [],
    [-1.38629436, Math.LN2, 2.19722458],
    1e-6,
    'log',
  );
  expectClose(
    call(backend, 'sqrt', [positive], [[3]])[0] ?? [],
    [0.5, Math.SQRT2, 3],
    1e-6,
    'sqrt',
  );
  expectClose(
    call(backend, 'rsqrt', [positive], [[3]])[0] ?? [],
    [2, Math.SQRT1_2, 1 / 3],
    1e-6,
    'rsqrt',
  );
});

onEachBackend(test, 'cross-entropy by its definition', (backend) => {
  const [N, V, smoothing] = [4, 5, 0.2];
  const logits = numbers([N, V], 1);
  const labels = [4, -7, 0, 2];
  const want = labels.map((label, r) => {
    if (label === -7) return 0;
    const row = logits.slice(r * V, r * V + V);
    const total = row.reduce((sum, v) => sum + Math.exp(v), 0);
    const logp = row.map((v) => v - Math.log(total));
    const all = logp.reduce((sum, v) => sum + v, 0);
    return -(1 - smoothing) * (logp[label] as number) - (smoothing / V) * all;
  });
  const inputs = [
    tensor(logits, [N, V], { backend }),
    tensor(labels, undefined, { backend, dtype: 'i32' }),
  ];
  const [loss] = call(backend, 'crossEntropy', inputs, [[N]], [-7, smoothing]) as [number[]];
  expectClose(loss, want, 1e-6, 'loss');
});

onEachBackend(test, 'matmul scales by alpha and adds to what is there', (backend) => {
  const [M, K, N] = [17, 33, 19];
  const a = numbers([K, M], 1);
  const b = numbers([N, K], 2);
  const before = numbers([M, N], 3);
  const product = before.map((_, i) => {
    let sum = 0;
    for (let k = 0; k < K; k++) {
      sum += (a[k * M + Math.floor(i / N)] as number) * (b[(i % N) * K + k] as number);
    }
    return sum;
  });
  for (const accumulate of [0, 1]) {
    const y = tensor(before, [M, N], { backend });
    const inputs = [tensor(a, [K, M], { backend }), tensor(b, [N, K], { backend })];
    backend.run('matmul', [...inputs, y], [1, 1, -0.5, accumulate]);
    const want = product.map((p, i) => -0.5 * p + accumulate * (before[i] as number));
    expectClose(y.toNumbers(), want, 1e-6, `accumulate ${accumulate}`);
    const empty = [tensor([], [M, 0], { backend }), tensor([], [0, N], { backend })];
    backend.run('matmul', [...empty, y], [0, 0, 1, 1]);
    expectClose(y.toNumbers(), want, 1e-6, 'a sum over nothing added');
    backend.run('matmul', [...empty, y], [0, 0, 1, 0]);
    assert.ok(
      y.toNumbers().every((v) => v === 0),
      'a sum over nothing',
    );
  }
});

onEachBackend(test, 'a row of a product does not depend on its neighbours', (backend) => {
  const [K, N] = [131, 67];
  const w = tensor(numbers([N, K], 2), [N, K], { backend });
  const x = numbers([37, K], 1);
  const [all] = call(backend, 'linear', [tensor(x, [37, K], { backend }), w], [[37, N]]) as [
    number[],
  ];
  for (const [from, to] of [
    [0, 1],
    [36, 37],
    [5, 19],
  ] as const) {
    const part = tensor(x.slice(from * K, to * K), [to - from, K], { backend });
    const [rows] = call(backend, 'linear', [part, w], [[to - from, N]]) as [number[]];
    assert.equal(rows, all.slice(from * N, to * N), `rows ${from} to ${to}`);
  }
});

test.run();
