import { noGrad, scope } from '../../autograd/index.js';
import { concat, linear, type RowFactors, scale, slice } from '../../ops/index.js';
import { tensor, zeros } from '../../tensor/create.js';
import { failure } from '../../tensor/errors.js';
import type { Shape } from '../../tensor/shape.js';
import type { Tensor } from '../../tensor/tensor.js';
import { takeTensors, type Variant } from '../branch.js';
import { enabledParts, type FullLoraConfig, settingsOf } from '../config.js';
import { start } from '../init.js';
import type { Site } from '../site.js';
import { LoraBranch } from './plain.js';

/** The parts of one fused layer: which are on, and how many outputs each has. */
interface Parts {
  readonly on: readonly boolean[];
  readonly count: number;
  readonly width: number;
}

function partsOf(site: Site, config: FullLoraConfig): Parts {
  const on = enabledParts(config, site.path) as readonly boolean[];
  if (site.kind !== 'dense' || site.outFeatures % on.length !== 0) {
    const expected = `a dense layer of ${on.length} equal parts`;
    throw failure('lora enableLora', expected, `${site.path} of ${site.outFeatures} outputs`);
  }
  if (config.loraBias) throw failure('lora enableLora', 'B without a bias', 'loraBias');
  return { on, count: on.filter((p) => p).length, width: site.outFeatures / on.length };
}

/**
 * LoRA on parts of a fused projection (loralib's MergedLinear: q and v of GPT-2's c_attn, say). Each
 * part that is on has an A and a B of rank r of its own: A [n·r, in] and B [n·out/parts, r] hold
 * them one below the other. It is the plain LoRA of rank n·r whose B is zero outside of its blocks,
 * and is written so.
 */
export class FusedBranch extends LoraBranch {
  constructor(
    site: Site,
    tensors: ReadonlyMap<string, Tensor>,
    scaling: number,
    dropout: number,
    private readonly parts: Parts,
  ) {
    super(site, tensors, scaling, dropout);
  }

  override grouped(): RowFactors | null {
    return { a: this.a, b: this.#wide(), scale: this.scaling };
  }

  /** B [out, n·r] with zeros outside of its blocks. */
  #wide(): Tensor {
    const { on, count, width } = this.parts;
    const r = this.b.shape[1] as number;
    const empty = (columns: number) => zeros([width, columns], { backend: this.b.backend });
    let at = 0;
    const rows = on.map((part) => {
      if (!part) return empty(count * r);
      const block = slice(this.b, 0, at * width, (at + 1) * width);
      const beside = [at * r, (count - 1 - at) * r];
      at++;
      const [left, right] = beside.map((n) => (n > 0 ? [empty(n)] : []));
      return concat([...(left ?? []), block, ...(right ?? [])], 1);
    });
    return concat(rows, 0);
  }

  protected override product(seen: Tensor): Tensor {
    return scope(() => linear(scale(this.site.down(seen, this.a), this.scaling), this.#wide()));
  }

  protected override products(): readonly RowFactors[] {
    return [{ a: this.a, b: this.#wide(), scale: this.scaling }];
  }

  override written(): ReadonlyMap<string, Tensor> {
    const wide = noGrad(() => scope(() => this.#wide()));
    return new Map([...this.tensors(), [this.site.names.b, wide]]);
  }
}

function fusedShapes(site: Site, config: FullLoraConfig): Map<string, Shape> {
  const { rank } = settingsOf(config, site.path);
  const { count, width } = partsOf(site, config);
  return new Map([
    [site.names.a, [count * rank, site.inFeatures]],
    [site.names.b, [count * width, rank]],
  ]);
}

function fileShapes(site: Site, config: FullLoraConfig): Map<string, Shape> {
  const { rank } = settingsOf(config, site.path);
  const { count } = partsOf(site, config);
  return new Map([
    [site.names.a, [count * rank, site.inFeatures]],
    [site.names.b, [site.outFeatures, count * rank]],
  ]);
}

/** The blocks of a written B, one below the other. @throws where it is not zero outside of them */
function blocksOf(wide: Tensor, { on, count, width }: Parts, path: string): Tensor {
  const values = wide.toArray() as Float32Array;
  const columns = wide.shape[1] as number;
  const r = columns / count;
  const out = new Float32Array(count * width * r);
  values.forEach((v, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const part = Math.floor(row / width);
    const at = on.slice(0, part).filter((p) => p).length;
    if (on[part] && Math.floor(column / r) === at) {
      out[(at * width + (row % width)) * r + (column % r)] = v;
    } else if (v !== 0) {
      throw failure(`lora adapter, ${path}`, 'B of zeros outside of its parts', String(v));
    }
  });
  return tensor(out, [count * width, r], { backend: wide.backend });
}

export const fused: Variant = {
  name: 'lora',
  shapes: fusedShapes,
  fileShapes,
  create: (site, config, seed) => {
    const { rank, scaling } = settingsOf(config, site.path);
    const parts = partsOf(site, config);
    const shapes = fusedShapes(site, config);
    const { a } = start(config.init, { site, rank: parts.count * rank, scaling, seed });
    const options = { backend: site.weight.backend, purpose: 'trainable' } as const;
    const held = new Map([
      [site.names.a, tensor(a as Float32Array, shapes.get(site.names.a), options).keep()],
      [site.names.b, zeros(shapes.get(site.names.b) as Shape, options).keep()],
    ]);
    return new FusedBranch(site, held, scaling, config.dropout, parts);
  },
  from: (site, config, source) => {
    const { scaling } = settingsOf(config, site.path);
    const parts = partsOf(site, config);
    const held = takeTensors(site.path, fileShapes(site, config), source);
    const wide = held.get(site.names.b) as Tensor;
    try {
      held.set(site.names.b, blocksOf(wide, parts, site.path).keep());
    } catch (error) {
      held.get(site.names.a)?.dispose();
      throw error;
    } finally {
      wide.dispose();
    }
    return new FusedBranch(site, held, scaling, config.dropout, parts);
  },
};
