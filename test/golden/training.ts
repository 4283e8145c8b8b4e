/** The ten steps of a golden case, and how far rounding alone moves them. */
import { backward, noGrad, scope } from '../../src/autograd/index.js';
import { CausalLM, type TokenBatch } from '../../src/models/causal-lm.js';
import type { SequenceBatch } from '../../src/models/classifier.js';
import type { Model } from '../../src/models/load.js';
import { AdamW, type AdamWOptions } from '../../src/optim/index.js';
import { failure } from '../../src/tensor/errors.js';
import { streamOf, uniform } from '../../src/tensor/random.js';
import type { Tensor } from '../../src/tensor/tensor.js';

/** The optimizer of a case, and its steps. */
export interface Recipe {
  readonly options: AdamWOptions;
  readonly steps: number;
}

/** Reads the optimizer of case.json, which is a sentence. */
export function readRecipe(json: Readonly<Record<string, unknown>>): Recipe {
  const text = String(json.optimizer);
  const number = '([\\d.]+(?:e[-+]?\\d+)?)';
  const form = new RegExp(
    `^AdamW lr ${number}, betas ${number}/${number}, eps ${number}, weight decay ${number}, ` +
      'one full batch a step, (\\d+) steps$',
  );
  const found = form.exec(text)?.slice(1).map(Number);
  if (!found) throw failure('golden optimizer', 'AdamW with its settings', `"${text}"`);
  type Six = [number, number, number, number, number, number];
  const [lr, beta1, beta2, eps, weightDecay, steps] = found as Six;
  return { options: { lr, betas: [beta1, beta2], eps, weightDecay }, steps };
}

/** The loss of either kind of model. */
function lossOf(model: Model, batch: SequenceBatch): Tensor {
  if (model instanceof CausalLM) return model.loss(batch as TokenBatch).loss;
  return model.loss(batch).loss;
}

/** Logits without a graph. */
export function logitsOf(model: Model, batch: SequenceBatch): number[] {
  return noGrad(() => scope(() => model.logits(batch as TokenBatch).toNumbers()));
}

/** What a training gives. */
export interface Trained {
  readonly losses: readonly number[];
  /** Gradients of the first step, by name. */
  readonly gradients: ReadonlyMap<string, readonly number[]>;
  /** Every trained tensor at the end. */
  readonly after: ReadonlyMap<string, readonly number[]>;
  readonly logits: readonly number[];
}

/** Noise on the gradients: by name, of a tensor's largest gradient, uniform. */
export interface Noise {
  readonly shares: ReadonlyMap<string, number>;
  readonly seed: number;
}

function addNoise(
  gradient: Tensor,
  share: number,
  address: { seed: number; stream: number },
): void {
  const values = gradient.toNumbers();
  const size = share * values.reduce((n, g) => Math.max(n, Math.abs(g)), 0);
  const u = uniform(address, values.length);
  // What is exactly 0 has no rounding: a table's rows that the batch does not use.
  const noisy = Float32Array.from(values, (g, i) => g && g + size * (2 * (u[i] as number) - 1));
  gradient.setBytes(new Uint8Array(noisy.buffer));
}

/** Trains tensors of a model on one batch. */
export function train(
  model: Model,
  tensors: ReadonlyMap<string, Tensor>,
  batch: SequenceBatch,
  { options, steps }: Recipe,
  noise?: Noise,
): Trained {
  const optimizer = new AdamW([{ parameters: tensors }], options);
  const losses: number[] = [];
  const gradients = new Map<string, number[]>();
  for (let step = 0; step < steps; step++) {
    scope(() => {
      const loss = lossOf(model, batch);
      losses.push(loss.item());
      backward(loss);
      for (const [key, t] of tensors) {
        if (step === 0) gradients.set(key, t.grad?.toNumbers() ?? []);
        if (noise && t.grad) {
          const { seed } = noise;
          addNoise(t.grad, noise.shares.get(key) ?? 0, {
            seed,
            stream: streamOf(`${key} ${step}`),
          });
        }
      }
      optimizer.update();
      optimizer.zeroGrad();
    });
  }
  optimizer.dispose();
  const after = new Map(Array.from(tensors, ([key, t]) => [key, t.toNumbers()] as const));
  return { losses, gradients, after, logits: logitsOf(model, batch) };
}
