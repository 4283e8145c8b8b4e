import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { BatchSampler } from '../io/sampler.js';
import { TokenFile } from '../io/token-file.js';
import type { CausalLM, TokenBatch } from '../models/causal-lm.js';
import { randomParameters } from '../models/init.js';
import { buildCausalLM } from '../models/load.js';
import { saveModel } from '../models/save.js';
import { AdamW, decayGroups } from '../optim/index.js';
import type { Backend } from '../tensor/backend.js';
import { CudaBackend } from '../tensor/cuda.js';
import { failure } from '../tensor/errors.js';
import { type Evaluation, evaluate } from './evaluate.js';
import { FiniteWatch } from './give-up.js';
import { hasTrainingState, loadTrainingState, saveTrainingState } from './state.js';
import { type StepEvent, train } from './trainer.js';

/** Settings of a pretraining run from random weights on files of token ids. */
export interface PretrainOptions {
  /** A Hugging Face config.json's contents. */
  readonly config: Readonly<Record<string, unknown>>;
  /** The directory whose tokenizer goes along. */
  readonly tokenizerDir: string;
  /** A file of 16-bit token ids, in which documents follow each other (sequence packing). */
  readonly trainFile: string;
  /** Held-out files of token ids by the name of their source. */
  readonly heldOut: ReadonlyMap<string, string>;
  /** Where the model is written. The state to resume from lies in `<out>/state` until the end. */
  readonly out: string;
  readonly steps: number;
  readonly batchSize: number;
  readonly accumulation: number;
  /** Tokens a sequence. */
  readonly seqLength: number;
  readonly lr: number;
  readonly warmupSteps: number;
  readonly weightDecay: number;
  readonly seed: number;
  /** Steps between evaluations and saved states. */
  readonly evalEvery: number;
  readonly backend: Backend;
  readonly signal?: AbortSignal;
}

/** Held-out losses by source. */
export interface EvalEvent {
  readonly type: 'eval';
  readonly step: number;
  readonly sources: Readonly<Record<string, Evaluation>>;
}

/** The windows at these indices as a batch whose every token is predicted but the first. */
function windows(file: TokenFile, indices: Int32Array): TokenBatch {
  const T = file.length + 1;
  const inputIds = new Int32Array(indices.length * T);
  indices.forEach((index, row) => {
    inputIds.set(file.window(index), row * T);
  });
  return { inputIds, labels: inputIds, batch: indices.length, length: T };
}

function* inOrder(file: TokenFile, batchSize: number, limit: number): Generator<TokenBatch> {
  const count = Math.min(file.windows, limit);
  for (let from = 0; from < count; from += batchSize) {
    const size = Math.min(batchSize, count - from);
    yield windows(
      file,
      Int32Array.from({ length: size }, (_, i) => from + i),
    );
  }
}

/** Held-out loss by source, over at most `limit` windows each. */
export function heldOutLosses(
  model: CausalLM,
  files: ReadonlyMap<string, TokenFile>,
  batchSize: number,
  limit = Number.POSITIVE_INFINITY,
): Record<string, Evaluation> {
  return Object.fromEntries(
    [...files].map(([name, f]) => [name, evaluate(model, inOrder(f, batchSize, limit))]),
  );
}

/** How many windows of each held-out source an evaluation on the way reads. */
const EVAL_WINDOWS = 48;

/**
 * Trains a new model on token files and writes it as a Hugging Face directory in bf16. A run that
 * was stopped goes on from its last saved state, bit for bit as if it had not stopped.
 * @throws when a setting is out of range, or ten steps in a row have no finite loss or gradients
 */
export async function* pretrain(options: PretrainOptions): AsyncGenerator<StepEvent | EvalEvent> {
  const ends: (() => void)[] = [];
  try {
    yield* run(options, (end) => ends.push(end));
  } finally {
    for (const end of ends.reverse()) end();
  }
}

/** @param atEnd is told how to free what the run holds */
async function* run(
  options: PretrainOptions,
  atEnd: (end: () => void) => void,
): AsyncGenerator<StepEvent | EvalEvent> {
  const { config, backend, seed, seqLength, batchSize, steps, accumulation, out } = options;
  const layers = Number(config.num_hidden_layers);
  const model = buildCausalLM(config, randomParameters(seed, layers, backend));
  atEnd(() => model.dispose());
  if (seqLength > model.maxPositions) {
    throw failure('seqLength', `at most ${model.maxPositions}`, String(seqLength));
  }
  const parameters = new Map(model.namedParameters());
  const optimizer = new AdamW(decayGroups(parameters, options.weightDecay), {
    lr: options.lr,
    betas: [0.9, 0.95],
  });
  atEnd(() => optimizer.dispose());
  const open = (path: string) => {
    const opened = TokenFile.open(path, seqLength - 1);
    atEnd(() => opened.close());
    return opened;
  };
  const file = open(options.trainFile);
  const heldOut = new Map([...options.heldOut].map(([name, path]) => [name, open(path)]));
  const sampler = new BatchSampler(file.windows, { batchSize, seed, dropLast: true });
  const { lr, warmupSteps, weightDecay } = options;
  const settings = { config, steps, batchSize, accumulation, seqLength, lr, warmupSteps };
  const state = join(out, 'state');
  const same = { ...settings, weightDecay, seed, tokens: file.count };
  mkdirSync(out, { recursive: true });
  if (hasTrainingState(state)) loadTrainingState(state, parameters, optimizer, same);
  const source = {
    batch: (step: number, micro: number) => windows(file, sampler.at(step * accumulation + micro)),
  };
  const watch = new FiniteWatch();
  const kept = () =>
    hasTrainingState(state)
      ? `The last state that was saved is in ${state}`
      : 'Nothing was saved yet';
  for await (const event of train(model, optimizer, source, {
    steps,
    accumulation,
    lr,
    warmupSteps,
    lrFloor: 0.1,
    seed,
    graphs: true,
    // Where a GPU would wait, but not past a step whose state is saved.
    ahead: (step) => backend instanceof CudaBackend && step % options.evalEvery !== 0,
    ...(options.signal ? { signal: options.signal } : {}),
  })) {
    yield event;
    watch.check(event, kept);
    if (event.step % options.evalEvery === 0 || event.step === steps) {
      saveTrainingState(state, parameters, optimizer, same);
      const limit = event.step === steps ? Number.POSITIVE_INFINITY : EVAL_WINDOWS;
      yield {
        type: 'eval',
        step: event.step,
        sources: heldOutLosses(model, heldOut, batchSize, limit),
      };
    }
  }
  if (optimizer.step < steps) saveTrainingState(state, parameters, optimizer, same);
  else {
    const { tokenizerDir } = options;
    saveModel(out, { tensors: parameters, config, tokenizerDir, dtype: 'bf16' });
  }
}
