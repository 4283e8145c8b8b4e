/** What the singular values of an update say about its rank. */
export interface Spectrum {
  /** Descending. */
  readonly singularValues: readonly number[];
  /** ‖ΔW‖_F = √Σ s². */
  readonly norm: number;
  /** exp of the entropy of s / Σ s (Roy and Vetterli, 2007): 1 for one direction, r for r equal. */
  readonly effectiveRank: number;
  /** ‖ΔW‖²_F / s₁²: like the effective rank, but blind to small values. */
  readonly stableRank: number;
  /** The fewest directions that hold 90 and 99% of ‖ΔW‖²_F. */
  readonly rank90: number;
  readonly rank99: number;
}

/** The smallest number of values whose squares make this share of all. */
function rankOf(s: ArrayLike<number>, share: number): number {
  const total = Array.from(s, (x) => x * x).reduce((a, b) => a + b, 0);
  let sum = 0;
  for (let i = 0; i < s.length; i++) {
    // Less a rounding, so that 9 of 10 equal values are 90%.
    if (sum >= share * total * (1 - 1e-12)) return i;
    sum += (s[i] as number) ** 2;
  }
  return s.length;
}

/** @param s singular values, descending */
export function spectrumOf(s: ArrayLike<number>): Spectrum {
  const values = Array.from(s);
  const sum = values.reduce((a, b) => a + b, 0);
  const squares = values.reduce((a, b) => a + b * b, 0);
  const entropy = values.reduce((h, x) => (x > 0 ? h - (x / sum) * Math.log(x / sum) : h), 0);
  const largest = values[0] ?? 0;
  return {
    singularValues: values,
    norm: Math.sqrt(squares),
    effectiveRank: sum > 0 ? Math.exp(entropy) : 0,
    stableRank: largest > 0 ? squares / largest ** 2 : 0,
    rank90: rankOf(values, 0.9),
    rank99: rankOf(values, 0.99),
  };
}
