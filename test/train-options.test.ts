// time-limit: 200
/** What `train` takes besides the everyday settings, and that the other commands use what it wrote. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { SafetensorsFile } from '../src/io/safetensors.js';
import { buildCausalLM } from '../src/models/load.js';
import { saveModel } from '../src/models/save.js';
import { tensor } from '../src/tensor/create.js';
import { normal, streamOf } from '../src/tensor/random.js';
import { getBackend } from '../src/tensor/registry.js';
import { numel } from '../src/tensor/shape.js';
import { finetune } from '../src/train/finetune.js';
import { events, inside } from './support/cli.js';
import { all, failure } from './support/finetune.js';
import { pairs, writeLines, writeWorkspace } from './support/model-dir.js';

const test = suite('train options');
const root = mkdtempSync(join(tmpdir(), 'lowrank-options-'));
const at = (...parts: string[]) => join(root, ...parts);
const ADAPTER = 'adapter_model.safetensors';
writeWorkspace(root);
writeGpt2(at('gpt2'));
test.after(() => rmSync(root, { recursive: true, force: true }));

/** A GPT-2 of two blocks with the bundled tokenizer. */
function writeGpt2(dir: string): void {
  const config = {
    ...{ architectures: ['GPT2LMHeadModel'], model_type: 'gpt2', vocab_size: 4096 },
    ...{ n_embd: 12, n_layer: 2, n_head: 2, n_positions: 96, activation_function: 'gelu_new' },
    ...{ bos_token_id: 0, eos_token_id: 0, layer_norm_epsilon: 1e-5 },
  };
  const backend = getBackend('reference');
  using model = buildCausalLM(config, (name, shape) => {
    const values = normal({ seed: 3, stream: streamOf(name) }, numel(shape));
    const one = /ln_.*weight/.test(name) ? 1 : 0;
    return tensor(
      values.map((v) => one + 0.1 * v),
      shape,
      { backend, purpose: 'frozen' },
    );
  });
  const tensors = new Map(model.namedParameters());
  saveModel(dir, { tensors, config, tokenizerDir: 'assets/base', dtype: 'f32' });
}

function train(out: string, ...more: string[]): string[] {
  const model = more.includes('--model') ? [] : ['--model', at('model')];
  const files = [...model, '--data', at('train.jsonl'), '--out', at(out)];
  return ['train', ...files, '--steps', '3', '--lr', '0.02', '--seed', '5', ...more];
}

async function good(...argv: string[]) {
  const ended = await inside(...argv);
  assert.is(ended.code, 0, `${argv.join(' ')}\n${ended.stderr}`);
  return ended;
}

const configOf = (out: string) =>
  JSON.parse(readFileSync(at(out, 'adapter_config.json'), 'utf8')) as Record<string, unknown>;
const shapesOf = (out: string) => {
  const { tensors } = SafetensorsFile.open(at(out, ADAPTER));
  return new Map([...tensors].map(([k, t]) => [k.slice('base_model.model.'.length), t.shape]));
};

/** The adapter serves eval and merge, and the merged model has the adapter's loss. */
async function isUsed(model: string, out: string): Promise<void> {
  const lossOf = async (...argv: string[]) => {
    const { stdout } = await good('eval', ...argv, '--data', at('eval.jsonl'), '--json');
    return (events(stdout).at(-1) as unknown as { loss: number }).loss;
  };
  const pair = ['--model', at(model), '--adapter', at(out)];
  const [base, adapted] = [await lossOf('--model', at(model)), await lossOf(...pair)];
  assert.not.equal(base, adapted);
  await good('merge', ...pair, '--out', at(`${out}-merged`), '--dtype', 'f32');
  const merged = await lossOf('--model', at(`${out}-merged`));
  assert.ok(Math.abs(merged - adapted) < 1e-4, `${merged} ${adapted}`);
}

test('--enable-lora adapts parts of a fused layer', async () => {
  const { stdout } = await good(
    ...train('parts', '--model', at('gpt2'), '--target-modules', 'c_attn', '--rank', '2'),
    ...['--enable-lora', 'c_attn=q,-,v'],
  );
  // Of two blocks each of q and v: 2 · (12 + 12).
  assert.match(stdout, 'Trainable    192 parameters');
  const b = 'transformer.h.1.attn.c_attn.lora_B.weight';
  assert.equal(shapesOf('parts').get(b), [36, 4]);
  const wide = SafetensorsFile.open(at('parts', ADAPTER));
  const values = new Float32Array(wide.bytes(`base_model.model.${b}`).slice().buffer);
  assert.ok(
    values.subarray(12 * 4, 24 * 4).every((v) => v === 0),
    'k is left alone',
  );
  assert.ok(values.subarray(0, 12 * 4).some((v) => v !== 0));
  await isUsed('gpt2', 'parts');
});

test('--target-pattern and --exclude-pattern choose by expressions, as PEFT reads them', async () => {
  const pattern = '.*\\.h\\.1\\.(attn|mlp)\\..*';
  await good(
    ...train('pattern', '--model', at('gpt2'), '--target-pattern', pattern),
    ...['--exclude-pattern', '.*c_proj'],
  );
  const layers = [...shapesOf('pattern').keys()].filter((k) => k.endsWith('lora_A.weight'));
  assert.equal(layers.sort(), [
    'transformer.h.1.attn.c_attn.lora_A.weight',
    'transformer.h.1.mlp.c_fc.lora_A.weight',
  ]);
  assert.is(configOf('pattern').target_modules, pattern);
  assert.is(configOf('pattern').exclude_modules, '.*c_proj');
  await isUsed('gpt2', 'pattern');
});

test('embeddings are adapted by name, token rows by id, blocks by their list', async () => {
  await good(...train('embedding', '--target-modules', 'embed_tokens,q_proj', '--rank', '2'));
  assert.equal(shapesOf('embedding').get('model.embed_tokens.lora_embedding_A'), [2, 4096]);
  await isUsed('model', 'embedding');
  await good(
    ...train('tokens', '--target-modules', 'q_proj', '--trainable-tokens', '5,7,300-302'),
    ...['--layers-to-transform', '0', '--layers-pattern', 'layers'],
  );
  const rows = 'model.embed_tokens.token_adapter.trainable_tokens_delta';
  assert.equal(shapesOf('tokens').get(rows), [5, 16]);
  assert.equal(configOf('tokens').trainable_token_indices, [5, 7, 300, 301, 302]);
  assert.equal(configOf('tokens').layers_pattern, ['layers']);
  await isUsed('model', 'tokens');
  const named = ['--trainable-tokens', 'wte=1,2', '--trainable-tokens', 'wpe=0'];
  const blocks = ['--layers-to-transform', '1', '--layers-pattern', 'h'];
  await good(
    ...train('named', '--model', at('gpt2'), '--target-modules', 'c_attn', ...named, ...blocks),
  );
  assert.equal(configOf('named').trainable_token_indices, { wte: [1, 2], wpe: [0] });
  assert.equal(
    shapesOf('named').get(rows.replace('model.embed_tokens', 'transformer.wpe')),
    [1, 12],
  );
});

test('--lora-plus trains B faster, 16 times unless said', async () => {
  const bytes = async (out: string, ...more: string[]) => {
    await good(...train(out, '--target-modules', 'q_proj', ...more));
    return readFileSync(at(out, ADAPTER));
  };
  const plain = await bytes('plain');
  assert.equal(await bytes('plus1', '--lora-plus', '1'), plain);
  const plus = await bytes('plus', '--lora-plus');
  assert.not.equal(plus, plain);
  assert.equal(await bytes('plus16', '--lora-plus', '16'), plus);
  const record = JSON.parse(readFileSync(at('plus/training.json'), 'utf8'));
  assert.is(record.settings.loraPlus, 16);
  // After one step B is lr·λ everywhere, the sign of its gradient times Adam's step of one.
  const one = { modelDir: at('model'), dataFile: at('train.jsonl'), steps: 1, warmupSteps: 0 };
  const lora = { targetModules: ['down_proj'] };
  await all({ ...one, lr: 1e-3, loraPlus: 8, lora, out: at('one') });
  const b = 'base_model.model.model.layers.0.mlp.down_proj.lora_B.weight';
  const raw = SafetensorsFile.open(at('one', ADAPTER)).bytes(b).slice();
  for (const v of new Float32Array(raw.buffer)) assert.ok(Math.abs(Math.abs(v) - 8e-3) < 1e-4);
});

test('a rank that is a slip is refused at once, a wide one is told of', async () => {
  const slip = await inside(...train('slip', '--rank', '100000'));
  assert.is(slip.code, 1);
  assert.match(
    slip.stderr,
    /\[lora rank\] expected at most 256 for model\.layers\.0\.self_attn\.q_proj \[16, 16\], received 100000\. Rank 16 reaches every change/,
  );
  assert.not.ok(existsSync(at('slip')));
  const patterned = await inside(...train('slip', '--rank-pattern', 'down_proj=5000'));
  assert.match(patterned.stderr, /at most 256 for .*down_proj \[16, 24\], received 5000/);
  const wide = await good(...train('wide', '--rank', '20', '--target-modules', 'q_proj,up_proj'));
  assert.match(wide.stderr, /rank 20 is more than .*q_proj has a use for: 16 .*\(2 such layers\)/);
  const json = await good(...train('wide2', '--rank', '20', '--target-modules', 'qv', '--json'));
  const { wideRanks } = events(json.stdout)[0] as { wideRanks: { path: string; most: number }[] };
  assert.equal(
    wideRanks.map((w) => [w.path.split('.').at(-1), w.most]),
    [
      ['q_proj', 16],
      ['v_proj', 8],
    ],
  );
});

test('--resume where there is nothing to go on with is an error, not a new run', async () => {
  const none = await inside(...train('none', '--resume'));
  assert.is(none.code, 1);
  assert.match(none.stderr, /\[resume .*none\] expected a run to go on with, received nothing/);
  assert.not.ok(existsSync(at('none')));
  const dry = await inside(...train('none', '--resume', '--dry-run'));
  assert.is(dry.code, 1);
});

test('--keep-best writes the weights of the lowest loss, also after a stop', async () => {
  // What is held out says something else than what is learned, so that the last step is not the best.
  const odd = pairs(6).map(({ prompt }) => ({
    prompt,
    completion: ' the zoo, quite another answer',
  }));
  const evalFile = writeLines(at('odd.jsonl'), odd);
  const wild = { lr: 0.05, warmupSteps: 0, steps: 8, schedule: 'constant', seed: 1 } as const;
  const files = { modelDir: at('model'), dataFile: at('train.jsonl'), evalFile };
  const run = {
    ...files,
    ...wild,
    evalEvery: 1,
    lora: { rank: 4, targetModules: ['all-linear', 'embed_tokens'] },
  };
  const events = await all({ ...run, out: at('best'), keepBest: true });
  const losses = events.flatMap((e) => (e.type === 'eval' && e.step > 0 ? [e.loss] : []));
  assert.is(losses.length, 8);
  const lowest = Math.min(...losses);
  const step = losses.indexOf(lowest) + 1;
  assert.ok(step < 8, `the lowest loss is at step ${step}: ${losses.join(' ')}`);
  const done = events.at(-1);
  assert.ok(done?.type === 'done');
  assert.equal(done.best, { step, loss: lowest });
  assert.is(done.after?.loss, lowest);
  // The same weights as those of a run that ends there.
  await all({ ...run, out: at('to-best'), steps: step });
  assert.equal(readFileSync(at('best', ADAPTER)), readFileSync(at('to-best', ADAPTER)));
  assert.not.ok(readdirSync(at('best')).includes('state'));

  // Stopped after the best step: it is still what is written, and a resumed run ends alike.
  const aborter = new AbortController();
  const out = at('best-stopped');
  const stopping = { ...run, keepBest: true, out, signal: aborter.signal };
  for await (const event of finetune(stopping)) {
    if (event.type === 'eval' && event.step === Math.min(7, step + 1)) aborter.abort();
  }
  assert.equal(readFileSync(join(out, ADAPTER)), readFileSync(at('best', ADAPTER)));
  assert.ok(existsSync(join(out, 'state')));
  assert.match(await failure({ ...run, out, resume: true }), /settings of the run in it: keepBest/);
  const resumed = await all({ ...run, out, keepBest: true, resume: true });
  assert.equal(readFileSync(join(out, ADAPTER)), readFileSync(at('best', ADAPTER)));
  const end = resumed.at(-1);
  assert.ok(end?.type === 'done');
  assert.equal(end.best, { step, loss: lowest });
});

test('--keep-best of a run stopped during an evaluation weighs that step, too', async () => {
  const files = { modelDir: at('model'), dataFile: at('train.jsonl'), evalFile: at('eval.jsonl') };
  const run = { ...files, lr: 0.02, steps: 6, evalEvery: 2, saveEvery: 0, keepBest: true };
  const straight = await all({ ...run, out: at('weighed') });
  const aborter = new AbortController();
  const out = at('weighed-stopped');
  for await (const event of finetune({ ...run, out, signal: aborter.signal })) {
    // The evaluation that is due after step 4 is not made.
    if (event.type === 'step' && event.step === 4) aborter.abort();
  }
  const resumed = await all({ ...run, out, resume: true });
  const evals = (list: typeof resumed) => list.filter((e) => e.type === 'eval' && e.step > 0);
  assert.equal(evals(resumed), evals(straight).slice(1));
  assert.equal(readFileSync(join(out, ADAPTER)), readFileSync(at('weighed', ADAPTER)));
});

test('what does not fit is an error that says so', async () => {
  const rows: [string[], number, RegExp][] = [
    [['--enable-lora', 'c_attn'], 2, /Expected name=parts, such as c_attn=q,-,v/],
    [['--enable-lora', 'c_attn=-,-'], 2, /Expected the parts in order/],
    [['--enable-lora', 'a=q,-', '--enable-lora', 'a=q,-'], 2, /Expected each name once/],
    [['--trainable-tokens', '5,x'], 2, /Expected a whole number of 0 or more/],
    [['--trainable-tokens', '9-5'], 2, /Expected ids and ranges/],
    [['--trainable-tokens', '0-99999999'], 2, /Expected ids and ranges/],
    [['--trainable-tokens', '5', '--trainable-tokens', 'a=5'], 2, /Expected ids once, or name=ids/],
    [['--lora-plus', '0'], 2, /Expected a number above 0/],
    [['--full', '--lora-plus', '4'], 2, /'--full' cannot be used with option '--lora-plus/],
    [['--full', '--trainable-tokens', '4'], 2, /cannot be used with option '--trainable-tokens/],
    [['--full', '--target-pattern', '.*'], 2, /cannot be used with option '--target-pattern/],
    [
      ['--target-pattern', '.*', '--target-modules', 'qv'],
      2,
      /'--target-pattern <regex>' cannot be used with option '--target-modules <names>'/,
    ],
    [['--keep-best'], 2, /option --keep-best needs --eval-every <steps> and --eval <file>/],
    [
      ['--target-pattern', '(q'],
      1,
      /\[lora pattern\] expected a regular expression, received "\(q"/,
    ],
    [['--target-pattern', 'q_proj'], 1, /"q_proj", which matches none\. Paths look like model\./],
    [['--enable-lora', 'c_atn=q,-,v'], 1, /lora enableLora\].*"c_atn", which matches none/],
    [['--enable-lora', 'q_proj=q,-,v'], 1, /a dense layer of 3 equal parts, received .*16 outputs/],
    [['--bias', 'lora'], 2, /one of none, all, lora_only\. Did you mean lora_only\?/],
    [['--layers-pattern', 'layers'], 1, /lora layersPattern\] expected layersToTransform with it/],
    [
      ['--layers-pattern', 'h', '--layers-to-transform', '0'],
      1,
      /lora layersPattern\].*received "h", which matches none\. Nearest: layers/,
    ],
    [['--trainable-tokens', '4096'], 1, /expected token ids of 0…4095/],
    [['--trainable-tokens', '5,5'], 1, /trainableTokens\] expected a list of token ids, each once/],
    [['--trainable-tokens', 'wpe=0'], 1, /trainableTokens\].*"wpe", which is none/],
  ];
  for (const [more, code, message] of rows) {
    const ended = await inside(...train('wrong', ...more));
    assert.match(ended.stderr, message, more.join(' '));
    assert.is(ended.code, code, `${more.join(' ')}\n${ended.stderr}`);
    assert.is(ended.stderr.trimEnd().split('\n').length, 1, ended.stderr);
  }
  assert.not.ok(existsSync(at('wrong')));
});

test.run();
