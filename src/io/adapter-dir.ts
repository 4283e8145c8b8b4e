import { lstatSync, readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { failure } from '../tensor/errors.js';
import { insideFile, PICKLE } from './checkpoint.js';
import { missingFile } from './files.js';

const CONVERT =
  'Pickle files can run code when read: convert it to safetensors, in Python with ' +
  'PeftModel.from_pretrained(MODEL, DIR).save_pretrained(OUT)';

/**
 * The path of a file of a PEFT adapter directory (`adapter_config.json`,
 * `adapter_model.safetensors`), checked not to lead out of it.
 * @throws when the directory or the file is missing, what is there is a pickle, or the file is a
 *   link out of the adapter's folder
 */
export function adapterFile(dir: string, name: string): string {
  const place = `adapter ${dir}`;
  const stats = statSync(dir, { throwIfNoEntry: false });
  if (!stats)
    throw missingFile(
      'adapter',
      dir,
      'Give the path of a PEFT adapter: adapter_config.json, adapter_model.safetensors',
    );
  if (!stats.isDirectory()) {
    const wayOut = `Give its directory, ${dirname(dir)}`;
    throw failure('adapter', `a directory with ${name}`, `the file ${dir}`, wayOut);
  }
  if (lstatSync(join(dir, name), { throwIfNoEntry: false })) return insideFile(dir, name, place);
  const others = readdirSync(dir);
  const pickle = others.find((n) => n.startsWith('adapter_model.') && PICKLE.test(n));
  if (pickle !== undefined && name.endsWith('.safetensors')) {
    throw failure(place, name, `the pickle file ${pickle}`, CONVERT);
  }
  if (others.includes('config.json')) {
    throw failure(place, `a PEFT adapter (${name})`, 'a model', 'Give the model as --model');
  }
  throw missingFile('adapter', join(dir, name));
}
