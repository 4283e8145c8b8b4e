import { scope } from '../autograd/index.js';
import type { Dense } from '../nn/index.js';
import { embedding, reshape } from '../ops/index.js';
import { tensor } from '../tensor/create.js';
import { failure } from '../tensor/errors.js';
import type { Tensor } from '../tensor/tensor.js';
import { type BodyInput, countedPositions } from './causal-lm.js';
import {
  PROBLEM_TYPES,
  type ProblemType,
  type SequenceBatch,
  SequenceClassifier,
} from './classifier.js';
import type { ConfigReader } from './config.js';

/** The settings of config.json that shape a head over labels. */
export interface LabelConfig {
  readonly labelCount: number;
  readonly problemType: ProblemType | null;
}

/** Those of a head on a causal model. */
export interface ScoreConfig extends LabelConfig {
  /** The id of padding, by which the last token is found; null where there is none. */
  readonly padId: number | null;
}

/** Reads the number of labels and what they are. @throws on a problem_type that does not exist */
export function readLabels(c: ConfigReader): LabelConfig {
  const problem = c.optionalText('problem_type');
  if (problem !== undefined) c.only('problem_type', PROBLEM_TYPES);
  // transformers writes the labels' names rather than their number; two if it writes neither.
  const labelCount = c.size('id2label') ?? c.count('num_labels', 2);
  c.check(
    problem !== 'single_label_classification' || labelCount > 1,
    'at least two labels for problem_type single_label_classification',
  );
  return { labelCount, problemType: (problem as ProblemType | undefined) ?? null };
}

/** {@link readLabels} with the id of padding. */
export function readScore(c: ConfigReader): ScoreConfig {
  return { ...readLabels(c), padId: c.optionalNumber('pad_token_id') ?? null };
}

/**
 * Whether a config.json of a causal model says that its head scores sequences
 * (`…ForSequenceClassification` among its architectures).
 * @throws on a head that is neither that nor one that predicts the next token
 */
export function scoresSequences(c: ConfigReader): boolean {
  const names = c.texts('architectures') ?? [];
  const scores = (name: string) => name.endsWith('ForSequenceClassification');
  c.check(
    names.every((n) => scores(n) || /(ForCausalLM|LMHeadModel|Model)$/.test(n)),
    'architectures: …ForCausalLM, …LMHeadModel or …ForSequenceClassification (no other head is supported)',
  );
  return names.some(scores);
}

/**
 * A causal model whose head, a layer without bias, scores each sequence by the hidden state of its
 * last token that is not padding, as transformers finds it: by the id, not by the mask.
 */
export abstract class ScoreClassifier extends SequenceClassifier {
  abstract score: Dense;

  constructor(readonly scoring: ScoreConfig) {
    super();
  }

  /** Hidden states [B, T, C] after the last norm. */
  protected abstract body(input: BodyInput): Tensor;

  get labelCount(): number {
    return this.scoring.labelCount;
  }

  get problemType(): ProblemType | null {
    return this.scoring.problemType;
  }

  protected scores(batch: SequenceBatch): Tensor {
    const { batch: B, length: T, inputIds, attentionMask, tokenTypeIds } = batch;
    if (tokenTypeIds?.some((t) => t !== 0)) {
      throw failure('model', 'no token types: a causal model has none', 'some above 0');
    }
    const rows = this.#lastTokens(batch);
    const { labels: _, ...tokens } = batch;
    const positions = countedPositions(tokens);
    const { backend } = this;
    const integers = (values: Int32Array) => tensor(values, [B, T], { backend, dtype: 'i32' });
    return scope(() => {
      const hidden = this.body({
        ids: integers(inputIds),
        positions: integers(positions),
        longest: positions.reduce((n, p) => Math.max(n, p), 0) + 1,
        mask: attentionMask?.includes(0)
          ? tensor(attentionMask, [B, T], { backend, dtype: 'u8' })
          : null,
        cache: null,
      });
      const flat = reshape(hidden, [B * T, -1]);
      return this.score.forward(embedding(flat, tensor(rows, [B], { backend, dtype: 'i32' })));
    });
  }

  /** Of each row the place in [B·T] of its last token that is not padding; its first if all are. */
  #lastTokens({ inputIds, batch: B, length: T }: SequenceBatch): Int32Array {
    const { padId } = this.scoring;
    if (padId === null && B > 1) {
      throw failure(
        'model',
        'pad_token_id in config.json, for a batch of several sequences',
        'none',
        'Set it to the id that pads, or classify one sequence at a time',
      );
    }
    return Int32Array.from({ length: B }, (_, b) => {
      let t = T - 1;
      while (t > 0 && inputIds[b * T + t] === padId) t--;
      return b * T + t;
    });
  }
}
