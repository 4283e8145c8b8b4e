import { type ConvOptions, conv1d, conv2d } from '../ops/index.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { Module } from './module.js';

/** A convolution over one dimension or two: PyTorch's Conv1d and Conv2d. */
export abstract class Convolution extends Module {
  /**
   * @param dimensions it walks along
   * @param weight [out, C / groups, ...kernel]
   * @param bias [out] or none
   */
  protected constructor(
    dimensions: number,
    readonly weight: Tensor,
    readonly bias: Tensor | null,
    readonly options: ConvOptions,
  ) {
    super();
    if (weight.shape.length === dimensions + 2) return;
    const expected = `a weight of ${dimensions + 2} dimensions`;
    throw failure(`convolution of ${dimensions}`, expected, shapeText(weight.shape));
  }

  /** Groups of channels that do not see each other. */
  get groups(): number {
    return this.options.groups ?? 1;
  }

  /**
   * The same walk with another weight. @param x [N, C, ..] → [N, out, ..]
   * @param groups of that weight; default the layer's
   */
  abstract convolve(x: Tensor, weight: Tensor, bias?: Tensor | null, groups?: number): Tensor;

  /**
   * A layer of the same kind with other weights, of the same shapes or over the channels of all
   * groups: then it has one.
   */
  abstract withWeights(weight: Tensor, bias: Tensor | null): Convolution;

  /** The layer's walk for a weight of {@link withWeights}. */
  protected optionsFor(weight: Tensor): ConvOptions {
    if (weight.shape[1] === this.weight.shape[1]) return this.options;
    return { ...this.options, groups: 1 };
  }

  forward(x: Tensor): Tensor {
    return this.convolve(x, this.weight, this.bias);
  }
}

/** x [N, C, L] → [N, out, L']. Not GPT-2's {@link Conv1D}, which is a dense layer. */
export class Conv1d extends Convolution {
  constructor(weight: Tensor, bias: Tensor | null = null, options: ConvOptions = {}) {
    super(1, weight, bias, options);
  }

  convolve(x: Tensor, weight: Tensor, bias?: Tensor | null, groups = this.groups): Tensor {
    return conv1d(x, weight, bias, { ...this.options, groups });
  }

  withWeights(weight: Tensor, bias: Tensor | null): Conv1d {
    return new Conv1d(weight, bias, this.optionsFor(weight));
  }
}

/** x [N, C, H, W] → [N, out, H', W']. */
export class Conv2d extends Convolution {
  constructor(weight: Tensor, bias: Tensor | null = null, options: ConvOptions = {}) {
    super(2, weight, bias, options);
  }

  convolve(x: Tensor, weight: Tensor, bias?: Tensor | null, groups = this.groups): Tensor {
    return conv2d(x, weight, bias, { ...this.options, groups });
  }

  withWeights(weight: Tensor, bias: Tensor | null): Conv2d {
    return new Conv2d(weight, bias, this.optionsFor(weight));
  }
}
