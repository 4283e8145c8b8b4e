import { noGrad, scope } from '../autograd/index.js';
import { openCheckpoint } from '../io/checkpoint.js';
import { LoraAdapters, loadAdapter } from '../lora/index.js';
import { cast } from '../ops/index.js';
import type { Backend } from '../tensor/backend.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { openModel } from './load.js';
import { saveModel } from './save.js';

/** Settings of {@link mergeAdapter}. */
export interface MergeOptions {
  readonly modelDir: string;
  /** A PEFT adapter of that model. */
  readonly adapterDir: string;
  /** Where the merged model is written; made if it does not exist. */
  readonly out: string;
  /** Storage of the weights; default the base's own. */
  readonly dtype?: 'f32' | 'f16' | 'bf16';
  readonly backend?: Backend | string;
}

/** What was written. */
export interface Merged {
  readonly tensors: number;
  readonly parameters: number;
  /** Tensors that the adapter changed. */
  readonly changed: number;
}

function checkFinite(name: string, t: Tensor, dtype: MergeOptions['dtype']): void {
  const values = noGrad(() =>
    scope(() => (dtype ? cast(t, dtype) : t).toArray()),
  ) as ArrayLike<number>;
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i])) continue;
    throw failure(
      'merge',
      'finite weights',
      `${values[i]} in ${name}`,
      dtype === 'f16' ? 'Half floats end at 65504: try bf16' : undefined,
    );
  }
}

/**
 * Writes W + scaling·B A for every layer of an adapter, and all other weights as they are, as a
 * plain Hugging Face directory that knows nothing of LoRA. Sums are f32, rounded once.
 * @throws when the adapter does not fit the model, or a weight is NaN or infinite; nothing is
 *   written then
 */
export function mergeAdapter(options: MergeOptions): Merged {
  const { modelDir, adapterDir, out, dtype, backend } = options;
  const { config } = openCheckpoint(modelDir);
  const model = openModel(modelDir, {
    // For another storage the sum stays f32 until its one rounding.
    ...(dtype ? { dtype: 'f32' as const } : {}),
    ...(backend === undefined ? {} : { backend }),
  });
  const tensors = new Map<string, Tensor>();
  try {
    const adapters = new LoraAdapters(model);
    loadAdapter(adapters, 'merged', adapterDir);
    const source = adapters.mergedSource(['merged']);
    let parameters = 0;
    let changed = 0;
    for (const [name, base] of adapters.baseParameters()) {
      const t = source(name, base.shape);
      tensors.set(name, t);
      parameters += t.size;
      if (t.storage !== base.storage) changed++;
      checkFinite(name, t, dtype);
    }
    saveModel(out, { tensors, config, tokenizerDir: modelDir, ...(dtype ? { dtype } : {}) });
    return { tensors: tensors.size, parameters, changed };
  } finally {
    for (const t of tensors.values()) t.dispose();
    model.dispose();
  }
}
