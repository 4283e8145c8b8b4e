import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { failure } from '../../tensor/errors.js';
import type { Adapter } from './adapter.js';
import { readAdapter } from './files.js';
import { type LoralibOptions, readLoralib } from './loralib.js';
import { MLX_WEIGHTS, readMlx } from './mlx.js';

/** File layouts of adapters. */
export const LAYOUTS = ['peft', 'mlx', 'loralib'] as const;
export type Layout = (typeof LAYOUTS)[number];

/** The layout of a path: a PEFT or mlx-lm directory, or a file of loralib's names. */
export function layoutOf(path: string): Layout {
  const stats = statSync(path, { throwIfNoEntry: false });
  if (stats?.isFile()) return 'loralib';
  if (existsSync(join(path, 'adapter_model.safetensors'))) return 'peft';
  if (existsSync(join(path, MLX_WEIGHTS))) return 'mlx';
  throw failure(
    `adapter ${path}`,
    `a folder with adapter_model.safetensors (PEFT) or ${MLX_WEIGHTS} (mlx-lm), or a ` +
      'safetensors file of loralib',
    stats ? 'a folder with neither' : 'nothing',
  );
}

/** Reads an adapter of any layout. */
export function readAnyAdapter(
  path: string,
  layout: Layout = layoutOf(path),
  options: LoralibOptions = {},
): Adapter {
  if (layout === 'peft') return readAdapter(path);
  return layout === 'mlx' ? readMlx(path) : readLoralib(path, options);
}
