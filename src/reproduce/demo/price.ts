import { evaluate } from '../../train/evaluate.js';
import type { CategoryTest } from './category.js';
import { CATEGORY, claim, type Lab, STYLE } from './lab.js';
import type { PriceRow } from './results.js';
import { decimal, heading, percent, prose, table } from './view.js';

function measure(lab: Lab, test: CategoryTest, adapter: string | null): PriceRow {
  const { adapters, model, styleBatches, definitionBatches } = lab;
  adapters.setActive(adapter);
  try {
    return {
      adapter,
      accuracy: test.accuracy(test.answers(model)),
      style: evaluate(model, styleBatches),
      definitions: evaluate(model, definitionBatches),
    };
  } finally {
    adapters.setActive(null);
  }
}

/** Measures everything with every adapter and with none, and that the base is as it was. */
export function runPrice(
  lab: Lab,
  test: CategoryTest,
  before: { accuracy: number; style: number },
): PriceRow[] {
  const { view } = lab;
  heading(view, '3. The price: what an adapter does to everything else');
  const rows = [null, CATEGORY, STYLE].map((name) => measure(lab, test, name));
  const base = rows[0] as PriceRow;
  claim(
    lab,
    'base figures after training are the old ones, exactly',
    base.accuracy.accuracy === before.accuracy && base.style.loss === before.style,
    `accuracy ${percent(base.accuracy.accuracy)}, Moby Dick ${base.style.loss} nats a token`,
  );
  table(
    view,
    [
      ['', 'category accuracy', 'Moby Dick, perplexity', 'definitions as text, perplexity'],
      ...rows.map((r) => [
        r.adapter === null ? 'base' : `base + "${r.adapter}"`,
        percent(r.accuracy.accuracy),
        decimal(r.style.perplexity),
        decimal(r.definitions.perplexity),
      ]),
    ],
    'lrrr',
  );
  prose(view, priceText(rows));
  return rows;
}

/** What the table says, in words. */
export function priceText(rows: readonly PriceRow[]): string {
  const [base, category, style] = rows as readonly [PriceRow, PriceRow, PriceRow];
  const change = (now: number, before: number) => {
    const share = now / before - 1;
    const size = `${Math.abs(100 * share).toFixed(0)}%`;
    return share >= 0 ? `${size} worse` : `${size} better`;
  };
  return (
    `Each adapter serves its own text: with "${CATEGORY}" the perplexity of Moby Dick is ` +
    `${change(category.style.perplexity, base.style.perplexity)}, and with "${STYLE}" that of ` +
    `plain definitions ${change(style.definitions.perplexity, base.definitions.perplexity)}. ` +
    'With none active the base is what it was.'
  );
}
