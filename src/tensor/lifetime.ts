import type { Tensor } from './tensor.js';

/**
 * What a scope holds; see `autograd/scope.ts`, which opens and closes them. A tensor knows its
 * tracker and its place in the list.
 */
export interface Tracker {
  readonly tensors: (Tensor | undefined)[];
  /** Tensors held; places behind are empty, and stay for the next scope. */
  count: number;
}

// One for each depth, used again by the next scope of that depth: every op opens one or two.
const trackers: Tracker[] = [];
let depth = 0;
let current: Tracker | null = null;

export function currentTracker(): Tracker | null {
  return current;
}

/** Opens a tracker within the current one. */
export function pushTracker(): Tracker {
  let next = trackers[depth];
  if (!next) {
    next = { tensors: [], count: 0 };
    trackers[depth] = next;
  }
  depth++;
  current = next;
  return next;
}

/** Leaves the current tracker, and answers the one around. It must be emptied before the next. */
export function popTracker(): Tracker | null {
  depth--;
  current = depth > 0 ? (trackers[depth - 1] as Tracker) : null;
  return current;
}

let caught = 0;
const registry = new FinalizationRegistry<() => void>((release) => {
  caught++;
  release();
});

/** Registers a tensor that no scope holds with the garbage collector's safety net. */
export function watch(tensor: Tensor, release: () => void): void {
  registry.register(tensor, release, tensor);
}

export function unwatch(tensor: Tensor): void {
  registry.unregister(tensor);
}

/** How many tensors the garbage collector found that nobody had disposed; 0 in a correct program. */
export function caughtByFinalizer(): number {
  return caught;
}
