import { setGradient } from '../autograd/index.js';
import { CausalLM, countedPositions, shiftedLabels, type TokenBatch } from '../models/causal-lm.js';
import { CudaBackend } from '../tensor/cuda.js';
import type { Recording } from '../tensor/recording.js';
import type { Tensor } from '../tensor/tensor.js';

/** Like steps in a row, before one of them is recorded. Doubles with each graph that is given up. */
const PATIENCE = 2;
const MOST_PATIENCE = 1024;

/** What one micro-batch uploads, in order, and everything else that its kernels' calls follow from. */
interface MicroInputs {
  readonly uploads: readonly Uint8Array[];
  readonly shape: string;
}

const raw = ({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array =>
  new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);

const equal = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** As `CausalLM.loss` uploads them: the mask, ids, positions, rows of labels and labels. */
function inputsOf(batch: TokenBatch): MicroInputs {
  const { batch: B, length: T, attentionMask, inputIds } = batch;
  const { rows, labels } = shiftedLabels(batch);
  const masked = attentionMask?.includes(0) ?? false;
  const positions = countedPositions(batch);
  const longest = positions.reduce((n, p) => Math.max(n, p), 0);
  const shape = [B, T, masked, longest, rows.length].join();
  if (rows.length === 0) return { uploads: [], shape };
  const uploads = [
    ...(masked && attentionMask ? [attentionMask] : []),
    ...[inputIds, positions],
    ...(rows.length === B * T ? [] : [rows]),
    labels,
  ];
  return { uploads: uploads.map(raw), shape };
}

/** A recorded step: which of its uploads are a batch's, its losses and its gradients. */
interface Recorded {
  readonly recording: Recording;
  readonly key: string;
  readonly step: number;
  /** For each upload its place among the inputs of the step, or the same bytes in every step. */
  readonly sources: readonly (number | Uint8Array)[];
  readonly losses: readonly Tensor[];
  readonly gradients: readonly (readonly [Tensor, Tensor])[];
}

/**
 * Matches uploads to inputs by their bytes, in order. What lies between cannot depend on the
 * tokens: a model's body is given them as tensors only.
 * @returns null where an input was not uploaded
 */
function match(
  uploads: readonly Uint8Array[],
  inputs: readonly Uint8Array[],
): (number | Uint8Array)[] | null {
  let next = 0;
  const sources = uploads.map((bytes) => {
    const expected = inputs[next];
    return expected && equal(bytes, expected) ? next++ : bytes;
  });
  return next === inputs.length ? sources : null;
}

/**
 * Runs the forward and backward passes of training steps on a GPU: like steps in a row are recorded
 * once, and then replayed as one CUDA graph with the same bits and hardly any work on the processor.
 * The model must be changed by its optimizer only in the meantime. One graph is kept at a time, as
 * it holds the memory of a step.
 */
export class StepGraphs {
  #recorded: Recorded | null = null;
  #lastKey = '';
  #alike = 0;
  #patience = PATIENCE;
  /** Steps that were replayed. */
  replayed = 0;
  /** Why no step is recorded any more, where that is so. */
  problem: string | null = null;

  private constructor(
    private readonly backend: CudaBackend,
    private readonly parameters: readonly Tensor[],
  ) {}

  /** For a causal model on a GPU; null for anything else, which runs as ever. */
  static for(model: unknown, parameters: readonly Tensor[]): StepGraphs | null {
    if (!(model instanceof CausalLM) || !(model.backend instanceof CudaBackend)) return null;
    return new StepGraphs(model.backend, parameters);
  }

  /**
   * The losses of a step's micro-batches, to be disposed of; gradients are left in the parameters.
   * @param settings whatever else the step's calls follow from
   * @param eager the step, op by op
   */
  run(
    batches: readonly TokenBatch[],
    step: number,
    settings: string,
    eager: () => Tensor[],
  ): Tensor[] {
    if (this.problem !== null) return eager();
    const micros = batches.map(inputsOf);
    const key = [settings, ...micros.map(({ shape }) => shape)].join(';');
    const inputs = micros.flatMap(({ uploads }) => uploads);
    const replayed = this.#replay(key, inputs, step * batches.length);
    if (replayed) return replayed;
    this.#alike = key === this.#lastKey ? this.#alike + 1 : 1;
    this.#lastKey = key;
    if (this.#alike < this.#patience) return eager();
    return this.#record(key, inputs, step * batches.length, eager);
  }

  #replay(key: string, inputs: readonly Uint8Array[], step: number): Tensor[] | null {
    const recorded = this.#recorded;
    if (!recorded) return null;
    const bytes = recorded.sources.map((s) => (typeof s === 'number' ? inputs[s] : s));
    // Dropout's masks are addressed by the step.
    const shifts = [{ kernel: 'dropout', attr: 3, by: step - recorded.step }];
    if (recorded.key === key && recorded.recording.replay(bytes as Uint8Array[], shifts)) {
      this.replayed++;
      for (const [p, gradient] of recorded.gradients) setGradient(p, gradient);
      return recorded.losses.map((loss) => loss.alias());
    }
    this.dispose();
    this.#patience = Math.min(MOST_PATIENCE, this.#patience * 2);
    return null;
  }

  #record(
    key: string,
    inputs: readonly Uint8Array[],
    step: number,
    eager: () => Tensor[],
  ): Tensor[] {
    const { result: losses, recording } = this.backend.record(eager);
    const sources = typeof recording === 'string' ? null : match(recording.inputs, inputs);
    if (typeof recording === 'string' || !sources) {
      if (typeof recording !== 'string') recording.dispose();
      const other = 'the model uploads other inputs than a batch has';
      this.problem = typeof recording === 'string' ? recording : other;
      console.error(`lowrank: steps are not replayed as a CUDA graph: ${this.problem}`);
      return losses;
    }
    const gradients = this.parameters.flatMap((p) =>
      p.grad ? [[p, p.grad.alias(p.grad.shape, false)] as const] : [],
    );
    const kept = losses.map((loss) => loss.alias(loss.shape, false));
    this.#recorded = { recording, key, step, sources, losses: kept, gradients };
    return losses;
  }

  /** Frees the graph and its memory. */
  dispose(): void {
    const recorded = this.#recorded;
    if (!recorded) return;
    this.#recorded = null;
    recorded.recording.dispose();
    for (const loss of recorded.losses) loss.dispose();
    for (const [, gradient] of recorded.gradients) gradient.dispose();
  }
}
