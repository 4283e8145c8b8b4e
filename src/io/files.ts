import { randomBytes } from 'node:crypto';
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { failure, nearest } from '../tensor/errors.js';

/** The contents of a file: pieces in order, made as they are written. */
export type Parts = Iterable<Uint8Array>;

/** Bytes handed to one system call; larger pieces are cut. */
const CHUNK = 64 * 2 ** 20;

/** Milliseconds after which a file that grew no more is taken for left behind. */
const QUIET_MS = 5000;

/**
 * Throws, before any work is done, where a folder cannot be written to or made: Node names a
 * read-only file system "no such file" when it makes folders.
 */
export function checkWritable(folder: string, setting: string): void {
  let there = resolve(folder);
  while (!existsSync(there) && dirname(there) !== there) there = dirname(there);
  const expected = 'a folder that can be written to';
  if (!statSync(there).isDirectory())
    throw failure(setting, expected, `the file ${there} in its path`);
  try {
    accessSync(there, constants.W_OK);
  } catch (error) {
    throw failure(setting, expected, `${(error as NodeJS.ErrnoException).code} of ${there}`);
  }
}

function temporaryName(path: string): string {
  const unique = `${process.pid}-${randomBytes(6).toString('hex')}`;
  return join(dirname(path), `.${basename(path)}.${unique}.tmp`);
}

/** What {@link temporaryName} makes, and the process that it names. */
const TEMPORARY = /^\..+\.(\d+)-[0-9a-f]{12}\.tmp$/;

/** Whether a name is one that files have here until they are complete. */
export function isTemporary(name: string): boolean {
  return TEMPORARY.test(name);
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

/** Removes the incomplete files of a folder whose process was ended while it wrote them. */
export function removeLeftovers(folder: string): void {
  for (const name of readdirSync(folder)) {
    const pid = TEMPORARY.exec(name)?.[1];
    if (pid === undefined || isRunning(Number(pid))) continue;
    const path = join(folder, name);
    const stats = statSync(path, { throwIfNoEntry: false });
    // Where a folder is shared, the process may run on another machine: then the file is new.
    if (stats?.isFile() && Date.now() - stats.mtimeMs > QUIET_MS) rmSync(path, { force: true });
  }
}

function writeAll(fd: number, parts: Parts): void {
  for (const part of parts) {
    for (let at = 0; at < part.length; ) {
      at += writeSync(fd, part, at, Math.min(CHUNK, part.length - at));
    }
  }
}

/** Makes a rename in this folder durable. Windows has no such call and needs none. */
function syncFolder(folder: string): void {
  if (process.platform === 'win32') return;
  const fd = openSync(folder, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function writeSynced(path: string, parts: Parts, mode?: number): void {
  const fd = openSync(path, 'wx');
  try {
    if (mode !== undefined) fchmodSync(fd, mode);
    writeAll(fd, parts);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The same error with what was being done in front, its cause kept. */
function during(what: string, error: unknown): Error {
  return new Error(`[${what}] ${reasonOf(error)}`, { cause: error });
}

/**
 * Writes several files of one folder together: each under a new name, synced to the disk, and only
 * when all are complete renamed over the old ones, one after the other; then the folder is synced.
 * @param folder must exist
 * @param files contents by plain file name
 * @throws when a piece cannot be made or written; all old files are then untouched and nothing
 *   new is left behind
 */
export function writeFilesAtomic(folder: string, files: Iterable<readonly [string, Parts]>): void {
  const written: { temporary: string; path: string }[] = [];
  try {
    for (const [name, parts] of files) {
      const path = join(folder, plainName(name));
      const old = statSync(path, { throwIfNoEntry: false });
      if (old?.isDirectory()) throw failure(`write ${path}`, 'a file name', 'a directory');
      const temporary = temporaryName(path);
      written.push({ temporary, path });
      try {
        writeSynced(temporary, parts, old && old.mode & 0o7777);
      } catch (error) {
        throw during(`write ${path}`, error);
      }
    }
    for (const { temporary, path } of written) renameSync(temporary, path);
  } catch (error) {
    for (const { temporary } of written) rmSync(temporary, { force: true });
    throw error;
  }
  syncFolder(folder);
}

/**
 * Writes a file whole or not at all: a new name in the same folder, sync, rename, sync of the folder.
 * @throws when a piece cannot be made or written; the old file then still stands
 */
export function writeFileAtomic(path: string, parts: Parts): void {
  writeFilesAtomic(dirname(resolve(path)), [[basename(path), parts]]);
}

/** Writes a value as JSON with two spaces of indent and a final newline, atomically. */
export function writeJsonAtomic(path: string, value: unknown): void {
  writeFileAtomic(path, [jsonBytes(value)]);
}

/** A value as the bytes of indented JSON. */
export function jsonBytes(value: unknown): Uint8Array {
  return new TextEncoder().encode(`${JSON.stringify(value, null, 2)}\n`);
}

/**
 * Makes a folder with these files appear at once, in place of an older one if there is one.
 * A crash leaves the old folder, the new one, or (for an instant of a replacement) the old one
 * under a hidden name beside it; never a half-written one under `folder`.
 */
export function writeDirectoryAtomic(
  folder: string,
  files: Iterable<readonly [string, Parts]>,
): void {
  const target = resolve(folder);
  const parent = dirname(target);
  const fresh = temporaryName(target);
  const aside = temporaryName(target);
  mkdirSync(parent, { recursive: true });
  mkdirSync(fresh);
  try {
    writeFilesAtomic(fresh, files);
    const replaces = existsSync(target);
    if (replaces) renameSync(target, aside);
    try {
      renameSync(fresh, target);
    } catch (error) {
      if (replaces) renameSync(aside, target);
      throw error;
    }
  } catch (error) {
    rmSync(fresh, { recursive: true, force: true });
    throw error;
  }
  syncFolder(parent);
  rmSync(aside, { recursive: true, force: true });
}

/** Throws unless `name` is a plain file name: no folder, no drive, no `..`. */
export function plainName(name: string): string {
  if (name === '' || name === '.' || name === '..' || /[/\\:\0]/.test(name)) {
    throw failure('file name', 'a plain file name', JSON.stringify(name));
  }
  return name;
}

/** The error for a file that is not there, with the nearest names of its folder. */
export function missingFile(where: string, path: string, wayOut?: string): Error {
  const folder = dirname(path);
  let others: string[] = [];
  try {
    others = readdirSync(folder);
  } catch {
    return failure(where, `a file ${path}`, `no folder ${folder}`, wayOut);
  }
  const near = nearest(basename(path), others);
  const there = near.length > 0 ? `the folder has ${near.join(', ')}` : 'the folder is empty';
  return failure(where, `a file ${path}`, `none; ${there}`, wayOut);
}

/**
 * The text of a UTF-8 file, a byte order mark dropped.
 * @throws with the file's name when it is missing, a directory, or not UTF-8
 */
export function readText(path: string, where = 'read'): string {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') throw missingFile(where, path);
    throw during(`${where} ${path}`, error);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw failure(`${where} ${path}`, 'UTF-8 text', 'bytes that are not UTF-8');
  }
}

/**
 * The value of a JSON file.
 * @throws with the file's name when it is missing, not UTF-8 or not JSON
 */
export function readJson(path: string, where = 'read'): unknown {
  const text = readText(path, where);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw failure(`${where} ${path}`, 'JSON', reasonOf(error));
  }
}

/** The object in a JSON file; anything else in it is an error that names the file. */
export function readJsonObject(path: string, where = 'read'): Record<string, unknown> {
  const value = readJson(path, where);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    const kind = value === null ? 'null' : Array.isArray(value) ? 'an array' : `a ${typeof value}`;
    throw failure(`${where} ${path}`, 'a JSON object', kind);
  }
  return value as Record<string, unknown>;
}
