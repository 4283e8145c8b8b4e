/** One engine in a worker: trains with the seed and settings given, posts its bits, and waits. */
import { parentPort, workerData } from 'node:worker_threads';
import { NativeBackend } from '../../src/tensor/native.js';
import { getBackend } from '../../src/tensor/registry.js';
import { trainingBits } from './train.js';

const { seed, threads, isa } = workerData as { seed: number; threads: number; isa: string };
const backend = getBackend('cpu');
if (!(backend instanceof NativeBackend)) throw new Error('expected the native backend');
backend.setThreads(threads);
backend.setIsa(isa);
parentPort?.postMessage(await trainingBits(backend, seed));
parentPort?.once('message', () => parentPort?.close());
