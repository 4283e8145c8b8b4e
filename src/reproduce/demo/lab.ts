import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { noGrad, scope } from '../../autograd/index.js';
import { type DataRecord, readJsonl } from '../../io/dataset.js';
import { openTokenizer, type Tokenizer } from '../../io/tokenizer.js';
import { LoraAdapters } from '../../lora/index.js';
import type { CausalLM, TokenBatch } from '../../models/causal-lm.js';
import { openModel } from '../../models/load.js';
import type { Backend } from '../../tensor/backend.js';
import { failure } from '../../tensor/errors.js';
import { PACKAGE_ROOT } from '../../tensor/package-root.js';
import { getBackend } from '../../tensor/registry.js';
import type { Tensor } from '../../tensor/tensor.js';
import { evaluationBatches } from '../../train/data.js';
import { chooseScale, type DemoOptions, type Scale } from './options.js';
import type { Check } from './results.js';
import type { DemoView } from './view.js';

/** The adapters by the names they have in the model. */
export const CATEGORY = 'category';
export const STYLE = 'moby';

/** The packaged data, each read once. */
export interface DemoData {
  readonly categoryTrain: readonly DataRecord[];
  readonly categoryTest: readonly DataRecord[];
  readonly styleTrain: readonly DataRecord[];
  readonly styleTest: readonly DataRecord[];
  readonly labels: readonly string[];
}

/** The base model, its adapters and what every part of the demo shares. */
export interface Lab {
  readonly options: DemoOptions;
  readonly scale: Scale;
  readonly view: DemoView;
  readonly backend: Backend;
  readonly tokenizer: Tokenizer;
  readonly model: CausalLM;
  readonly adapters: LoraAdapters;
  readonly data: DemoData;
  /** Held-out text of the style, in chunks of the scale's length. */
  readonly styleBatches: readonly TokenBatch[];
  /** Held-out definitions as plain text, in chunks. */
  readonly definitionBatches: readonly TokenBatch[];
  /** What the base answered before it had any adapter, and its weights' hash. */
  readonly atStart: { readonly logits: string; readonly weights: string };
  readonly checks: Check[];
}

/** The path of a packaged data file. */
export function dataFile(name: string): string {
  return fileURLToPath(new URL(`assets/data/${name}`, PACKAGE_ROOT));
}

/** Every n-th of the items, `most` of them at most, so that all parts of a file take part. */
export function spread<T>(items: readonly T[], most: number): T[] {
  const size = Math.min(items.length, most);
  return Array.from({ length: size }, (_, i) => items[Math.floor((i * items.length) / size)] as T);
}

/** Sequences of an evaluation's batch. */
const EVAL_BATCH = 16;

/** A prompt's definition as the text it was cut from. */
function definitionText(record: DataRecord): DataRecord {
  if (record.kind !== 'completion') throw failure('demo data', 'prompts', 'text');
  return { kind: 'text', line: record.line, text: record.prompt.replace(/\nCategory:$/, '\n') };
}

/** Whole batches with at most `chunks` sequences in all. */
function firstChunks(batches: Iterable<TokenBatch>, chunks: number): TokenBatch[] {
  const out: TokenBatch[] = [];
  let left = chunks;
  for (const b of batches) {
    if (left <= 0) break;
    const rows = Math.min(b.batch, left);
    left -= rows;
    const cut = <A extends Int32Array | Uint8Array>(a: A) => a.slice(0, rows * b.length) as A;
    out.push({
      inputIds: cut(b.inputIds),
      ...(b.labels ? { labels: cut(b.labels) } : {}),
      ...(b.attentionMask ? { attentionMask: cut(b.attentionMask) } : {}),
      batch: rows,
      length: b.length,
    });
  }
  return out;
}

function readData(labels: readonly string[]): DemoData {
  return {
    categoryTrain: readJsonl(dataFile('wordnet-category-train.jsonl')),
    categoryTest: readJsonl(dataFile('wordnet-category-test.jsonl')),
    styleTrain: readJsonl(dataFile('moby-dick-train.jsonl')),
    styleTest: readJsonl(dataFile('moby-dick-heldout.jsonl')),
    labels,
  };
}

/** Loads the base and the data, and takes down what the untouched base answers. */
export function openLab(options: DemoOptions, view: DemoView, labels: readonly string[]): Lab {
  const backend = getBackend(options.backend);
  if (options.threads !== undefined) backend.setThreads(options.threads);
  const scale = chooseScale(options.quick, backend.name);
  const tokenizer = openTokenizer(options.modelDir);
  const model = openModel(options.modelDir, { task: 'causal-lm', backend });
  const data = readData(labels);
  const { seqLength, chunks } = scale.style;
  const length = Math.min(seqLength, model.maxPositions);
  const batches = (records: readonly DataRecord[]) =>
    firstChunks(evaluationBatches(records, tokenizer, length, EVAL_BATCH), chunks);
  const styleBatches = batches(data.styleTest);
  const atStart = {
    logits: logitsHash(model, styleBatches[0] as TokenBatch),
    weights: tensorsHash(new Map(model.namedParameters())),
  };
  return {
    options,
    scale,
    view,
    backend,
    tokenizer,
    model,
    adapters: new LoraAdapters(model),
    data,
    styleBatches,
    definitionBatches: batches(data.categoryTest.map(definitionText)),
    atStart,
    checks: [],
  };
}

/** Takes down whether a claim holds. */
export function claim(lab: Lab, name: string, ok: boolean, detail: string): void {
  lab.checks.push({ name, ok, detail });
}

/** SHA-256 of a batch's logits: equal only where every bit is. */
export function logitsHash(model: CausalLM, batch: TokenBatch): string {
  return noGrad(() =>
    scope(() => createHash('sha256').update(model.logits(batch).bytes()).digest('hex')),
  );
}

/** SHA-256 of named tensors' bytes. */
export function tensorsHash(tensors: ReadonlyMap<string, Tensor>): string {
  const hash = createHash('sha256');
  for (const [name, t] of tensors) hash.update(name).update(t.bytes());
  return hash.digest('hex');
}

/** The middle one of some numbers; the mean of both where there are two. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const low = sorted[Math.ceil(middle) - 1] as number;
  return (low + (sorted[Math.floor(middle)] as number)) / 2;
}

export function parameterCount(tensors: Iterable<Tensor>): number {
  let n = 0;
  for (const t of tensors) n += t.size;
  return n;
}
