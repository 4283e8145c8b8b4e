import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { ParameterGroup } from './adamw.js';

/** Parameters in two groups: weight decay on matrices, none on norms and biases. */
export function decayGroups(
  parameters: ReadonlyMap<string, Tensor>,
  weightDecay: number,
): ParameterGroup[] {
  const part = (matrices: boolean) =>
    new Map([...parameters].filter(([, p]) => p.shape.length > 1 === matrices));
  return [
    { parameters: part(true), weightDecay },
    { parameters: part(false), weightDecay: 0 },
  ];
}

/** Settings of {@link loraPlusGroups}. */
export interface LoraPlusOptions {
  /** Learning rate of A and of everything that is neither. */
  readonly lr: number;
  /** How many times faster B learns, λ = lr(B) / lr(A). Default 16, as the paper advises. */
  readonly ratio?: number;
  /** Share taken off the matrices a step; biases and magnitudes have none. Default 0. */
  readonly weightDecay?: number;
}

/**
 * LoRA+ (Hayou et al., 2024): B, which starts at zero and is nearest to the output, learns λ times
 * faster than A.
 * @param parameters of an adapter by name: `adapters.tensors(name)`
 * @param outputs names of each B: `adapters.outputTensors(name)`
 * @returns groups of A and others, B, and one-dimensional parameters of either; none empty
 * @throws when an output is no parameter, or there is none
 */
export function loraPlusGroups(
  parameters: ReadonlyMap<string, Tensor>,
  outputs: ReadonlySet<string>,
  { lr, ratio = 16, weightDecay = 0 }: LoraPlusOptions,
): ParameterGroup[] {
  if (!(ratio > 0 && Number.isFinite(ratio))) {
    throw failure('loraPlus ratio', 'a number above 0', String(ratio));
  }
  const stray = [...outputs].find((name) => !parameters.has(name));
  if (stray !== undefined || outputs.size === 0) {
    throw failure('loraPlus outputs', 'names of parameters', stray ?? 'none');
  }
  const group = (fast: boolean, matrices: boolean): ParameterGroup => ({
    parameters: new Map(
      [...parameters].filter(
        ([name, p]) => outputs.has(name) === fast && p.shape.length > 1 === matrices,
      ),
    ),
    lr: fast ? lr * ratio : lr,
    weightDecay: matrices ? weightDecay : 0,
  });
  return [group(false, true), group(true, true), group(false, false), group(true, false)].filter(
    (g) => g.parameters.size > 0,
  );
}
