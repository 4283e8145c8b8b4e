/**
 * Merges an adapter in a process of its own whose memory another one watches. Prints `ready` when
 * everything is imported and waits for a line; then merges, and prints one line of JSON.
 *
 * usage: node --import tsx bench/merge-once.ts MODEL ADAPTER OUT
 */
import { once } from 'node:events';
import { mergeAdapters } from '../src/models/merge.js';
import { native } from './support.js';

const [modelDir = '', adapter = '', out = ''] = process.argv.slice(2);
const backend = native();
console.log('ready');
await once(process.stdin, 'data');
const cpu = process.cpuUsage();
const started = performance.now();
const { bytes, changed } = mergeAdapters({ modelDir, adapters: [adapter], out, backend });
const milliseconds = performance.now() - started;
const { user, system } = process.cpuUsage(cpu);
const cpuMilliseconds = (user + system) / 1000;
console.log(JSON.stringify({ milliseconds, cpuMilliseconds, bytes, changed }));
process.exit(0);
