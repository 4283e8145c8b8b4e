/**
 * Our training step beside PyTorch + PEFT's in alternating runs, each in a process of its own:
 * seconds a step, peak resident memory and seconds from the start of the process to the end of its
 * first step (medians of the rounds), and their ratios.
 *
 * usage: npx tsx bench/peers/step.ts --peer PYTHON SCRIPT.py [--rounds 3] [--case NAME…]
 *   PYTHON: one with torch, transformers and peft; SCRIPT: takes MODEL MODE --batch --seq --steps
 *   --dtype fp32|bf16 --rank, reads time.perf_counter() before and after each step, and prints a
 *   JSON line with step_s and peak_rss_mb
 *   --case lora-to-full: our LoRA step over our full one, and theirs, from the cases gpt2, gpt2-full
 *
 * Prints a JSON line a case and a table of what is reached. `load` is the machine's load average
 * before the case, `spread` the slowest round over the fastest of each side: where they are far
 * from 0 and 1 something else ran, and the ratio says little.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { machine } from '../support.js';
import { CASES, type Case, LORA_TO_FULL } from './cases.js';
import { compileStep } from './compiled.js';

interface Figures {
  readonly step_s: number;
  readonly peak_rss_mb: number;
  /** From the start of the process to the end of its first step. */
  readonly first_s: number;
}

/**
 * Runs the peer's script and tells on standard error when its first step has ended: at the second
 * look at the clock from within the script.
 */
const WRAPPER = `
import runpy, sys, time
clock, looks = time.perf_counter, 0
def perf_counter():
    global looks
    if sys._getframe(1).f_code.co_filename == sys.argv[0]:
        looks += 1
        if looks == 2: print("first_step_at", time.time(), file=sys.stderr)
    return clock()
time.perf_counter = perf_counter
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
`;

function refuse(text: string): never {
  console.error(`[peers/step] expected ${text}`);
  process.exit(2);
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    peer: { type: 'string' },
    rounds: { type: 'string', default: '3' },
    case: { type: 'string', multiple: true },
  },
});
const { peer: python } = values;
const [script, ...more] = positionals;
const rounds = Number(values.rounds);
if (!Number.isSafeInteger(rounds) || rounds < 1) {
  refuse(`--rounds, a whole number above 0, received ${values.rounds}`);
}
const asked = [...new Set(values.case?.flatMap(expanded) ?? Object.keys(CASES))];
const unknown = asked.filter((name) => !CASES[name]);
if (python === undefined || script === undefined || more.length > 0 || unknown.length > 0) {
  const names = [...Object.keys(CASES), 'lora-to-full'].join(', ');
  refuse(`--peer PYTHON SCRIPT and cases of ${names}; received ${process.argv.slice(2).join(' ')}`);
}

function expanded(name: string): string[] {
  return name === 'lora-to-full' ? [LORA_TO_FULL.lora, LORA_TO_FULL.full] : [name];
}

/** Runs a process and answers its output; ends this one where it fails. */
async function output(command: string, args: readonly string[]): Promise<[string, string]> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const texts: [string, string] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text) => {
    texts[0] += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    texts[1] += text;
  });
  const code = await new Promise((end) => {
    child.on('error', (error) => {
      texts[1] += error.message;
      end(-1);
    });
    child.on('close', end);
  });
  if (code === 0) return texts;
  throw new Error(`[peers/step] expected ${command} to work, received: ${texts[1]}`);
}

async function figures(command: string, args: readonly string[]): Promise<Figures> {
  const started = Date.now() / 1000;
  const [out, errors] = await output(command, args);
  const line = out.trim().split('\n').at(-1) ?? '';
  if (!line.startsWith('{')) {
    throw new Error(`[peers/step] expected a JSON line from ${command}, received: ${line}`);
  }
  const result = JSON.parse(line) as Figures & { first_step_at?: number };
  const told = /^first_step_at (\S+)$/m.exec(errors)?.[1];
  const at = result.first_step_at ?? Number(told ?? Number.NaN);
  return { ...result, first_s: at - started };
}

const flags = ({ batch, seq, steps }: Case) =>
  Object.entries({ batch, seq, steps, rank: 8 }).flatMap(([k, v]) => [`--${k}`, String(v)]);

function ours(c: Case, compiled: string): Promise<Figures> {
  const args = ['--model', c.model, '--mode', c.mode, '--dtype', c.dtype, ...flags(c), '--json'];
  const { compute = 'exact', labelShare = 1 } = c;
  const how = ['--compute', compute, '--label-share', String(labelShare)];
  return figures(process.execPath, [compiled, ...args, ...how]);
}

/** The peer's figures with the storage that is fastest for it. */
async function theirs(c: Case): Promise<Figures> {
  const all: Figures[] = [];
  for (const dtype of c.peerDtypes ?? [c.dtype]) {
    const name = dtype === 'f32' ? 'fp32' : 'bf16';
    const args = [script as string, c.model, c.mode, '--dtype', name, ...flags(c)];
    all.push(await figures(python as string, ['-c', WRAPPER, ...args]));
  }
  return all.reduce((best, f) => (f.step_s < best.step_s ? f : best));
}

/** A process that takes all of core 0. */
function takeCore(): ChildProcess {
  const child = spawn('taskset', ['-c', '0', process.execPath, '-e', 'for (;;);']);
  child.on('error', (error) => {
    console.error(`[peers/step] expected taskset, to take a core, received ${error.message}`);
    process.exit(1);
  });
  return child;
}

const median = (list: readonly number[]) =>
  [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)] as number;
const rounded = (x: number) => Number(x.toPrecision(4));

interface Row {
  readonly what: string;
  readonly ours: number;
  readonly theirs: number;
  readonly ratio: number;
  readonly reach?: number | undefined;
  readonly aim?: number | undefined;
  /** Smaller is better. */
  readonly share: boolean;
}

const rows: Row[] = [];
const steps = new Map<string, readonly [number, number]>();

function report(
  name: string,
  c: Case,
  all: readonly (readonly [Figures, Figures])[],
  load: number,
) {
  const key = c.figure === 'first' ? 'first_s' : 'step_s';
  const of = (side: 0 | 1, k: keyof Figures) => rounded(median(all.map((r) => r[side][k])));
  const spread = ([0, 1] as const).map((side) => {
    const list = all.map((r) => r[side][key]);
    return rounded(Math.max(...list) / Math.min(...list));
  });
  const pair = [of(0, key), of(1, key)] as const;
  const share = key === 'first_s';
  const ratio = rounded(share ? pair[0] / pair[1] : pair[1] / pair[0]);
  const memory = [of(0, 'peak_rss_mb'), of(1, 'peak_rss_mb')] as const;
  const memoryRatio = rounded(memory[0] / memory[1]);
  if (!share) steps.set(name, pair);
  const { reach, aim, memory: most, ...settings } = c;
  const ends = { ours: pair[0], theirs: pair[1], ratio, reach, aim, share };
  rows.push({ what: `${name}${share ? ', start to first step' : ''}`, ...ends });
  if (most) {
    const [mostReach, mostAim] = most;
    const both = { ours: memory[0], theirs: memory[1], ratio: memoryRatio, share: true };
    rows.push({ what: `${name}, peak memory (MB)`, ...both, reach: mostReach, aim: mostAim });
  }
  console.log(
    JSON.stringify({
      case: name,
      ...settings,
      [key]: pair[0],
      [`peer_${key}`]: pair[1],
      [share ? 'share' : 'speed_ratio']: ratio,
      peak_rss_mb: memory[0],
      peer_peak_rss_mb: memory[1],
      memory_ratio: memoryRatio,
      spread,
      load,
    }),
  );
}

function addLoraToFull(): void {
  const lora = steps.get(LORA_TO_FULL.lora);
  const full = steps.get(LORA_TO_FULL.full);
  if (!lora || !full) return;
  const ratios = [rounded(lora[0] / full[0]), rounded(lora[1] / full[1])] as const;
  const { reach, aim } = LORA_TO_FULL;
  console.log(JSON.stringify({ case: 'lora-to-full', ratio: ratios[0], peer_ratio: ratios[1] }));
  const own = { ours: ratios[0], theirs: ratios[1], ratio: ratios[0], share: true };
  rows.push({ what: 'gpt2, LoRA step / full step', ...own, reach, aim });
}

function table(): string {
  const state = ({ ratio, reach, aim, share }: Row) => {
    if (reach === undefined || aim === undefined) return '';
    const good = (goal: number) => (share ? ratio <= goal : ratio >= goal);
    return good(aim) ? 'aim' : good(reach) ? 'reached' : 'missed';
  };
  const cells = rows.map((r) => [
    r.what,
    ...[r.ours, r.theirs, r.ratio].map(String),
    ...[r.reach, r.aim].map((x) => (x === undefined ? '' : `${r.share ? '≤' : '≥'} ${x}`)),
    state(r),
  ]);
  const all = [['case', 'ours', 'theirs', 'ratio', 'to reach', 'aim', ''], ...cells];
  const width = (i: number) => Math.max(...all.map((row) => (row[i] as string).length));
  return all
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(width(i)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

console.log(JSON.stringify(machine()));
const compiled = compileStep();
try {
  for (const name of asked) {
    const c = CASES[name] as Case;
    const load = rounded(loadavg()[0] as number);
    const busy = c.busy ? takeCore() : undefined;
    try {
      const all: (readonly [Figures, Figures])[] = [];
      const round = async () => [await ours(c, compiled.script), await theirs(c)] as const;
      // The first start of a process reads its files from the disk.
      if (c.figure === 'first') await round();
      for (let i = 0; i < rounds; i++) all.push(await round());
      report(name, c, all, load);
    } finally {
      busy?.kill('SIGKILL');
    }
  }
  addLoraToFull();
  console.log(`\n${table()}`);
} catch (error) {
  console.error((error as Error).message);
  process.exitCode = 1;
} finally {
  compiled.dispose();
}
