import { noGrad, scope, setTrainable } from '../autograd/index.js';
import type { Module } from '../nn/index.js';
import { cast } from '../ops/index.js';
import { tensor } from '../tensor/create.js';
import type { DType } from '../tensor/dtype.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import { Tensor } from '../tensor/tensor.js';
import type { FullLoraConfig } from './config.js';
import { isWrapper } from './layer.js';

/** One parameter of the base that adapters hold copies of, and where it hangs. */
interface Slot {
  readonly owner: Module;
  readonly field: string;
  readonly original: Tensor;
  /** By adapter. */
  readonly copies: Map<string, Tensor>;
  dispose(): void;
}

/** A parameter that an adapter holds whole. */
export interface WholeParameter {
  /** The base's own. */
  readonly base: Tensor;
  /** PEFT's name of it, without the prefix. */
  readonly key: string;
}

/** What of a configuration says which parameters an adapter holds whole. */
export type WholeChoice = Pick<FullLoraConfig, 'modulesToSave' | 'bias'>;

/** Whether a module's path is one of these names or ends with one. */
function named(path: string, names: readonly string[]): boolean {
  return names.some((n) => path === n || path.endsWith(`.${n}`));
}

/** The module saved whole that a path is, or lies in; undefined where it lies in none. */
export function savedRoot(path: string, names: readonly string[]): string | undefined {
  if (names.length === 0) return undefined;
  const parts = path.split('.');
  return parts.map((_, i) => parts.slice(0, i + 1).join('.')).find((start) => named(start, names));
}

/** Whether a path is a module that is saved whole, or lies in one. */
export function inSaved(path: string, names: readonly string[]): boolean {
  return savedRoot(path, names) !== undefined;
}

/** Every parameter of a model under its base's name, with its module and field. */
function* parametersOf(model: Module) {
  for (const { path, module: owner, parent } of model.namedModules()) {
    const at = parent && isWrapper(parent) ? path.replace(/\.[^.]*$/, '') : path;
    if (at === '') continue;
    for (const [field, value] of Object.entries(owner)) {
      if (value instanceof Tensor) yield { name: `${at}.${field}`, at, owner, field, value };
    }
  }
}

/**
 * Parameters that adapters train and save whole beside their LoRA layers: modules
 * (`modules_to_save`) and biases. The base's own are kept, and hang in the model whenever no such
 * adapter is active.
 */
export class SavedParameters {
  readonly #slots = new Map<string, Slot>();
  /** What hangs in the model while adapters are merged. */
  #merged = new Map<Slot, Tensor>();

  constructor(private readonly model: Module) {}

  /** The parameters of a choice, with where they hang. @param paths of the adapter's layers */
  *#chosen({ modulesToSave, bias }: WholeChoice, paths: ReadonlySet<string>) {
    for (const p of parametersOf(this.model)) {
      const whole = inSaved(p.at, modulesToSave);
      const onLayer = paths.has(p.at);
      const biased = p.field === 'bias' && (bias === 'all' || (bias === 'lora_only' && onLayer));
      if (!whole && !biased) continue;
      yield { ...p, key: onLayer && !whole ? `${p.at}.base_layer.${p.field}` : p.name };
    }
  }

  /** What an adapter of this choice holds whole, by the base's names. */
  parameters(choice: WholeChoice, paths: ReadonlySet<string>): Map<string, WholeParameter> {
    const out = new Map<string, WholeParameter>();
    for (const { name, value, key } of this.#chosen(choice, paths)) {
      out.set(name, { base: this.#slots.get(name)?.original ?? value, key });
    }
    return out;
  }

  /**
   * Adds an adapter's copies, f32: from `given`, by PEFT's names, or of the base's.
   * @throws when a given tensor has another shape; the copies made so far are then freed
   */
  add(
    adapter: string,
    choice: WholeChoice,
    paths: ReadonlySet<string>,
    given?: (key: string) => Tensor,
  ): void {
    const made = new Map<string, Tensor>();
    try {
      for (const [name, { base, key }] of this.parameters(choice, paths)) {
        const copy = (given ? given(key) : copyOf(base)).keep();
        made.set(name, copy);
        if (!sameShape(copy.shape, base.shape)) {
          throw failure(`lora adapter, ${name}`, shapeText(base.shape), shapeText(copy.shape));
        }
      }
    } catch (error) {
      for (const t of made.values()) t.dispose();
      throw error;
    }
    const places = [...this.#chosen(choice, paths)];
    for (const { name, owner, field, value } of places) {
      let slot = this.#slots.get(name);
      if (!slot) {
        const copies = new Map<string, Tensor>();
        const dispose = () => {
          for (const t of [value, ...copies.values()]) t.dispose();
        };
        slot = { owner, field, original: value, copies, dispose };
        this.#slots.set(name, slot);
        owner.attach(slot);
      }
      slot.copies.set(adapter, made.get(name) as Tensor);
    }
  }

  /** Throws if two of these adapters hold one parameter: only one can hang in the model. */
  check(adapters: readonly string[], where = 'lora setActive'): void {
    if (adapters.length < 2) return;
    for (const [name, { copies }] of this.#slots) {
      const holders = adapters.filter((n) => copies.has(n));
      if (holders.length < 2) continue;
      throw failure(
        where,
        `one adapter that holds ${name} whole`,
        holders.join(' and '),
        'Each holds its own in place of the base’s, and there is no sum of the two',
      );
    }
  }

  /** Hangs adapters' copies into the model, and the base's own where they have none. */
  setActive(adapters: readonly string[]): void {
    for (const slot of this.#slots.values()) {
      const holder = adapters.find((n) => slot.copies.has(n));
      hang(slot, (holder === undefined ? undefined : slot.copies.get(holder)) ?? slot.original);
    }
  }

  /** Hangs copies of the adapters' own in the base's dtype, frozen. */
  merge(adapters: readonly string[]): void {
    this.check(adapters, 'merge');
    this.setActive([]);
    for (const slot of this.#slots.values()) {
      const [own] = adapters.flatMap((n) => slot.copies.get(n) ?? []);
      if (!own) continue;
      const merged = rounded(own, slot.original.dtype).keep();
      merged.storage.retag('frozen');
      this.#merged.set(slot, merged);
      hang(slot, merged);
    }
  }

  /** Takes the merged copies out again. */
  unmerge(): void {
    for (const [slot, merged] of this.#merged) {
      hang(slot, slot.original);
      merged.dispose();
    }
    this.#merged.clear();
  }

  /** Leaves the merged copies in the model for good, and frees everything else. */
  fuse(): void {
    for (const slot of this.#slots.values()) {
      slot.owner.detach(slot);
      for (const t of slot.copies.values()) t.dispose();
      if (this.#merged.has(slot)) slot.original.dispose();
      else hang(slot, slot.original);
    }
    this.#slots.clear();
    this.#merged.clear();
  }

  /** An adapter's copies by the names of their parameters. */
  tensors(adapter: string): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    for (const [name, { copies }] of this.#slots) {
      const own = copies.get(adapter);
      if (own) out.set(name, own);
    }
    return out;
  }

  setTrainable(adapter: string, trainable: boolean): void {
    for (const t of this.tensors(adapter).values()) setTrainable(t, trainable);
  }

  rename(from: string, to: string): void {
    for (const { copies } of this.#slots.values()) {
      const own = copies.get(from);
      if (own && copies.delete(from)) copies.set(to, own);
    }
  }

  /** Frees an adapter's copies; it must not be active. */
  remove(adapter: string): void {
    for (const [name, slot] of this.#slots) {
      slot.copies.get(adapter)?.dispose();
      slot.copies.delete(adapter);
      if (slot.copies.size > 0) continue;
      slot.owner.detach(slot);
      this.#slots.delete(name);
    }
  }
}

function hang({ owner, field }: Slot, t: Tensor): void {
  (owner as unknown as Record<string, Tensor>)[field] = t;
}

/** A constant copy in another dtype. */
export function rounded(t: Tensor, dtype: DType): Tensor {
  return noGrad(() => scope(() => (t.dtype === dtype ? copyOf(t) : cast(t, dtype))));
}

function copyOf(base: Tensor): Tensor {
  return tensor(Float32Array.from(base.toNumbers()), base.shape, {
    backend: base.backend,
    purpose: 'trainable',
  });
}
