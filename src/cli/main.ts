#!/usr/bin/env node
import * as nodeModule from 'node:module';

// Node 22.1 and later keep what V8 compiled for the next start; what is imported below profits.
const { enableCompileCache } = nodeModule as { readonly enableCompileCache?: () => unknown };
enableCompileCache?.();

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // The reader has had enough (`| head`): that is no failure.
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});
process.stderr.on('error', (error: NodeJS.ErrnoException) => {
  // Nobody reads the messages any more: the work itself goes on.
  if (error.code !== 'EPIPE') throw error;
});
const { runCli } = await import('./program.js');
process.exitCode = await runCli(process.argv.slice(2));
