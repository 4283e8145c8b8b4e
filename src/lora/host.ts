import { Embedding, type Module, PlainDense } from '../nn/index.js';
import { failure, nearest } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Branch } from './branch.js';
import type { FullLoraConfig } from './config.js';
import { isWrapper, LoraConv, LoraEmbedding, LoraLinear } from './layer.js';
import { PEFT_PREFIX } from './peft.js';
import { SavedParameters } from './saved.js';
import { type Site, siteOf } from './site.js';
import { hasName, plainLayer, type Target, targetLayers } from './targets.js';
import { untiedHead } from './ties.js';
import { TokenHead, TokenRows } from './tokens.js';

/** A layer that adapters have branches on, and where it hangs. */
export interface Wrapped {
  readonly target: Target;
  readonly layer: LoraLinear | LoraEmbedding | LoraConv;
}

function wrap(plain: ReturnType<typeof plainLayer>, path: string): Wrapped['layer'] {
  if (plain instanceof Embedding) return new LoraEmbedding(plain, path);
  return plain instanceof PlainDense ? new LoraLinear(plain, path) : new LoraConv(plain, path);
}

/** A model with what adapters put into it; the part that adding and merging share. */
export class Host {
  /** By the path of the layer. */
  readonly wrapped = new Map<string, Wrapped>();
  /** Every parameter of the base by its checkpoint's name. */
  readonly base: ReadonlyMap<string, Tensor>;
  readonly saved: SavedParameters;

  /** @throws when the model has adapters already */
  constructor(readonly model: Module) {
    for (const { path, module } of model.namedModules()) {
      if (isWrapper(module)) throw failure('lora', 'a plain model', `one with adapters on ${path}`);
    }
    this.base = new Map(model.namedParameters());
    this.saved = new SavedParameters(model);
  }

  /** The layer of a target as branches see it. */
  site({ path, ...target }: Target): Site {
    return this.wrapped.get(path)?.layer.site ?? siteOf(path, plainLayer({ path, ...target }));
  }

  /** Puts an adapter's branch onto a layer, which is wrapped if it is not yet. */
  put(name: string, target: Target, branch: Branch): void {
    let held = this.wrapped.get(target.path);
    if (!held) {
      const plain = plainLayer(target);
      const layer = wrap(plain, target.path);
      target.parent.replaceChild(target.name, layer);
      held = { target, layer };
      this.wrapped.set(target.path, held);
    }
    held.layer.branches.set(name, branch);
  }

  /** Frees an adapter's branches; a layer that none is left on becomes the plain one again. */
  take(name: string): void {
    for (const [path, { target, layer }] of this.wrapped) {
      layer.branches.get(name)?.dispose();
      layer.branches.delete(name);
      if (layer.branches.size > 0) continue;
      target.parent.replaceChild(target.name, layer.base);
      this.wrapped.delete(path);
    }
  }

  *branches(name: string): Generator<Branch> {
    for (const { layer } of this.wrapped.values()) {
      const branch = layer.branches.get(name);
      if (branch) yield branch;
    }
  }

  /** Paths of the layers that an adapter has A and B on. */
  paths(name: string): Set<string> {
    const ofTokens = (b: Branch) => b instanceof TokenRows || b instanceof TokenHead;
    const branches = [...this.branches(name)].filter((b) => !ofTokens(b));
    return new Set(branches.map((b) => b.path));
  }

  /**
   * All of an adapter's tensors under PEFT's names, in the order of PEFT's files.
   * @param of the tensors of a branch, by the ends of their names
   */
  tensors(
    name: string,
    config: FullLoraConfig,
    of: (branch: Branch) => ReadonlyMap<string, Tensor>,
  ): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    for (const branch of this.branches(name)) {
      for (const [end, t] of of(branch)) out.set(`${PEFT_PREFIX}${branch.path}.${end}`, t);
    }
    const keys = this.saved.parameters(config, this.paths(name));
    for (const [parameter, t] of this.saved.tensors(name)) {
      out.set(PEFT_PREFIX + (keys.get(parameter)?.key ?? parameter), t);
    }
    return new Map([...out].sort(([x], [y]) => (x < y ? -1 : 1)));
  }

  /** The head that a table was tied to and is not, where the model was loaded so. */
  headOf({ path }: Target): Target | undefined {
    const tie = untiedHead(this.model);
    if (tie?.table !== `${path}.weight`) return undefined;
    return targetLayers(this.model).find((t) => `${t.path}.weight` === tie.head);
  }

  /** Throws if two of these adapters have rows of their own for one token. */
  checkTokens(adapters: readonly string[], where: string): void {
    if (adapters.length < 2) return;
    for (const { layer } of this.wrapped.values()) {
      const seen = new Map<number, string>();
      for (const name of adapters) {
        const branch = layer.branches.get(name);
        for (const id of branch instanceof TokenRows ? branch.ids : []) {
          const other = seen.get(id);
          if (other !== undefined) {
            const expected = `one adapter with a row for token ${id} of ${branch?.path}`;
            throw failure(where, expected, `${other} and ${name}`);
          }
          seen.set(id, name);
        }
      }
    }
  }

  /** The embeddings that a configuration trains rows of. @throws on a name that is none or several */
  tokenTargets(config: FullLoraConfig): [Target, readonly number[]][] {
    const tables = targetLayers(this.model).filter((t) => plainLayer(t) instanceof Embedding);
    const { trainableTokens } = config;
    if (Array.isArray(trainableTokens)) {
      // The table of tokens is the first of a model.
      const [table] = tables;
      return table && trainableTokens.length > 0 ? [[table, trainableTokens]] : [];
    }
    return Object.entries(trainableTokens).map(([name, ids]) => {
      const hits = tables.filter((t) => hasName(t.path, name));
      if (hits.length === 1) return [hits[0] as Target, ids];
      const near = nearest(
        name,
        tables.map((t) => t.name),
      );
      throw failure(
        'lora trainableTokens',
        'names of one embedding each',
        `"${name}", which is ${hits.length === 0 ? 'none' : `${hits.length} of them`}`,
        `Nearest: ${near.join(', ')}`,
      );
    });
  }
}
