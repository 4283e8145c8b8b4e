import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import type { Checkpoint } from '../io/checkpoint.js';
import { checkWritable, readJsonObject, writeJsonAtomic } from '../io/files.js';
import { failure } from '../tensor/errors.js';
import type { RunSettings } from './state.js';

const RECORD = 'training.json';
const STATE = 'state';

/** The record of a run in its output folder: what made the adapter, and how far it is. */
export interface RunRecord {
  readonly settings: RunSettings;
  readonly step: number;
  readonly steps: number;
  /** Results for people; not needed to go on. */
  readonly results?: Readonly<Record<string, unknown>>;
}

/** Where the state to go on from lies in an output folder. */
export function stateFolder(out: string): string {
  return join(out, STATE);
}

/** Writes the record of a run. */
export function writeRecord(out: string, record: RunRecord): void {
  writeJsonAtomic(join(out, RECORD), record);
}

/** What an output folder holds for a run of these settings. */
export type FolderStatus =
  | { readonly kind: 'empty' | 'finished' | 'overwritten' }
  | { readonly kind: 'stopped'; readonly step: number; readonly steps: number };

/** Settings one by one: those of LoRA as `lora rank`. */
function flat(settings: RunSettings): Map<string, unknown> {
  const out = new Map<string, unknown>();
  for (const [key, value] of Object.entries(settings)) {
    const group = typeof value === 'object' && value !== null && !Array.isArray(value);
    if (!group) out.set(key, value);
    else for (const [name, own] of Object.entries(value)) out.set(`${key} ${name}`, own);
  }
  return out;
}

/** What of two runs' settings differs, each with its values there. */
function differences(a: RunSettings, b: RunSettings): [name: string, a: string, b: string][] {
  const [x, y] = [flat(a), flat(b)];
  const text = (value: unknown) => (value === undefined ? 'none' : JSON.stringify(value));
  return [...new Set([...x.keys(), ...y.keys()])]
    .map((name): [string, string, string] => [name, text(x.get(name)), text(y.get(name))])
    .filter(([, own, other]) => own !== other);
}

function recordOf(out: string): RunRecord | undefined {
  const path = join(out, RECORD);
  if (!existsSync(path)) return undefined;
  const record = readJsonObject(path, 'out') as unknown as RunRecord;
  if (typeof record.settings !== 'object' || record.settings === null) return undefined;
  return record;
}

/**
 * Throws where an output folder cannot be one, whatever is in it: it is a file, the model's own, or
 * cannot be written to.
 */
export function checkOutFolder(out: string, modelDir: string): void {
  if (out === '') throw failure('out', 'a folder', 'an empty name');
  if (resolve(out) === resolve(modelDir)) {
    throw failure('out', 'another folder than the model', out, 'The base model is never changed');
  }
  if (existsSync(out) && statSync(out).isFile()) {
    throw failure('out', 'a folder', `the file ${out}`);
  }
  checkWritable(out, 'out');
}

/**
 * Looks at an output folder before a run writes to it.
 * @throws when it holds something that the run would overwrite and may not
 */
export function inspectOutFolder(
  out: string,
  settings: RunSettings,
  { resume = false, overwrite = false }: { resume?: boolean; overwrite?: boolean },
): FolderStatus {
  const there = existsSync(out) ? readdirSync(out) : [];
  if (there.length === 0 && resume) {
    const received = existsSync(out) ? 'an empty folder' : 'nothing';
    throw failure(`resume ${out}`, 'a run to go on with', received, 'To start one, no --resume');
  }
  if (there.length === 0) return { kind: 'empty' };
  if (overwrite) return { kind: 'overwritten' };
  const record = recordOf(out);
  if (!record) {
    throw failure(
      `out ${out}`,
      'a new or empty folder',
      `one with ${there.slice(0, 3).join(', ')}${there.length > 3 ? ', …' : ''}`,
      'Give another --out, or --overwrite',
    );
  }
  const differing = differences(record.settings, settings);
  if (differing.length > 0) {
    const values = (side: 1 | 2) => differing.map((d) => `${d[0]} ${d[side]}`).join(', ');
    throw failure(
      `out ${out}`,
      `the settings of the run in it: ${values(1)}`,
      values(2),
      'Give the same settings, another --out, or --overwrite to start anew',
    );
  }
  const { step, steps } = record;
  const finished = step >= steps;
  if (!resume) {
    throw failure(
      `out ${out}`,
      'a new or empty folder',
      finished
        ? `a run of these settings that has done its ${steps} steps`
        : `a run stopped at step ${step} of ${steps}`,
      finished
        ? 'It is what this run would make. Give another --out, or --overwrite to make it again'
        : 'Go on with --resume, or start anew with --overwrite',
    );
  }
  if (finished) return { kind: 'finished' };
  return { kind: 'stopped', step, steps };
}

/** Removes the state of a run that has nothing left to do. */
export function removeState(out: string): void {
  rmSync(join(out, STATE), { recursive: true, force: true });
}

/** Removes what an older run left for going on. */
export function forgetRun(out: string): void {
  removeState(out);
  rmSync(join(out, RECORD), { force: true });
}

/** The first digits of the SHA-256 of a file's bytes. */
export function fileFingerprint(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex').slice(0, 16);
}

/** Pieces of a weights file that its fingerprint reads, and the bytes of each. */
const SAMPLES = 64;
const SAMPLE_BYTES = 4096;

/**
 * Tells one base model from another without reading all of it: its configuration, its tensors'
 * names and shapes, and evenly spaced pieces of its weights.
 */
export function modelFingerprint(checkpoint: Checkpoint): string {
  const hash = createHash('sha256').update(JSON.stringify(checkpoint.config));
  for (const file of checkpoint.files) {
    for (const [name, { dtype, shape }] of file.tensors) hash.update(`${name} ${dtype} ${shape}\n`);
    const piece = new Uint8Array(SAMPLE_BYTES);
    const fd = openSync(file.path, 'r');
    try {
      for (let i = 0; i < SAMPLES; i++) {
        const at = Math.floor((file.fileBytes * i) / SAMPLES);
        const count = readSync(fd, piece, 0, SAMPLE_BYTES, at);
        hash.update(piece.subarray(0, count));
      }
    } finally {
      closeSync(fd);
    }
  }
  return hash.digest('hex').slice(0, 16);
}
