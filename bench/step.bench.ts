import { readFileSync } from 'node:fs';
import { backward, scope, setTrainable } from '../src/autograd/index.js';
import { LoraAdapters } from '../src/lora/index.js';
import type { TokenBatch } from '../src/models/causal-lm.js';
import { randomParameters } from '../src/models/init.js';
import { buildCausalLM } from '../src/models/load.js';
import { AdamW } from '../src/optim/index.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { measure, native, type Result, threadCounts } from './support.js';

const BATCH = 16;
const LENGTH = 256;

type Json = Record<string, number>;

/**
 * Multiply-adds of a step, two operations each: every weight of a matrix once forward and once for
 * the gradient of its input a token, once more where it is trained; attention's two products over
 * half the square, and four backward.
 */
function stepFlops(config: Json, matrices: number, trained: number): number {
  const tokens = BATCH * LENGTH;
  const {
    num_hidden_layers: L,
    num_attention_heads: H,
    head_dim: D,
  } = config as {
    num_hidden_layers: number;
    num_attention_heads: number;
    head_dim: number;
  };
  const products = 2 * tokens * (2 * matrices + trained);
  const attention = (L * 6 * 2 * tokens * LENGTH * H * D) / 2;
  return products + attention;
}

function elements(tensors: Iterable<Tensor>, matricesOnly: boolean): number {
  let n = 0;
  for (const t of tensors) if (!matricesOnly || t.shape.length > 1) n += t.size;
  return n;
}

/** One training step of the bundled model's shape, full and LoRA, over thread counts. */
export async function run(): Promise<Result[]> {
  const backend = native();
  const config = JSON.parse(
    readFileSync(new URL('../scripts/pretrain/config.json', import.meta.url), 'utf8'),
  ) as Json;
  const inputIds = Int32Array.from({ length: BATCH * LENGTH }, (_, i) => (i * 7919) % 4096);
  const batch: TokenBatch = { inputIds, labels: inputIds, batch: BATCH, length: LENGTH };
  const results: Result[] = [];
  for (const mode of ['full', 'lora'] as const) {
    const model = buildCausalLM(
      config,
      randomParameters(1, config.num_hidden_layers as number, backend),
    );
    const base = new Map(model.namedParameters());
    const matrices = elements(base.values(), true);
    let trained: ReadonlyMap<string, Tensor> = base;
    if (mode === 'lora') {
      for (const t of base.values()) setTrainable(t, false);
      const adapters = new LoraAdapters(model).add('bench', { rank: 8, targetModules: ['qv'] }, 1);
      trained = adapters.tensors('bench');
    }
    const optimizer = new AdamW([{ parameters: trained }], { lr: 1e-4 });
    const count = elements(trained.values(), false);
    for (const threads of threadCounts()) {
      const flops = stepFlops(config, matrices, count);
      const name = `${mode} step, ${BATCH} × ${LENGTH} tokens`;
      const result = await measure(
        name,
        threads,
        flops,
        () => {
          scope(() => backward(model.loss(batch).loss));
          optimizer.update();
          optimizer.zeroGrad();
        },
        3000,
      );
      const rate = (BATCH * LENGTH) / result.milliseconds;
      results.push({ ...result, note: `${(rate * 1000).toFixed(0)} tokens/s` });
    }
    optimizer.dispose();
    model.dispose();
  }
  return results;
}
