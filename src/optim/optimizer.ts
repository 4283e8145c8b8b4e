import { clearGradient } from '../autograd/index.js';
import { zeros } from '../tensor/create.js';
import { failure, nearest, shapeText } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';

/** What every optimizer's settings have. */
export interface OptimizerOptions {
  /** Peak learning rate. */
  readonly lr: number;
  /** Share of a parameter taken off a step, before the learning rate. */
  readonly weightDecay?: number;
}

/** Parameters by name, with their own settings where they differ. */
export type Group<O> = Partial<O> & { readonly parameters: ReadonlyMap<string, Tensor> };

/** What holds for a whole update: the learning rate with the schedule's factor, and clipping's. */
export interface Moment {
  readonly lr: number;
  readonly gradScale: number;
  /** Multiplies the gradients, too, f32 [1]; where it is NaN nothing changes. */
  readonly factor: Tensor | null;
}

/** A parameter to change. */
export interface Change {
  readonly p: Tensor;
  readonly grad: Tensor;
  /** In the order of the slots. */
  readonly state: readonly Tensor[];
  /** Whether the state was made just now, of zeros. */
  readonly first: boolean;
}

/** Throws unless a setting is at least 0 and finite, or below `limit`. */
export function checkSetting(where: string, value: number, limit = Number.POSITIVE_INFINITY): void {
  if (value >= 0 && value < limit) return;
  const range = limit === Number.POSITIVE_INFINITY ? 'a number of 0 or more' : `0 ≤ x < ${limit}`;
  throw failure(where, range, String(value));
}

/**
 * The part that optimizers share: groups of named parameters, their f32 state (made at the first
 * step that has a gradient for them), and counts.
 */
export abstract class Optimizer<O extends OptimizerOptions = OptimizerOptions> {
  /** Steps of the run that are done: those that updated and those that were skipped. */
  step = 0;
  #updates = 0;
  /** Parameters whose state the last update made. */
  #begun: string[] = [];
  readonly #state = new Map<string, Tensor[]>();
  readonly #groups: readonly { settings: Required<O>; parameters: ReadonlyMap<string, Tensor> }[];

  /**
   * @param defaults of every setting but the learning rate
   * @param options settings of the groups that do not give their own
   * @param slots names of the state tensors of a parameter
   * @throws on an unknown or bad setting, a frozen parameter, or two of one name
   */
  constructor(
    readonly kind: string,
    groups: readonly Group<O>[],
    defaults: Required<Omit<O, 'lr'>>,
    options: O,
    readonly slots: readonly string[],
  ) {
    this.#groups = groups.map(({ parameters, ...own }) => ({
      parameters,
      settings: { ...defaults, ...options, ...own } as unknown as Required<O>,
    }));
    const known = ['lr', ...Object.keys(defaults)];
    const names = new Set<string>();
    for (const { settings, parameters } of this.#groups) {
      for (const key of Object.keys(settings)) {
        if (known.includes(key)) continue;
        const near = nearest(key, known, 1).join('');
        throw failure(kind, `settings of ${known.join(', ')}`, `"${key}"`, `Nearest: ${near}`);
      }
      checkSetting(`${kind} lr`, settings.lr);
      checkSetting(`${kind} weightDecay`, settings.weightDecay as number);
      this.checkSettings(settings);
      for (const [name, p] of parameters) {
        if (!p.requiresGrad) throw failure(kind, 'trainable parameters', `${name}, frozen`);
        if (names.has(name)) throw failure(kind, 'each parameter once', `${name} again`);
        names.add(name);
      }
    }
    if (names.size === 0) throw failure(kind, 'at least one trainable parameter', 'none');
  }

  /** Throws on bad values of the settings that are the optimizer's own. */
  protected abstract checkSettings(settings: Required<O>): void;

  /** Changes the parameters of one group in place by their gradients. */
  protected abstract apply(changes: readonly Change[], settings: Required<O>, now: Moment): void;

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
   * @param gradScale multiplies every gradient (clipping): a number, or an f32 tensor [1] whose
   * value the backend alone knows, as {@link Clipping} has it. Where that is NaN nothing changes,
   * and {@link revoke} is to follow
   * @throws when a parameter lies on another backend than `gradScale`
   */
  update(lrFactor = 1, gradScale: number | Tensor = 1): void {
    const factor = typeof gradScale === 'number' ? null : gradScale.check('update');
    this.#checkFactor(factor);
    this.step++;
    this.#updates++;
    this.#begun = [];
    const moment = { factor, gradScale: typeof gradScale === 'number' ? gradScale : 1 };
    try {
      for (const { settings, parameters } of this.#groups) {
        const changes = this.#changesOf(parameters);
        this.apply(changes, settings, { ...moment, lr: settings.lr * lrFactor });
        for (const { p } of changes) p.storage.version++;
      }
    } catch (error) {
      this.revoke();
      throw error;
    }
  }

  #changesOf(parameters: ReadonlyMap<string, Tensor>): Change[] {
    const changes: Change[] = [];
    for (const [name, p] of parameters) {
      if (!p.grad) continue;
      const first = !this.#state.has(name);
      if (first) this.#begun.push(name);
      changes.push({ p, grad: p.grad, state: this.#stateOf(name, p), first });
    }
    return changes;
  }

  #checkFactor(factor: Tensor | null): void {
    if (!factor) return;
    if (factor.size !== 1 || factor.dtype !== 'f32') {
      const received = `${factor.dtype} ${shapeText(factor.shape)}`;
      throw failure(`${this.kind}.update`, 'a gradScale of one f32 element', received);
    }
    const other = this.parameters().find((p) => p.grad && p.backend !== factor.backend)?.backend;
    if (!other) return;
    throw failure(`${this.kind}.update`, `parameters on ${factor.backend.name}`, other.name);
  }

  /** Counts a step that changes nothing. */
  skip(): void {
    this.step++;
  }

  /** Takes back the counts of the last update, which changed nothing as its `gradScale` was NaN. */
  revoke(): void {
    this.step--;
    this.#updates--;
    for (const name of this.#begun) this.#forget(name);
    this.#begun = [];
  }

  /** Updates done; with `step` and the state all that a checkpoint needs. */
  get updates(): number {
    return this.#updates;
  }

  /** Frees every gradient; the next backward makes new ones. */
  zeroGrad(): void {
    for (const [, p] of this.#all()) clearGradient(p);
  }

  #stateOf(name: string, p: Tensor): Tensor[] {
    let made = this.#state.get(name);
    if (!made) {
      const options = { backend: p.backend, purpose: 'optimizer' } as const;
      made = this.slots.map(() => zeros(p.shape, options).keep());
      this.#state.set(name, made);
    }
    return made;
  }

  /** The state by name (`<parameter>.<slot>`), for a checkpoint. */
  state(): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    for (const [name, tensors] of this.#state) {
      for (const [i, t] of tensors.entries()) out.set(`${name}.${this.slots[i]}`, t);
    }
    return out;
  }

  /**
   * Takes over the state of a checkpoint and its counts; other state is forgotten.
   * @param read the bytes of one state tensor, by the names of {@link state}
   * @throws when a parameter's state is there in part or of another size
   */
  restore(step: number, updates: number, read: (name: string) => Uint8Array | undefined): void {
    const found = [...this.#all()].map(([name, p]) => {
      const bytes = this.slots.map((slot) => read(`${name}.${slot}`));
      if (bytes.some((b) => b) && bytes.some((b) => b?.length !== p.size * 4)) {
        throw failure(
          `${this.kind}.restore`,
          `${this.slots.join(', ')} of ${shapeText(p.shape)} for ${name}`,
          bytes.map((b) => (b ? `${b.length} bytes` : 'none')).join(', '),
        );
      }
      return { name, p, bytes };
    });
    for (const { name, p, bytes } of found) {
      if (!bytes[0]) this.#forget(name);
      else {
        const own = this.#stateOf(name, p);
        for (const [i, b] of bytes.entries()) own[i]?.setBytes(b as Uint8Array);
      }
    }
    this.step = step;
    this.#updates = updates;
  }

  #forget(name: string): void {
    for (const t of this.#state.get(name) ?? []) t.dispose();
    this.#state.delete(name);
  }

  /** Frees the state. The parameters are not its own. */
  dispose(): void {
    for (const name of [...this.#state.keys()]) this.#forget(name);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
