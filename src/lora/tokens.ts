import { noGrad, scope } from '../autograd/index.js';
import { cast, concat, embedding, linear, matmul, sub } from '../ops/index.js';
import { tensor, zeros } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { type Branch, type BranchSource, TensorBranch, takeTensors } from './branch.js';
import type { Site } from './site.js';

/** The end of PEFT's name; though it says delta, it holds the rows themselves. */
export const TOKEN_ROWS = 'token_adapter.trainable_tokens_delta';

/** Rows of an embedding's table that an adapter trains in place of the base's (new tokens, say). */
export class TokenRows extends TensorBranch {
  readonly outputs: readonly string[] = [];
  /** The place of each token among the rows, counted from 1. */
  readonly #places: ReadonlyMap<number, number>;

  /** @param ids the tokens, in the order of the rows */
  constructor(
    site: Site,
    readonly ids: readonly number[],
    rows: ReadonlyMap<string, Tensor>,
  ) {
    super(site, rows);
    this.#places = new Map(ids.map((id, i) => [id, i + 1]));
  }

  /** The base's rows, copied. @throws when the table has no such token */
  static create(site: Site, ids: readonly number[]): TokenRows {
    checkIds(site, ids);
    const rows = noGrad(() => scope(() => baseRows(site, ids)));
    rows.storage.retag('trainable');
    return new TokenRows(site, ids, new Map([[TOKEN_ROWS, rows.keep()]]));
  }

  static from(site: Site, ids: readonly number[], source: BranchSource): TokenRows {
    checkIds(site, ids);
    const shapes = new Map([[TOKEN_ROWS, [ids.length, site.outFeatures]]]);
    return new TokenRows(site, ids, takeTensors(site.path, shapes, source));
  }

  /** What the rows are more than the base's, [n, C]. */
  #more(): Tensor {
    return sub(this.part(TOKEN_ROWS), baseRows(this.site, this.ids));
  }

  /** d[id] − W[id] where a token has a row of its own, else 0. @param x ids, i32 [..] */
  change(x: Tensor, _y: Tensor): Tensor | null {
    const places = Int32Array.from(x.toNumbers(), (id) => this.#places.get(id) ?? 0);
    if (!places.some((p) => p > 0)) return null;
    const { backend } = x;
    return scope(() =>
      embedding(this.#table(), tensor(places, x.shape, { backend, dtype: 'i32' })),
    );
  }

  /** A row of zeros, and what each token's is more than the base's. */
  #table(): Tensor {
    const none = zeros([1, this.site.outFeatures], { backend: this.site.weight.backend });
    return concat([none, this.#more()], 0);
  }

  /** What is added to the logits of a head that shares the table. @param hidden [.., C] → [.., V] */
  headChange(hidden: Tensor): Tensor {
    return scope(() => matmul(linear(hidden, this.#more()), this.#spread()));
  }

  /** Ones at each row's token: [n, V]. */
  #spread(): Tensor {
    const vocab = this.site.inFeatures;
    const ones = new Float32Array(this.ids.length * vocab);
    this.ids.forEach((id, i) => {
      ones[i * vocab + id] = 1;
    });
    return tensor(ones, [this.ids.length, vocab], { backend: this.site.weight.backend });
  }

  /** d − W in the tokens' rows, zeros in the others. */
  deltaRows(): (from: number, to: number) => Tensor {
    const table = this.#table();
    return (from, to) => {
      const places = Int32Array.from(
        { length: to - from },
        (_, i) => this.#places.get(from + i) ?? 0,
      );
      const { backend } = table;
      return embedding(table, tensor(places, [to - from], { backend, dtype: 'i32' }));
    };
  }
}

/** The part of {@link TokenRows} for a head that is a tensor of its own but was tied to the table. */
export class TokenHead implements Branch {
  readonly outputs: readonly string[] = [];
  readonly changesBias = false;
  readonly readsOutput = false;

  constructor(
    readonly path: string,
    private readonly rows: TokenRows,
  ) {}

  get trainable(): boolean {
    return this.rows.trainable;
  }

  /** None of its own: the rows are the table's. */
  tensors(): ReadonlyMap<string, Tensor> {
    return new Map();
  }

  written(): ReadonlyMap<string, Tensor> {
    return new Map();
  }

  setTrainable(): void {}

  change(x: Tensor): Tensor {
    return this.rows.headChange(x);
  }

  delta(): Tensor {
    return this.rows.delta();
  }

  deltaRows(): (from: number, to: number) => Tensor {
    return this.rows.deltaRows();
  }

  factors(): null {
    return null;
  }

  biasDelta(): null {
    return null;
  }

  dispose(): void {}
}

/** Rows of the base's table as f32 [n, C]. */
function baseRows(site: Site, ids: readonly number[]): Tensor {
  const { backend } = site.weight;
  const at = tensor(Int32Array.from(ids), [ids.length], { backend, dtype: 'i32' });
  return cast(embedding(site.weight, at), 'f32');
}

function checkIds(site: Site, ids: readonly number[]): void {
  const wrong = ids.find((id) => id >= site.inFeatures);
  if (wrong === undefined) return;
  const expected = `token ids of 0…${site.inFeatures - 1} for ${site.path}`;
  throw failure('lora trainableTokens', expected, String(wrong));
}
