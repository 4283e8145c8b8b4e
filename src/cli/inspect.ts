import { existsSync } from 'node:fs';
import type { Command } from 'commander';
import type { HubEvent } from '../io/hub.js';
import type {
  AdapterInspection,
  Contents,
  FileInspection,
  Inspection,
  ModelInspection,
} from '../models/inspect.js';
import {
  bytesText,
  type CommonOptions,
  command,
  commonOptions,
  countText,
  note,
  plural,
  printJson,
  say,
} from './output.js';

interface InspectFlags extends CommonOptions {
  readonly tensors?: boolean;
}

const EXAMPLES = [
  'lowrank inspect base',
  'lowrank inspect adapter --json',
  'lowrank inspect base/model.safetensors --tensors',
  'lowrank inspect org/name',
];

const SUMMARY = 'Say what a model, an adapter or a safetensors file holds, from its headers alone.';

const DETAILS =
  'Architecture, parameters, dtypes and bytes of a model, and whether lowrank runs it; rank, ' +
  'targets and variants of an adapter. Also of architectures that lowrank does not know. Of a model of the Hub that is not in the cache ' +
  'only the headers are fetched.';

/** `lowrank inspect`. */
export function inspectCommand(): Command {
  const c = command('inspect', SUMMARY, DETAILS, EXAMPLES)
    .argument('<path>', 'a model or adapter directory, a .safetensors file, or org/name of the Hub')
    .option('--tensors', 'list every tensor: name, dtype, shape, bytes');
  return commonOptions(c).action(runInspect);
}

async function runInspect(path: string, flags: InspectFlags): Promise<void> {
  const { inspect } = await import('../models/inspect.js');
  const options = { list: flags.tensors ?? false };
  const found = existsSync(path)
    ? await inspect(path, options)
    : await inspectOnHub(path, (dir) => inspect(dir, options));
  if (flags.json) {
    printJson({ type: 'done', ...found });
    return;
  }
  say(visible(path));
  for (const [label, text] of linesOf(found)) say(`  ${label.padEnd(14)}${visible(text)}`);
  if (found.list) {
    say('');
    for (const line of table(found)) say(line);
  }
}

/** Of a model that is not in the cache only the headers are fetched. */
async function inspectOnHub(
  id: string,
  look: (dir: string) => Promise<Inspection>,
): Promise<Inspection> {
  const { withHeaders } = await import('../io/hub.js');
  const onEvent = (event: HubEvent) => {
    if (event.type === 'start') note(`${id} is not in the cache: reading its headers on the Hub`);
  };
  return { ...(await withHeaders(id, { onEvent }, look)), path: id };
}

/** A text of a file's with nothing in it that could steer the terminal. */
function visible(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return text.replace(/[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, (c) => {
    return `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`;
  });
}

type Line = readonly [label: string, text: string];

function linesOf(found: Inspection): Line[] {
  if (found.kind === 'model') return modelLines(found);
  return found.kind === 'adapter' ? adapterLines(found) : fileLines(found);
}

/** Parts that are there, with commas between them. */
function joined(...parts: (string | null | false | undefined)[]): string {
  return parts.filter((p) => p).join(', ');
}

function modelLines(m: ModelInspection): Line[] {
  const kind = m.architectures.join(', ');
  const type = m.modelType ?? 'no model_type';
  const heads = m.heads !== null && plural(m.heads, 'head');
  const grouped = m.keyValueHeads !== m.heads && m.keyValueHeads !== null;
  const shape = joined(
    m.layers !== null && plural(m.layers, 'layer'),
    m.hidden !== null && `hidden ${countText(m.hidden)}`,
    m.intermediate !== null && `MLP ${countText(m.intermediate)}`,
    heads && `${heads}${m.headSize === null ? '' : ` of ${m.headSize}`}`,
    grouped && `${m.keyValueHeads} of keys and values`,
    m.experts !== null && plural(m.experts, 'expert'),
  );
  const head = { true: 'head tied to the embedding', false: 'head of its own', null: '' };
  const vocabulary = m.vocabulary === null ? '' : plural(m.vocabulary, 'token');
  const lines: Line[] = [
    ['architecture', kind ? `${kind} (${type})` : type],
    ['supported', m.supported ? 'yes' : `no: ${m.reason}`],
    ['parameters', `${countText(m.parameters)} in ${plural(m.tensors, 'tensor')}`],
    ...contentLines(m),
    ['shape', shape],
    ['vocabulary', joined(vocabulary, head[`${m.tiedHead}`])],
    ['positions', positionsText(m)],
    ['labels', m.labels ? labelsText(m.labels) : ''],
    ['quantized', m.quantization ?? ''],
  ];
  return lines.filter(([, text]) => text !== '');
}

function positionsText({ positions, rope, window }: ModelInspection): string {
  const scaled = rope && rope.type !== 'default';
  const factor = rope?.factor === null ? '' : ` × ${rope?.factor}`;
  return joined(
    positions !== null && countText(positions),
    rope && `RoPE${rope.theta === null ? '' : ` of theta ${countText(rope.theta)}`}`,
    scaled && `scaled by ${rope.type}${factor}`,
    window !== null && `window of ${countText(window)}`,
  );
}

/** Labels that are named one by one. */
const NAMED = 8;

function labelsText(labels: readonly string[]): string {
  const some = labels.slice(0, NAMED).join(', ');
  return `${countText(labels.length)}: ${some}${labels.length > NAMED ? ', …' : ''}`;
}

/** What of the dtypes and files is worth a line each. */
function contentLines({ dtypes, files, bytes }: Contents): Line[] {
  const [first] = files;
  const where = files.length === 1 ? first?.name : `${files.length} shards`;
  const shares =
    dtypes.length === 1
      ? dtypes[0]?.dtype
      : dtypes.map((d) => `${d.dtype} ${bytesText(d.bytes)}`).join(', ');
  return [['weights', `${bytesText(bytes)} as ${shares ?? 'nothing'}, ${where}`]];
}

function adapterLines(a: AdapterInspection): Line[] {
  const targets = Object.entries(a.layers).map(([name, n]) => `${name} × ${n}`);
  const named = typeof a.targetModules === 'string' ? [a.targetModules] : a.targetModules;
  const [least = a.rank, most = least] = [a.ranks[0], a.ranks.at(-1)];
  const ranks = least === most ? `${a.rank}` : `${a.rank} (${least} to ${most} by layer)`;
  const scaling = a.scaling === null ? '?' : Number(a.scaling.toPrecision(6));
  const variants = Object.entries(a.variants).map(([k, v]) => {
    const text = JSON.stringify(v);
    return v === true ? k : `${k} ${text.length > 60 ? `${text.slice(0, 57)}…` : text}`;
  });
  const lines: Line[] = [
    ['adapter', joined(a.peftType, a.taskType)],
    ['supported', a.supported ? 'yes' : `no: ${a.reason}`],
    ['base model', a.baseModel ?? 'not named'],
    ['rank', a.rank === null ? '' : ranks],
    ['alpha', a.alpha === null ? '' : `${a.alpha} (the update is scaled by ${scaling})`],
    ['dropout', a.dropout ? String(a.dropout) : ''],
    ['targets', targets.length > 0 ? targets.join(', ') : named.join(', ')],
    ['saved whole', a.modulesToSave.join(', ')],
    ['variants', variants.join(', ')],
    ['parameters', `${countText(a.parameters)} in ${plural(a.tensors, 'tensor')}`],
    ...contentLines(a),
  ];
  return lines.filter(([, text]) => text !== '');
}

/** Characters of a metadata value that are shown. */
const SHOWN = 100;

function fileLines(f: FileInspection): Line[] {
  const cut = (text: string) => (text.length <= SHOWN ? text : `${text.slice(0, SHOWN - 1)}…`);
  return [
    ['tensors', `${countText(f.tensors)} of ${countText(f.elements)} elements`],
    ...contentLines(f),
    ...Object.entries(f.metadata).map(([k, v]): Line => ['metadata', `${k}: ${cut(v)}`]),
  ];
}

/** Tensors in columns. */
function table({ list = [] }: Inspection): string[] {
  const rows = list.map((t) => [
    visible(t.name),
    t.dtype,
    `[${t.shape.join(', ')}]`,
    bytesText(t.bytes),
    t.file ?? '',
  ]);
  const widths = [0, 1, 2, 3].map((i) =>
    rows.reduce((w, r) => Math.max(w, (r[i] as string).length), 0),
  );
  return rows.map(([name = '', dtype = '', shape = '', bytes = '', file = '']) => {
    const [n = 0, d = 0, s = 0, b = 0] = widths;
    const cells = [name.padEnd(n), dtype.padEnd(d), shape.padEnd(s), bytes.padStart(b), file];
    return cells.join('  ').trimEnd();
  });
}
