import { setTrainable } from '../autograd/index.js';
import type { Module } from '../nn/index.js';
import { tensor } from '../tensor/create.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import { Tensor } from '../tensor/tensor.js';

/** One parameter of the base that adapters hold copies of, and where it hangs. */
interface Slot {
  readonly owner: Module;
  readonly field: string;
  readonly original: Tensor;
  /** By adapter. */
  readonly copies: Map<string, Tensor>;
  dispose(): void;
}

/** Whether a module's path is one of these names or ends with one. */
function named(path: string, names: readonly string[]): boolean {
  return names.some((n) => path === n || path.endsWith(`.${n}`));
}

/** Whether a path is a module that is saved whole, or lies in one. */
export function inSaved(path: string, names: readonly string[]): boolean {
  const parts = path.split('.');
  return parts.some((_, i) => named(parts.slice(0, i + 1).join('.'), names));
}

/** The parameters of the modules that are saved whole, with their owners and fields. */
function* savedParameters(model: Module, names: readonly string[]) {
  for (const { path, module: owner } of model.namedModules()) {
    if (path === '' || !inSaved(path, names)) continue;
    for (const [field, value] of Object.entries(owner)) {
      if (value instanceof Tensor) yield { path: `${path}.${field}`, owner, field, value };
    }
  }
}

/**
 * Modules that adapters train and save whole beside their LoRA layers (PEFT's `modules_to_save`).
 * The base's own parameters are kept, and hang in the model whenever no such adapter is active.
 */
export class SavedModules {
  readonly #slots = new Map<string, Slot>();

  constructor(private readonly model: Module) {}

  /** Names of the parameters, with their base's tensors, that an adapter of these names holds. */
  parameters(names: readonly string[]): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    for (const { path, value } of savedParameters(this.model, names)) {
      out.set(path, this.#slots.get(path)?.original ?? value);
    }
    return out;
  }

  /**
   * Adds an adapter's copies, f32: from `given`, or of the base's.
   * @throws when a given tensor has another shape; the copies made so far are then freed
   */
  add(adapter: string, names: readonly string[], given?: (name: string) => Tensor): void {
    const made = new Map<string, Tensor>();
    try {
      for (const [name, base] of this.parameters(names)) {
        const copy = (given ? given(name) : copyOf(base)).keep();
        made.set(name, copy);
        if (!sameShape(copy.shape, base.shape)) {
          throw failure(`lora adapter, ${name}`, shapeText(base.shape), shapeText(copy.shape));
        }
      }
    } catch (error) {
      for (const t of made.values()) t.dispose();
      throw error;
    }
    const places = [...savedParameters(this.model, names)];
    for (const { path, owner, field, value } of places) {
      let slot = this.#slots.get(path);
      if (!slot) {
        const copies = new Map<string, Tensor>();
        const dispose = () => {
          for (const t of [value, ...copies.values()]) t.dispose();
        };
        slot = { owner, field, original: value, copies, dispose };
        this.#slots.set(path, slot);
        owner.attach(slot);
      }
      slot.copies.set(adapter, made.get(path) as Tensor);
    }
  }

  /** Hangs an adapter's copies into the model, and the base's own where it has none. */
  setActive(adapter: string | null): void {
    for (const { owner, field, original, copies } of this.#slots.values()) {
      const own = adapter === null ? undefined : copies.get(adapter);
      (owner as unknown as Record<string, Tensor>)[field] = own ?? original;
    }
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

function copyOf(base: Tensor): Tensor {
  return tensor(Float32Array.from(base.toNumbers()), base.shape, {
    backend: base.backend,
    purpose: 'trainable',
  });
}
