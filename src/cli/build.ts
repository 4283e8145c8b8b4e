import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { PACKAGE_ROOT } from '../tensor/package-root.js';
import { type CommonOptions, command, commonOptions, oneOf, printJson } from './output.js';

interface BuildFlags extends CommonOptions {
  readonly backend?: string;
  readonly cuda?: string;
  readonly cudaArch?: string;
  readonly force?: boolean;
  readonly verbose?: boolean;
}

const SUMMARY = 'Build the native addon of this package.';

const DETAILS =
  'With cmake-js where CMake and a C++ compiler are found, else with node-gyp, else not at ' +
  'all: lowrank then runs on its reference backend. Where nvcc is found, the CUDA library for ' +
  '--backend cuda is built, too: for the GPU that is here, else for compute capability 9.0 and ' +
  'later.';

/** `lowrank build`. */
export function buildCommand(): Command {
  const c = command('build', SUMMARY, DETAILS, [
    'npx lowrank build',
    'npx lowrank build --backend gyp',
    'npx lowrank build --cuda on --cuda-arch all',
  ])
    .option(
      '--backend <builder>',
      'cmake, gyp or none (default: the first that works)',
      oneOf(['cmake', 'gyp', 'none'] as const),
    )
    .option(
      '--cuda <when>',
      'the CUDA library: auto, on or off (default: auto, where nvcc is found)',
      oneOf(['auto', 'on', 'off'] as const),
    )
    .option('--cuda-arch <list>', 'compute capabilities to build it for, as in 80,90, or all')
    .option('--force', 'build although nothing changed');
  return commonOptions(c).action(runBuild);
}

function runBuild(flags: BuildFlags): void {
  const script = fileURLToPath(new URL('scripts/build-native.mjs', PACKAGE_ROOT));
  const args = [
    ...(flags.backend === undefined ? [] : ['--backend', flags.backend]),
    ...(flags.cuda === undefined ? [] : ['--cuda', flags.cuda]),
    ...(flags.cudaArch === undefined ? [] : ['--cuda-arch', flags.cudaArch]),
    ...(flags.force ? ['--force'] : []),
    ...(flags.verbose ? ['--verbose'] : []),
  ];
  const result = spawnSync(process.execPath, [script, ...args], {
    stdio: flags.json ? ['ignore', 'pipe', 'pipe'] : 'inherit',
    encoding: 'utf8',
  });
  const ok = result.status === 0;
  if (flags.json) {
    const output = `${result.stdout}${result.stderr}`.trim().split('\n');
    printJson({ type: 'done', ok, output });
  }
  if (!ok) throw new Error('[build] expected the addon to build, received the failure above');
}
