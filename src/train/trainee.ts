import type { Checkpoint } from '../io/checkpoint.js';
import { type FullLoraConfig, fullConfig } from '../lora/config.js';
import { LoraAdapters, namesHead, saveAdapter, type WideRank, wideRanks } from '../lora/index.js';
import {
  type ClassifierHead,
  headConfig,
  headModule,
  isClassifier,
  newModules,
  saveHead,
} from '../models/head.js';
import { type Model, openModel } from '../models/load.js';
import { saveModel } from '../models/save.js';
import type { Backend } from '../tensor/backend.js';
import type { Tensor } from '../tensor/tensor.js';
import type { FinetuneOptions } from './finetune-options.js';

/** The adapter's name while it is trained. */
const ADAPTER = 'trained';

/** What is trained: an adapter on a frozen model, or all of it. */
export interface Trainee {
  readonly model: Model;
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Names of the parameters that LoRA+ trains faster: each B. None in full fine-tuning. */
  readonly outputs: ReadonlySet<string>;
  readonly totalParameters: number;
  /** Of an adapter: layers whose rank is above their smaller side. */
  readonly wideRanks?: readonly WideRank[];
  saveWeights(): void;
  /** Files that {@link saveWeights} writes, by a test of their names. */
  readonly weightFiles: RegExp;
  /** Runs `fn` with the base model's weights; answers nothing where training has changed them. */
  asBase<T>(fn: () => Promise<T>): Promise<T | undefined>;
  dispose(): void;
}

/** What a trainee is made of. */
export interface TraineeOptions {
  readonly options: FinetuneOptions;
  readonly backend: Backend;
  readonly checkpoint: Checkpoint;
  /** A classifier's labels or head, where they are not the checkpoint's. */
  readonly head: ClassifierHead | undefined;
  readonly seed: number;
}

/** Numbers that tensors hold. */
export function sizeOf(tensors: Iterable<Tensor>): number {
  return [...tensors].reduce((n, t) => n + t.size, 0);
}

/**
 * The adapter's settings. A classifier's head is trained and saved whole, as PEFT does it (its
 * loader asks for those tensors), whatever else is; so is all that is new with a new head.
 */
export function loraConfig({
  options,
  checkpoint,
  head,
}: Pick<TraineeOptions, 'options' | 'checkpoint' | 'head'>): FullLoraConfig {
  const { lora } = options;
  const own = isClassifier(checkpoint.config) ? [headModule(checkpoint.config)] : [];
  const whole = head?.seed === undefined ? own : newModules(checkpoint);
  const saved = [...new Set([...(lora?.modulesToSave ?? []), ...whole])];
  return fullConfig({
    targetModules: ['all-linear'],
    ...lora,
    ...(saved.length > 0 ? { modulesToSave: saved } : {}),
  });
}

/** An adapter on a frozen model. */
export function loraTrainee(made: TraineeOptions): Trainee {
  const { options, backend, head, seed } = made;
  const { modelDir, out, modelName = modelDir, dtype } = options;
  const config = loraConfig(made);
  // A head that is to be adapted is a tensor of its own, though the checkpoint ties it.
  const untied = namesHead(config);
  const model = openModel(modelDir, { backend, untied, dtype, ...(head ? { head } : {}) });
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
    outputs: adapters.outputTensors(ADAPTER),
    wideRanks: wideRanks(adapters, ADAPTER),
    totalParameters: sizeOf(adapters.baseParameters().values()) + sizeOf(parameters.values()),
    weightFiles: /^adapter_/,
    saveWeights() {
      if (head) saveHead(out, head);
      saveAdapter(adapters, ADAPTER, out, modelName);
    },
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

/** Every parameter of a model. */
export function fullTrainee({ options, backend, checkpoint, head }: TraineeOptions): Trainee {
  const { modelDir, out } = options;
  const model = openModel(modelDir, { backend, trainable: true, ...(head ? { head } : {}) });
  const parameters = new Map(model.namedParameters());
  const [stored] = [...checkpoint.tensors.values()].map((t) => t.dtype);
  const dtype = STORED[stored as keyof typeof STORED] ?? 'f32';
  const config = head ? headConfig(checkpoint.config, head) : checkpoint.config;
  return {
    model,
    parameters,
    outputs: new Set(),
    totalParameters: sizeOf(parameters.values()),
    weightFiles: /^model.*\.safetensors/,
    saveWeights: () =>
      saveModel(out, { tensors: parameters, config, tokenizerDir: modelDir, dtype }),
    asBase: (fn) => fn(),
    dispose: () => model.dispose(),
  };
}
