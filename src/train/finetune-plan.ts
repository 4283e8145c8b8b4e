import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type Checkpoint, openCheckpoint } from '../io/checkpoint.js';
import { type Batch, countTargets, type DataRecord, readJsonl } from '../io/dataset.js';
import { openTokenizer, type Tokenizer } from '../io/tokenizer.js';
import { type FullLoraConfig, fullConfig } from '../lora/config.js';
import { LoraAdapters, saveAdapter } from '../lora/index.js';
import type { CausalLM, TokenBatch } from '../models/causal-lm.js';
import { openModel } from '../models/load.js';
import { saveModel } from '../models/save.js';
import { AdamW, decayGroups, SCHEDULES, type ScheduleName } from '../optim/index.js';
import type { Backend } from '../tensor/backend.js';
import { failure, nearest } from '../tensor/errors.js';
import { getBackend } from '../tensor/registry.js';
import type { Tensor } from '../tensor/tensor.js';
import { evaluationBatches, sequenceLength, type TrainingData, trainingData } from './data.js';
import type { FinetuneOptions, StartEvent } from './finetune-options.js';
import {
  checkOutFolder,
  fileFingerprint,
  forgetRun,
  inspectOutFolder,
  modelFingerprint,
  stateFolder,
} from './run-folder.js';
import { loadTrainingState, type RunSettings } from './state.js';
import type { BatchSource } from './trainer.js';

/** The adapter's name while it is trained. */
const ADAPTER = 'trained';

const WARMUP_SHARE = 0.03;

/** What is trained: an adapter on a frozen model, or all of it. */
interface Trainee {
  readonly model: CausalLM;
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly totalParameters: number;
  saveWeights(): void;
  /** Files that {@link saveWeights} writes, by a test of their names. */
  readonly weightFiles: RegExp;
  /** Runs `fn` with the base model's weights; answers nothing where training has changed them. */
  asBase<T>(fn: () => Promise<T>): Promise<T | undefined>;
  dispose(): void;
}

/** A run with everything loaded, checked and put in its first state. */
export interface Plan extends Trainee {
  readonly out: string;
  readonly stateDir: string;
  readonly backend: Backend;
  readonly optimizer: AdamW;
  readonly source: BatchSource;
  /** Of the evaluation file, where there is one. */
  readonly evalBatches: readonly TokenBatch[] | undefined;
  /** What must be equal for a stopped run to go on. */
  readonly settings: RunSettings;
  readonly steps: number;
  readonly lr: number;
  readonly schedule: ScheduleName;
  readonly warmupSteps: number;
  readonly maxGradNorm: number;
  readonly accumulation: number;
  readonly seed: number;
  readonly evalEvery: number;
  readonly saveEvery: number;
  /** Whether the run in `out` has nothing left to do. */
  readonly finished: boolean;
  startEvent(): StartEvent;
  /** Tokens that went into batches so far, without padding. */
  tokensSeen(): number;
  /** Bytes of the saved weights on disk. */
  savedBytes(): number;
}

/** Plain settings with their defaults filled in. */
function settle(options: FinetuneOptions) {
  const { full = false } = options;
  const s = {
    full,
    lr: options.lr ?? (full ? 2e-5 : 2e-4),
    batchSize: options.batchSize ?? 8,
    accumulation: options.accumulation ?? 1,
    schedule: options.schedule ?? 'cosine',
    weightDecay: options.weightDecay ?? 0,
    maxGradNorm: options.maxGradNorm ?? 1,
    seed: options.seed ?? 0,
    evalEvery: options.evalEvery ?? 0,
    saveEvery: options.saveEvery ?? 200,
  };
  const check = (name: string, value: number | undefined, least: number, whole = true) => {
    if (value === undefined) return;
    if ((whole ? Number.isSafeInteger(value) : Number.isFinite(value)) && value >= least) return;
    const kind = whole ? 'a whole number' : 'a number';
    throw failure(`finetune ${name}`, `${kind} of ${least} or more`, String(value));
  };
  if (!(s.lr > 0 && s.lr < Infinity)) throw failure('finetune lr', 'more than 0', String(s.lr));
  check('steps', options.steps, 1);
  check('batchSize', s.batchSize, 1);
  check('accumulation', s.accumulation, 1);
  check('seqLength', options.seqLength, 2);
  check('warmupSteps', options.warmupSteps, 0);
  check('weightDecay', s.weightDecay, 0, false);
  check('maxGradNorm', s.maxGradNorm, 0, false);
  check('seed', s.seed, 0);
  check('evalEvery', s.evalEvery, 0);
  check('saveEvery', s.saveEvery, 0);
  check('threads', options.threads, 1);
  const { epochs } = options;
  if (epochs !== undefined && !(epochs > 0 && epochs < Infinity)) {
    throw failure('finetune epochs', 'more than 0', String(epochs));
  }
  if (epochs !== undefined && options.steps !== undefined) {
    throw failure('finetune', 'steps or epochs', 'both', 'Leave one of them out');
  }
  if (!SCHEDULES.includes(s.schedule)) {
    const near = nearest(String(s.schedule), SCHEDULES, 1)[0];
    const known = `one of ${SCHEDULES.join(', ')}`;
    throw failure('finetune schedule', known, `"${s.schedule}"`, `Did you mean ${near}?`);
  }
  if (full && options.lora !== undefined) {
    throw failure('finetune', 'full or lora', 'both', 'Leave one of them out');
  }
  if (s.evalEvery > 0 && options.evalFile === undefined) {
    throw failure('finetune evalEvery', 'an evalFile to evaluate on', 'none');
  }
  return s;
}

type Settled = ReturnType<typeof settle>;

/** The folder's files whose names match, in bytes. */
function bytesOf(dir: string, names: RegExp): number {
  if (!existsSync(dir)) return 0;
  const files = readdirSync(dir).filter((name) => names.test(name));
  return files.reduce((n, name) => n + statSync(join(dir, name)).size, 0);
}

const sizeOf = (tensors: Iterable<Tensor>) => [...tensors].reduce((n, t) => n + t.size, 0);

function loraConfig({ lora }: FinetuneOptions): FullLoraConfig {
  return fullConfig({ targetModules: ['all-linear'], ...lora });
}

function loraTrainee(options: FinetuneOptions, backend: Backend, seed: number): Trainee {
  const { modelDir, out } = options;
  const config = loraConfig(options);
  const model = openModel(modelDir, { task: 'causal-lm', backend });
  let adapters: LoraAdapters;
  try {
    adapters = new LoraAdapters(model).add(ADAPTER, config, seed);
  } catch (error) {
    model.dispose();
    throw error;
  }
  const parameters = adapters.tensors(ADAPTER);
  return {
    model,
    parameters,
    totalParameters: sizeOf(adapters.baseParameters().values()) + sizeOf(parameters.values()),
    weightFiles: /^adapter_/,
    saveWeights: () => saveAdapter(adapters, ADAPTER, out, modelDir),
    async asBase(fn) {
      adapters.setActive(null);
      try {
        return await fn();
      } finally {
        adapters.setActive(ADAPTER);
      }
    },
    dispose: () => model.dispose(),
  };
}

const STORED = { F32: 'f32', F16: 'f16', BF16: 'bf16' } as const;

function fullTrainee(options: FinetuneOptions, backend: Backend, checkpoint: Checkpoint): Trainee {
  const { modelDir, out } = options;
  const model = openModel(modelDir, { task: 'causal-lm', backend, trainable: true });
  const parameters = new Map(model.namedParameters());
  const [stored] = [...checkpoint.tensors.values()].map((t) => t.dtype);
  const dtype = STORED[stored as keyof typeof STORED] ?? 'f32';
  const { config } = checkpoint;
  return {
    model,
    parameters,
    totalParameters: sizeOf(parameters.values()),
    weightFiles: /^model.*\.safetensors/,
    saveWeights: () =>
      saveModel(out, { tensors: parameters, config, tokenizerDir: modelDir, dtype }),
    asBase: (fn) => fn(),
    dispose: () => model.dispose(),
  };
}

/** How much there is to learn; throws where there is nothing. */
function checkData(file: string, data: TrainingData): { tokens: number; targets: number } {
  const tokens = data.examples.reduce((n, e) => n + e.ids.length, 0);
  const targets = data.examples.reduce((n, e) => n + countTargets(e), 0);
  if (targets > 0) return { tokens, targets };
  throw failure(
    `data ${file}`,
    'something to learn: a completion, or a text of two tokens or more',
    `${data.examples.length} examples of ${tokens} tokens without one`,
  );
}

/** The evaluation file's batches, checked to have something to predict. */
function readEvaluation(
  file: string,
  tokenizer: Tokenizer,
  seqLength: number,
  batchSize: number,
): Batch[] {
  const batches = [...evaluationBatches(readJsonl(file), tokenizer, seqLength, batchSize)];
  if (batches.some((b) => b.targets > 0)) return batches;
  const count = batches.reduce((n, b) => n + b.batch, 0);
  throw failure(`eval ${file}`, 'something to predict', `${count} examples without`);
}

function countSteps(options: FinetuneOptions, s: Settled, examples: number): number {
  if (options.steps !== undefined) return options.steps;
  const batches = Math.ceil(examples / s.batchSize);
  return Math.max(1, Math.ceil(((options.epochs ?? 1) * batches) / s.accumulation));
}

/** Counts the tokens that pass through a source. */
function counted(source: BatchSource): { source: BatchSource; seen: () => number } {
  let seen = 0;
  return {
    seen: () => seen,
    source: {
      batch(step, micro): TokenBatch {
        const batch = source.batch(step, micro);
        const { attentionMask } = batch;
        seen += attentionMask ? attentionMask.reduce((n, m) => n + m, 0) : batch.inputIds.length;
        return batch;
      },
    },
  };
}

/**
 * Loads and checks everything a run needs, and restores its state where it goes on.
 * @throws as {@link finetune} says; nothing is changed on disk then
 */
export function prepare(options: FinetuneOptions): Plan {
  const s = settle(options);
  const { modelDir, dataFile, out } = options;
  checkOutFolder(out, modelDir);
  const backend =
    typeof options.backend === 'object' ? options.backend : getBackend(options.backend ?? 'auto');
  if (options.threads !== undefined) backend.setThreads(options.threads);
  const records = readJsonl(dataFile);
  const checkpoint = openCheckpoint(modelDir);
  const tokenizer = openTokenizer(modelDir);
  backend.resetPeak();
  const trainee = s.full
    ? fullTrainee(options, backend, checkpoint)
    : loraTrainee(options, backend, s.seed);
  try {
    return assemble(options, s, trainee, { backend, records, checkpoint, tokenizer });
  } catch (error) {
    trainee.dispose();
    throw error;
  }
}

interface Loaded {
  readonly backend: Backend;
  readonly records: readonly DataRecord[];
  readonly checkpoint: Checkpoint;
  readonly tokenizer: Tokenizer;
}

/** The data as batches, and how far the run goes over them. */
function readData(options: FinetuneOptions, s: Settled, model: CausalLM, loaded: Loaded) {
  const { records, tokenizer } = loaded;
  const { batchSize, accumulation, seed } = s;
  const { evalFile } = options;
  const seqLength = sequenceLength(options.seqLength, model.maxPositions);
  const data = trainingData(records, tokenizer, { seqLength, batchSize, accumulation, seed });
  const counts = checkData(options.dataFile, data);
  const evalBatches =
    evalFile === undefined ? undefined : readEvaluation(evalFile, tokenizer, seqLength, batchSize);
  const steps = countSteps(options, s, data.examples.length);
  const warmupSteps = options.warmupSteps ?? Math.ceil(WARMUP_SHARE * steps);
  return { data, ...counts, evalBatches, seqLength, steps, warmupSteps };
}

/** An optimizer for the run, after the steps that a stopped run in `out` has done. */
function beginOrGoOn(
  options: FinetuneOptions,
  s: Settled,
  trainee: Trainee,
  settings: RunSettings,
): { optimizer: AdamW; finished: boolean } {
  const { out } = options;
  const { parameters } = trainee;
  const status = inspectOutFolder(out, settings, options);
  const groups = s.full ? decayGroups(parameters, s.weightDecay) : [{ parameters }];
  const optimizer = new AdamW(groups, { lr: s.lr, weightDecay: s.weightDecay });
  const finished = status.kind === 'finished' && options.resume === true;
  try {
    if (status.kind === 'stopped') {
      loadTrainingState(stateFolder(out), parameters, optimizer, settings);
    } else if (!finished) forgetRun(out);
  } catch (error) {
    optimizer.dispose();
    throw error;
  }
  return { optimizer, finished };
}

function assemble(options: FinetuneOptions, s: Settled, trainee: Trainee, loaded: Loaded): Plan {
  const { modelDir, dataFile, out } = options;
  const { backend, checkpoint } = loaded;
  const read = readData(options, s, trainee.model, loaded);
  const { data, tokens, targets, evalBatches, seqLength, steps, warmupSteps } = read;
  const { evalEvery, saveEvery, full, ...trained } = s;
  const method = full ? 'full' : 'lora';
  const settings: RunSettings = {
    method,
    model: modelFingerprint(checkpoint),
    data: fileFingerprint(dataFile),
    ...(full ? {} : { lora: loraConfig(options) }),
    ...{ ...trained, steps, warmupSteps, seqLength, backend: backend.name },
  };
  const { optimizer, finished } = beginOrGoOn(options, s, trainee, settings);
  const resumedFrom = finished ? steps : optimizer.step;
  const { source, seen } = counted(data);
  return {
    ...trainee,
    ...trained,
    ...{ out, backend, optimizer, source, evalBatches, settings, steps, warmupSteps },
    ...{ evalEvery, saveEvery, finished, stateDir: stateFolder(out) },
    ...(full && resumedFrom > 0 ? { asBase: async () => undefined } : {}),
    tokensSeen: seen,
    savedBytes: () => bytesOf(out, trainee.weightFiles),
    startEvent: () => ({
      ...{ type: 'start', method, modelDir, dataFile, out, backend: backend.describe() },
      ...{ examples: data.examples.length, tokens, targets },
      truncatedExamples: data.tokenized.truncated,
      truncatedTokens: data.tokenized.truncatedTokens,
      trainableParameters: sizeOf(trainee.parameters.values()),
      totalParameters: trainee.totalParameters,
      ...{ steps, resumedFrom, seqLength, batchSize: s.batchSize },
      ...{ accumulation: s.accumulation, lr: s.lr, memory: backend.memory().live },
    }),
    dispose() {
      optimizer.zeroGrad();
      optimizer.dispose();
      trainee.dispose();
    },
  };
}
