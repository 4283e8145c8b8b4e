/**
 * `npm run demo`: installs what is missing, builds, and runs `lowrank demo` with the given options.
 * The CUDA library is built only where an NVIDIA GPU is.
 */
import { existsSync } from 'node:fs';
import { bootstrap } from './bootstrap.mjs';
import { buildNative } from './build-native.mjs';
import { emit, runScript } from './lib/steps.mjs';

try {
  bootstrap();
  const gpu = ['/dev/nvidiactl', '/dev/dxg'].some((path) => existsSync(path));
  const status = buildNative(['--cuda', gpu ? 'auto' : 'off']) || emit();
  process.exitCode = status || runScript('dist/cli/main.js', ['demo', ...process.argv.slice(2)]);
} catch (error) {
  console.error(/** @type {Error} */ (error).message);
  process.exitCode = 1;
}
