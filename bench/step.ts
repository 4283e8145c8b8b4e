/**
 * Times training steps of one shape with random weights; prints one JSON object with `--json`.
 *
 * usage: npm run bench:step -- --model gpt2|smollm2-135m|tiny|FILE.json [--mode lora|full]
 *   [--batch 4] [--seq 128] [--rank 8] [--dtype f32|bf16] [--steps 8] [--label-share 1]
 *   [--threads N] [--isa NAME] [--compute exact|bf16] [--activations f32|bf16] [--checkpointing]
 *   [--warmup N] [--profile] [--peak] [--json]
 *
 * In place of the result, --profile prints each kernel's calls and time, and what JavaScript takes;
 * --peak what is alive when a step's memory is at its peak. Steps before the measured ones: two,
 * and ten with --profile, as V8 compiles what runs often.
 */
import { existsSync } from 'node:fs';
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import type { NativeBackend } from '../src/tensor/native.js';
import { getBackend } from '../src/tensor/registry.js';
import { buildStep, SHAPE_NAMES, type StepSettings } from './step-work.js';

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: 'tiny' },
    mode: { type: 'string', default: 'lora' },
    batch: { type: 'string', default: '4' },
    seq: { type: 'string', default: '128' },
    rank: { type: 'string', default: '8' },
    dtype: { type: 'string', default: 'f32' },
    steps: { type: 'string', default: '8' },
    'label-share': { type: 'string', default: '1' },
    threads: { type: 'string', default: String(cpus().length) },
    isa: { type: 'string' },
    compute: { type: 'string', default: 'exact' },
    activations: { type: 'string', default: 'f32' },
    checkpointing: { type: 'boolean', default: false },
    warmup: { type: 'string' },
    profile: { type: 'boolean', default: false },
    peak: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});

function refuse(option: string, expected: string, received: string): never {
  console.error(`[bench:step] expected --${option} ${expected}, received ${received}`);
  process.exit(2);
}

type Count = 'batch' | 'seq' | 'rank' | 'steps' | 'threads' | 'warmup';

function positive(option: Count, otherwise = 1): number {
  const text = values[option] ?? String(otherwise);
  const n = Number(text);
  return Number.isSafeInteger(n) && n > 0 ? n : refuse(option, 'a whole number above 0', text);
}

type Choice = 'mode' | 'dtype' | 'compute' | 'activations';

function oneOf<T extends string>(option: Choice, names: readonly T[]): T {
  const found = names.find((n) => n === values[option]);
  return found ?? refuse(option, names.join(' or '), values[option]);
}

if (!SHAPE_NAMES.includes(values.model) && !existsSync(values.model)) {
  refuse('model', `${SHAPE_NAMES.join(', ')} or a config.json`, values.model);
}
const labelShare = Number(values['label-share']);
if (!(labelShare > 0 && labelShare <= 1)) {
  refuse('label-share', 'above 0, at most 1', values['label-share']);
}
const settings: StepSettings = {
  model: values.model,
  mode: oneOf('mode', ['lora', 'full'] as const),
  batch: positive('batch'),
  seq: positive('seq'),
  rank: positive('rank'),
  dtype: oneOf('dtype', ['f32', 'bf16'] as const),
  labelShare,
  checkpointing: values.checkpointing,
  activations: oneOf('activations', ['f32', 'bf16'] as const),
};
const steps = positive('steps');
const threads = positive('threads');
const warmup = positive('warmup', values.profile ? 10 : 2);
const backend = getBackend('cpu') as NativeBackend;
if (values.isa !== undefined) backend.setIsa(values.isa);
backend.setCompute(oneOf('compute', ['exact', 'bf16'] as const));
backend.setThreads(threads);
const work = buildStep(settings, backend);
const rssBefore = process.resourceUsage().maxRSS;
let loss = work.step();
// Seconds since 1970, for whoever started the process.
const firstStepAt = (performance.timeOrigin + performance.now()) / 1000;
for (let i = 1; i < warmup; i++) work.step();
if (values.peak) {
  const { peakOf, peakText } = await import('./peak.js');
  const entries = peakOf(backend, () => work.step());
  console.log(values.json ? JSON.stringify(entries) : peakText(entries));
  process.exit(0);
}
if (values.profile) {
  const { profileSteps, profileText } = await import('./profile.js');
  const profile = profileSteps(backend, () => work.step(), steps);
  console.log(values.json ? JSON.stringify(profile) : profileText(profile));
  process.exit(0);
}
const times: number[] = [];
for (let i = 0; i < steps; i++) {
  const start = performance.now();
  loss = work.step();
  times.push((performance.now() - start) / 1000);
}
const peakRss = process.resourceUsage().maxRSS;
const { peak, totalPeak, pooled } = backend.memory();
const { peakGflops } = await import('./support.js');
times.sort((a, b) => a - b);
const median = times[Math.floor(times.length / 2)] as number;
const gflops = work.flops / median / 1e9;
const rounded = (x: number, digits = 4) => Number(x.toFixed(digits));
const result = {
  peer: 'lowrank',
  ...settings,
  threads,
  isa: backend.info().isa,
  compute: backend.info().compute,
  trainable: work.trainable,
  total: work.total,
  step_s: rounded(median),
  tok_s: rounded((settings.batch * settings.seq) / median, 1),
  min_s: rounded(times[0] as number),
  max_s: rounded(times.at(-1) as number),
  first_step_at: firstStepAt,
  peak_rss_mb: Math.round(peakRss / 1024),
  rss_before_mb: Math.round(rssBefore / 1024),
  gflops: rounded(gflops, 1),
  share_of_peak: rounded(gflops / peakGflops(threads), 3),
  bytes: peak,
  bytes_at_once: totalPeak,
  bytes_pooled: pooled,
  loss,
};
work.dispose();
if (values.json) console.log(JSON.stringify(result));
else for (const [key, value] of Object.entries(result)) console.log(key.padEnd(14), value);
