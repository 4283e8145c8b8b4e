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

/** Noise on the gradients of a tensor, uniform. */
export interface TensorNoise {
  /** The most at the start, and then as much more or less as the tensor's largest gradient is. */
  readonly size: number;
  /** The tensor's largest gradient at the start. */
  readonly largest: number;
  /** Elements that get noise. What is exactly 0 has no rounding: rows that the batch never uses. */
  readonly counts: (index: number) => boolean;
}

/** Noise by the names of tensors. */
export interface Noise {
  readonly tensors: ReadonlyMap<string, TensorNoise>;
  readonly seed: number;
}

function addNoise(
  gradient: Tensor,
  { size, largest, counts }: TensorNoise,
  address: { seed: number; stream: number },
): void {
  const values = gradient.toNumbers();
  const now = values.reduce((n, g) => Math.max(n, Math.abs(g)), 0);
  const most = largest > 0 ? (size * now) / largest : size;
  const u = uniform(address, values.length);
  const noisy = Float32Array.from(values, (g, i) =>
    counts(i) ? g + most * (2 * (u[i] as number) - 1) : g,
  );
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
        // A tensor that the batch does not reach has none: it is 0.
        if (step === 0) gradients.set(key, t.grad?.toNumbers() ?? new Array(t.size).fill(0));
        const own = noise?.tensors.get(key);
        if (noise && own && t.grad) {
          addNoise(t.grad, own, { seed: noise.seed, stream: streamOf(`${key} ${step}`) });
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
