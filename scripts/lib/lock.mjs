import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

/** @param {number} pid */
function alive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return /** @type {NodeJS.ErrnoException} */ (error).code === 'EPERM';
  }
}

/** @param {string} path */
function holder(path) {
  try {
    return Number(readFileSync(path, 'utf8'));
  } catch {
    return 0;
  }
}

/** @param {number} milliseconds */
function sleep(milliseconds) {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

/**
 * Runs `work` while this process alone holds the lock file; waits for a living holder, and takes
 * the place of one that died.
 * @template T
 * @param {string} path
 * @param {(waited: boolean) => T} work synchronous
 * @param {number} [patience] milliseconds to wait
 * @returns {T}
 */
export function withLock(path, work, patience = 600_000) {
  mkdirSync(dirname(path), { recursive: true });
  const deadline = Date.now() + patience;
  let waited = false;
  for (;;) {
    try {
      writeFileSync(path, String(process.pid), { flag: 'wx' });
      break;
    } catch (error) {
      if (/** @type {NodeJS.ErrnoException} */ (error).code !== 'EEXIST') throw error;
    }
    const pid = holder(path);
    if (pid !== 0 && !alive(pid)) {
      rmSync(path, { force: true });
      continue;
    }
    if (!waited) console.log(`[build] waiting for process ${pid} that builds here`);
    waited = true;
    if (Date.now() > deadline) {
      throw new Error(`[build] expected process ${pid} to finish; if it is gone, delete ${path}`);
    }
    sleep(200);
  }
  try {
    return work(waited);
  } finally {
    rmSync(path, { force: true });
  }
}
