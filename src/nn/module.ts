import { failure } from '../tensor/errors.js';
import { Tensor } from '../tensor/tensor.js';

/**
 * A part of a model. Its parameters and parts are its own properties: a property's name is its
 * name in the checkpoint, and an array's index too (`layers.0`). Properties in `unlisted` are not
 * looked at.
 */
export abstract class Module {
  /** Names of properties that are neither parameters nor parts (constants, caches). */
  protected unlisted(): readonly string[] {
    return [];
  }

  readonly #attached = new Set<{ dispose(): void }>();

  /** Gives the module something that is none of its parts to free with it. */
  attach(resource: { dispose(): void }): void {
    this.#attached.add(resource);
  }

  /** Takes back what {@link attach} gave. */
  detach(resource: { dispose(): void }): void {
    this.#attached.delete(resource);
  }

  *#own(): Generator<[string, Module | Tensor]> {
    const skip = this.unlisted();
    for (const [name, value] of Object.entries(this)) {
      if (skip.includes(name)) continue;
      if (value instanceof Module || value instanceof Tensor) yield [name, value];
      else if (Array.isArray(value)) {
        for (const [i, v] of value.entries()) {
          if (v instanceof Module || v instanceof Tensor) yield [`${name}.${i}`, v];
        }
      }
    }
  }

  /** The part of this name, one level down; `layers.0` for one in an array. */
  child(name: string): Module | undefined {
    for (const [n, v] of this.#own()) if (n === name && v instanceof Module) return v;
    return undefined;
  }

  /** Puts another module in the place of a part one level down. */
  replaceChild(name: string, module: Module): void {
    if (!this.child(name)) throw failure('replaceChild', 'a part of the module', `"${name}"`);
    const [field, index] = name.split('.') as [string, string?];
    const self = this as unknown as Record<string, unknown>;
    if (index === undefined) self[field] = module;
    else (self[field] as Module[])[Number(index)] = module;
  }

  /** Every module from this one down, with its path ('' for itself) and the module that holds it. */
  *namedModules(path = ''): Generator<{
    path: string;
    module: Module;
    parent: Module | null;
    name: string;
  }> {
    if (path === '') yield { path, module: this, parent: null, name: '' };
    for (const [name, value] of this.#own()) {
      if (!(value instanceof Module)) continue;
      const at = path === '' ? name : `${path}.${name}`;
      yield { path: at, module: value, parent: this, name };
      yield* value.namedModules(at);
    }
  }

  /** Every parameter, with its path; one that is shared comes once, under its first path. */
  *namedParameters(): Generator<[string, Tensor]> {
    const seen = new Set<Tensor>();
    for (const { path, module } of this.namedModules()) {
      for (const [name, value] of module.#own()) {
        if (!(value instanceof Tensor) || seen.has(value)) continue;
        seen.add(value);
        yield [path === '' ? name : `${path}.${name}`, value];
      }
    }
  }

  /** Frees every parameter, and what its parts hold besides. It cannot be used afterwards. */
  dispose(): void {
    for (const [, value] of this.#own()) value.dispose();
    for (const resource of this.#attached) resource.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
