import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { delimiter, dirname, join } from 'node:path';

/**
 * @typedef {{ path: string, version: string }} Tool
 * @typedef {{ cxx?: Tool, cmake?: Tool, make?: Tool, ninja?: Tool, python?: Tool, nvcc?: Tool }} Tools
 * @typedef {'cmake' | 'gyp' | 'none'} Builder
 * @typedef {{ builder: Builder, why: string }} Choice
 */

const EXTENSIONS = process.platform === 'win32' ? ['.exe', '.cmd', '.bat', ''] : [''];

/**
 * The first program of these names on PATH that answers a question about its version.
 * @param {readonly string[]} names
 * @param {string} [question]
 * @returns {Tool | undefined}
 */
export function findTool(names, question = '--version') {
  for (const name of names) {
    for (const folder of (process.env.PATH ?? '').split(delimiter)) {
      for (const extension of EXTENSIONS) {
        const path = /[\\/]/.test(name) ? name : join(folder, name + extension);
        if (folder === '' || !existsSync(path)) continue;
        const answer = spawnSync(path, [question], { encoding: 'utf8', timeout: 20_000 });
        if (answer.status !== 0) continue;
        const lines = `${answer.stdout}${answer.stderr}`.split('\n').map((line) => line.trim());
        const line = lines.find((l) => /\d+\.\d+/.test(l)) ?? lines[0] ?? '';
        return { path, version: line };
      }
    }
  }
  return undefined;
}

/**
 * CUDA's compiler: the one that CUDACXX names, on PATH, or where CUDA's packages put it.
 * @returns {Tool | undefined}
 */
export function findNvcc() {
  const wanted = process.env.CUDACXX;
  return findTool(wanted ? [wanted] : ['nvcc', '/usr/local/cuda/bin/nvcc', '/opt/cuda/bin/nvcc']);
}

/** @returns {Tools} what this machine has to build with */
export function findTools() {
  /** @type {Tools} */
  const tools = {};
  const windows = process.platform === 'win32';
  const wanted = process.env.CXX;
  const compilers = wanted ? [wanted] : ['c++', 'g++', 'clang++', ...(windows ? ['clang-cl'] : [])];
  /** @type {[keyof Tools, string[]][]} */
  const search = [
    ['cxx', compilers],
    ['cmake', ['cmake']],
    ['make', ['make', 'gmake']],
    ['ninja', ['ninja']],
    ['python', windows ? ['python3', 'python'] : ['python3']],
  ];
  for (const [key, names] of search) {
    const tool = findTool(names);
    if (tool) tools[key] = tool;
  }
  const nvcc = findNvcc();
  if (nvcc) tools.nvcc = nvcc;
  return tools;
}

/**
 * Whether a package can be found from this one.
 * @param {string} name
 */
function installed(name) {
  try {
    createRequire(import.meta.url).resolve(`${name}/package.json`);
    return true;
  } catch {
    return false;
  }
}

/**
 * The folder that holds include/node with Node's own headers, where they are on this machine:
 * beside this Node (its archives, nvm), or where npm's setting `nodedir` points.
 * @returns {string | undefined}
 */
export function findNodeHeaders() {
  const beside = dirname(dirname(process.execPath));
  for (const folder of [process.env.npm_config_nodedir, beside]) {
    if (folder && existsSync(join(folder, 'include/node/node_version.h'))) return folder;
  }
  return undefined;
}

/**
 * What is missing for a builder, in words; empty where nothing is.
 * @param {'cmake' | 'gyp'} builder
 * @param {Tools} tools
 * @param {(name: string) => boolean} [has] whether an npm package is installed
 * @param {string | undefined} [headers] where Node's headers are
 * @returns {string[]}
 */
export function missingFor(builder, tools, has = installed, headers = findNodeHeaders()) {
  const missing = [];
  if (!tools.cxx) missing.push('a C++ compiler (c++, g++ or clang++)');
  if (builder === 'cmake') {
    if (!tools.cmake) missing.push('CMake');
    if (!tools.make && !tools.ninja) missing.push('make or ninja');
    if (!has('cmake-js')) missing.push('the npm package cmake-js');
  } else {
    if (!tools.make) missing.push('make');
    if (!tools.python) missing.push('python3');
    if (!has('node-gyp')) missing.push('the npm package node-gyp');
    if (!headers) missing.push("Node's headers (include/node beside Node, or npm's nodedir)");
  }
  return missing;
}

/**
 * Picks the builder: cmake-js where CMake and a compiler are found, else node-gyp, else none.
 * @param {Tools} tools
 * @param {(builder: 'cmake' | 'gyp') => string[]} [missing]
 * @returns {Choice}
 */
export function chooseBuilder(tools, missing = (builder) => missingFor(builder, tools)) {
  const cmake = missing('cmake');
  if (cmake.length === 0) return { builder: 'cmake', why: 'CMake and a C++ compiler were found' };
  const gyp = missing('gyp');
  const noCmake = `for cmake-js ${cmake.join(' and ')} ${cmake.length > 1 ? 'are' : 'is'} missing`;
  if (gyp.length === 0) return { builder: 'gyp', why: noCmake };
  if (!tools.cxx)
    return { builder: 'none', why: 'no C++ compiler (c++, g++ or clang++) was found' };
  const noGyp = `for node-gyp ${gyp.join(' and ')} ${gyp.length > 1 ? 'are' : 'is'} missing`;
  return { builder: 'none', why: `${noCmake}, and ${noGyp}` };
}
