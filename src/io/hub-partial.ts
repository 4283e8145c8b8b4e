import { type Hash, randomBytes } from 'node:crypto';
import { createReadStream, existsSync } from 'node:fs';
import { copyFile, readdir, rename, rm, symlink } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';

/** A link as Python makes it, relative; a copy where the system has no links. */
export async function link(blob: string, path: string): Promise<void> {
  // A link that leads nowhere may be left of a cleaned cache.
  await rm(path, { force: true });
  try {
    await symlink(relative(dirname(path), blob), path);
  } catch {
    // Another process may have made it meanwhile.
    if (!existsSync(path)) await copyFile(blob, path);
  }
}

/** Partial files that this process writes. */
export const active = new Set<string>();

/** Whether nobody writes a partial file any more. */
function isOrphan(path: string): boolean {
  const pid = Number(/\.(\d+)-[0-9a-f]+\.incomplete$/.exec(path)?.[1]);
  if (!(pid > 0)) return false;
  if (pid === process.pid) return !active.has(path);
  try {
    process.kill(pid, 0);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH';
  }
}

/** This process's own file for a download: one that a dead process left, renamed, or a new one. */
export async function partialFile(blob: string): Promise<string> {
  const folder = dirname(blob);
  const own = `${blob}.${process.pid}-${randomBytes(4).toString('hex')}.incomplete`;
  for (const name of await readdir(folder)) {
    const path = join(folder, name);
    if (!path.startsWith(`${blob}.`) || !isOrphan(path)) continue;
    try {
      await rename(path, own);
      return own;
    } catch {
      // Another process has taken it.
    }
  }
  return own;
}

/** Adds a file's bytes to a hash. @returns how many there are */
export async function hashFile(path: string, hash: Hash): Promise<number> {
  let bytes = 0;
  for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  return bytes;
}
