import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { openCheckpoint } from '../src/io/checkpoint.js';
import { SafetensorsFile } from '../src/io/safetensors.js';
import { LoraAdapters, saveAdapter } from '../src/lora/index.js';
import { openModel } from '../src/models/load.js';
import { SIZES, writeLlama } from './load-checkpoint.js';
import { native, type Result } from './support.js';

const RUNS = 5;
const RANK = 16;

const root = fileURLToPath(new URL('..', import.meta.url));
const MB = (bytes: number) => `${(bytes / 1e6).toFixed(0)} MB`;

/** Resident bytes of a process that lie in no file: what it has allocated and touched. */
function anonymousBytes(pid: number): number {
  const text = readFileSync(`/proc/${pid}/status`, 'utf8');
  return 1024 * Number(/^RssAnon:\s+(\d+) kB$/m.exec(text)?.[1]);
}

interface Merged {
  readonly milliseconds: number;
  /** Of all threads, the system's share included; another program's load does not count here. */
  readonly cpuMilliseconds: number;
  /** Bytes of weights that were written. */
  readonly bytes: number;
  /** The most bytes of memory above those before the merge. */
  readonly growth: number;
}

/** Merges in a process of its own, whose memory is read every two milliseconds. */
function mergeOnce(model: string, adapter: string, out: string): Promise<Merged> {
  const args = ['--import', import.meta.resolve('tsx'), 'bench/merge-once.ts', model, adapter, out];
  const child = spawn(process.execPath, args, { cwd: root, stdio: ['pipe', 'pipe', 'inherit'] });
  const { pid } = child;
  if (pid === undefined) throw new Error('[bench merge] the process did not start');
  let before = 0;
  let most = 0;
  let timer: NodeJS.Timeout | undefined;
  return new Promise((settle, fail) => {
    child.on('error', fail);
    child.on('exit', (code) => {
      clearInterval(timer);
      if (code !== 0) fail(new Error(`[bench merge] the process ended with code ${code}`));
    });
    createInterface(child.stdout).on('line', (line) => {
      if (line === 'ready') {
        before = anonymousBytes(pid);
        const sample = () => {
          most = Math.max(most, anonymousBytes(pid));
        };
        timer = setInterval(sample, 2);
        child.stdin.write('go\n');
        return;
      }
      clearInterval(timer);
      settle({ ...(JSON.parse(line) as Merged), growth: most - before });
    });
  });
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] as number;
}

/**
 * A merge of an adapter of rank 16 on every linear layer of a checkpoint of 540 MB in bf16: time,
 * bytes a second, and how much memory it takes at most beside the mapped file.
 */
export async function run(): Promise<Result[]> {
  const size = SIZES.find((s) => s.dtype === 'bf16');
  if (!size) throw new Error('[bench merge] expected a size in bf16');
  const dir = mkdtempSync(join(tmpdir(), 'lowrank-merge-'));
  try {
    const at = (name: string) => join(dir, name);
    writeLlama(at('model'), size);
    const model = openModel(at('model'), { backend: native() });
    const adapters = new LoraAdapters(model);
    adapters.add('bench', { rank: RANK, targetModules: ['all-linear'] }, 1);
    saveAdapter(adapters, 'bench', at('adapter'));
    model.dispose();
    const runs: Merged[] = [];
    for (let i = 0; i < RUNS; i++) {
      runs.push(await mergeOnce(at('model'), at('adapter'), at('out')));
      rmSync(at('out'), { recursive: true });
    }
    const bytes = (runs[0] as Merged).bytes;
    const largest = Math.max(
      ...[...openCheckpoint(at('model')).tensors.values()].map((t) => t.byteLength),
    );
    const held = SafetensorsFile.open(at('adapter/adapter_model.safetensors')).fileBytes;
    const milliseconds = median(runs.map((r) => r.milliseconds));
    const cpu = median(runs.map((r) => r.cpuMilliseconds));
    const growth = Math.max(...runs.map((r) => r.growth));
    const note =
      `${(bytes / 1e3 / milliseconds).toFixed(0)} MB/s synced to disk, ${cpu.toFixed(0)} ms of processor; memory +${MB(growth)} at most ` +
      `(largest tensor ${MB(largest)}, adapter ${MB(held)}, model ${MB(bytes)})`;
    const name = `merge rank ${RANK}, all linear layers, ${MB(bytes)} of bf16`;
    return [{ name, threads: 1, milliseconds, runs: RUNS, note }];
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}
