import type { CausalLM } from '../src/models/causal-lm.js';
import { Decoder } from '../src/models/decoder.js';
import { dtypeBytes } from '../src/tensor/dtype.js';
import { Tensor } from '../src/tensor/tensor.js';
import { alternate } from './alternate.js';
import { frozenModel } from './step-work.js';
import { native, type Result, threadCounts } from './support.js';

/** Tokens of the prompt; each token that is measured has one more before it. */
const PROMPT = 64;
/** Milliseconds of decoding and reading, in turns, for each figure. */
const TIME = 2000;

/** Something that reads 256 MB of memory once, in order: the largest of each row. */
function reading() {
  const [rows, columns] = [32768, 2048];
  const x = Tensor.empty(native(), [rows, columns], 'f32');
  const y = Tensor.empty(native(), [rows], 'f32');
  const index = Tensor.empty(native(), [rows], 'i32');
  native().run('fill', [x], [1]);
  return {
    bytes: rows * columns * 4,
    run: () => native().run('max', [x, y, index], [1]),
    dispose: () => {
      for (const t of [x, y, index]) t.dispose();
    },
  };
}

/** Bytes of the weights that a token reads: the head's table whole, a row of the positions'. */
function weightBytes(model: CausalLM): number {
  let bytes = 0;
  for (const [name, t] of model.namedParameters()) {
    if (!name.includes('wpe')) bytes += t.size * dtypeBytes(t.dtype);
  }
  return bytes;
}

type Storage = 'f32' | 'bf16';

/** @param count sequences that are continued together, a token of each at a time */
function decoding(name: string, dtype: Storage, count: number, threads: number): Result[] {
  const model = frozenModel(name, dtype, native());
  const prompt = Array.from({ length: PROMPT }, (_, i) => (i * 7919) % model.vocabSize);
  const rows = Array.from({ length: count }, () => ({ ids: [...prompt], done: false }));
  const decoder = new Decoder(model, true);
  decoder.next(rows);
  const memory = reading();
  const token = () => {
    for (const { ids } of rows) ids.push(17);
    decoder.next(rows);
  };
  const tasks = new Map([
    ['read', memory.run],
    ['token', token],
  ]);
  const { results } = alternate(tasks, threads, TIME);
  const bytes = weightBytes(model);
  for (const d of [decoder, model, memory]) d.dispose();
  const rate = (task: string, n: number) => n / (results.get(task) as Result).milliseconds / 1e6;
  const [read, decoded] = [rate('read', memory.bytes), rate('token', bytes)];
  const result = results.get('token') as Result;
  const note = [
    `${((1000 * count) / result.milliseconds).toFixed(0)} tokens/s`,
    `${decoded.toFixed(1)} GB/s of ${(bytes / 1e6).toFixed(0)} MB of weights`,
    `${((100 * decoded) / read).toFixed(0)} % of reading memory`,
  ];
  const together = count > 1 ? `, ${count} together` : '';
  return [{ ...result, name: `decode ${name} ${dtype}${together}`, note: note.join(', ') }];
}

/**
 * Decoding one token at a time behind a prompt of 64 with a cache: every weight is read once a
 * token, so tokens a second are bounded by how fast memory is read, which is measured in turns.
 * Sequences that are continued together share that reading.
 */
export async function run(): Promise<Result[]> {
  const kinds: (readonly [string, Storage, number])[] = ['gpt2', 'smollm2-135m'].flatMap((name) =>
    (['f32', 'bf16'] as const).map((dtype) => [name, dtype, 1] as const),
  );
  for (const count of [4, 8, 16]) kinds.push(['smollm2-135m', 'f32', count]);
  return threadCounts().flatMap((threads) =>
    kinds.flatMap(([name, dtype, count]) => decoding(name, dtype, count, threads)),
  );
}
