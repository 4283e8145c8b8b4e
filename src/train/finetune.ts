import { setImmediate } from 'node:timers/promises';
import { CudaBackend } from '../tensor/cuda.js';
import type {
  AnyEvaluation,
  EvaluationEvent,
  FinetuneEvent,
  FinetuneOptions,
  SavedEvent,
  StepProgress,
} from './finetune-options.js';
import { type Plan, prepare } from './finetune-plan.js';
import { FiniteWatch } from './give-up.js';
import { removeState, writeRecord } from './run-folder.js';
import { saveTrainingState } from './state.js';
import { train } from './trainer.js';

export type * from './finetune-options.js';

/** Steps over which speed, time left, and the first and last loss are averaged. */
const WINDOW = 20;

/**
 * Fine-tunes a Hugging Face model directory on a JSON Lines file, with LoRA or in full, and writes
 * a PEFT adapter (or, in full, a model directory) to `out`. A model that predicts the next token
 * learns texts or completions; a classifier learns labels, with a new head where it has none. Between evaluations and at the end it
 * also saves its state in `<out>/state`, from which `resume` goes on bit for bit; a finished run
 * leaves `training.json` with its settings and results instead.
 *
 * Aborting the signal ends the run after the step under way, with a usable adapter and its state
 * saved, and a `done` event that says `stopped`. Leaving the loop early saves nothing.
 * @throws when a setting is out of range, a file is missing or malformed, no example has anything
 *   to learn, `out` holds something else, or the loss stays without a finite value
 */
export async function* finetune(options: FinetuneOptions): AsyncGenerator<FinetuneEvent> {
  const plan = prepare(options);
  try {
    yield* run(plan, options.signal);
  } finally {
    plan.dispose();
  }
}

async function* run(plan: Plan, signal?: AbortSignal): AsyncGenerator<FinetuneEvent> {
  const { steps, optimizer, backend } = plan;
  const started = performance.now();
  yield plan.startEvent();
  const end = (rest: object) => ({
    type: 'done' as const,
    step: optimizer.step,
    steps,
    seconds: (performance.now() - started) / 1000,
    memory: backend.memory(),
    ...rest,
  });
  if (plan.finished) {
    yield { ...end({}), step: steps, stopped: false, alreadyDone: true };
    return;
  }
  const before = await plan.asBase(() => evaluateAll(plan, signal));
  if (before) yield { type: 'eval', step: 0, ...before };
  const losses: number[] = [];
  const measured = new Measured(plan, signal);
  // The evaluation that was due when a run was stopped takes part in the choice all the same.
  if (plan.best && due(plan.evalEvery, optimizer.step) && plan.best.record.seen < optimizer.step) {
    yield* measured.now();
  }
  let saved = -1;
  for await (const event of training(plan, losses, signal)) {
    yield event;
    if (due(plan.evalEvery, event.step)) yield* measured.now();
    if (due(plan.saveEvery, event.step) && event.step < steps) {
      saved = event.step;
      yield save(plan, {});
    }
  }
  const stopped = optimizer.step < steps;
  const trainLoss = lossChange(losses);
  // Before the save, as what is saved may depend on it.
  if (plan.best && !stopped) yield* measured.now();
  if (saved !== optimizer.step) yield save(plan, { ...(trainLoss ? { trainLoss } : {}) });
  if (!stopped) yield* measured.now();
  const best = plan.best?.record.best;
  const after = best?.evaluation ?? measured.at(optimizer.step);
  const results = {
    ...(trainLoss ? { trainLoss } : {}),
    ...(before ? { before } : {}),
    ...(after ? { after } : {}),
    ...(best ? { best: { step: best.step, loss: best.evaluation.loss } } : {}),
  };
  if (!stopped) writeRecord(plan.out, { settings: plan.settings, step: steps, steps, results });
  yield { ...end(results), stopped, bytes: plan.savedBytes() };
}

/** Whether something that happens every so many steps is due after this one. */
const due = (every: number, step: number) => every > 0 && step > 0 && step % every === 0;

/** The evaluations of a run: one a step at most. */
class Measured {
  #latest: { readonly step: number; readonly evaluation: AnyEvaluation } | undefined;

  constructor(
    private readonly plan: Plan,
    private readonly signal?: AbortSignal,
  ) {}

  /** The evaluation after a step, if there was one. */
  at(step: number): AnyEvaluation | undefined {
    return this.#latest?.step === step ? this.#latest.evaluation : undefined;
  }

  /** Measures the weights as they are, unless they were; nothing where the run is stopped. */
  async *now(): AsyncGenerator<EvaluationEvent> {
    const { step } = this.plan.optimizer;
    if (this.at(step)) return;
    const evaluation = await evaluateAll(this.plan, this.signal);
    if (!evaluation) return;
    this.#latest = { step, evaluation };
    this.plan.best?.consider(step, evaluation);
    yield { type: 'eval', step, ...evaluation };
  }
}

/** The training steps, with speed and time left. Gives up when the loss stays not finite. */
async function* training(
  plan: Plan,
  losses: number[],
  signal?: AbortSignal,
): AsyncGenerator<StepProgress> {
  const recent: { seconds: number; tokens: number }[] = [];
  const watch = new FiniteWatch();
  let at = performance.now();
  let tokensBefore = plan.tokensSeen();
  const { steps, lr, schedule, warmupSteps, maxGradNorm, accumulation, seed } = plan;
  const onGpu = plan.backend instanceof CudaBackend;
  const { gradientCheckpointing, activations } = plan;
  const stream = train(plan.model, plan.optimizer, plan.source, {
    steps,
    lr,
    schedule,
    warmupSteps,
    maxGradNorm,
    gradientCheckpointing,
    activations,
    accumulation,
    seed,
    graphs: true,
    // Where a GPU would wait, but not past a step after which the model is looked at.
    ahead: (step) => onGpu && !due(plan.evalEvery, step) && !due(plan.saveEvery, step),
    ...(signal ? { signal } : {}),
  });
  for await (const event of stream) {
    const now = performance.now();
    const tokens = plan.tokensSeen();
    recent.push({ seconds: (now - at) / 1000, tokens: tokens - tokensBefore });
    if (recent.length > WINDOW) recent.shift();
    const seconds = recent.reduce((n, r) => n + r.seconds, 0);
    yield {
      ...event,
      steps,
      tokensPerSecond: recent.reduce((n, r) => n + r.tokens, 0) / seconds,
      secondsLeft: ((steps - event.step) * seconds) / recent.length,
    };
    if (event.skipped === undefined) losses.push(event.loss);
    watch.check(event, (moved) => keptOf(plan, moved));
    // What the consumer does between two steps (evaluating, saving) is not training time.
    at = performance.now();
    tokensBefore = tokens;
  }
}

/** Saves what a run that is given up has come to, and says so. */
function keptOf(plan: Plan, moved: boolean): string {
  if (!moved) return 'Nothing was saved, as no step had changed a weight';
  const best = plan.best?.record.best;
  saveWeights(plan);
  if (best) return `The weights of step ${best.step}, the best so far, are in ${plan.out}`;
  return `The weights of the last good step are in ${plan.out}`;
}

/** Means of the first and the last steps' losses. */
function lossChange(losses: readonly number[]): { first: number; last: number } | undefined {
  if (losses.length === 0) return undefined;
  const mean = (part: readonly number[]) => part.reduce((n, l) => n + l, 0) / part.length;
  const size = Math.max(1, Math.min(WINDOW, Math.floor(losses.length / 2)));
  return { first: mean(losses.slice(0, size)), last: mean(losses.slice(-size)) };
}

/** Writes the weights that are to be used: the best where those are kept, else the current ones. */
function saveWeights(plan: Plan): void {
  if (plan.best) plan.best.during(() => plan.saveWeights());
  else plan.saveWeights();
}

/** Writes the weights and the record, and the state to go on from while there are steps left. */
function save(plan: Plan, results: Readonly<Record<string, unknown>>): SavedEvent {
  const { out, optimizer, steps, settings } = plan;
  const { step } = optimizer;
  // In this order a crash in between leaves a folder that can be gone on with, or a finished one.
  if (step < steps) {
    saveTrainingState(plan.stateDir, plan.parameters, optimizer, settings, plan.best);
    writeRecord(out, { settings, step, steps, results });
    saveWeights(plan);
  } else {
    saveWeights(plan);
    writeRecord(out, { settings, step, steps, results });
    removeState(out);
  }
  return { type: 'saved', step, path: out, bytes: plan.savedBytes() };
}

/** Measures on the evaluation file; undefined where there is none, or when the run is stopped. */
async function evaluateAll(plan: Plan, signal?: AbortSignal): Promise<AnyEvaluation | undefined> {
  const steps = plan.measure?.();
  for (let step = steps?.next(); step; step = steps?.next()) {
    if (step.done) return step.value;
    // Lets a signal be heard in the middle of a long evaluation.
    await setImmediate();
    if (signal?.aborted) return undefined;
  }
  return undefined;
}
