/**
 * Our training step beside PyTorch + PEFT's in alternating runs, each in a process of its own:
 * seconds a step and peak resident memory of each (median of the rounds), and their ratios.
 *
 * usage: npx tsx bench/peers/step.ts --peer PYTHON SCRIPT.py [--rounds 3] [--case NAME…]
 *   PYTHON: one with torch, transformers and peft; SCRIPT: takes MODEL MODE --batch --seq --steps
 *   --dtype fp32|bf16 --rank, and prints a JSON line with step_s and peak_rss_mb
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { machine } from '../support.js';

interface Case {
  readonly model: string;
  readonly mode: 'lora' | 'full';
  readonly batch: number;
  readonly seq: number;
  readonly dtype: 'f32' | 'bf16';
  readonly steps: number;
}

const CASES: Readonly<Record<string, Case>> = {
  tiny: { model: 'tiny', mode: 'lora', batch: 4, seq: 128, dtype: 'f32', steps: 20 },
  'tiny-full': { model: 'tiny', mode: 'full', batch: 4, seq: 128, dtype: 'f32', steps: 20 },
  gpt2: { model: 'gpt2', mode: 'lora', batch: 4, seq: 128, dtype: 'f32', steps: 4 },
  'gpt2-short': { model: 'gpt2', mode: 'lora', batch: 1, seq: 64, dtype: 'f32', steps: 8 },
  'gpt2-bf16': { model: 'gpt2', mode: 'lora', batch: 4, seq: 128, dtype: 'bf16', steps: 4 },
  'gpt2-full': { model: 'gpt2', mode: 'full', batch: 4, seq: 128, dtype: 'f32', steps: 3 },
  smollm2: { model: 'smollm2-135m', mode: 'lora', batch: 4, seq: 128, dtype: 'f32', steps: 4 },
  'smollm2-bf16': {
    ...{ model: 'smollm2-135m', mode: 'lora', batch: 4, seq: 128, dtype: 'bf16', steps: 4 },
  },
};

interface Figures {
  readonly step_s: number;
  readonly peak_rss_mb: number;
}

function runJson(command: string, args: readonly string[]): Figures {
  const run = spawnSync(command, args, { encoding: 'utf8' });
  const line = run.stdout?.trim().split('\n').at(-1) ?? '';
  if (run.status === 0 && line.startsWith('{')) return JSON.parse(line) as Figures;
  console.error(
    `[peers/step] expected a JSON line from ${command}, received: ${run.stderr || run.error}`,
  );
  process.exit(1);
}

const flags = ({ batch, seq, steps }: Case) =>
  Object.entries({ batch, seq, steps, rank: 8 }).flatMap(([k, v]) => [`--${k}`, String(v)]);

function ours(c: Case): Figures {
  const script = fileURLToPath(new URL('../step.ts', import.meta.url));
  const args = ['--model', c.model, '--mode', c.mode, '--dtype', c.dtype, ...flags(c), '--json'];
  return runJson(process.execPath, ['--import', import.meta.resolve('tsx'), script, ...args]);
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    peer: { type: 'string' },
    rounds: { type: 'string', default: '3' },
    case: { type: 'string', multiple: true },
  },
});
const [script] = positionals;
const unknown = (values.case ?? []).filter((name) => !CASES[name]);
if (values.peer === undefined || script === undefined || unknown.length > 0) {
  const names = Object.keys(CASES).join(', ');
  console.error(`[peers/step] expected --peer PYTHON SCRIPT and cases of ${names}`);
  process.exit(2);
}
const python = values.peer;

function theirs(c: Case): Figures {
  const dtype = c.dtype === 'f32' ? 'fp32' : 'bf16';
  return runJson(python, [script as string, c.model, c.mode, '--dtype', dtype, ...flags(c)]);
}

const median = (values: readonly number[]) =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;

console.log(JSON.stringify(machine()));
for (const name of values.case ?? Object.keys(CASES)) {
  const c = CASES[name] as Case;
  const rounds = Array.from({ length: Number(values.rounds) }, () => [ours(c), theirs(c)]);
  const of = (side: number, key: keyof Figures) => median(rounds.map((r) => r[side]?.[key] ?? 0));
  const [us, them] = [of(0, 'step_s'), of(1, 'step_s')];
  const [usMb, themMb] = [of(0, 'peak_rss_mb'), of(1, 'peak_rss_mb')];
  console.log(
    JSON.stringify({
      case: name,
      ...c,
      step_s: us,
      peer_step_s: them,
      speed_ratio: Number((them / us).toFixed(2)),
      peak_rss_mb: usMb,
      peer_peak_rss_mb: themMb,
      memory_ratio: Number((usMb / themMb).toFixed(2)),
    }),
  );
}
