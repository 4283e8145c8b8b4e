/**
 * Makes the finished base model of `.cache/base` the bundled one: copies it to `assets/base`,
 * measures its stored weights on every held-out file, and writes the model card beside it.
 *
 * usage: npx tsx scripts/pretrain/card.ts
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readJsonObject } from '../../src/io/files.js';
import { TokenFile } from '../../src/io/token-file.js';
import { openModel } from '../../src/models/load.js';
import { heldOutLosses } from '../../src/train/pretrain.js';

interface Part {
  readonly documents: number;
  readonly bytes: number;
  readonly tokens: number;
}

interface HeldOut extends Part {
  readonly file: string;
  readonly yardsticks: Readonly<Record<string, number>>;
}

interface Manifest {
  readonly train: { readonly tokens: number };
  readonly sources: Readonly<Record<string, { readonly train: Part; readonly heldout: HeldOut }>>;
}

const root = fileURLToPath(new URL('../..', import.meta.url));
const corpus = join(root, '.cache/corpus');
const made = join(root, '.cache/base');
const bundled = join(root, 'assets/base');

const SOURCES: Readonly<Record<string, string>> = {
  sotu: 'State of the Union addresses',
  wordnet: 'WordNet 3.1 words, definitions, examples',
  factbook: 'The World Factbook',
};

/** Bits a byte that xz -9 needs for a source's held-out text; a dash where there is no xz. */
function xzBitsPerByte(source: string): string {
  const lines = readFileSync(join(corpus, `text/${source}.heldout.jsonl`), 'utf8').trim();
  const text = Buffer.from(
    lines
      .split('\n')
      .map((l) => (JSON.parse(l) as { text: string }).text)
      .join('\n'),
  );
  const run = spawnSync('xz', ['-9e', '--stdout'], { input: text, maxBuffer: 2 ** 28 });
  return run.status === 0 ? ((8 * run.stdout.length) / text.length).toFixed(2) : '–';
}

const thousands = (n: number) => Math.round(n).toLocaleString('en-US');

/** The events of the run's log, oldest first. */
function logEvents(): Record<string, unknown>[] {
  const lines = readFileSync(join(made, 'log.jsonl'), 'utf8').trim().split('\n');
  return lines.map((l) => JSON.parse(l) as Record<string, unknown>);
}

function main(): void {
  if (!existsSync(join(made, 'model.safetensors'))) {
    throw new Error('[card] expected a finished model in .cache/base, received none');
  }
  for (const file of ['model.safetensors', 'config.json']) {
    copyFileSync(join(made, file), join(bundled, file));
  }
  const manifest = readJsonObject(join(corpus, 'manifest.json'), 'card') as unknown as Manifest;
  const { settings } = readJsonObject(join(made, 'state/state.json'), 'card') as {
    settings: Record<string, number>;
  };
  const { steps, batchSize, seqLength } = settings as Record<string, number>;
  const seen = (steps as number) * (batchSize as number) * (seqLength as number);
  using model = openModel(bundled, { task: 'causal-lm' });
  const parameters = [...model.namedParameters()].reduce((n, [, p]) => n + p.size, 0);
  const names = Object.keys(manifest.sources);
  const files = new Map(
    names.map((s) => [
      s,
      TokenFile.open(join(corpus, `heldout-${s}.bin`), (seqLength as number) - 1),
    ]),
  );
  const losses = heldOutLosses(model, files, 16);
  const rows = names.map((s) => {
    const { train, heldout } = manifest.sources[s] as { train: Part; heldout: HeldOut };
    const { loss } = losses[s] as { loss: number };
    const bits = (loss / Math.LN2) * (heldout.tokens / heldout.bytes);
    const y = heldout.yardsticks as Record<string, number>;
    return [
      SOURCES[s] ?? s,
      thousands(train.tokens),
      thousands(heldout.tokens),
      loss.toFixed(3),
      bits.toFixed(2),
      (y.unigramNatsPerToken as number).toFixed(2),
      (y.unigramBitsPerByte as number).toFixed(2),
      (y.gzipBitsPerByte as number).toFixed(2),
      xzBitsPerByte(s),
    ];
  });
  const last = logEvents().findLast((e) => e.type === 'step') as { loss: number };
  const card = cardText({ parameters, seen, manifest, settings, rows, trainLoss: last.loss });
  writeFileSync(join(bundled, 'README.md'), card);
  console.log(card);
}

function cardText(facts: {
  parameters: number;
  seen: number;
  manifest: Manifest;
  settings: Record<string, number>;
  rows: string[][];
  trainLoss: number;
}): string {
  const { parameters, seen, manifest, settings, rows, trainLoss } = facts;
  const head = [
    'source',
    'training tokens',
    'held-out tokens',
    'nats a token',
    'bits a byte',
    'unigram: nats a token',
    'unigram: bits a byte',
    'gzip: bits a byte',
    'xz: bits a byte',
  ];
  const table = [head, head.map((_, i) => (i === 0 ? '---' : '--:')), ...rows]
    .map((r) => `| ${r.join(' | ')} |`)
    .join('\n');
  return `# The bundled base model

A small English language model, made so that \`lowrank\` can show LoRA on a truly pretrained model
without a download. It is trained from random weights by \`lowrank\` itself (\`scripts/pretrain\`). It
writes plausible words and phrases and knows little; it is a base for experiments, not an assistant.

| | |
| --- | --- |
| architecture | Llama (RMSNorm, RoPE, grouped-query attention, SwiGLU), tied head |
| parameters | ${thousands(parameters)}, stored as bf16 (trained in f32) |
| vocabulary | byte-level BPE, 4,096 entries, trained on the same text (\`scripts/data/tokenizer.ts\`) |
| context | ${settings.seqLength} tokens |
| tokens seen | ${thousands(seen)}: ${(seen / manifest.train.tokens).toFixed(1)} passes over ${thousands(manifest.train.tokens)} |
| training | AdamW, peak learning rate ${settings.lr}, ${settings.warmupSteps} steps of warm-up, cosine to a tenth, weight decay ${settings.weightDecay}, gradient norm clipped to 1; ${thousands(settings.steps as number)} steps of ${settings.batchSize} × ${settings.seqLength} tokens, documents packed; seed ${settings.seed} |
| last training loss | ${trainLoss.toFixed(3)} nats a token |
| licence of the weights | MIT; they are made from texts whose notices are in \`assets/licenses\` (WordNet's must go along) |

## Held-out loss

Held-out parts are apart by document (speech, synset, headword, chapter or part, country) and were
never trained on. The loss is of the stored bf16 weights, in windows of ${settings.seqLength} tokens with no
context from before the window. Yardsticks on the same text: a unigram model of the training tokens,
and compressors run over the whole held-out text of the source.

${table}

Moby Dick and WordNet's lexical categories are in no training file: the demo teaches them.

## Make it again

\`\`\`
npx tsx scripts/data/make.ts        # corpus, tokenizer, token files (.cache/corpus), seconds
npx tsx scripts/pretrain/base.ts    # training, about an hour on 2 idle cores; goes on where it stopped
npx tsx scripts/pretrain/card.ts    # copies the model here and writes this card
\`\`\`
`;
}

main();
