import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);

/** Loads a package at its first use and not with ours, as a run that never needs it starts sooner. */
export function lazyPackage<T>(name: string): () => T {
  let loaded: T | undefined;
  return () => {
    loaded ??= require(name) as T;
    return loaded;
  };
}
