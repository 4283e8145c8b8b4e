/**
 * `npm run build`: installs what is missing, builds the native addon and emits dist/.
 * `--no-native` leaves the addon out; other options go to build-native.mjs.
 */
import { bootstrap } from './bootstrap.mjs';
import { buildNative } from './build-native.mjs';
import { emit } from './lib/steps.mjs';

const args = process.argv.slice(2);
const native = !args.includes('--no-native');
try {
  bootstrap();
  const status = native ? buildNative(args) : 0;
  process.exitCode = status === 0 ? emit() : status;
} catch (error) {
  console.error(/** @type {Error} */ (error).message);
  process.exitCode = 1;
}
