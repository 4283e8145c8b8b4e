import { existsSync, readFileSync } from 'node:fs';
import { arch, availableParallelism, cpus, platform, release, totalmem } from 'node:os';
import type { Command } from 'commander';
import type { NativeBackend } from '../tensor/native.js';
import { PACKAGE_ROOT } from '../tensor/package-root.js';
import {
  bytesText,
  type CommonOptions,
  command,
  commonOptions,
  packageVersion,
  printJson,
  say,
} from './output.js';

const SUMMARY = 'Say which backends work here, why others do not, and what there is to build with.';

/** `lowrank doctor`. */
export function doctorCommand(): Command {
  return commonOptions(
    command('doctor', SUMMARY, '', ['lowrank doctor', 'lowrank doctor --json']),
  ).action(runDoctor);
}

interface Found {
  readonly name: string;
  readonly works: boolean;
  /** What it is, or why it does not work. */
  readonly detail: string;
}

/** Tools by what they are for; undefined where the build script is not part of the installation. */
type Toolbox = Readonly<Record<string, { path: string; version: string }>>;

interface Toolchain {
  findTools(): Toolbox;
  missingFor(builder: 'cmake' | 'gyp', tools: Toolbox): string[];
}

const TOOLS: Readonly<Record<string, string>> = {
  cxx: 'C++ compiler',
  cmake: 'CMake',
  make: 'make',
  ninja: 'ninja',
  python: 'Python',
  nvcc: 'nvcc',
};

interface Backends {
  readonly list: readonly Found[];
  readonly auto: string;
  readonly native?: { readonly isas: readonly string[] };
  /** What the GPU says of itself. */
  readonly cuda?: Readonly<Record<string, string>>;
}

async function backends(): Promise<Backends> {
  const { getBackend } = await import('../tensor/registry.js');
  const list: Found[] = [];
  let native: Backends['native'];
  let cuda: Backends['cuda'];
  for (const name of ['cpu', 'cuda', 'reference']) {
    try {
      const backend = getBackend(name);
      list.push({ name, works: true, detail: backend.describe() });
      if (name === 'cuda') cuda = (backend as NativeBackend).facts();
      if (name === 'cpu') {
        const { isa, isas, threads, version, kernels } = (backend as NativeBackend).info();
        const about = { version, isa, isas, threads, kernels: kernels.length };
        native = about;
      }
    } catch (error) {
      list.push({ name, works: false, detail: (error as Error).message });
    }
  }
  const auto = list.find((b) => b.works && b.name !== 'cuda')?.name ?? 'none';
  return { list, auto, ...(native ? { native } : {}), ...(cuda ? { cuda } : {}) };
}

/** How the addon that is there was built, from the note the build left. */
function builtWith(): string | undefined {
  const path = new URL('build/lowrank.json', PACKAGE_ROOT);
  if (!existsSync(path)) return undefined;
  const { builder } = JSON.parse(readFileSync(path, 'utf8')) as { builder?: string };
  return builder;
}

async function buildTools() {
  try {
    const url = new URL('scripts/lib/toolchain.mjs', PACKAGE_ROOT).href;
    const toolchain = (await import(url)) as Toolchain;
    const tools = toolchain.findTools();
    const missing = {
      'cmake-js': toolchain.missingFor('cmake', tools),
      'node-gyp': toolchain.missingFor('gyp', tools),
    };
    return { tools, missing };
  } catch (error) {
    return { tools: {}, missing: {}, problem: (error as Error).message };
  }
}

async function runDoctor(flags: CommonOptions): Promise<void> {
  const machine = {
    lowrank: packageVersion(),
    node: process.version,
    platform: `${platform()} ${release()} ${arch()}`,
    processor: `${cpus()[0]?.model ?? 'unknown'}, ${availableParallelism()} threads`,
    memory: totalmem(),
  };
  const { list, auto, native, cuda } = await backends();
  const build = await buildTools();
  const built = builtWith();
  if (flags.json) {
    const report = { ...machine, auto, backends: list, native, cuda, built, build };
    printJson({ type: 'done', ...report });
    return;
  }
  const line = (label: string, text: string) => say(`${label.padEnd(16)}${text}`);
  line('lowrank', machine.lowrank);
  line('node', machine.node);
  line('platform', machine.platform);
  line('processor', machine.processor);
  line('memory', bytesText(machine.memory));
  say('\nBackends');
  for (const { name, works, detail } of list) line(`  ${name}`, works ? detail : `no: ${detail}`);
  line('  auto', auto);
  if (native) line('  sets', native.isas.join(', '));
  if (built) line('  built with', built === 'cmake' ? 'cmake-js' : 'node-gyp');
  if (cuda) {
    say('\nGPU');
    const bytes = ['memory', 'free'];
    for (const [name, fact] of Object.entries(cuda)) {
      line(`  ${name}`, bytes.includes(name) ? bytesText(Number(fact)) : fact);
    }
  }
  say('\nTo build with');
  if ('problem' in build) line('  nothing', build.problem ?? '');
  for (const [key, label] of Object.entries(TOOLS)) {
    const tool = (build.tools as Toolbox)[key];
    line(`  ${label}`, tool ? tool.version : '–');
  }
  for (const [builder, missing] of Object.entries(build.missing)) {
    line(`  ${builder}`, missing.length === 0 ? 'can be used' : `lacks ${missing.join(', ')}`);
  }
}
