import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, sep } from 'node:path';
import { withoutComments } from './scan.js';
import type { Report } from './source.js';

/** For every folder of native/ ('' is native/ itself, where addon.cc is), what it may include. */
const MAY_INCLUDE: Readonly<Record<string, readonly string[]>> = {
  common: [],
  cpu: ['common'],
  cuda: ['common'],
  '': ['common', 'cpu', 'cuda'],
};

function folderOf(file: string): string {
  const parts = file.split('/');
  return parts.length > 2 ? parts[1]! : '';
}

/** Checks the includes of every C++ and CUDA file under `root/native`. */
export function checkNative(root: string): Report {
  const native = join(root, 'native');
  if (!existsSync(native)) return { files: 0, problems: [] };
  const files = readdirSync(native, { recursive: true, encoding: 'utf8' })
    .map((path) => `native/${path.split(sep).join('/')}`)
    .filter((path) => /\.(cc|h|cu|cuh)$/.test(path))
    .sort();
  const known = new Set(files);
  const problems: string[] = [];
  for (const file of files) {
    const allowed = MAY_INCLUDE[folderOf(file)];
    if (allowed === undefined) {
      problems.push(`${file}: the folder '${folderOf(file)}' has no place in the include order`);
    }
    const lines = withoutComments(readFileSync(join(root, file), 'utf8')).split('\n');
    lines.forEach((line, i) => {
      const name = /^\s*#\s*include\s*[<"]([^>"]+)[>"]/.exec(line)?.[1];
      if (name === undefined) return;
      const place = `${file}:${i + 1}`;
      if (/^(napi\.h|napi-inl\.h|node_api\.h|js_native_api\.h|node\.h)$/.test(name)) {
        if (file !== 'native/addon.cc')
          problems.push(`${place}: only addon.cc may include ${name}`);
        return;
      }
      const candidates = [join(dirname(file), name), join('native', name)];
      const to = candidates.map((p) => normalize(p).split(sep).join('/')).find((p) => known.has(p));
      if (to === undefined || allowed === undefined) return;
      const folder = folderOf(to);
      if (folder === folderOf(file) || allowed.includes(folder)) return;
      problems.push(
        `${place}: ${folderOf(file)}/ may not include ${folder === '' ? to : `${folder}/`}`,
      );
    });
  }
  return { files: files.length, problems };
}
