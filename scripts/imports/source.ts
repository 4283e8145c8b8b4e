import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { dirname, join, normalize, sep } from 'node:path';
import { scanImports } from './scan.js';

const ENGINE = ['tensor', 'autograd', 'ops', 'nn'];
const LIBRARY = [...ENGINE, 'linalg', 'io', 'lora', 'optim', 'models'];

/** For every folder of src/, the other folders it may import. */
export const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  tensor: [],
  io: ['tensor'],
  autograd: ['tensor'],
  ops: ['tensor', 'autograd'],
  nn: ['tensor', 'autograd', 'ops'],
  linalg: ['tensor', 'autograd', 'ops'],
  lora: [...ENGINE, 'linalg', 'io'],
  optim: [...ENGINE, 'linalg'],
  models: [...ENGINE, 'linalg', 'io', 'lora', 'optim'],
  train: LIBRARY,
  reproduce: [...LIBRARY, 'train'],
  cli: [...LIBRARY, 'train', 'reproduce'],
};

/** What a check found out. */
export interface Report {
  files: number;
  problems: string[];
}

interface Edge {
  from: string;
  to: string;
  typeOnly: boolean;
  line: number;
}

/** The folder of src/ that a file belongs to: `ops` of `src/ops/add.ts`, '' of `src/index.ts`. */
function layerOf(file: string): string {
  const parts = file.split('/');
  return parts.length > 2 ? parts[1]! : '';
}

function resolveSpecifier(from: string, specifier: string): string {
  const path = normalize(join(dirname(from), specifier))
    .split(sep)
    .join('/');
  return path.replace(/\.js$/, '.ts');
}

function packageOf(specifier: string): string {
  const parts = specifier.split('/');
  return specifier.startsWith('@') ? parts.slice(0, 2).join('/') : parts[0]!;
}

function orderProblem({ from, to }: Edge): string | undefined {
  const [importer, imported] = [layerOf(from), layerOf(to)];
  if (from === 'src/index.ts') return undefined;
  if (to === 'src/index.ts') return 'nothing in src/ may import src/index.ts';
  if (importer === imported) return undefined;
  const allowed = MAY_IMPORT[importer];
  if (allowed === undefined || MAY_IMPORT[imported] === undefined || allowed.includes(imported)) {
    return undefined;
  }
  const list = allowed.length > 0 ? allowed.join(', ') : 'no other folder';
  return `${importer}/ may import ${list}; it imports ${imported}/`;
}

/** Cycles among files, each once, as the list of its files with the first repeated at the end. */
export function findCycles(edges: ReadonlyMap<string, readonly string[]>): string[][] {
  const cycles: string[][] = [];
  const done = new Set<string>();
  const path: string[] = [];
  const visit = (file: string): void => {
    const start = path.indexOf(file);
    if (start >= 0) {
      cycles.push([...path.slice(start), file]);
      return;
    }
    if (done.has(file)) return;
    path.push(file);
    for (const next of edges.get(file) ?? []) visit(next);
    path.pop();
    done.add(file);
  };
  for (const file of [...edges.keys()].sort()) visit(file);
  return cycles;
}

/** Checks every TypeScript file under `root/src`. */
export function checkSource(root: string): Report {
  const src = join(root, 'src');
  if (!existsSync(src)) return { files: 0, problems: [] };
  const files = readdirSync(src, { recursive: true, encoding: 'utf8' })
    .map((path) => `src/${path.split(sep).join('/')}`)
    .filter((path) => path.endsWith('.ts'))
    .sort();
  const known = new Set(files);
  const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const dependencies = new Set(Object.keys(manifest.dependencies ?? {}));
  const problems: string[] = [];
  const edges = new Map<string, string[]>();
  for (const from of files) {
    const layer = layerOf(from);
    if (from !== 'src/index.ts' && MAY_IMPORT[layer] === undefined) {
      problems.push(`${from}: the folder '${layer}' has no place in the import order`);
    }
    const targets: string[] = [];
    edges.set(from, targets);
    for (const found of scanImports(readFileSync(join(root, from), 'utf8'))) {
      const { specifier, typeOnly, line } = found;
      const place = `${from}:${line}`;
      if (!specifier.startsWith('.')) {
        const name = packageOf(specifier);
        if (!isBuiltin(specifier) && !dependencies.has(name) && !typeOnly) {
          problems.push(`${place}: '${name}' is not among the dependencies of package.json`);
        }
        continue;
      }
      const to = resolveSpecifier(from, specifier);
      if (to.endsWith('.json')) continue;
      if (!known.has(to)) {
        problems.push(`${place}: '${specifier}' is no file under src/`);
        continue;
      }
      const order = orderProblem({ from, to, typeOnly, line });
      if (order !== undefined) problems.push(`${place}: ${order}`);
      if (!typeOnly) targets.push(to);
    }
  }
  for (const cycle of findCycles(edges)) problems.push(`cycle: ${cycle.join(' → ')}`);
  return { files: files.length, problems };
}
