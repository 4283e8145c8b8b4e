import { clearGradient } from '../autograd/index.js';
import { zeros } from '../tensor/create.js';
import { failure, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';

/** Settings of one group of parameters. */
export interface AdamWOptions {
  /** Peak learning rate. */
  readonly lr: number;
  /** Default 0.9 and 0.999. */
  readonly betas?: readonly [number, number];
  /** Default 1e-8. */
  readonly eps?: number;
  /** Decoupled weight decay. Default 0.01, as PyTorch's. */
  readonly weightDecay?: number;
}

/** Parameters by name, with their own settings where they differ. */
export interface ParameterGroup extends Partial<AdamWOptions> {
  readonly parameters: ReadonlyMap<string, Tensor>;
}

/** The two moments of one parameter. */
interface Moments {
  readonly m: Tensor;
  readonly v: Tensor;
}

/**
 * AdamW (Loshchilov and Hutter, 2019) with PyTorch's defaults and arithmetic. Its moments are f32,
 * eight bytes a trainable parameter, made at the first step that has a gradient for it.
 */
export class AdamW {
  /** Steps of the run that are done: those that updated and those that were skipped. */
  step = 0;
  /** Updates done; the moments' bias correction counts these. */
  #updates = 0;
  readonly #moments = new Map<string, Moments>();
  readonly #groups: readonly ParameterGroup[];
  readonly #defaults: Required<AdamWOptions>;

  /** @throws when a parameter is frozen, or two have one name */
  constructor(groups: readonly ParameterGroup[], options: AdamWOptions) {
    this.#defaults = { betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01, ...options };
    this.#groups = groups;
    const names = new Set<string>();
    for (const [name, p] of this.#all()) {
      if (!p.requiresGrad) throw failure('AdamW', 'trainable parameters', `${name}, frozen`);
      if (names.has(name)) throw failure('AdamW', 'each parameter once', `${name} again`);
      names.add(name);
    }
    if (names.size === 0) throw failure('AdamW', 'at least one trainable parameter', 'none');
  }

  *#all(): Generator<[string, Tensor]> {
    for (const g of this.#groups) yield* g.parameters;
  }

  /** Every parameter it trains. */
  parameters(): Tensor[] {
    return [...this.#all()].map(([, p]) => p);
  }

  /**
   * One update of every parameter that has a gradient.
   * @param lrFactor multiplies every learning rate (the schedule)
   * @param gradScale multiplies every gradient (clipping)
   */
  update(lrFactor = 1, gradScale = 1): void {
    this.step++;
    this.#updates++;
    for (const group of this.#groups) {
      const { lr, betas, eps, weightDecay } = { ...this.#defaults, ...group };
      for (const [name, p] of group.parameters) {
        if (!p.grad) continue;
        const { m, v } = this.#momentsOf(name, p);
        p.backend.run(
          'adamw',
          [p.grad, p, m, v],
          [lr * lrFactor, betas[0], betas[1], eps, weightDecay, this.#updates, gradScale],
        );
        p.storage.version++;
      }
    }
  }

  /** Counts a step that changes nothing. */
  skip(): void {
    this.step++;
  }

  /** Updates done, for a checkpoint. */
  get updates(): number {
    return this.#updates;
  }

  /** Frees every gradient; the next backward makes new ones. */
  zeroGrad(): void {
    for (const [, p] of this.#all()) clearGradient(p);
  }

  #momentsOf(name: string, p: Tensor): Moments {
    let made = this.#moments.get(name);
    if (!made) {
      const options = { backend: p.backend, purpose: 'optimizer' } as const;
      made = { m: zeros(p.shape, options).keep(), v: zeros(p.shape, options).keep() };
      this.#moments.set(name, made);
    }
    return made;
  }

  /** The moments by name (`<parameter>.m`, `<parameter>.v`), for a checkpoint. */
  state(): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    for (const [name, { m, v }] of this.#moments) {
      out.set(`${name}.m`, m);
      out.set(`${name}.v`, v);
    }
    return out;
  }

  /** Takes over the moments of a checkpoint and its counts; others are forgotten. */
  restore(step: number, updates: number, read: (name: string) => Uint8Array | undefined): void {
    for (const [name, p] of this.#all()) {
      const m = read(`${name}.m`);
      const v = read(`${name}.v`);
      if (!m && !v) {
        this.#forget(name);
        continue;
      }
      const bytes = p.size * 4;
      if (m?.length !== bytes || v?.length !== bytes) {
        throw failure('AdamW.restore', `moments of ${shapeText(p.shape)} for ${name}`, 'others');
      }
      const own = this.#momentsOf(name, p);
      own.m.setBytes(m);
      own.v.setBytes(v);
    }
    this.step = step;
    this.#updates = updates;
  }

  #forget(name: string): void {
    const made = this.#moments.get(name);
    made?.m.dispose();
    made?.v.dispose();
    this.#moments.delete(name);
  }

  /** Frees the moments. The parameters are not its own. */
  dispose(): void {
    for (const name of [...this.#moments.keys()]) this.#forget(name);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
