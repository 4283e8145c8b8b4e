/** `npm run demo`: installs what is missing, builds, and runs `lowrank demo` with the given options. */
import { bootstrap } from './bootstrap.mjs';
import { buildNative } from './build-native.mjs';
import { emit, runScript } from './lib/steps.mjs';

try {
  bootstrap();
  const status = buildNative([]) || emit();
  process.exitCode = status || runScript('dist/cli/main.js', ['demo', ...process.argv.slice(2)]);
} catch (error) {
  console.error(/** @type {Error} */ (error).message);
  process.exitCode = 1;
}
