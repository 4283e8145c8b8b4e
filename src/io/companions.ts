import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { insideFile, PICKLE } from './checkpoint.js';

/** Files of weights by their ending, of whatever library; pickles have a rule of their own. */
const WEIGHT_FILE =
  /\.(safetensors|h5|msgpack|onnx|onnx_data|gguf|ggml|ot|tflite|npz|npy|mlmodel|pb)(\.index\.json)?$/i;

/** Files that say what the directory is, which the copy says for itself. */
const OWN = new Set(['config.json', 'adapter_config.json', 'training.json']);

/** transformers keeps chat templates beside the default one in a folder of this name. */
const TEMPLATES = 'additional_chat_templates';

/** Larger files are no part of a model besides its weights. */
const MOST_BYTES = 100e6;

/** Files that say how text becomes ids and how a model generates. */
const TOKENIZER_FILE =
  /^(tokenizer(_config)?\.json|tokenizer\.model|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|spiece\.model|sentencepiece\.bpe\.model|chat_template\.(jinja|json)|generation_config\.json|additional_chat_templates\/.*)$/;

/** What goes along with the weights of a model directory. */
export interface Companions {
  /** Contents by plain name, or by folder and name. */
  readonly files: ReadonlyMap<string, Uint8Array>;
  /** Names of what stays behind though it is neither weights nor hidden: folders, large files. */
  readonly leftOut: readonly string[];
}

/**
 * The files of a model directory that belong beside its weights wherever those are written:
 * tokenizer, chat templates, generation settings, model card, licence. Weights, pickles, adapter
 * files, hidden files and config.json are none.
 * @param which all, or only those of the tokenizer and of generation
 * @throws when one is a link out of the model's folder
 */
export function companionFiles(dir: string, which: 'all' | 'tokenizer' = 'all'): Companions {
  const files = new Map<string, Uint8Array>();
  const leftOut: string[] = [];
  const take = (name: string) => {
    if (which === 'tokenizer' && !TOKENIZER_FILE.test(name)) return;
    const path = insideFile(dir, name, 'checkpoint');
    files.set(name, readFileSync(path));
  };
  for (const name of readdirSync(dir).sort()) {
    if (name.startsWith('.') || OWN.has(name) || name.startsWith('adapter_model.')) continue;
    const stats = statSync(join(dir, name), { throwIfNoEntry: false });
    if (stats?.isDirectory()) {
      if (name === TEMPLATES) {
        const inner = readdirSync(join(dir, name)).filter((n) => n.endsWith('.jinja'));
        for (const n of inner.sort()) take(`${name}/${n}`);
      } else leftOut.push(`${name}/`);
      continue;
    }
    if (WEIGHT_FILE.test(name) || PICKLE.test(name)) continue;
    if (stats && stats.size > MOST_BYTES) leftOut.push(name);
    else take(name);
  }
  return { files, leftOut };
}
