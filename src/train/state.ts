import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { jsonBytes, readJsonObject, writeDirectoryAtomic } from '../io/files.js';
import { SafetensorsFile, safetensorsParts } from '../io/safetensors.js';
import { fileDType } from '../io/safetensors-header.js';
import type { Optimizer } from '../optim/index.js';
import { failure, shapeText } from '../tensor/errors.js';
import { sameShape } from '../tensor/shape.js';
import type { Tensor } from '../tensor/tensor.js';
import type { BestRecord, BestWeights } from './best.js';

const TENSORS = 'state.safetensors';
const COUNTS = 'state.json';

/** What must be equal for a run to go on: its settings, as plain JSON. */
export type RunSettings = Readonly<Record<string, unknown>>;

/**
 * Writes everything a run needs to go on as if it had never stopped: trained parameters, the
 * optimizer's moments and counts, the best weights so far where they are kept, and the settings. The folder appears whole or not at all.
 */
export function saveTrainingState(
  dir: string,
  parameters: ReadonlyMap<string, Tensor>,
  optimizer: Optimizer,
  settings: RunSettings,
  best?: BestWeights,
): void {
  const tensors = new Map<string, Tensor>();
  for (const [name, t] of parameters) tensors.set(`parameter.${name}`, t);
  for (const [name, t] of best?.copies ?? []) tensors.set(`best.${name}`, t);
  for (const [name, t] of optimizer.state()) tensors.set(`optimizer.${name}`, t);
  const { step, updates } = optimizer;
  mkdirSync(join(dir, '..'), { recursive: true });
  writeDirectoryAtomic(dir, [
    [TENSORS, safetensorsParts(tensors, { format: 'pt' })],
    [COUNTS, [jsonBytes({ step, updates, settings, ...(best ? { best: best.record } : {}) })]],
  ]);
}

/** Whether a folder holds a saved state. */
export function hasTrainingState(dir: string): boolean {
  return existsSync(join(dir, COUNTS));
}

/** Throws unless every setting is as it was saved. */
function checkSettings(dir: string, saved: unknown, settings: RunSettings): void {
  if (typeof saved !== 'object' || saved === null) {
    throw failure(`resume ${dir}`, 'the settings of the saved run', String(saved));
  }
  const before = saved as RunSettings;
  for (const key of new Set([...Object.keys(before), ...Object.keys(settings)])) {
    const [was, is] = [JSON.stringify(before[key]), JSON.stringify(settings[key])];
    if (was !== is) {
      throw failure(
        `resume ${dir}`,
        `${key} ${was} as in the run that was saved`,
        String(is),
        'Give the same settings, or another output folder to start anew',
      );
    }
  }
}

/** Throws unless the file holds just these parameters, with all of an optimizer's state or none. */
function checkTensors(
  dir: string,
  file: SafetensorsFile,
  parameters: ReadonlyMap<string, Tensor>,
  slots: readonly string[],
  copied: boolean,
): void {
  const surplus = new Set(file.tensors.keys());
  const check = (name: string, t: Tensor) => {
    const { dtype, shape } = file.entry(name);
    if (dtype !== fileDType(t.dtype) || !sameShape(shape, t.shape)) {
      const received = `${dtype} ${shapeText(shape)}`;
      throw failure(`resume ${dir}`, `${name} ${t.dtype} ${shapeText(t.shape)}`, received);
    }
    surplus.delete(name);
  };
  for (const [name, t] of parameters) {
    check(`parameter.${name}`, t);
    if (copied) check(`best.${name}`, t);
    const state = slots.map((slot) => `optimizer.${name}.${slot}`);
    if (state.some((s) => file.tensors.has(s))) for (const s of state) check(s, t);
  }
  if (surplus.size > 0) {
    const [name] = surplus;
    throw failure(`resume ${dir}`, `the tensors of ${parameters.size} parameters`, `${name} too`);
  }
}

function bestRecord(dir: string, saved: unknown): BestRecord {
  const record = saved as Partial<BestRecord> | null | undefined;
  if (Number.isSafeInteger(record?.seen)) return record as BestRecord;
  throw failure(`resume ${dir}`, 'the best evaluation so far', JSON.stringify(saved) ?? 'none');
}

/**
 * Puts a saved state back into the parameters and the optimizer of a run of the same settings.
 * @throws naming the setting, or the tensor, that differs; nothing is changed then
 */
export function loadTrainingState(
  dir: string,
  parameters: ReadonlyMap<string, Tensor>,
  optimizer: Optimizer,
  settings: RunSettings,
  best?: BestWeights,
): void {
  const saved = readJsonObject(join(dir, COUNTS), 'resume');
  const file = SafetensorsFile.open(join(dir, TENSORS));
  const { step, updates } = saved;
  if (!Number.isSafeInteger(step) || !Number.isSafeInteger(updates)) {
    throw failure(`resume ${dir}`, 'whole numbers of steps and updates', `${step}, ${updates}`);
  }
  checkSettings(dir, saved.settings, settings);
  const record = best && bestRecord(dir, saved.best);
  checkTensors(dir, file, parameters, optimizer.slots, record?.best !== undefined);
  for (const [name, t] of parameters) t.setBytes(file.bytes(`parameter.${name}`));
  if (record) best.restore(record, (name) => file.bytes(`best.${name}`));
  optimizer.restore(step as number, updates as number, (name) => {
    const key = `optimizer.${name}`;
    return file.tensors.has(key) ? file.bytes(key) : undefined;
  });
}
