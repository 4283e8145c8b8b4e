import { type MemoryBooks, PURPOSES, type Purpose } from './backend.js';

/** A record with one entry for each purpose, from a function of its code. */
export function byPurpose(value: (code: number) => number): Record<Purpose, number> {
  return Object.fromEntries(PURPOSES.map((p, i) => [p, value(i)])) as Record<Purpose, number>;
}

/** Live and peak bytes by purpose for an allocator written in TypeScript. */
export class Books {
  #live = byPurpose(() => 0);
  #peak = byPurpose(() => 0);
  #total = 0;
  #totalPeak = 0;

  add(purpose: Purpose, bytes: number): void {
    this.#live[purpose] += bytes;
    this.#total += bytes;
    this.#peak[purpose] = Math.max(this.#peak[purpose], this.#live[purpose]);
    this.#totalPeak = Math.max(this.#totalPeak, this.#total);
  }

  resetPeak(): void {
    this.#peak = { ...this.#live };
    this.#totalPeak = this.#total;
  }

  read(handles: number): MemoryBooks {
    return {
      live: { ...this.#live },
      peak: { ...this.#peak },
      total: this.#total,
      totalPeak: this.#totalPeak,
      pooled: 0,
      handles,
      mapped: 0,
    };
  }
}
