import type { Tensor } from './tensor.js';

/** What a scope holds; see `autograd/scope.ts`, which opens and closes them. */
export type Tracker = Set<Tensor>;

const trackers: Tracker[] = [];

export function currentTracker(): Tracker | undefined {
  return trackers[trackers.length - 1];
}

export function pushTracker(tracker: Tracker): void {
  trackers.push(tracker);
}

export function popTracker(): void {
  trackers.pop();
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
