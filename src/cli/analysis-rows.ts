import type { LayerAnalysis } from '../lora/analysis/index.js';
import { digitsText } from './table.js';

/** The table of an analysis, the header first; columns that nothing is known for are left out. */
export function analysisRows(layers: readonly LayerAnalysis[]): string[][] {
  const compared = layers.some((l) => l.similarity);
  const amplified = layers.some((l) => l.amplification);
  const head = ['layer', 'rank', '‖ΔW‖', 's₁', 'effective', 'stable', '90%', '99%'];
  if (compared) head.push('φ', 'random');
  if (amplified) head.push('‖UᵀWV‖', 'random', 'amplified');
  const rows = layers.map(({ path, rank, spectrum: s, similarity, amplification: a }) => [
    path,
    String(rank),
    digitsText(s.norm),
    digitsText(s.singularValues[0] ?? 0),
    s.effectiveRank.toFixed(1),
    s.stableRank.toFixed(1),
    String(s.rank90),
    String(s.rank99),
    ...(compared
      ? [digitsText(similarity?.whole ?? null), digitsText(similarity?.random ?? null)]
      : []),
    ...(amplified
      ? [a?.projected ?? null, a?.random ?? null, a?.factor ?? null].map((x) => digitsText(x))
      : []),
  ]);
  return [head, ...rows];
}

/** Words on the left, numbers on the right. */
export function alignOf(rows: readonly (readonly string[])[]): string {
  return `l${'r'.repeat((rows[0]?.length ?? 1) - 1)}`;
}
