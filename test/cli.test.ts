// time-limit: 300
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { makeProgram } from '../src/cli/program.js';
import { openCheckpoint } from '../src/io/checkpoint.js';
import { writeTokenFile } from '../src/io/token-file.js';
import { LoraAdapters, loadAdapter } from '../src/lora/index.js';
import { openModel } from '../src/models/load.js';
import { events, inside, outside } from './support/cli.js';
import { writeWorkspace } from './support/model-dir.js';

const test = suite('cli');
const root = mkdtempSync(join(tmpdir(), 'lowrank-cli-'));
const at = (...parts: string[]) => join(root, ...parts);
writeWorkspace(root);
test.after(() => rmSync(root, { recursive: true, force: true }));

const ADAPTER = 'adapter_model.safetensors';
const bytesOf = (dir: string) => readFileSync(join(dir, ADAPTER));

/** The command line of a short run with dropout. */
function train(out: string, ...more: string[]): string[] {
  const settings = ['--steps', '6', '--lr', '0.02', '--dropout', '0.1', '--seed', '5'];
  const files = ['--model', at('model'), '--data', at('train.jsonl'), '--out', at(out)];
  return ['train', ...files, ...settings, ...more];
}

const lossIn = (text: string) => (last(text) as unknown as { loss: number }).loss;
/** Whether a line is the event of this training step. */
const isStep = (line: string, step: number) => line.startsWith(`{"type":"step","step":${step},`);
const last = (text: string) => events(text).at(-1) as Record<string, never>;

test('train writes an adapter that loads, and tells what it did', async () => {
  const { code, stdout, stderr } = await inside(...train('first', '--eval', at('eval.jsonl')));
  assert.is(code, 0, stderr);
  assert.equal(readdirSync(at('first')).sort(), ['adapter_config.json', ADAPTER, 'training.json']);
  const config = JSON.parse(readFileSync(at('first/adapter_config.json'), 'utf8'));
  assert.is(config.r, 8);
  assert.is(config.lora_alpha, 16);
  assert.is(config.base_model_name_or_path, at('model'));
  using model = openModel(at('model'), { task: 'causal-lm' });
  const adapters = new LoraAdapters(model);
  loadAdapter(adapters, 'a', at('first'));
  assert.ok([...adapters.tensors('a').values()].every((t) => t.toNumbers().some((v) => v !== 0)));
  // 8 · (in + out) over the seven dense layers of the one layer.
  assert.match(stdout, 'Trainable    1,856 parameters, 2.68% of 69,360');
  assert.match(stdout, /Train loss {3}8\.\d+ → [78]\.\d+/);
  assert.match(stdout, /Eval before {2}loss 8\.\d+ .*20 tokens/);
  assert.match(stdout, /Eval after {3}loss [78]\.\d+ /);
  assert.match(stdout, /Peak memory .*frozen .*optimizer 14.8 KB/);
  assert.match(stdout, /first \(10\.\d KB\)/);
  assert.match(stderr, 'step 6/6');
});

test('train takes every setting of LoRA, and writes it down as PEFT does', async () => {
  const modules = ['--target-modules', 'attention,mlp.up_proj', '--exclude-modules', 'k_proj'];
  const shape = ['--rank', '4', '--alpha', '6', '--rank-pattern', 'q_proj=2,o_proj=3'];
  const kind = ['--variant', 'dora', '--scaling', 'rslora', '--init', 'gaussian'];
  const rest = ['--alpha-pattern', 'v_proj=5', '--layers-to-transform', '0', '--modules-to-save'];
  const all = [...modules, ...shape, ...kind, ...rest, 'norm', '--verbose', '--overwrite'];
  const { code, stderr } = await inside(...train('every', ...all));
  assert.is(code, 0, stderr);
  const config = JSON.parse(readFileSync(at('every/adapter_config.json'), 'utf8'));
  assert.equal(
    [config.r, config.lora_alpha, config.use_dora, config.use_rslora],
    [4, 6, true, true],
  );
  assert.equal(
    [config.rank_pattern, config.alpha_pattern],
    [{ q_proj: 2, o_proj: 3 }, { v_proj: 5 }],
  );
  assert.is(config.init_lora_weights, 'gaussian');
  assert.equal(config.modules_to_save, ['model.norm']);
  assert.is((await inside(...train('biased', '--lora-bias', '--rank', '3'))).code, 0);
  const used = ['eval', '--model', at('model'), '--adapter', at('every')];
  assert.is((await inside(...used, '--data', at('eval.jsonl'))).code, 0);
});

test('the same seed gives the same adapter, whatever the threads; another seed another', async () => {
  const one = await inside(...train('t1', '--threads', '1'));
  assert.is(one.code, 0, one.stderr);
  const two = await outside(train('t2', '--threads', '2'));
  assert.is(two.code, 0, two.stderr);
  assert.equal(bytesOf(at('t1')), bytesOf(at('t2')));
  // A finished run is not made again unless it is asked for.
  const again = await inside(...train('t1'));
  assert.is(again.code, 1);
  assert.match(
    again.stderr,
    /received a run of these settings that has done its 6 steps.*--overwr/,
  );
  assert.is((await inside(...train('t1', '--overwrite'))).code, 0);
  assert.equal(bytesOf(at('t1')), bytesOf(at('t2')));
  assert.is((await inside(...train('t3', '--seed', '6'))).code, 0);
  assert.not.equal(bytesOf(at('t3')), bytesOf(at('t1')));
});

test('--json prints events as lines and nothing else', async () => {
  const more = ['--eval', at('eval.jsonl'), '--eval-every', '3', '--save-every', '4', '--json'];
  const { code, stdout, stderr } = await inside(...train('json', ...more));
  assert.is(code, 0, stderr);
  assert.is(stderr, '');
  const types = events(stdout).map((e) => `${e.type} ${e.step ?? ''}`.trim());
  assert.equal(types, [
    'start',
    ...['eval 0', 'step 1', 'step 2', 'step 3', 'eval 3', 'step 4', 'saved 4', 'step 5', 'step 6'],
    ...['eval 6', 'saved 6', 'done 6'],
  ]);
  const [start = {}, , step = {}] = events(stdout);
  assert.is(start.trainableParameters, 1856);
  assert.is(start.examples, 24);
  for (const key of ['loss', 'lr', 'gradNorm', 'tokensPerSecond', 'secondsLeft']) {
    assert.type(step[key], 'number', key);
  }
  const done = last(stdout) as Record<string, { loss: number }>;
  assert.ok((done.after as { loss: number }).loss < (done.before as { loss: number }).loss);
});

test('Ctrl-C leaves a usable adapter, and --resume ends with the bytes of a straight run', async () => {
  const many = ['--steps', '120', '--json', '--save-every', '1000'];
  assert.is((await inside(...train('straight', ...many))).code, 0);
  const stopped = await outside(train('stopped', ...many), (line, child) => {
    if (isStep(line, 5)) child.kill('SIGINT');
  });
  assert.is(stopped.code, 130, stopped.stderr);
  assert.match(stopped.stderr, 'Stopping after this step');
  const done = last(stopped.stdout) as unknown as { stopped: boolean; step: number };
  assert.is(done.stopped, true);
  assert.ok(done.step >= 5 && done.step < 120, `${done.step}`);
  const used = await inside(
    'eval',
    '--model',
    at('model'),
    '--adapter',
    at('stopped'),
    '--data',
    at('eval.jsonl'),
  );
  assert.is(used.code, 0, used.stderr);
  assert.not.equal(bytesOf(at('stopped')), bytesOf(at('straight')));

  const anew = await inside(...train('stopped', ...many));
  assert.is(anew.code, 1);
  assert.match(anew.stderr, `a run stopped at step ${done.step} of 120. Go on with --resume`);
  const other = await inside(...train('stopped', ...many, '--lr', '0.5', '--resume'));
  assert.is(other.code, 1);
  assert.match(other.stderr, 'the settings of the run in it: lr 0.02, received lr 0.5');

  const resumed = await inside(...train('stopped', ...many, '--resume'));
  assert.is(resumed.code, 0, resumed.stderr);
  assert.is((events(resumed.stdout)[0] as { resumedFrom: number }).resumedFrom, done.step);
  assert.equal(bytesOf(at('stopped')), bytesOf(at('straight')));
  assert.not.ok(existsSync(at('stopped/state')));

  const again = await inside(...train('stopped', '--steps', '120', '--resume'));
  assert.is(again.code, 0);
  assert.match(again.stdout, 'Nothing left to do');
});

test('a run that was killed goes on from its last save', async () => {
  const many = ['--steps', '60', '--json', '--save-every', '7'];
  assert.is((await inside(...train('whole', ...many))).code, 0);
  const killed = await outside(train('killed', ...many), (line, child) => {
    if (isStep(line, 24)) child.kill('SIGKILL');
  });
  assert.is(killed.code, null);
  const resumed = await inside(...train('killed', ...many, '--resume'));
  assert.is(resumed.code, 0, resumed.stderr);
  const { resumedFrom } = events(resumed.stdout)[0] as { resumedFrom: number };
  assert.ok(resumedFrom >= 21 && resumedFrom % 7 === 0, `${resumedFrom}`);
  assert.equal(bytesOf(at('killed')), bytesOf(at('whole')));
});

const PROMPT = 'Where does the whale number 3 live? It lives in';

test('generate gives the same text with and without the cache, and from standard input', async () => {
  const base = ['generate', '--model', at('model'), '--adapter', at('first')];
  const some = [...base, '--prompt', PROMPT, '--max-new-tokens', '12'];
  for (const more of [
    [],
    ['--temperature', '0.9', '--top-k', '50', '--top-p', '0.9', '--seed', '4'],
  ]) {
    const cached = await inside(...some, ...more);
    assert.is(cached.code, 0, cached.stderr);
    assert.ok(cached.stdout.startsWith(PROMPT) && cached.stdout.length > PROMPT.length + 5);
    assert.is((await inside(...some, ...more, '--no-cache')).stdout, cached.stdout);
  }
  const plain = await inside(...some, '--no-echo');
  const piped = await outside(
    [...base, '--prompt', '-', '--max-new-tokens', '12', '--no-echo'],
    () => {},
    `${PROMPT}\n`,
  );
  assert.is(piped.stdout, plain.stdout, piped.stderr);
  const json = await inside(...some, '--json');
  const lines = events(json.stdout);
  const done = lines.at(-1) as Record<string, unknown>;
  assert.is(`${done.text}\n`, plain.stdout);
  assert.is(done.tokens, 12);
  assert.is(done.stop, 'length');
  assert.is(lines.filter((l) => l.type === 'token').length, 12);
});

test('eval and merge: the merged model has the adapter’s loss and nothing of LoRA', async () => {
  const data = ['--data', at('eval.jsonl'), '--json'];
  const lossOf = async (...args: string[]) => {
    const { code, stdout, stderr } = await inside('eval', ...args, ...data);
    assert.is(code, 0, stderr);
    return last(stdout) as unknown as { loss: number; perplexity: number; tokens: number };
  };
  const base = await lossOf('--model', at('model'));
  const adapted = await lossOf('--model', at('model'), '--adapter', at('first'));
  const small = await lossOf('--model', at('model'), '--adapter', at('first'), '--batch-size', '2');
  assert.is(adapted.tokens, 20);
  assert.ok(Math.abs(adapted.perplexity - Math.exp(adapted.loss)) < 1e-6);
  assert.ok(adapted.loss < base.loss - 1e-3);
  assert.ok(Math.abs(small.loss - adapted.loss) < 1e-5);
  const pair = ['--model', at('model'), '--adapter', at('first')];
  const merged = await inside('merge', ...pair, '--out', at('merged'), '--dtype', 'f32');
  assert.is(merged.code, 0, merged.stderr);
  const alone = await lossOf('--model', at('merged'));
  assert.ok(Math.abs(alone.loss - adapted.loss) < 1e-4, `${alone.loss} ${adapted.loss}`);
  const { tensors, config } = openCheckpoint(at('merged'));
  assert.equal([...tensors.keys()].sort(), [...openCheckpoint(at('model')).tensors.keys()].sort());
  assert.ok([...tensors.values()].every((t) => t.dtype === 'F32'));
  assert.is(config.dtype, 'float32');
  // In the base's own storage the weights are rounded to bf16 once.
  assert.is((await inside('merge', ...pair, '--out', at('merged16'))).code, 0);
  assert.ok(Math.abs((await lossOf('--model', at('merged16'))).loss - adapted.loss) < 2e-2);
  const refused = await inside('merge', ...pair, '--out', at('merged'));
  assert.is(refused.code, 1);
  assert.match(refused.stderr, 'expected a new or empty folder');
  assert.is((await inside('merge', ...pair, '--out', at('merged'), '--overwrite')).code, 0);
});

test('--full writes a model directory in the storage of the base', async () => {
  const { code, stdout, stderr } = await inside(...without(train('full', '--full'), '--dropout'));
  assert.is(code, 0, stderr);
  assert.match(stdout, '67,504 parameters, 100% of 67,504');
  const { tensors } = openCheckpoint(at('full'));
  assert.ok([...tensors.values()].every((t) => t.dtype === 'BF16'));
  const data = ['--data', at('eval.jsonl'), '--json'];
  const before = lossIn((await inside('eval', '--model', at('model'), ...data)).stdout);
  const after = lossIn((await inside('eval', '--model', at('full'), ...data)).stdout);
  assert.ok(after < before - 0.01, `${after} ${before}`);
});

/** The arguments without an option and its value. */
function without(argv: string[], name: string): string[] {
  const i = argv.indexOf(name);
  return [...argv.slice(0, i), ...argv.slice(i + 2)];
}

test('pretrain makes a model, and goes on where it was stopped', async () => {
  writeTokenFile(at('ids.bin'), [Int32Array.from({ length: 900 }, (_, i) => (i * 7) % 50)]);
  const command = (out: string) => [
    ...['pretrain', '--config', at('model/config.json'), '--tokenizer', at('model')],
    ...['--data', at('ids.bin'), '--heldout', `same=${at('ids.bin')}`, '--out', at(out)],
    ...['--steps', '40', '--batch-size', '2', '--seq-length', '32', '--warmup', '2', '--json'],
    ...['--eval-every', '100', '--lr', '0.01'],
  ];
  const whole = await inside(...command('pre'));
  assert.is(whole.code, 0, whole.stderr);
  const evaluation = events(whole.stdout).find((e) => e.type === 'eval') as {
    sources: { same: { loss: number } };
  };
  assert.ok(evaluation.sources.same.loss < 7);
  assert.is(last(whole.stdout).type, 'done');
  const stopped = await outside(command('pre2'), (line, child) => {
    if (isStep(line, 3)) child.kill('SIGINT');
  });
  assert.is(stopped.code, 130, stopped.stderr);
  assert.not.ok(existsSync(at('pre2/model.safetensors')));
  assert.is((await inside(...command('pre2'))).code, 0);
  const weights = (dir: string) => readFileSync(at(dir, 'model.safetensors'));
  assert.equal(weights('pre2'), weights('pre'));
});

test('doctor says what works and why the rest does not', async () => {
  const { code, stdout } = await inside('doctor', '--json');
  assert.is(code, 0);
  const report = last(stdout) as unknown as {
    node: string;
    backends: { name: string; works: boolean; detail: string }[];
    build: { tools: object };
  };
  assert.is(report.node, process.version);
  assert.equal(
    report.backends.map((b) => b.name),
    ['cpu', 'cuda', 'reference'],
  );
  assert.ok(report.backends.every((b) => b.detail !== ''));
  assert.match((await inside('doctor')).stdout, /reference +reference/);
});

test('the help of every command names every option and gives examples', async () => {
  const top = await inside('--help');
  assert.is(top.code, 0);
  // A group of commands lists them; each of them has the rest.
  const single = makeProgram().commands.flatMap((c) => {
    assert.match(top.stdout, ` ${c.name()} `);
    if (c.commands.length === 0) return [{ words: [c.name()], command: c }];
    return c.commands.map((sub) => ({ words: [c.name(), sub.name()], command: sub }));
  });
  for (const { words, command } of single) {
    const { code, stdout } = await inside(...words, '--help');
    assert.is(code, 0);
    assert.match(stdout, 'Examples:');
    for (const name of ['--json', '--verbose', '--help']) assert.match(stdout, name);
    for (const o of command.options) {
      assert.match(stdout, o.long as string);
      assert.ok(o.description.length > 5, `${command.name()} ${o.long}`);
    }
  }
  const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
  assert.is((await inside('--version')).stdout, `${version}\n`);
});

test('what people do wrong is one line that says what, with exit code 2', async () => {
  const generate = ['generate', '--model', at('model'), '--prompt', 'a'];
  const merge = ['merge', '--model', at('model'), '--adapter', at('first'), '--out', at('m')];
  const rows: [string[], string | RegExp][] = [
    [['trian'], "unknown command 'trian' (Did you mean train?)"],
    [['train', '--modle', 'x'], "unknown option '--modle' (Did you mean --model?)"],
    [['train'], 'train needs --model <dir>, --data <file>, --out <dir>'],
    [without(train('x'), '--out'), 'train needs --out <dir>'],
    [
      train('x', '--rank', '0'),
      /--rank <r>' argument '0' is invalid. Expected a whole number of 1/,
    ],
    [train('x', '--rank', '2.5'), 'Expected a whole number of 1 or more'],
    [train('x', '--rank'), "option '--rank <r>' argument missing"],
    [train('x', '--lr', '-1'), 'Expected a number above 0'],
    [train('x', '--lr', 'abc'), "argument 'abc' is invalid"],
    [train('x', '--lr', 'Infinity'), 'Expected a number above 0'],
    [train('x', '--dropout', '1'), 'Expected a number from 0 to below 1'],
    [train('x', '--schedule', 'cosin'), 'Did you mean cosine?'],
    [train('x', '--init', 'kaimin'), 'Did you mean kaiming?'],
    [train('x', '--variant', 'dira'), 'Did you mean dora?'],
    [train('x', '--rank-pattern', 'q_proj'), 'Expected name=value pairs'],
    [train('x', '--rank-pattern', 'q_proj=0'), 'Expected a whole number of 1 or more'],
    [train('x', '--layers-to-transform', '0,a'), 'Expected a whole number of 0 or more'],
    [train('x', '--problem-type', 'regresion'), 'Did you mean regression?'],
    [train('x', '--num-labels', '0'), 'Expected a whole number of 1 or more'],
    [
      train('x', '--full', '--exclude-modules', 'a'),
      /cannot be used with option '--exclude-modules/,
    ],
    [train('x', '--backend', 'gpu'), 'Expected one of auto, cpu, cuda, reference'],
    [train('x', '--epochs', '2'), /--steps <n>' cannot be used with option '--epochs <n>'/],
    [train('x', '--full', '--rank', '4'), /'--full' cannot be used with option '--rank <r>'/],
    [train('x', '--resume', '--overwrite'), "'--overwrite' cannot be used with option '--resume'"],
    [train('x', '--eval-every', '5'), 'option --eval-every needs --eval <file>'],
    [train('x', '--batch-size', '0'), 'Expected a whole number of 1 or more'],
    [train('x', '--seq-length', '1'), 'Expected a whole number of 2 or more'],
    [train('x', '--target-modules', 'q_proj,,v_proj'), 'Expected names with commas between them'],
    [train('x', '--threads', '-2'), 'Expected a whole number of 1 or more'],
    [train('x', '--threads', '10000'), 'Expected a whole number of 1 to 256'],
    [['eval', '--threads', '257'], 'Expected a whole number of 1 to 256'],
    [train('x', '--seed', '1e99'), 'Expected a whole number of 0 or more'],
    [train('x', 'more'), "too many arguments for 'train'"],
    [['generate', '--model', at('model')], 'generate needs --prompt <text>'],
    [[...generate, '--temperature', '-0.5'], 'Expected a number of 0 or more'],
    [[...generate, '--top-p', '0', '--temperature', '1'], 'Expected a number above 0, at most 1'],
    [[...generate, '--top-k', '5'], 'option --top-k does nothing without --temperature above 0'],
    [['eval', '--model', at('model')], 'eval needs --data <file>'],
    [['merge', '--model', at('model'), '--out', at('m')], 'merge needs --adapter <dir[:weight]>'],
    [[...merge, '--dtype', 'f8'], 'Expected one of f32, f16, bf16'],
    [[...merge, '--out', at('model')], 'option --out must be a folder outside'],
    [[...merge, '--out', at('first/deeper/m')], 'option --out must be a folder outside'],
    [[...merge, '--adapter', `${at('first')}:0`], 'Expected a weight other than 0 after'],
    [[...merge, '--max-shard-size', '5 apples'], 'Expected a size such as 5GB, 500MB or 2GiB'],
    [[...merge, '--max-shard-size', '0'], 'Expected a size such as 5GB'],
    [['pretrain', '--heldout', 'file.bin'], 'Expected name=file.'],
    [['build', '--backend', 'ninja'], 'Expected one of cmake, gyp, none'],
  ];
  for (const [argv, message] of rows) {
    const { code, stdout, stderr } = await inside(...argv);
    assert.is(code, 2, `${argv.join(' ')}\n${stderr}`);
    assert.is(stdout, '', argv.join(' '));
    assert.match(stderr, message);
    assert.is(stderr.trimEnd().split('\n').length, 1, stderr);
    assert.match(stderr, /^lowrank: /);
  }
  assert.not.ok(existsSync(at('x')));
  const bare = await inside();
  assert.is(bare.code, 2);
  assert.match(bare.stderr, 'Usage: lowrank');
});

test('work that fails says why, with exit code 1, and writes nothing', async () => {
  writeFileSync(at('broken.jsonl'), '{"text": "fine"}\n{"text": 3}\n');
  writeFileSync(at('empty.jsonl'), '\n');
  writeFileSync(at('short.jsonl'), '{"prompt": "", "completion": "a"}\n');
  mkdirSync(at('busy'));
  writeFileSync(at('busy/notes.txt'), 'mine');
  mkdirSync(at('closed'), { mode: 0o500 });
  cpSync(at('first'), at('cut'), { recursive: true });
  writeFileSync(at('cut', ADAPTER), readFileSync(at('first', ADAPTER)).subarray(0, 600));
  const data = (name: string) => [...without(train('y'), '--data'), '--data', at(name)];
  const prompt = (text: string) => ['generate', '--model', at('model'), '--prompt', text];
  const rows: [string[], string | RegExp][] = [
    [[...without(train('y'), '--model'), '--model', at('modle')], /folder has model/],
    [data('nothing.jsonl'), /nothing\.jsonl, received none/],
    [data('broken.jsonl'), /broken\.jsonl:2\] expected "text" to be a string, received number/],
    [data('empty.jsonl'), /empty\.jsonl\] expected lines of JSON/],
    [train('y', '--eval', at('empty.jsonl')), /empty\.jsonl\] expected lines of JSON/],
    [train('y', '--target-modules', 'q_porj'), /"q_porj", which matches none. Nearest: q_proj/],
    [train('y', '--seq-length', '97'), "at most the model's 96 positions, received 97"],
    [train('busy'), /expected a new or empty folder, received one with notes\.txt/],
    [train('model'), 'expected another folder than the model'],
    [train('train.jsonl'), /expected a folder, received the file/],
    [[...prompt('a'), '--adapter', at('cut')], /adapter_model\.safetensors/],
    [[...prompt('a'), '--adapter', at('model')], /adapter_config\.json/],
    [
      ['generate', '--model', at('first'), '--prompt', 'a'],
      /expected a model directory, received the adapter .*Give it as --adapter/,
    ],
    [train('train.jsonl/deep/y'), /expected a folder that can be written to, received the file/],
    ...(process.getuid?.() === 0
      ? []
      : [[train('closed/y'), /can be written to, received EACCES/] as [string[], RegExp]]),
    [prompt('a '.repeat(200)), /expected a prompt of 1…95 tokens/],
    [['eval', '--model', at('model'), '--data', at('nothing.jsonl')], 'nothing.jsonl'],
    [
      ['eval', '--model', at('model'), '--data', at('eval.jsonl'), '--predictions', at('p.jsonl')],
      /\[--predictions\] expected a classifier, received a causal model/,
    ],
    [train('y', '--num-labels', '2'), /train\.jsonl:1\] expected "text" .*for causal models/],
  ];
  for (const [argv, message] of rows) {
    const { code, stdout, stderr } = await inside(...argv);
    assert.is(code, 1, `${argv.join(' ')}\n${stderr}`);
    assert.is(stdout, '', argv.join(' '));
    assert.match(stderr, message);
    assert.not.match(stderr, / {4}at /);
  }
  assert.not.ok(existsSync(at('y')));
  assert.equal(readdirSync(at('busy')), ['notes.txt']);
  const json = await inside(...train('busy', '--json'));
  assert.is(last(json.stdout).type, 'error');
  assert.match((await inside(...train('busy', '--verbose'))).stderr, / {4}at /);
  assert.is((await inside(...train('busy', '--overwrite'))).code, 0);
  assert.ok(existsSync(at('busy/notes.txt')));
});

test('merge refuses weights that are not finite', async () => {
  cpSync(at('first'), at('nan'), { recursive: true });
  const file = readFileSync(at('nan', ADAPTER));
  file.writeUInt32LE(0x7fc00000, file.length - 4);
  writeFileSync(at('nan', ADAPTER), file);
  const pair = ['--model', at('model'), '--adapter', at('nan')];
  const { code, stderr } = await inside('merge', ...pair, '--out', at('nan-merged'));
  assert.is(code, 1);
  assert.match(stderr, /\[merge\] expected finite weights, received NaN/);
  assert.not.ok(existsSync(at('nan-merged')));
});

test('the work goes on though nobody reads its messages', async () => {
  const child = spawn(
    process.execPath,
    ['--import', import.meta.resolve('tsx'), 'src/cli/main.ts', ...train('unheard')],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  );
  child.stderr.destroy();
  const [code] = await once(child, 'close');
  assert.is(code, 0);
  assert.equal(bytesOf(at('unheard')), bytesOf(at('first')));
});

test.run();
