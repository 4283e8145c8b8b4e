import type { TokenBatch } from '../../models/causal-lm.js';
import { CATEGORY, claim, type Lab, logitsHash, median, STYLE, tensorsHash } from './lab.js';
import type { SwitchResults } from './results.js';
import { heading, table } from './view.js';

const ORDER = [null, CATEGORY, STYLE, null, STYLE, CATEGORY, null, CATEGORY, null, STYLE, null];

const nameOf = (adapter: string | null) => adapter ?? 'base';

/** Median microseconds of making another adapter active. */
function switchTime({ adapters }: Lab, switches: number): number {
  const names = [CATEGORY, STYLE, null];
  const times: number[] = [];
  for (let i = 0; i < switches; i++) {
    const from = performance.now();
    adapters.setActive(names[i % names.length] as string | null);
    times.push(1000 * (performance.now() - from));
  }
  return median(times);
}

/** Switches to and fro, and compares every answer bit for bit with the first one of its kind. */
export function runSwitching(lab: Lab): SwitchResults {
  const { view, adapters, model, styleBatches, atStart, scale } = lab;
  heading(view, '6. Switching: A → B → none, bit for bit');
  const probe = styleBatches[0] as TokenBatch;
  const first = new Map<string, string>([[nameOf(null), atStart.logits]]);
  let identical = true;
  for (const adapter of ORDER) {
    adapters.setActive(adapter);
    const hash = logitsHash(model, probe);
    const known = first.get(nameOf(adapter));
    if (known === undefined) first.set(nameOf(adapter), hash);
    else if (known !== hash) identical = false;
  }
  const distinct = new Set(first.values()).size === first.size;
  const medianMicroseconds = switchTime(lab, scale.switches);
  adapters.setActive(null);
  const weights = tensorsHash(adapters.baseParameters());
  claim(
    lab,
    'every switch gives the same bits again; the base those from before any training',
    identical && distinct,
    `${ORDER.length} switches, SHA-256 of all logits of a held-out batch`,
  );
  claim(
    lab,
    'no byte of the base’s weights has changed',
    weights === atStart.weights,
    `SHA-256 ${weights.slice(0, 16)}…`,
  );
  table(
    view,
    [
      ['active', 'SHA-256 of its logits', 'same each time'],
      ...[...first].map(([name, hash]) => [
        name,
        `${hash.slice(0, 24)}…`,
        identical ? `yes, ${ORDER.filter((a) => nameOf(a) === name).length} times` : 'NO',
      ]),
    ],
    'lll',
  );
  view.say(`  a switch takes ${medianMicroseconds.toFixed(1)} µs (median of ${scale.switches})`);
  return {
    order: ORDER,
    sha256: Object.fromEntries(first),
    identical: identical && distinct,
    switches: scale.switches,
    medianMicroseconds,
  };
}
