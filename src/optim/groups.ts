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
