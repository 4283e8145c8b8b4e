/**
 * Runs one golden case, computed by PyTorch and PEFT, and compares everything in it with ours.
 * What a case directory holds: test/golden/README.md.
 */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { noGrad, scope } from '../../src/autograd/index.js';
import { readJsonObject } from '../../src/io/files.js';
import { SafetensorsFile } from '../../src/io/safetensors.js';
import { LoraAdapters, loadAdapter, saveAdapter } from '../../src/lora/index.js';
import { CausalLM } from '../../src/models/causal-lm.js';
import type { SequenceBatch } from '../../src/models/classifier.js';
import { LlamaForCausalLM, LlamaForSequenceClassification } from '../../src/models/llama.js';
import { buildModel, type Model, openModel } from '../../src/models/load.js';
import { cast } from '../../src/ops/index.js';
import type { Backend } from '../../src/tensor/backend.js';
import { tensor } from '../../src/tensor/create.js';
import type { DType } from '../../src/tensor/dtype.js';
import { failure } from '../../src/tensor/errors.js';
import { getBackend } from '../../src/tensor/registry.js';
import { adapterDifferences, Comparison, type Figure, largestDifference } from './compare.js';
import {
  logitsOf,
  type Noise,
  readRecipe,
  type TensorNoise,
  type Trained,
  train,
} from './training.js';

/**
 * Largest difference allowed, as a share of the largest magnitude of the expected tensor: logits
 * reach 14, where f32 itself resolves 1e-6.
 */
const TOLERANCES = {
  logits: 1e-4,
  loss: 1e-4,
  gradient: 1e-3,
  stepLosses: 1e-3,
  trained: 1e-3,
} as const;

/**
 * A gradient is compared with the largest of its tensor, or with this share of the largest of all:
 * one that is 0 but for rounding (of a query where a position sees one key only) has no digits.
 */
const GRADIENT_FLOOR = 1e-2;

/**
 * Adam makes of a gradient's rounding a step of full size where the gradient is small, and these
 * random models multiply what follows. So where ten steps end outside the tolerances they are
 * repeated with noise on the gradients, of the size by which our first gradients differ from
 * PyTorch's (for each tensor, of its largest); the tolerance is then so many times the largest
 * effect of that noise.
 */
const NOISY = { runs: 3, factor: 5, least: 2 ** -23 } as const;

/** What became of one case on one backend. */
export interface CaseReport {
  readonly case: string;
  readonly backend: string;
  readonly ok: boolean;
  readonly figures: readonly Figure[];
  /** Whether the adapter saved again equals PEFT's file and settings; null if it was not reached. */
  readonly savedEqual: boolean | null;
  /** What is wrong beside the figures; an unsupported case has its reason here. */
  readonly problems: readonly string[];
  /** What to know about how the figures came about. */
  readonly notes: readonly string[];
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

/** Logits of rows that count: of a language model those where the mask is 1. */
function counting(model: Model, { attentionMask }: SequenceBatch): (index: number) => boolean {
  if (!(model instanceof CausalLM)) return () => true;
  return (i) => attentionMask?.[Math.floor(i / model.vocabSize)] === 1;
}

/** Numbers rounded to a narrower dtype. */
function roundedTo(dtype: DType, values: Float32Array): Float32Array {
  const backend = getBackend('reference');
  return scope(() =>
    Float32Array.from(cast(tensor(values, [values.length], { backend }), dtype).toNumbers()),
  );
}

/** Makes a model turn its queries and keys by frequencies rounded to a dtype. */
type Adjust = (model: Model) => void;

/**
 * A maker that casts a whole model to bf16 or f16 and back rounds RoPE's frequencies with the
 * weights; transformers, loading such a checkpoint, does not. The case's own base logits tell which
 * of the two it was, and the frequencies are rounded for it only.
 */
function compareBase(model: Model, batch: SequenceBatch, into: Comparison): Adjust {
  const counts = counting(model, batch);
  const expected = into.expected('base_logits');
  const distance = (logits: readonly number[]) => largestDifference(expected, logits, counts);
  let logits = logitsOf(model, batch);
  let adjust: Adjust = () => {};
  const isLlama = (m: Model) =>
    m instanceof LlamaForCausalLM || m instanceof LlamaForSequenceClassification;
  if (isLlama(model)) {
    const llama = model as LlamaForCausalLM;
    const { dtype } = llama.model.embed_tokens.weight;
    const { rope } = llama.config;
    const rounded: Adjust = (m) =>
      (m as LlamaForCausalLM).model.setFrequencies((length) =>
        // Those of longer sequences are computed anew, in f32.
        length > rope.fixedUpTo
          ? rope.frequencies(length)
          : roundedTo(dtype, rope.frequencies(length)),
      );
    if (dtype !== 'f32') {
      rounded(model);
      const other = logitsOf(model, batch);
      if (distance(other) < distance(logits)) {
        into.notes.push(
          `RoPE's frequencies rounded to ${dtype}, as the case was made; ` +
            `with exact ones base_logits differ by ${distance(logits).toExponential(1)}`,
        );
        [logits, adjust] = [other, rounded];
      } else llama.model.setFrequencies(rope.frequencies);
    }
  }
  into.compare('base_logits', logits, TOLERANCES.logits, { counts });
  return adjust;
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

/** Gradients at the start, the losses of the steps, and what the trained tensors became. */
function compareTraining(trained: Trained, into: Comparison): void {
  const { losses, gradients, after } = trained;
  for (const prefix of ['grad.', 'after.']) {
    const missing = into.names(prefix).filter((n) => !after.has(n.slice(prefix.length)));
    into.problems.push(...missing.map((n) => `${n}: no trainable tensor of this name`));
    const surplus = [...after.keys()].filter((key) => !into.names(prefix).includes(prefix + key));
    into.problems.push(...surplus.map((key) => `${prefix}${key}: not in the case`));
  }
  if (into.problems.length > 0) return;
  into.compare('loss', losses.slice(0, 1), TOLERANCES.loss);
  const largest = into.names('grad.').map((n) => into.largest(n));
  const scale = GRADIENT_FLOOR * Math.max(0, ...largest.filter(Number.isFinite));
  for (const [key, values] of gradients) {
    into.compare(`grad.${key}`, values, TOLERANCES.gradient, { scale });
  }
  into.compare('step_losses', losses, TOLERANCES.stepLosses);
  for (const [key, values] of after) into.compare(`after.${key}`, values, TOLERANCES.trained);
}

/** Widens the tolerances of what the steps gave by what noise on the gradients does to it. */
function widenByNoise(
  trained: Trained,
  into: Comparison,
  again: (noise: Noise) => Trained,
  counts: (index: number) => boolean,
): void {
  const early = into.figures.filter((f) => f.name === 'loss' || f.name.startsWith('grad.'));
  const late = into.figures.filter((f) => /^(step_losses|trained |after\.)/.test(f.name));
  if (early.some((f) => !f.ok) || late.every((f) => f.ok)) return;
  const noise = new Map<string, TensorNoise>();
  for (const [key, gradient] of trained.gradients) {
    const expected = into.expected(`grad.${key}`);
    const size = largestDifference(expected, gradient);
    noise.set(key, {
      size: Math.max(size, NOISY.least * into.largest(`grad.${key}`)),
      largest: gradient.reduce((n, g) => Math.max(n, Math.abs(g)), 0),
      counts: (i) => expected[i] !== 0,
    });
  }
  const moved = new Map<string, number>();
  const note = (name: string, a: readonly number[], b: readonly number[], own = counts) =>
    moved.set(name, Math.max(moved.get(name) ?? 0, largestDifference(a, b, own)));
  const all = () => true;
  for (let seed = 1; seed <= NOISY.runs; seed++) {
    const noisy = again({ tensors: noise, seed });
    note('step_losses', trained.losses, noisy.losses, all);
    note('trained logits_after', trained.logits, noisy.logits);
    note('trained merged_logits_after', trained.logits, noisy.logits);
    for (const [key, values] of trained.after) {
      note(`after.${key}`, values, noisy.after.get(key) as readonly number[], all);
    }
  }
  for (const [name, by] of moved) {
    const against = name.replace('trained ', '');
    const largest = into.largest(against, against === name ? all : counts);
    into.widen(name, by / largest, NOISY.factor);
  }
  into.notes.push('the ten steps magnify rounding: their tolerances are wider, by its effect');
}

/** A merge into the stored dtype must be the f32 merge, rounded once. */
function checkNarrow(adapters: LoraAdapters, name: string, problems: string[]): void {
  const [narrow, wide] = [adapters.mergedSource([name]), adapters.mergedSource([name], 'f32')];
  for (const [parameter, { shape, dtype }] of adapters.baseParameters()) {
    if (dtype === 'f32') continue;
    using want = wide(parameter, shape);
    using got = narrow(parameter, shape);
    const rounded = noGrad(() => scope(() => cast(want, dtype).bytes()));
    const equal = Buffer.compare(rounded, got.bytes()) === 0;
    if (!equal) problems.push(`merged ${parameter}: not the f32 sum rounded to ${dtype}`);
  }
}

/** Whether an adapter changes the table of a tied head, or the head: the head is then its own. */
function untiesHead(dir: string): boolean {
  const file = SafetensorsFile.open(join(dir, 'adapter', 'adapter_model.safetensors'));
  return [...file.tensors.keys()].some((n) => /\.(embed_tokens|wte|lm_head)\./.test(n));
}

function runModel(dir: string, backend: Backend, into: Comparison, saved: string[]): void {
  const json = readJsonObject(join(dir, 'case.json'), 'golden');
  const recipe = readRecipe(json);
  const batch = batchOf(into);
  const untied = untiesHead(dir);
  using model = openModel(dir, { backend, ...(untied ? { untied } : {}) });
  if (json.task !== model.peftTask) throw failure('golden task', model.peftTask, String(json.task));
  const counts = counting(model, batch);
  const compare = (name: string, received: readonly number[], against = name) =>
    into.compare(name, received, TOLERANCES.logits, { against, counts });
  const adjust = compareBase(model, batch, into);

  using adapters = new LoraAdapters(model);
  const load = (name: string, folder = 'adapter') => {
    loadAdapter(adapters, name, join(dir, folder));
    return adapters.setTrainable(name, true).tensors(name);
  };
  const tensors = load('case');
  saved.push(...savedDifferences(adapters, 'case', join(dir, 'adapter')));
  compare('logits', logitsOf(model, batch));
  const trained = train(model, tensors, batch, recipe);
  compareTraining(trained, into);
  compare('trained logits_after', trained.logits, 'logits_after');

  const config = readJsonObject(join(dir, 'config.json'), 'golden');
  // Where B A is on the table of a tied head, PEFT's merge changes the head along, which its
  // unmerged model does not. That figure is met by the same; our own merge keeps the head.
  const shared = [...tensors.keys()].some((n) => n.endsWith('.lora_embedding_A'));
  const mergedLogits = (name: string, own = !shared) => {
    const source = adapters.mergedSource([name], 'f32');
    const free = untied && own ? { ...config, tie_word_embeddings: false } : config;
    using merged = buildModel(free, source);
    adjust(merged);
    return logitsOf(merged, batch);
  };
  compare('trained merged_logits_after', mergedLogits('case'), 'merged_logits_after');
  // The adapter that PEFT trained: what loading and merging are worth, without our steps.
  load('after', 'adapter_after');
  saved.push(...savedDifferences(adapters, 'after', join(dir, 'adapter_after')));
  compare('logits_after', logitsOf(model, batch));
  compare('merged_logits_after', mergedLogits('after'));
  if (shared) compare('merged with a free head', mergedLogits('after', true), 'logits_after');
  checkNarrow(adapters, 'after', into.problems);
  const again = (noise: Noise) => {
    try {
      return train(model, load('noisy'), batch, recipe, noise);
    } finally {
      adapters.remove('noisy');
    }
  };
  widenByNoise(trained, into, again, counts);
}

/** What a case directory must hold. @throws naming all that is missing */
function checkFiles(dir: string): void {
  if (!existsSync(dir)) throw failure('golden case', `a directory ${dir}`, 'nothing there');
  const adapter = ['adapter_config.json', 'adapter_model.safetensors'];
  const files = [
    ...['case.json', 'config.json', 'expected.safetensors'],
    ...['adapter', 'adapter_after'].flatMap((d) => adapter.map((f) => `${d}/${f}`)),
  ];
  const missing = files.filter((f) => !existsSync(join(dir, f)));
  if (missing.length === 0) return;
  throw failure(`golden case ${dir}`, files.join(', '), `none of the name ${missing.join(', ')}`);
}

/**
 * Runs one case directory. Never throws for what the case holds: an unsupported architecture or
 * setting, a missing file, a figure out of tolerance are all in the report.
 */
export function runCase(dir: string, backend: Backend): CaseReport {
  let into: Comparison | undefined;
  const problems: string[] = [];
  const saved: string[] = [];
  let compared = false;
  try {
    checkFiles(dir);
    into = new Comparison(dir);
    runModel(dir, backend, into, saved);
    compared = true;
  } catch (error) {
    problems.push((error as Error).message);
  }
  const figures = into?.figures ?? [];
  const all = [...(into?.problems ?? []), ...saved, ...problems];
  return {
    case: basename(dir),
    backend: backend.name,
    ok: all.length === 0 && compared && figures.every((f) => f.ok),
    figures,
    savedEqual: saved.length > 0 ? false : compared ? true : null,
    problems: all,
    notes: into?.notes ?? [],
  };
}
