import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { backward, scope } from '../../autograd/index.js';
import { readJsonObject } from '../../io/files.js';
import { LoraAdapters, saveAdapter } from '../../lora/index.js';
import type { CausalLM } from '../../models/causal-lm.js';
import { openModel } from '../../models/load.js';
import { saveModel } from '../../models/save.js';
import { AdamW } from '../../optim/index.js';
import type { MemoryBooks } from '../../tensor/backend.js';
import type { Tensor } from '../../tensor/tensor.js';
import { saveTrainingState } from '../../train/state.js';
import { type BatchSource, type StepEvent, train } from '../../train/trainer.js';
import { categorySource } from './category.js';
import { claim, type Lab, median, parameterCount } from './lab.js';
import { loraConfig } from './options.js';
import type { CostResults, MethodCost } from './results.js';
import { bytes, count, heading, prose, seconds, table } from './view.js';

/** A model being trained in one of the two ways. */
interface Contender {
  readonly method: 'lora' | 'full';
  readonly model: CausalLM;
  readonly frozen: readonly Tensor[];
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly lr: number;
  /** Writes the weights to hand on. */
  save(dir: string): void;
}

function loraContender({ options, backend, scale }: Lab): Contender {
  const model = openModel(options.modelDir, { task: 'causal-lm', backend });
  const adapters = new LoraAdapters(model);
  adapters.add('cost', loraConfig(scale), options.seed);
  return {
    method: 'lora',
    model,
    frozen: [...adapters.baseParameters().values()],
    parameters: adapters.tensors('cost'),
    lr: 1e-3,
    save: (dir) => saveAdapter(adapters, 'cost', dir),
  };
}

function fullContender({ options, backend }: Lab): Contender {
  const { modelDir } = options;
  const model = openModel(modelDir, { task: 'causal-lm', backend, trainable: true });
  const parameters = new Map(model.namedParameters());
  const config = readJsonObject(join(modelDir, 'config.json'), 'config');
  return {
    method: 'full',
    model,
    frozen: [],
    parameters,
    lr: 1e-4,
    save: (dir) =>
      saveModel(dir, { tensors: parameters, config, tokenizerDir: modelDir, dtype: 'bf16' }),
  };
}

function gradientBytes(tensors: Iterable<Tensor>): number {
  let n = 0;
  for (const t of tensors) n += t.grad?.byteLength ?? 0;
  return n;
}

/** Bytes of the safetensors files that `write` puts into a new folder. */
function writtenBytes(write: (dir: string) => void): number {
  const dir = mkdtempSync(join(tmpdir(), 'lowrank-demo-'));
  try {
    write(dir);
    const files = readdirSync(dir, { recursive: true, encoding: 'utf8' });
    return files
      .filter((f) => f.endsWith('.safetensors'))
      .reduce((n, f) => n + statSync(join(dir, f)).size, 0);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** One contender with its run under way; every figure is above what was held before it was made. */
class Trial {
  readonly events: StepEvent[] = [];
  readonly optimizer: AdamW;
  readonly #stream: AsyncGenerator<StepEvent>;
  readonly #gradient: { total: number; frozen: number };
  #peak: MemoryBooks | undefined;

  constructor(
    readonly lab: Lab,
    readonly contender: Contender,
    readonly before: MemoryBooks,
    source: BatchSource,
  ) {
    const { model, parameters, lr } = contender;
    this.optimizer = new AdamW([{ parameters, weightDecay: 0 }], { lr });
    const { seed } = lab.options;
    this.#gradient = this.#measureGradients(source);
    const { steps } = lab.scale.cost;
    this.#stream = train(model, this.optimizer, source, { steps, lr, seed, schedule: 'constant' });
  }

  /** The gradients of one batch, all there at once. */
  #measureGradients(source: BatchSource): { total: number; frozen: number } {
    const { model, parameters } = this.contender;
    scope(() => backward(model.loss(source.batch(0, 0)).loss));
    const total = this.lab.backend.memory().live.gradient - this.before.live.gradient;
    const frozen = total - gradientBytes(parameters.values());
    this.optimizer.zeroGrad();
    return { total, frozen };
  }

  /** One step; the first one is measured for its memory. */
  async step(): Promise<void> {
    const { backend } = this.lab;
    if (!this.#peak) backend.resetPeak();
    const { value } = await this.#stream.next();
    this.#peak ??= backend.memory();
    if (value) this.events.push(value);
  }

  results(): MethodCost {
    const { contender, before, optimizer, events } = this;
    const peak = this.#peak as MemoryBooks;
    const { parameters, method } = contender;
    const grown = (purpose: 'frozen' | 'trainable' | 'optimizer') =>
      peak.live[purpose] - before.live[purpose];
    const state = [...optimizer.state().values()].reduce((n, t) => n + t.byteLength, 0);
    return {
      method,
      trainableParameters: parameterCount(parameters.values()),
      frozenBytes: grown('frozen'),
      trainableBytes: grown('trainable'),
      gradientBytes: this.#gradient.total,
      frozenGradientBytes: this.#gradient.frozen + gradientBytes(contender.frozen),
      optimizerBytes: grown('optimizer'),
      frozenOptimizerBytes: grown('optimizer') - state,
      peakActivationBytes: peak.peak.activation - before.live.activation,
      peakTotalBytes: peak.totalPeak - before.total,
      weightsFileBytes: writtenBytes((dir) => contender.save(dir)),
      stateFileBytes: writtenBytes((dir) =>
        saveTrainingState(join(dir, 'state'), parameters, optimizer, { method }),
      ),
      steps: events.length,
      positions: (events[0] as StepEvent).positions,
      medianStepSeconds: median(events.slice(1).map((e) => e.seconds)),
      firstLoss: (events[0] as StepEvent).loss,
      lastLoss: (events.at(-1) as StepEvent).loss,
    };
  }

  dispose(): void {
    this.optimizer.dispose();
    this.contender.model.dispose();
  }
}

/** Trains the same base in both ways on the same batches, and reads the allocator's books. */
export async function runCost(lab: Lab): Promise<CostResults> {
  const { view, scale, backend } = lab;
  heading(view, '4. The cost: LoRA beside full fine-tuning of the same base');
  const { batchSize, steps } = scale.cost;
  const { source } = categorySource(lab, scale.cost);
  prose(
    view,
    `Both for ${steps} steps on the same batches of ${batchSize} definitions, in turns; bytes ` +
      'from the allocator’s own books and from files really written.',
  );
  const trials: Trial[] = [];
  try {
    // One after the other up to the first step, so that the peaks are each one's own.
    for (const make of [loraContender, fullContender]) {
      const before = backend.memory();
      const trial = new Trial(lab, make(lab), before, source);
      trials.push(trial);
      await trial.step();
    }
    for (let i = 1; i < steps; i++) for (const trial of trials) await trial.step();
    const [lora, full] = trials.map((t) => t.results()) as [MethodCost, MethodCost];
    const results = { batchSize, lora, full };
    check(lab, results);
    show(lab, results);
    return results;
  } finally {
    for (const t of trials) t.dispose();
  }
}

/** Gradients are f32, and AdamW keeps two f32 moments, of what is trained and of nothing else. */
function check(lab: Lab, { lora, full }: CostResults): void {
  const frozen = lora.frozenGradientBytes + lora.frozenOptimizerBytes;
  claim(
    lab,
    'frozen weights have no gradient and no optimizer state',
    frozen === 0 && lora.frozenBytes > 0,
    `${frozen} bytes for ${bytes(lora.frozenBytes)} of frozen weights`,
  );
  for (const m of [lora, full]) {
    const n = m.trainableParameters;
    claim(
      lab,
      `${m.method === 'lora' ? 'LoRA' : 'full'}: gradients 4 and optimizer 8 bytes a trainable parameter`,
      m.gradientBytes === 4 * n && m.optimizerBytes === 8 * n && m.trainableBytes === 4 * n,
      `${count(m.gradientBytes)} = 4 × ${count(n)}, ${count(m.optimizerBytes)} = 8 × ${count(n)}`,
    );
  }
}

/** The rows of the comparison: what, LoRA, full, LoRA's share. */
export function costRows({ lora, full }: CostResults): string[][] {
  const row = (name: string, pick: (m: MethodCost) => number, text: (n: number) => string) => [
    name,
    text(pick(lora)),
    text(pick(full)),
    `${((100 * pick(lora)) / pick(full)).toFixed(1)}%`,
  ];
  return [
    row('trainable parameters', (m) => m.trainableParameters, count),
    row('gradients', (m) => m.gradientBytes, bytes),
    row('optimizer (AdamW)', (m) => m.optimizerBytes, bytes),
    row('activations, peak', (m) => m.peakActivationBytes, bytes),
    row('all memory, peak', (m) => m.peakTotalBytes, bytes),
    row('weights to hand on', (m) => m.weightsFileBytes, bytes),
    row('state to resume from', (m) => m.stateFileBytes, bytes),
    row('a step, median', (m) => m.medianStepSeconds, seconds),
    ['gradients of frozen weights', bytes(lora.frozenGradientBytes), '–', ''],
    ['optimizer of frozen weights', bytes(lora.frozenOptimizerBytes), '–', ''],
  ];
}

function show({ view }: Lab, results: CostResults): void {
  table(view, [['', 'LoRA', 'full', 'LoRA is'], ...costRows(results)], 'lrrr');
}
