// time-limit: 300
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { NativeBackend } from '../src/tensor/native.js';
import { native, onNative } from './backends.js';
import { skipUnless } from './support.js';
import { trainingBits } from './threads/train.js';

const WORKER = fileURLToPath(new URL('threads/worker.mjs', import.meta.url));

/** A worker whose engine has trained with a seed on `threads` threads, and still lives. */
function startWorker(
  seed: number,
  threads: number,
): Promise<{ bits: readonly string[]; end: () => Promise<void> }> {
  return new Promise((settle, fail) => {
    const { isa } = (native as NativeBackend).info();
    // Without the runner's --import options, which need a loader that workers do not have.
    const worker = new Worker(WORKER, { workerData: { seed, threads, isa }, execArgv: [] });
    const exit = new Promise<void>((done) => worker.on('exit', () => done()));
    const end = () => {
      worker.postMessage('end');
      return exit;
    };
    worker.on('message', (bits: readonly string[]) => settle({ bits, end }));
    worker.on('error', fail);
    worker.on('exit', (code) => fail(new Error(`the worker ended early, with code ${code}`)));
  });
}

/** What a training run in a worker of its own gives. */
async function inWorker(seed: number, threads: number): Promise<readonly string[]> {
  const { bits, end } = await startWorker(seed, threads);
  await end();
  return bits;
}

onNative(test, 'two workers that train at once give the bits that each gives alone', async (b) => {
  const { threads } = b.info();
  const alone: (readonly string[])[] = [];
  try {
    b.setThreads(1);
    for (const seed of [1, 2]) alone.push(await trainingBits(b, seed));
  } finally {
    b.setThreads(threads);
  }
  assert.not.equal(alone[0], alone[1]);
  assert.equal(await Promise.all([inWorker(1, 2), inWorker(2, 2)]), alone);
  // And once more with the main thread computing beside them, on other numbers of threads.
  const beside = Promise.all([inWorker(1, 3), inWorker(2, 1)]);
  assert.equal(await trainingBits(b, 1), alone[0]);
  assert.equal(await beside, alone);
});

onNative(test, 'a setting of one worker is not that of another', async (backend) => {
  const { threads, isa } = backend.info();
  await inWorker(3, threads + 1);
  assert.is(backend.info().threads, threads);
  assert.is(backend.info().isa, isa);
});

const TASKS = '/proc/self/task';
const threadsHere = () => readdirSync(TASKS).length;
const onLinux = skipUnless(
  test,
  native !== null && process.platform === 'linux',
  native === null ? 'no native addon' : 'threads are counted in Linux’s /proc',
);

/** Threads of the process while three engines live in workers, each on so many threads. */
async function threadsWith(each: number): Promise<number> {
  const workers = await Promise.all([1, 2, 3].map((seed) => startWorker(seed, each)));
  const count = threadsHere();
  for (const { end } of workers) await end();
  return count;
}

onLinux('engines share one pool: more of them start no more threads', async () => {
  const backend = native as NativeBackend;
  const { threads } = backend.info();
  try {
    const serial = await threadsWith(1);
    backend.setThreads(4);
    await trainingBits(backend, 1); // the pool now has three threads beside its caller
    const pooled = await threadsWith(4);
    // Pools of their own would be nine threads more; one or two may be Node's own.
    assert.ok(pooled <= serial + 3 + 2, `${pooled} threads, ${serial} where engines are serial`);
  } finally {
    backend.setThreads(threads);
  }
});

test.run();
