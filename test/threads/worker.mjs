/** Starts worker.ts in a worker thread, where tsx must be asked for again. */
import { register } from 'tsx/esm/api';

register();
await import(new URL('worker.ts', import.meta.url).href);
