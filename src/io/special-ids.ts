import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { failure } from '../tensor/errors.js';
import { readJsonObject } from './files.js';

/** Ids under `<kind>_token_id` in a JSON file that may be missing. */
function idsIn(path: string, kind: string): number[] {
  if (!existsSync(path)) return [];
  const value = readJsonObject(path, 'tokenizer')[`${kind}_token_id`];
  if (value === undefined || value === null) return [];
  const list = Array.isArray(value) ? value : [value];
  for (const id of list) {
    if (!Number.isInteger(id)) {
      throw failure(
        `tokenizer ${path}`,
        `whole numbers in ${kind}_token_id`,
        JSON.stringify(value),
      );
    }
  }
  // Some configs say -1 for "none".
  return list.filter((id) => id >= 0);
}

/**
 * Ids of a kind of special token (`bos`, `eos`, `pad`) as `generation_config.json` and `config.json`
 * of a model directory name them, each once, the former's first.
 * @throws with the file's name when one is malformed
 */
export function specialIds(dir: string, kind: string): number[] {
  return [
    ...new Set([
      ...idsIn(join(dir, 'generation_config.json'), kind),
      ...idsIn(join(dir, 'config.json'), kind),
    ]),
  ];
}
