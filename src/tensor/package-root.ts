import { existsSync } from 'node:fs';

/** The nearest folder above a file that holds a package.json. */
function rootAbove(file: string): URL {
  let at = new URL('.', file);
  for (;;) {
    if (existsSync(new URL('package.json', at))) return at;
    const above = new URL('..', at);
    if (above.href === at.href) return new URL('.', file);
    at = above;
  }
}

/** The root of this package, with a slash at its end: sources, builds and assets lie in it. */
export const PACKAGE_ROOT: URL = rootAbove(import.meta.url);
