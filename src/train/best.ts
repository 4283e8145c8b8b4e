import { zeros } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import type { AnyEvaluation } from './finetune-options.js';

/** The best evaluation so far, as it is written to a run's state. */
export interface BestRecord {
  /** Step of the last evaluation that took part in the choice. */
  readonly seen: number;
  /** The best one; none where no loss was finite. */
  readonly best?: { readonly step: number; readonly evaluation: AnyEvaluation };
}

/** A copy of the trained weights as they were at the evaluation of the lowest loss. */
export class BestWeights {
  #record: BestRecord = { seen: 0 };
  /** By the parameters' names; empty until there is a best. */
  readonly #copies = new Map<string, Tensor>();

  constructor(private readonly parameters: ReadonlyMap<string, Tensor>) {}

  get record(): BestRecord {
    return this.#record;
  }

  /** The copies by the parameters' names; none until there is a best. */
  get copies(): ReadonlyMap<string, Tensor> {
    return this.#copies;
  }

  /** Takes an evaluation of the weights as they are now into the choice; of equal ones the first. */
  consider(step: number, evaluation: AnyEvaluation): void {
    const lowest = this.#record.best?.evaluation.loss ?? Number.POSITIVE_INFINITY;
    if (!(evaluation.loss < lowest)) {
      this.#record = { ...this.#record, seen: step };
      return;
    }
    this.#keep((name) => this.parameters.get(name)?.bytes() as Uint8Array);
    this.#record = { seen: step, best: { step, evaluation } };
  }

  /** Takes over what a stopped run had. @param read the bytes of a copy by its parameter's name */
  restore(record: BestRecord, read: (name: string) => Uint8Array): void {
    if (record.best) this.#keep(read);
    this.#record = record;
  }

  #keep(read: (name: string) => Uint8Array): void {
    for (const [name, p] of this.parameters) {
      let copy = this.#copies.get(name);
      if (!copy) {
        copy = zeros(p.shape, { backend: p.backend, dtype: p.dtype, purpose: 'workspace' }).keep();
        this.#copies.set(name, copy);
      }
      copy.setBytes(read(name));
    }
  }

  /** Runs `fn` with the best weights in place of the current ones, where there are any. */
  during(fn: () => void): void {
    if (this.#copies.size === 0) {
      fn();
      return;
    }
    const held = new Map([...this.parameters].map(([name, p]) => [name, p.bytes()]));
    const put = (from: (name: string) => Uint8Array) => {
      for (const [name, p] of this.parameters) p.setBytes(from(name));
    };
    try {
      put((name) => this.#copies.get(name)?.bytes() as Uint8Array);
      fn();
    } finally {
      put((name) => held.get(name) as Uint8Array);
    }
  }

  dispose(): void {
    for (const copy of this.#copies.values()) copy.dispose();
    this.#copies.clear();
  }
}
