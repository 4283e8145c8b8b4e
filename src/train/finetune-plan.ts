import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint } from '../io/checkpoint.js';
import { openTokenizer } from '../io/tokenizer.js';
import { setCompute, setProducts } from '../models/compute.js';
import {
  AdamW,
  decayGroups,
  loraPlusGroups,
  type ParameterGroup,
  type ScheduleName,
} from '../optim/index.js';
import type { Backend } from '../tensor/backend.js';
import { CudaBackend } from '../tensor/cuda.js';
import type { ActivationDType } from '../tensor/dtype.js';
import { getBackend } from '../tensor/registry.js';
import { BestWeights } from './best.js';
import type { AnyEvaluation, FinetuneOptions, StartEvent } from './finetune-options.js';
import { type Settled, settle } from './finetune-settings.js';
import {
  checkOutFolder,
  fileFingerprint,
  forgetRun,
  inspectOutFolder,
  modelFingerprint,
  stateFolder,
} from './run-folder.js';
import { loadTrainingState, type RunSettings } from './state.js';
import { readTask, type Task } from './tasks.js';
import {
  fullTrainee,
  loraConfig,
  loraTrainee,
  sizeOf,
  type Trainee,
  type TraineeOptions,
} from './trainee.js';
import type { AnyBatch, BatchSource } from './trainer.js';

const WARMUP_SHARE = 0.03;

/** A run with everything loaded, checked and put in its first state. */
export interface Plan extends Trainee {
  readonly out: string;
  readonly stateDir: string;
  readonly backend: Backend;
  readonly optimizer: AdamW;
  readonly source: BatchSource<AnyBatch>;
  /** Measures the model on the evaluation file, where there is one, a batch a `next()`. */
  readonly measure: (() => Generator<void, AnyEvaluation>) | undefined;
  /** What must be equal for a stopped run to go on. */
  readonly settings: RunSettings;
  readonly steps: number;
  readonly lr: number;
  readonly schedule: ScheduleName;
  readonly warmupSteps: number;
  readonly maxGradNorm: number;
  readonly gradientCheckpointing: boolean;
  readonly activations: ActivationDType;
  readonly accumulation: number;
  readonly seed: number;
  readonly evalEvery: number;
  readonly saveEvery: number;
  /** The weights of the lowest loss on the evaluation file, where those are to be written. */
  readonly best?: BestWeights;
  /** Whether the run in `out` has nothing left to do. */
  readonly finished: boolean;
  startEvent(): StartEvent;
  /** Tokens that went into batches so far, without padding. */
  tokensSeen(): number;
  /** Bytes of the saved weights on disk. */
  savedBytes(): number;
}

/** The folder's files whose names match, in bytes. */
function bytesOf(dir: string, names: RegExp): number {
  if (!existsSync(dir)) return 0;
  const files = readdirSync(dir).filter((name) => names.test(name));
  return files.reduce((n, name) => n + statSync(join(dir, name)).size, 0);
}

function countSteps(options: FinetuneOptions, s: Settled, examples: number): number {
  if (options.steps !== undefined) return options.steps;
  const batches = Math.ceil(examples / s.batchSize);
  return Math.max(1, Math.ceil(((options.epochs ?? 1) * batches) / s.accumulation));
}

/** Counts the tokens that pass through a source. */
function counted(source: BatchSource<AnyBatch>): {
  source: BatchSource<AnyBatch>;
  seen: () => number;
} {
  let seen = 0;
  return {
    seen: () => seen,
    source: {
      batch(step, micro) {
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
 * @param how `dry`: nothing is changed on disk
 * @throws as {@link finetune} says; nothing is changed on disk then
 */
export function prepare(options: FinetuneOptions, how: { readonly dry?: boolean } = {}): Plan {
  const s = settle(options);
  const { modelDir, out } = options;
  checkOutFolder(out, modelDir);
  const backend =
    typeof options.backend === 'object' ? options.backend : getBackend(options.backend ?? 'auto');
  if (options.threads !== undefined) backend.setThreads(options.threads);
  const checkpoint = openCheckpoint(modelDir);
  const tokenizer = openTokenizer(modelDir);
  const task = readTask({ options, s, checkpoint, tokenizer });
  backend.resetPeak();
  const made = { options, backend, checkpoint, head: task.head, seed: s.seed };
  const trainee = s.full ? fullTrainee(made) : loraTrainee(made);
  const restores: (() => void)[] = [];
  const dispose = () => {
    for (const restore of restores.splice(0).reverse()) restore();
    trainee.dispose();
  };
  try {
    restores.push(setProducts(backend, options));
    if (options.compute !== undefined) restores.push(setCompute(trainee.model, options.compute));
    return assemble(options, s, { ...trainee, dispose }, task, { ...made, dry: how.dry ?? false });
  } catch (error) {
    dispose();
    throw error;
  }
}

/** An optimizer for the run, after the steps that a stopped run in `out` has done. */
function beginOrGoOn(
  options: FinetuneOptions,
  s: Settled,
  trainee: Trainee,
  settings: RunSettings,
  dry: boolean,
): { optimizer: AdamW; finished: boolean; best?: BestWeights } {
  const { out } = options;
  const { parameters } = trainee;
  const status = inspectOutFolder(out, settings, options);
  const optimizer = new AdamW(groupsOf(options, s, trainee), {
    lr: s.lr,
    weightDecay: s.weightDecay,
  });
  const finished = status.kind === 'finished';
  const best = options.keepBest ? new BestWeights(parameters) : undefined;
  try {
    if (status.kind === 'stopped') {
      loadTrainingState(stateFolder(out), parameters, optimizer, settings, best);
    } else if (!finished && !dry) forgetRun(out);
  } catch (error) {
    best?.dispose();
    optimizer.dispose();
    throw error;
  }
  return { optimizer, finished, ...(best ? { best } : {}) };
}

function groupsOf({ loraPlus }: FinetuneOptions, s: Settled, trainee: Trainee): ParameterGroup[] {
  const { parameters, outputs } = trainee;
  const { lr, weightDecay } = s;
  if (s.full) return decayGroups(parameters, weightDecay);
  if (loraPlus === undefined) return [{ parameters }];
  return loraPlusGroups(parameters, outputs, { lr, ratio: loraPlus, weightDecay });
}

/** What the choice of the best weights depends on. */
function choiceOf({ evalFile }: FinetuneOptions, every: number) {
  return { every, data: fileFingerprint(evalFile as string) };
}

/** How a GPU multiplies, where that is not as ever: a resumed run must share it. */
function productSettings(backend: Backend): RunSettings {
  if (!(backend instanceof CudaBackend)) return {};
  const { tf32, batchInvariant } = backend;
  return { ...(tf32 ? { tf32 } : {}), ...(batchInvariant ? { batchInvariant } : {}) };
}

function assemble(
  options: FinetuneOptions,
  s: Settled,
  trainee: Trainee,
  task: Task,
  made: TraineeOptions & { readonly dry: boolean },
): Plan {
  const { modelDir, dataFile, out, activations = 'f32' } = options;
  const { backend, checkpoint } = made;
  const { seqLength, counts, measure, ...data } = task.batches(trainee.model);
  const steps = countSteps(options, s, counts.examples);
  const warmupSteps = options.warmupSteps ?? Math.ceil(WARMUP_SHARE * steps);
  const { evalEvery, saveEvery, full, ...trained } = s;
  const method = full ? 'full' : 'lora';
  const settings: RunSettings = {
    method,
    model: modelFingerprint(checkpoint),
    data: fileFingerprint(dataFile),
    ...(full ? {} : { lora: loraConfig(made) }),
    ...(options.loraPlus === undefined ? {} : { loraPlus: options.loraPlus }),
    ...(options.keepBest ? { keepBest: choiceOf(options, evalEvery) } : {}),
    ...(options.dtype === undefined ? {} : { dtype: options.dtype }),
    ...(activations === 'f32' ? {} : { activations }),
    ...(backend.compute === 'exact' ? {} : { compute: backend.compute }),
    ...productSettings(backend),
    ...{ ...trained, steps, warmupSteps, seqLength, backend: backend.name },
    ...task.settings,
  };
  const { optimizer, finished, best } = beginOrGoOn(options, s, trainee, settings, made.dry);
  const resumedFrom = finished ? steps : optimizer.step;
  const { source, seen } = counted(data.source);
  return {
    ...trainee,
    ...trained,
    ...{ activations, out, backend, optimizer, source, measure, settings, steps, warmupSteps },
    ...{ evalEvery, saveEvery, finished, stateDir: stateFolder(out) },
    ...(best ? { best } : {}),
    // Not a setting that a resumed run must share: it changes no bit.
    gradientCheckpointing: options.gradientCheckpointing ?? false,
    ...(full && resumedFrom > 0 ? { asBase: async () => undefined } : {}),
    tokensSeen: seen,
    savedBytes: () => bytesOf(out, trainee.weightFiles),
    startEvent: () => ({
      ...{ type: 'start', method, ...task.about, modelDir, dataFile, out },
      ...{ backend: backend.describe(), ...counts },
      trainableParameters: sizeOf(trainee.parameters.values()),
      totalParameters: trainee.totalParameters,
      ...(trainee.wideRanks?.length ? { wideRanks: trainee.wideRanks } : {}),
      ...{ steps, resumedFrom, seqLength, batchSize: s.batchSize },
      ...{ accumulation: s.accumulation, lr: s.lr, memory: backend.memory().live },
    }),
    dispose() {
      best?.dispose();
      optimizer.zeroGrad();
      optimizer.dispose();
      trainee.dispose();
    },
  };
}
