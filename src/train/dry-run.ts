import type { MemoryBooks } from '../tensor/backend.js';
import { failure } from '../tensor/errors.js';
import type { FinetuneOptions, StartEvent } from './finetune-options.js';
import { type Plan, prepare } from './finetune-plan.js';
import { type AnyBatch, labelsIn, train } from './trainer.js';

/** What a run will do and need, found without doing it. */
export interface DryRun extends Omit<StartEvent, 'type' | 'memory'> {
  readonly type: 'dry-run';
  /** The largest micro-batch of the run, on which it was measured. */
  readonly largestBatch: { readonly batch: number; readonly length: number };
  /** Live and peak bytes by purpose, model and adapter included. */
  readonly memory: MemoryBooks;
  /** The most bytes that this process had in memory, with Node.js and the allocator's pool. */
  readonly residentBytes: number;
}

interface Sized {
  readonly batch: AnyBatch;
  readonly positions: number;
  readonly labels: number;
}

/**
 * The run's micro-batch of the most positions, and one to begin with: that of the most labels
 * where it is another, else the smallest.
 */
function extremes(plan: Plan): { first: AnyBatch; largest: AnyBatch } {
  let least: Sized | undefined;
  let most: Sized | undefined;
  let labelled: Sized | undefined;
  for (let step = plan.optimizer.step; step < plan.steps; step++) {
    for (let micro = 0; micro < plan.accumulation; micro++) {
      const batch = plan.source.batch(step, micro);
      const positions = batch.batch * batch.length;
      const labels = labelsIn(plan.model, batch);
      const sized = { batch, positions, labels };
      if (labels === 0) continue;
      if (!least || positions < least.positions) least = sized;
      if (!labelled || labels > labelled.labels) labelled = sized;
      const more = most ? positions - most.positions || labels - most.labels : 1;
      if (more > 0) most = sized;
    }
  }
  if (!least || !most || !labelled) throw failure('dry run', 'a batch with a label', 'none');
  const first = labelled.labels > most.labels ? labelled : least;
  return { first: first.batch, largest: most.batch };
}

/**
 * Measures the memory that {@link finetune} of these settings will take: it loads everything, makes
 * a step on a small batch, so that the optimizer's state is there, and one on the largest.
 * Nothing is written. Evaluations, which keep nothing for backward, are left out.
 * @throws as {@link finetune}, and when the run in `out` has nothing left to do
 */
export async function dryRun(options: FinetuneOptions): Promise<DryRun> {
  const plan = prepare(options, { dry: true });
  try {
    if (plan.finished) throw failure('dry run', 'steps to do', 'a run that has done all of them');
    const { type: _, memory: __, ...start } = plan.startEvent();
    const { first, largest } = extremes(plan);
    const { optimizer, backend, model, lr, seed, maxGradNorm, gradientCheckpointing, activations } =
      plan;
    const end = optimizer.step + Math.min(2, plan.steps - optimizer.step);
    const source = { batch: (step: number) => (step < end - 1 ? first : largest) };
    const steps = train(model, optimizer, source, {
      ...{ steps: end, accumulation: Math.min(2, plan.accumulation) },
      ...{ lr, seed, maxGradNorm, gradientCheckpointing, activations },
      ...(options.signal ? { signal: options.signal } : {}),
    });
    for await (const _step of steps);
    return {
      type: 'dry-run',
      ...start,
      largestBatch: { batch: largest.batch, length: largest.length },
      memory: backend.memory(),
      residentBytes: process.resourceUsage().maxRSS * 1024,
    };
  } finally {
    plan.dispose();
  }
}
