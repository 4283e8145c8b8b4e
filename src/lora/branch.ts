import { noGrad, scope, setTrainable } from '../autograd/index.js';
import { type RowFactors, reshape } from '../ops/index.js';
import { failure, shapeText } from '../tensor/errors.js';
import { type Shape, sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import type { FullLoraConfig } from './config.js';
import { matrixRows, type Site } from './site.js';

/** What an adapter trains on one layer: what it adds to the layer's output and to its weight. */
export interface Branch {
  readonly path: string;
  readonly trainable: boolean;
  /** Its trained tensors by the ends of PEFT's names, `lora_A.weight`. */
  tensors(): ReadonlyMap<string, Tensor>;
  /** The tensors as a file holds them, new ones where they differ. */
  written(): ReadonlyMap<string, Tensor>;
  /** Ends of the names of the tensors nearest to the output, which LoRA+ trains faster. */
  readonly outputs: readonly string[];
  setTrainable(trainable: boolean): void;
  /**
   * What is added to the layer's output.
   * @param x the layer's input
   * @param y the base's output for it, bias included
   * @returns of y's shape; null for nothing
   */
  change(x: Tensor, y: Tensor): Tensor | null;
  /** Whether {@link change} looks at y. */
  readonly readsOutput: boolean;
  /**
   * The same added to a sum, where that takes less than computing it apart; null where it does not.
   * @param own whether the sum's memory may become the result's
   */
  addTo?(sum: Tensor, x: Tensor, own: boolean): Tensor | null;
  /** What is added to the layer's weight, f32, in the shape that the merged one is stored in. */
  delta(): Tensor;
  /**
   * The same by rows of the stored matrix, so that it need not be held whole: a function of the first
   * row and the one after the last. What it needs besides is computed once, in the caller's scope.
   */
  deltaRows(): (from: number, to: number) => Tensor;
  /** The same as Σ s·B A of A [r, in] and B [out, r]; null where it is no such sum. */
  factors(): readonly RowFactors[] | null;
  /** Whether it adds to the layer's bias. */
  readonly changesBias: boolean;
  /** What is added to the layer's bias, f32; null for nothing. */
  biasDelta(): Tensor | null;
  /** What is added to the logits of a head tied to an embedding. @param hidden [.., C] → [.., V] */
  headChange?(hidden: Tensor): Tensor;
  dispose(): void;
}

/** Gives a tensor by the end of its name; the branch owns it. */
export type BranchSource = (end: string, shape: Shape) => Tensor;

/** A way to use A and B: its tensors, its arithmetic and its place in PEFT's files. */
export interface Variant {
  readonly name: FullLoraConfig['variant'];
  /** Shapes of the tensors on one layer, by the ends of PEFT's names. */
  shapes(site: Site, config: FullLoraConfig): ReadonlyMap<string, Shape>;
  /** The same in files, where that differs. */
  fileShapes?(site: Site, config: FullLoraConfig): ReadonlyMap<string, Shape>;
  /** A new branch that leaves the layer's output as it is. */
  create(site: Site, config: FullLoraConfig, seed: number): Branch;
  /** A branch of these tensors, shaped as in files. */
  from(site: Site, config: FullLoraConfig, source: BranchSource): Branch;
}

/** The tensors of a branch, held and checked; the part that variants share. */
export abstract class TensorBranch implements Branch {
  #trainable = false;
  abstract readonly outputs: readonly string[];

  constructor(
    readonly site: Site,
    private readonly held: ReadonlyMap<string, Tensor>,
  ) {}

  get path(): string {
    return this.site.path;
  }

  get trainable(): boolean {
    return this.#trainable;
  }

  tensors(): ReadonlyMap<string, Tensor> {
    return this.held;
  }

  written(): ReadonlyMap<string, Tensor> {
    return this.held;
  }

  protected part(end: string): Tensor {
    return this.held.get(end) as Tensor;
  }

  setTrainable(trainable: boolean): void {
    for (const t of this.held.values()) setTrainable(t, trainable);
    this.#trainable = trainable;
  }

  abstract change(x: Tensor, y: Tensor): Tensor | null;

  get readsOutput(): boolean {
    return false;
  }

  abstract deltaRows(): (from: number, to: number) => Tensor;

  delta(): Tensor {
    return noGrad(() =>
      scope(() => reshape(this.deltaRows()(0, matrixRows(this.site)), this.site.mergedShape)),
    );
  }

  factors(): readonly RowFactors[] | null {
    return null;
  }

  get changesBias(): boolean {
    return false;
  }

  biasDelta(): Tensor | null {
    return null;
  }

  dispose(): void {
    for (const t of this.held.values()) t.dispose();
  }
}

/**
 * Takes every tensor of a branch from a source.
 * @throws on a tensor of another shape; those asked for so far are then freed
 */
export function takeTensors(
  path: string,
  shapes: ReadonlyMap<string, Shape>,
  source: BranchSource,
): Map<string, Tensor> {
  const held = new Map<string, Tensor>();
  try {
    for (const [end, shape] of shapes) held.set(end, source(end, shape).keep());
    const wrong = [...shapes].some(([end, s]) => !sameShape((held.get(end) as Tensor).shape, s));
    if (wrong) {
      const text = (all: Iterable<Shape>) => [...all].map(shapeText).join(' and ');
      const received = [...held.values()].map((t) => t.shape);
      throw failure(`lora adapter, ${path}`, text(shapes.values()), text(received));
    }
  } catch (error) {
    for (const t of held.values()) t.dispose();
    throw error;
  }
  return held;
}
