import fc from 'fast-check';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { backward, noGrad, scope } from '../src/autograd/index.js';
import type { LoraAdapters } from '../src/lora/index.js';
import type { CausalLM, TokenBatch } from '../src/models/causal-lm.js';
import { shiftedLabels } from '../src/models/causal-lm.js';
import type { Backend } from '../src/tensor/backend.js';
import { onEachBackend } from './backends.js';
import {
  forTinyCases,
  logitBytes,
  randomize,
  relativeDifference,
  sameBytes,
  TINY,
  type TinyCase,
  tinyBatch,
  withAdapter,
} from './support/tiny.js';

const RUNS = 30;

/** Runs `body` on a model with an adapter whose update is not zero. */
function withTrained(
  c: TinyCase,
  backend: Backend,
  body: (model: CausalLM, adapters: LoraAdapters) => void,
): void {
  withAdapter(c, backend, (model, adapters) => {
    randomize(adapters, 'a', c.settings.seed);
    body(model, adapters);
  });
}

/** Row `b` of a batch by itself, without its padding. */
function rowOf(batch: Required<TokenBatch>, b: number, own: number): TokenBatch {
  const from = b * batch.length;
  return {
    inputIds: batch.inputIds.slice(from, from + own),
    labels: batch.labels.slice(from, from + own),
    batch: 1,
    length: own,
  };
}

/** The bytes of the logits of row `b`, its own positions only. */
function rowBytes(all: Uint8Array, length: number, vocab: number, b: number, own: number) {
  const position = vocab * 4;
  return all.subarray(b * length * position, (b * length + own) * position);
}

onEachBackend(
  test,
  'a row answers the same bits alone, among neighbours and with padding on the right',
  (backend) => {
    forTinyCases(RUNS, (c) => {
      const { vocab, seed } = c.settings;
      withTrained(c, backend, (model) => {
        const padTo = Math.max(...c.lengths) + (seed % 4);
        const batch = tinyBatch(seed, c.lengths, vocab, padTo);
        const all = logitBytes(model, batch);
        c.lengths.forEach((own, b) => {
          const alone = logitBytes(model, rowOf(batch, b, own));
          assert.ok(sameBytes(rowBytes(all, batch.length, vocab, b, own), alone), `row ${b}`);
        });
        // Other tokens in the padding, and other neighbours, change nothing.
        const other = {
          ...batch,
          inputIds: batch.inputIds.map((id, i) =>
            batch.attentionMask[i] === 1 && Math.floor(i / batch.length) === 0
              ? id
              : (id + 1) % vocab,
          ),
        };
        const changed = logitBytes(model, other);
        const own = c.lengths[0] as number;
        assert.ok(
          sameBytes(
            rowBytes(changed, batch.length, vocab, 0, own),
            rowBytes(all, batch.length, vocab, 0, own),
          ),
        );
      });
    });
  },
);

// Large enough for packed products, many tiles and several threads.
const LARGE: TinyCase = {
  settings: {
    ...TINY,
    hidden: 120,
    ffn: 200,
    heads: 6,
    keyValueHeads: 2,
    headSize: 20,
    vocab: 301,
  },
  rank: 8,
  alpha: 16,
  targets: ['all-linear'],
  lengths: [37, 2, 5, 60, 17],
};

for (const dtype of ['f32', 'bf16', 'f16'] as const) {
  onEachBackend(test, `a row answers the same bits in a large batch, ${dtype}`, (backend) => {
    const { vocab, seed } = LARGE.settings;
    const c = { ...LARGE, settings: { ...LARGE.settings, dtype } };
    withTrained(c, backend, (model) => {
      const batch = tinyBatch(seed, c.lengths, vocab, 64);
      const all = logitBytes(model, batch);
      c.lengths.forEach((own, b) => {
        const alone = logitBytes(model, rowOf(batch, b, own));
        assert.ok(sameBytes(rowBytes(all, batch.length, vocab, b, own), alone), `row ${b}`);
      });
      // Token by token with a key-value cache.
      const steps = 5;
      using cache = model.makeCache(1, steps);
      for (let t = 0; t < steps; t++) {
        const inputIds = batch.inputIds.slice(t, t + 1);
        const bytes = noGrad(() =>
          scope(() => model.lastLogits({ inputIds, batch: 1, length: 1 }, cache).bytes()),
        );
        const at = t * vocab * 4;
        assert.ok(sameBytes(all.subarray(at, at + vocab * 4), bytes), `position ${t}`);
      }
    });
  });
}

onEachBackend(test, 'padding on the left hides, too', (backend) => {
  forTinyCases(RUNS, (c) => {
    const { vocab, seed } = c.settings;
    withTrained({ ...c, settings: { ...c.settings, dtype: 'f32' } }, backend, (model) => {
      const own = Math.max(...c.lengths);
      const alone = tinyBatch(seed, [own], vocab);
      const pad = 3;
      const left = (ids: ArrayLike<number>, fill: number) =>
        Int32Array.from([...Array<number>(pad).fill(fill), ...Array.from(ids)]);
      const padded: TokenBatch = {
        inputIds: left(alone.inputIds, 1),
        attentionMask: Uint8Array.from(left(alone.attentionMask, 0)),
        batch: 1,
        length: own + pad,
      };
      const floats = (b: TokenBatch) => new Float32Array(logitBytes(model, b).buffer);
      // RoPE sees differences of positions, so that only rounding differs.
      const got = floats(padded).subarray(pad * vocab);
      assert.ok(relativeDifference(got, floats(alone)) < 1e-3);
    });
  });
});

onEachBackend(test, 'a token sees none that come after it', (backend) => {
  forTinyCases(RUNS, (c) => {
    const { vocab, seed } = c.settings;
    withTrained(c, backend, (model) => {
      const own = Math.max(...c.lengths);
      const batch = tinyBatch(seed, [own], vocab);
      const whole = logitBytes(model, batch);
      const cut = Math.max(1, own - 2);
      const start = logitBytes(model, rowOf(batch, 0, cut));
      assert.ok(sameBytes(rowBytes(whole, own, vocab, 0, cut), start));
    });
  });
});

/** Loss and gradients summed over micro-batches, weighted by token as the trainer does. */
function lossAndGradients(
  model: CausalLM,
  adapters: LoraAdapters,
  batches: readonly TokenBatch[],
): { loss: number; grads: Map<string, number[]> } {
  adapters.setTrainable('a', false).setTrainable('a', true);
  const tokens = batches.reduce((n, b) => n + shiftedLabels(b).labels.length, 0);
  let loss = 0;
  for (const b of batches) {
    scope(() => {
      const result = model.loss(b, tokens);
      if (result.tokens === 0) return;
      loss += result.loss.item();
      backward(result.loss);
    });
  }
  const grads = new Map([...adapters.tensors('a')].map(([k, t]) => [k, t.grad?.toNumbers() ?? []]));
  return { loss, grads };
}

onEachBackend(
  test,
  'micro-batches are one token-weighted batch, in loss and gradients',
  (backend) => {
    forTinyCases(RUNS, (c) => {
      const { vocab, seed } = c.settings;
      withTrained(c, backend, (model, adapters) => {
        const batch = tinyBatch(seed, c.lengths, vocab);
        // Some labels masked, so that rows differ in how much they weigh.
        batch.labels.forEach((_, i) => {
          if ((seed >> (i % 13)) & 1) batch.labels[i] = -100;
        });
        batch.labels[1] = batch.inputIds[1] as number;
        const whole = lossAndGradients(model, adapters, [batch]);
        const rows = c.lengths.map((own, b) => rowOf(batch, b, own));
        const parts = lossAndGradients(model, adapters, rows);
        assert.ok(Math.abs(parts.loss - whole.loss) <= 1e-5 * Math.abs(whole.loss));
        let largest = 0;
        for (const g of whole.grads.values())
          for (const v of g) largest = Math.max(largest, Math.abs(v));
        for (const [key, g] of whole.grads) {
          const got = parts.grads.get(key) ?? [];
          assert.is(got.length, g.length);
          got.forEach((v, i) => {
            assert.ok(Math.abs(v - (g[i] as number)) <= 1e-4 * largest + 1e-9, key);
          });
        }
      });
    });
  },
);

onEachBackend(test, 'the loss is the mean over labels of −log p', (backend) => {
  forTinyCases(RUNS, (c) => {
    const { vocab, seed } = c.settings;
    withTrained(c, backend, (model) => {
      const batch = tinyBatch(seed, c.lengths, vocab);
      const logits = new Float32Array(logitBytes(model, batch).buffer);
      const { rows, labels } = shiftedLabels(batch);
      let sum = 0;
      rows.forEach((row, i) => {
        const own = Array.from(logits.subarray(row * vocab, (row + 1) * vocab));
        const top = Math.max(...own);
        const norm = top + Math.log(own.reduce((n, v) => n + Math.exp(v - top), 0));
        sum += norm - (own[labels[i] as number] as number);
      });
      const { loss, tokens } = scope(() => {
        const r = model.loss(batch);
        return { loss: r.loss.item(), tokens: r.tokens };
      });
      assert.is(tokens, rows.length);
      assert.is(
        tokens,
        c.lengths.reduce((n, l) => n + l - 1, 0),
      );
      assert.ok(Math.abs(loss - sum / tokens) <= 1e-5 * Math.max(1, Math.abs(loss)));
    });
  });
});

test('labels are shifted by one: the first of a row predicts nothing', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 6 }), (B, T) => {
      const labels = Int32Array.from({ length: B * T }, (_, i) => i);
      const got = shiftedLabels({ inputIds: labels, labels, batch: B, length: T });
      assert.is(got.rows.length, B * (T - 1));
      got.rows.forEach((row, i) => {
        assert.is(got.labels[i], row + 1);
        assert.ok((row + 1) % T !== 0);
      });
    }),
  );
  assert.throws(
    () => shiftedLabels({ inputIds: new Int32Array(1), batch: 1, length: 1 }),
    /\[loss\] expected a batch with labels/,
  );
});

test.run();
