import { scope } from '../autograd/index.js';
import {
  type Activation,
  activatedLinear,
  activationOf,
  embedding,
  gatedLinear,
  layerNorm,
  linear,
  rmsNorm,
  swiglu,
} from '../ops/index.js';
import type { ActivationDType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { type Shape, sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import { Module } from './module.js';

/**
 * Where a module gets its parameters: the tensor of this name in a checkpoint, or a new one.
 * It must have the shape asked for; the module owns it.
 */
export type ParameterSource = (name: string, shape: Shape) => Tensor;

/** Asks a source for a parameter, checks its shape and takes it out of any scope. */
export function parameter(source: ParameterSource, name: string, shape: Shape): Tensor {
  const t = source(name, shape);
  if (!sameShape(t.shape, shape)) {
    throw failure(`parameter ${name}`, shapeText(shape), shapeText(t.shape));
  }
  return t.keep();
}

/** What a layer answers: bf16 to bf16, as PyTorch's autocast does. */
export function layerDType(x: Tensor): ActivationDType {
  return x.dtype === 'bf16' ? 'bf16' : 'f32';
}

/** A layer from [.., in] to [.., out]: a plain one, or one that LoRA wraps. */
export abstract class Dense extends Module {
  abstract readonly inFeatures: number;
  abstract readonly outFeatures: number;
  abstract forward(x: Tensor): Tensor;

  /** The layer of whose weight and bias alone `forward` makes its output; null where there is none. */
  plain(): PlainDense | null {
    return null;
  }
}

/** A plain dense layer: one weight, and a bias or none. */
export abstract class PlainDense extends Dense {
  abstract readonly weight: Tensor;
  abstract readonly bias: Tensor | null;
  /** Whether the weight is stored [in, out], the other way round than usual. */
  abstract readonly transposed: boolean;
  /** A layer of the same kind with another weight of the same shape. */
  abstract withWeights(weight: Tensor, bias: Tensor | null): PlainDense;
}

/** y = x Wᵀ + b. */
export class Linear extends PlainDense {
  readonly transposed = false;
  readonly inFeatures: number;
  readonly outFeatures: number;

  /**
   * @param weight [out, in]
   * @param bias [out] or none
   */
  constructor(
    readonly weight: Tensor,
    readonly bias: Tensor | null = null,
  ) {
    super();
    [this.outFeatures, this.inFeatures] = weight.shape as [number, number];
  }

  static from(
    source: ParameterSource,
    name: string,
    outFeatures: number,
    inFeatures: number,
    bias = false,
  ): Linear {
    return new Linear(
      parameter(source, `${name}.weight`, [outFeatures, inFeatures]),
      bias ? parameter(source, `${name}.bias`, [outFeatures]) : null,
    );
  }

  forward(x: Tensor): Tensor {
    return linear(x, this.weight, this.bias, { dtype: layerDType(x) });
  }

  // A class of one's own may compute something else.
  override plain(): Linear | null {
    return this.constructor === Linear ? this : null;
  }

  withWeights(weight: Tensor, bias: Tensor | null): Linear {
    return new Linear(weight, bias);
  }
}

/** y = x W + b with W [in, out], as GPT-2 stores it. */
export class Conv1D extends PlainDense {
  readonly transposed = true;
  readonly inFeatures: number;
  readonly outFeatures: number;

  /**
   * @param weight [in, out]
   * @param bias [out]
   */
  constructor(
    readonly weight: Tensor,
    readonly bias: Tensor | null,
  ) {
    super();
    [this.inFeatures, this.outFeatures] = weight.shape as [number, number];
  }

  static from(
    source: ParameterSource,
    name: string,
    outFeatures: number,
    inFeatures: number,
  ): Conv1D {
    return new Conv1D(
      parameter(source, `${name}.weight`, [inFeatures, outFeatures]),
      parameter(source, `${name}.bias`, [outFeatures]),
    );
  }

  forward(x: Tensor): Tensor {
    return linear(x, this.weight, this.bias, { transposed: true, dtype: layerDType(x) });
  }

  override plain(): Conv1D | null {
    return this.constructor === Conv1D ? this : null;
  }

  withWeights(weight: Tensor, bias: Tensor | null): Conv1D {
    return new Conv1D(weight, bias);
  }
}

/**
 * f of what a layer answers, in one call where the layer is plain.
 * @param x [.., in] → [.., out]
 */
export function activatedLayer(layer: Dense, x: Tensor, activation: Activation): Tensor {
  const plain = layer.plain();
  if (plain) {
    const { weight, bias, transposed } = plain;
    return activatedLinear(x, weight, bias, activation, { transposed, dtype: layerDType(x) });
  }
  return scope(() => activationOf(activation)(layer.forward(x)));
}

/**
 * silu(gate)·up of what two layers answer, in one call where both are plain.
 * @param x [.., in] → [.., out]
 */
export function gatedLayers(gate: Dense, up: Dense, x: Tensor): Tensor {
  const [g, u] = [gate.plain(), up.plain()];
  if (g && u && g.transposed === u.transposed && !g.bias === !u.bias) {
    return gatedLinear(x, g, u, { transposed: g.transposed, dtype: layerDType(x) });
  }
  return scope(() => swiglu(gate.forward(x), up.forward(x)));
}

/** Rows of a table [V, C] by id. */
export class Embedding extends Module {
  constructor(readonly weight: Tensor) {
    super();
  }

  /** @param ids i32 [..] → [.., C] */
  forward(ids: Tensor): Tensor {
    return embedding(this.weight, ids);
  }

  /**
   * The logits of a head that is tied to the table.
   * @param hidden [.., C] → [.., V]
   * @param table of the head; default this one
   */
  unembed(hidden: Tensor, table: Tensor = this.weight): Tensor {
    return linear(hidden, table);
  }
}

/** x / sqrt(mean x² + eps) · weight over the last axis. */
export class RMSNorm extends Module {
  constructor(
    readonly weight: Tensor,
    readonly eps: number,
  ) {
    super();
  }

  /** @param dtype of the result */
  forward(x: Tensor, dtype: ActivationDType = 'f32'): Tensor {
    return rmsNorm(x, this.weight, this.eps, { dtype });
  }
}

/** (x − mean) / sqrt(variance + eps) · weight + bias over the last axis. */
export class LayerNorm extends Module {
  constructor(
    readonly weight: Tensor,
    readonly bias: Tensor,
    readonly eps: number,
  ) {
    super();
  }

  /** @param dtype of the result */
  forward(x: Tensor, dtype: ActivationDType = 'f32'): Tensor {
    return layerNorm(x, this.weight, this.bias, this.eps, { dtype });
  }
}
