import type { Module } from '../nn/index.js';

/** Parameters of a head and of the table that it was tied to. */
export interface Tie {
  readonly head: string;
  readonly table: string;
}

const UNTIED = new WeakMap<Module, Tie>();

/**
 * Notes that a model's head has a tensor of its own though its checkpoint ties it to the table:
 * rows that an adapter trains for tokens are then the head's, too, as they are where it is tied.
 */
export function noteUntied(model: Module, tie: Tie): void {
  UNTIED.set(model, tie);
}

/** What {@link noteUntied} noted. */
export function untiedHead(model: Module): Tie | undefined {
  return UNTIED.get(model);
}
