/**
 * Runs one golden case, computed by PyTorch and PEFT, and compares everything in it with ours.
 * What a case directory holds: test/golden/README.md.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { backward, noGrad, scope } from '../../src/autograd/index.js';
import { readJsonObject } from '../../src/io/files.js';
import { SafetensorsFile } from '../../src/io/safetensors.js';
import { PEFT_PREFIX } from '../../src/lora/adapters.js';
import { LoraAdapters, loadAdapter, saveAdapter } from '../../src/lora/index.js';
import { CausalLM, type TokenBatch } from '../../src/models/causal-lm.js';
import type { SequenceBatch } from '../../src/models/classifier.js';
import { buildModel, type Model, openModel } from '../../src/models/load.js';
import { AdamW, type AdamWOptions } from '../../src/optim/index.js';
import type { Backend } from '../../src/tensor/backend.js';
import { failure } from '../../src/tensor/errors.js';
import { getBackend } from '../../src/tensor/registry.js';
import type { Tensor } from '../../src/tensor/tensor.js';

/**
 * Largest difference allowed, as a share of the largest magnitude of the expected tensor. A share,
 * not a plain difference: logits reach 14, where f32 itself resolves 1e-6, and the bf16 case was
 * made by a model cast to bf16 and back, which rounded RoPE's frequencies to bf16 too. With the
 * f32 frequencies that transformers uses for a real bf16 checkpoint, its logits differ by 2.4e-4
 * at a largest of 14.3, which is 1.7e-5 of it.
 */
const TOLERANCES = {
  logits: 1e-4,
  loss: 1e-4,
  gradient: 1e-3,
  stepLosses: 1e-3,
  trained: 1e-3,
  /**
   * What a model computes with parameters that we trained. Rounding over ten steps moves them by
   * up to 2e-5 of the largest, and these random models multiply that: adding noise of ±3e-6 to
   * PEFT's own trained adapter of llama-all-linear moves its logits by 6.5e-4. The adapter that
   * PEFT trained is held to `logits`.
   */
  trainedLogits: 1e-2,
  /** A merge into 16-bit weights rounds each once, by up to 2⁻⁹ of it; the cases merge in f32. */
  mergedNarrow: 1e-2,
} as const;

/** How far one tensor of ours is from the expected one. */
export interface Figure {
  readonly name: string;
  /** Largest difference of two elements. */
  readonly absolute: number;
  /** The same over the largest expected magnitude. */
  readonly relative: number;
  readonly tolerance: number;
  readonly ok: boolean;
}

/** What became of one case on one backend. */
export interface CaseReport {
  readonly case: string;
  readonly backend: string;
  readonly ok: boolean;
  readonly figures: readonly Figure[];
  /** What is wrong beside the figures; an unsupported case has its reason here. */
  readonly problems: readonly string[];
}

/** The expected tensors of a case as numbers, and the figures and problems found so far. */
class Comparison {
  readonly figures: Figure[] = [];
  readonly problems: string[] = [];
  readonly #file: SafetensorsFile;

  constructor(dir: string) {
    this.#file = SafetensorsFile.open(join(dir, 'expected.safetensors'));
  }

  shape(name: string): readonly number[] {
    return this.#file.entry(name).shape;
  }

  isFloat(name: string): boolean {
    return /^(F|BF)/.test(this.#file.entry(name).dtype.toUpperCase());
  }

  expected(name: string): number[] {
    return scope(() => this.#file.load(name, { backend: getBackend('reference') }).toNumbers());
  }

  names(prefix: string): string[] {
    return [...this.#file.tensors.keys()].filter((n) => n.startsWith(prefix));
  }

  /**
   * Adds the figure of one tensor.
   * @param counts whether the element at a flat index counts; default all
   */
  compare(
    name: string,
    received: readonly number[],
    tolerance: number,
    { against = name, counts = (_: number) => true as boolean } = {},
  ): void {
    const expected = this.expected(against);
    if (expected.length !== received.length) {
      this.problems.push(`${name}: expected ${expected.length} elements, not ${received.length}`);
      return;
    }
    let absolute = 0;
    let largest = 0;
    expected.forEach((e, i) => {
      if (!counts(i)) return;
      // Math.max answers NaN for NaN, which no tolerance accepts.
      absolute = Math.max(absolute, Math.abs((received[i] as number) - e));
      largest = Math.max(largest, Math.abs(e));
    });
    const relative = absolute === 0 ? 0 : absolute / largest;
    this.figures.push({ name, absolute, relative, tolerance, ok: relative <= tolerance });
  }
}

/** Reads the optimizer of case.json, which is a sentence. */
function optimizerOptions(json: Readonly<Record<string, unknown>>): AdamWOptions {
  const text = String(json.optimizer);
  const form =
    /^AdamW lr ([\d.e-]+), betas ([\d.]+)\/([\d.]+), eps ([\d.e-]+), weight decay ([\d.e-]+), one full batch a step, 10 steps$/;
  const found = form.exec(text)?.slice(1).map(Number);
  if (!found) throw failure('golden optimizer', 'AdamW with its settings', `"${text}"`);
  const [lr, beta1, beta2, eps, weightDecay] = found as [number, number, number, number, number];
  return { lr, betas: [beta1, beta2], eps, weightDecay };
}

function batchOf(expected: Comparison): SequenceBatch {
  const [batch, length] = expected.shape('input_ids') as [number, number];
  const labels = expected.expected('labels');
  const types = expected.names('token_type_ids').map((n) => expected.expected(n));
  return {
    inputIds: Int32Array.from(expected.expected('input_ids')),
    attentionMask: Uint8Array.from(expected.expected('attention_mask')),
    ...(types[0] ? { tokenTypeIds: Int32Array.from(types[0]) } : {}),
    labels: expected.isFloat('labels') ? Float32Array.from(labels) : Int32Array.from(labels),
    batch,
    length,
  };
}

/** The loss of either kind of model; whole-number labels are a language model's. */
function lossOf(model: Model, batch: SequenceBatch): Tensor {
  if (model instanceof CausalLM) return model.loss(batch as TokenBatch).loss;
  return model.loss(batch).loss;
}

function logitsOf(model: Model, batch: SequenceBatch): number[] {
  return noGrad(() => scope(() => model.logits(batch as TokenBatch).toNumbers()));
}

function mergedLogits(
  adapters: LoraAdapters,
  name: string,
  config: Readonly<Record<string, unknown>>,
  batch: SequenceBatch,
): number[] {
  using merged = buildModel(config, adapters.mergedSource([name]));
  return logitsOf(merged, batch);
}

/** Compares two adapter directories: tensors bit for bit, settings but for the order of targets. */
export function adapterDifferences(expectedDir: string, receivedDir: string): string[] {
  const out: string[] = [];
  const [want, got] = [expectedDir, receivedDir].map((d) =>
    SafetensorsFile.open(join(d, 'adapter_model.safetensors')),
  ) as [SafetensorsFile, SafetensorsFile];
  for (const name of new Set([...want.tensors.keys(), ...got.tensors.keys()])) {
    const [w, g] = [want.tensors.get(name), got.tensors.get(name)];
    if (!w || !g) out.push(`${name}: ${w ? 'missing' : 'surplus'}`);
    else if (w.dtype !== g.dtype || `${w.shape}` !== `${g.shape}`) {
      out.push(`${name}: expected ${w.dtype} [${w.shape}], received ${g.dtype} [${g.shape}]`);
    } else if (!Buffer.from(want.bytes(name)).equals(got.bytes(name))) {
      out.push(`${name}: other bytes`);
    }
  }
  if (JSON.stringify([...want.metadata]) !== JSON.stringify([...got.metadata])) {
    out.push(`metadata: ${JSON.stringify([...got.metadata])}`);
  }
  const [a, b] = [expectedDir, receivedDir].map((d) =>
    readJsonObject(join(d, 'adapter_config.json')),
  ) as [Record<string, unknown>, Record<string, unknown>];
  for (const key of new Set([...Object.keys(a), ...Object.keys(b)])) {
    const text = (json: Record<string, unknown>) => {
      const value = json[key];
      if (!(key in json)) return 'no such key';
      return JSON.stringify(
        key === 'target_modules' && Array.isArray(value) ? [...value].sort() : value,
      );
    };
    if (text(a) !== text(b)) {
      out.push(`adapter_config.json, ${key}: expected ${text(a)}, received ${text(b)}`);
    }
  }
  return out;
}

/** Saves an adapter and lists where it differs from PEFT's directory of it. */
function savedDifferences(adapters: LoraAdapters, name: string, expectedDir: string): string[] {
  const dir = mkdtempSync(join(tmpdir(), 'lowrank-golden-'));
  try {
    saveAdapter(adapters, name, dir);
    return adapterDifferences(expectedDir, dir).map((d) => `saved adapter, ${d}`);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** Loss and gradients at the start, then ten steps on the one batch. */
function trainTenSteps(
  model: Model,
  tensors: ReadonlyMap<string, Tensor>,
  batch: SequenceBatch,
  options: AdamWOptions,
  into: Comparison,
): void {
  const optimizer = new AdamW([{ parameters: tensors }], options);
  const losses: number[] = [];
  for (let step = 0; step < 10; step++) {
    scope(() => {
      const loss = lossOf(model, batch);
      losses.push(loss.item());
      backward(loss);
      if (step === 0) {
        into.compare('loss', [loss.item()], TOLERANCES.loss);
        for (const [key, t] of tensors) {
          into.compare(`grad.${key}`, t.grad?.toNumbers() ?? [], TOLERANCES.gradient);
        }
      }
      optimizer.update();
      optimizer.zeroGrad();
    });
  }
  optimizer.dispose();
  into.compare('step_losses', losses, TOLERANCES.stepLosses);
  for (const [key, t] of tensors) into.compare(`after.${key}`, t.toNumbers(), TOLERANCES.trained);
}

/** Compares logits where the mask is 1. */
type CompareLogits = (
  name: string,
  logits: readonly number[],
  tolerance: number,
  against?: string,
) => void;

/**
 * Both trained adapters on a fresh base in f32, as the case was computed: active, then merged.
 * Narrow weights are widened exactly, so that the merge is not rounded to their dtype.
 */
function compareWidened(
  dir: string,
  trained: LoraAdapters,
  batch: SequenceBatch,
  backend: Backend,
  compare: CompareLogits,
): void {
  using model = openModel(dir, { backend, dtype: 'f32' });
  using adapters = new LoraAdapters(model);
  const tensors = trained.tensors('case');
  adapters.addFrom(
    'ours',
    trained.config('case'),
    (path) => {
      const of = (part: string) => tensors.get(`${PEFT_PREFIX}${path}.${part}.weight`)?.alias();
      return { a: of('lora_A') as Tensor, b: of('lora_B') as Tensor };
    },
    (parameter) => (tensors.get(PEFT_PREFIX + parameter) as Tensor).alias(),
  );
  loadAdapter(adapters, 'after', join(dir, 'adapter_after'));
  const config = readJsonObject(join(dir, 'config.json'), 'golden');
  const { logits, trainedLogits } = TOLERANCES;
  compare('merged_logits_after', mergedLogits(adapters, 'ours', config, batch), trainedLogits);
  compare('loaded logits_after', logitsOf(model, batch), logits, 'logits_after');
  const merged = mergedLogits(adapters, 'after', config, batch);
  compare('loaded merged_logits_after', merged, logits, 'merged_logits_after');
}

function runModel(dir: string, backend: Backend, into: Comparison): void {
  const json = readJsonObject(join(dir, 'case.json'), 'golden');
  const config = readJsonObject(join(dir, 'config.json'), 'golden');
  const batch = batchOf(into);
  using model = openModel(dir, { backend });
  if (json.task !== model.peftTask) throw failure('golden task', model.peftTask, String(json.task));
  const counts = (i: number) =>
    !(model instanceof CausalLM) || batch.attentionMask?.[Math.floor(i / model.vocabSize)] === 1;
  const compare: CompareLogits = (name, received, tolerance, against = name) =>
    into.compare(name, received, tolerance, { against, counts });
  compare('base_logits', logitsOf(model, batch), TOLERANCES.logits);

  using adapters = new LoraAdapters(model);
  loadAdapter(adapters, 'case', join(dir, 'adapter'));
  into.problems.push(...savedDifferences(adapters, 'case', join(dir, 'adapter')));
  compare('logits', logitsOf(model, batch), TOLERANCES.logits);

  const tensors = adapters.setTrainable('case', true).tensors('case');
  for (const prefix of ['grad.', 'after.']) {
    const missing = into.names(prefix).filter((n) => !tensors.has(n.slice(prefix.length)));
    into.problems.push(...missing.map((n) => `${n}: no trainable tensor of this name`));
  }
  trainTenSteps(model, tensors, batch, optimizerOptions(json), into);
  compare('logits_after', logitsOf(model, batch), TOLERANCES.trainedLogits);
  compareWidened(dir, adapters, batch, backend, compare);

  loadAdapter(adapters, 'after', join(dir, 'adapter_after'));
  into.problems.push(...savedDifferences(adapters, 'after', join(dir, 'adapter_after')));
  const narrow = [...adapters.baseParameters().values()].some((p) => p.dtype !== 'f32');
  compare(
    'merged_logits_after, in the stored dtype',
    mergedLogits(adapters, 'after', config, batch),
    narrow ? TOLERANCES.mergedNarrow : TOLERANCES.logits,
    'merged_logits_after',
  );
}

/**
 * Runs one case directory. Never throws for what the case holds: an unsupported architecture or
 * setting, a missing file, a figure out of tolerance are all in the report.
 */
export function runCase(dir: string, backend: Backend): CaseReport {
  const name = basename(dir);
  let into: Comparison | undefined;
  const problems: string[] = [];
  try {
    into = new Comparison(dir);
    runModel(dir, backend, into);
  } catch (error) {
    problems.push((error as Error).message);
  }
  const figures = into?.figures ?? [];
  const all = [...(into?.problems ?? []), ...problems];
  const ok = all.length === 0 && figures.length > 0 && figures.every((f) => f.ok);
  return { case: name, backend: backend.name, ok, figures, problems: all };
}
